"""How each kind of case runs: what is set up, what is waited for, and what must not happen then."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from sagafence.testing.cases import TIMES, Case, Ending, Kind
from sagafence.testing.description import Counts, SagaUnderTest, Step
from sagafence.testing.faults import Fault, Gate, Moment
from sagafence.testing.trial import Trial

_ONE_ATTEMPT = timedelta(seconds=1)
"""The timeout of an attempt that hangs; long enough for one that does not."""


async def check(case: Case, saga: SagaUnderTest) -> None:
    """Run one saga through one case.

    Raises:
        BrokenPromise: the saga did what a saga must not do, or a fault of the case was never injected.
    """
    handle = await saga.start()
    before = await saga.probe(handle.id)
    await _RUNS[case.kind](Trial(case, saga, handle, before))


async def _plain(trial: Trial) -> None:
    async with trial.working():
        await trial.ended()


async def _cancel_at_the_start(trial: Trial) -> None:
    await trial.handle.cancel()
    async with trial.working():
        await trial.ended()


# Steps ---------------------------------------------------------------------------------------------------


async def _do_fails_then_works(trial: Trial) -> None:
    await _failing(trial, trial.faults.fail(_step(trial).do, "before", times=TIMES), times=TIMES)


async def _do_refused(trial: Trial) -> None:
    await _failing(trial, trial.faults.fail(_step(trial).do, "before", times=1, is_final=True), times=1)


async def _do_gives_up(trial: Trial) -> None:
    step = _step(trial)
    trial.faults.limit(step.do, attempts=TIMES)
    await _failing(trial, trial.faults.fail(step.do, "before", times=None), times=TIMES)
    _require_undo_without_do(trial)


async def _do_report_lost(trial: Trial) -> None:
    await _report_lost(trial, is_final=False)


async def _do_report_lost_for_good(trial: Trial) -> None:
    await _report_lost(trial, is_final=True)


async def _do_late(trial: Trial) -> None:
    step = _step(trial)
    trial.faults.limit(step.do, start_to_close=_ONE_ATTEMPT, attempts=1)
    late = trial.faults.hold(step.do, "before", is_deaf=True)
    async with trial.working():
        await trial.held(late)
        await trial.ended()
        _require_undo_without_do(trial)
        refusal = await trial.let_go(late)
    await trial.is_all_or_nothing(Ending.UNDONE)
    trial.require(
        refusal is not None,
        "An attempt that comes after its undo is refused.",
        "it succeeded",
    )


async def _do_late_after_a_repeat(trial: Trial) -> None:
    await _late_after_a_repeat(trial, _step(trial).do)


# Cancels -------------------------------------------------------------------------------------------------


async def _cancel_before_effect(trial: Trial) -> None:
    await _cancelled(trial, trial.faults.hold(_step(trial).do, "before"))


async def _cancel_after_effect(trial: Trial) -> None:
    await _cancelled(trial, trial.faults.hold(_step(trial).do, "after"), trial.case.effect_so_far)


async def _cancelled(trial: Trial, gate: Gate, effect: Counts | None = None) -> None:
    async with trial.working():
        await trial.held(gate, effect=effect)
        is_taken = await trial.taken(trial.saga.cancel(trial.handle))
        trial.require(is_taken, "A saga that is under way takes a cancel.", "it refused")
        gate.open()
        await trial.ended()


async def _cancel_beside_report(trial: Trial) -> None:
    gate = trial.faults.hold(_step(trial).do, "after")
    async with trial.working():
        await trial.held(gate, effect=trial.case.effect_so_far)
        cancelling = asyncio.create_task(trial.taken(trial.saga.cancel(trial.handle)))
        gate.open()
        await cancelling
        await trial.ended()


# Undos ---------------------------------------------------------------------------------------------------


async def _undo_fails_then_works(trial: Trial) -> None:
    unwinding = _begin_unwind(trial)
    fault = trial.faults.fail(_step(trial).undo, "before", times=TIMES)
    await _failing(trial, fault, unwinding, times=TIMES)


async def _undo_repeated(trial: Trial) -> None:
    unwinding = _begin_unwind(trial)
    await _failing(trial, trial.faults.fail(_step(trial).undo, "after", times=1), unwinding, times=1)


async def _undo_late(trial: Trial) -> None:
    unwinding = _begin_unwind(trial)
    await _late_after_a_repeat(trial, _step(trial).undo)
    _require_fired(trial, unwinding)


async def _undo_stuck(trial: Trial) -> None:
    unwinding = _begin_unwind(trial)
    fault = trial.faults.fail(_step(trial).undo, "before", times=None, is_final=True)
    async with trial.working():
        await trial.injected(fault)
        await trial.retried()
        trial.require(
            await trial.is_running(),
            "A saga does not end while one of its undos is undone.",
            f"it ended, with {trial.case.step and trial.case.step.name} left as it was",
        )
        fault.stop()
        await trial.retried()
        await trial.ended()
    _require_fired(trial, unwinding)


async def _undo_cancelled_before(trial: Trial) -> None:
    await _undo_cancelled(trial, "before")


async def _undo_cancelled_after(trial: Trial) -> None:
    await _undo_cancelled(trial, "after")


async def _undo_cancelled(trial: Trial, moment: Moment) -> None:
    unwinding = _begin_unwind(trial)
    gate = trial.faults.hold(_step(trial).undo, moment)
    async with trial.working():
        await trial.held(gate)
        await trial.taken(trial.saga.cancel(trial.handle))  # it may refuse: it is being undone already
        gate.open()
        await trial.ended()
    _require_fired(trial, unwinding)


# Workers -------------------------------------------------------------------------------------------------


async def _do_restarted_before(trial: Trial) -> None:
    await _restarted(trial, trial.faults.hold(_step(trial).do, "before"))


async def _do_restarted_after(trial: Trial) -> None:
    await _restarted(trial, trial.faults.hold(_step(trial).do, "after"), trial.case.effect_so_far)


async def _undo_restarted_before(trial: Trial) -> None:
    unwinding = _begin_unwind(trial)
    await _restarted(trial, trial.faults.hold(_step(trial).undo, "before"))
    _require_fired(trial, unwinding)


async def _undo_restarted_after(trial: Trial) -> None:
    unwinding = _begin_unwind(trial)
    await _restarted(trial, trial.faults.hold(_step(trial).undo, "after"))
    _require_fired(trial, unwinding)


async def _restarted(trial: Trial, gate: Gate, effect: Counts | None = None) -> None:
    async with trial.working():
        await trial.held(gate, effect=effect)
    async with trial.working():
        await trial.ended()


# What they have in common --------------------------------------------------------------------------------


async def _failing(trial: Trial, *faults: Fault, times: int) -> None:
    """Run to the end with faults set up; the first is the case's own."""
    async with trial.working():
        await trial.ended()
    _require_fired(trial, faults[0], times)
    for other in faults[1:]:
        _require_fired(trial, other)


async def _report_lost(trial: Trial, *, is_final: bool) -> None:
    do = _step(trial).do
    gate, fault = trial.faults.hold(do, "after"), trial.faults.fail(do, "after", times=1, is_final=is_final)
    async with trial.working():
        await trial.held(gate, effect=trial.case.effect_so_far)
        gate.open()
        await trial.ended()
    _require_fired(trial, fault)


async def _late_after_a_repeat(trial: Trial, name: str) -> None:
    trial.faults.limit(name, start_to_close=_ONE_ATTEMPT)
    late = trial.faults.hold(name, "before", is_deaf=True)
    async with trial.working():
        await trial.held(late)
        await trial.ended()
        await trial.let_go(late)
    await trial.is_all_or_nothing(trial.case.ending)


def _begin_unwind(trial: Trial) -> Fault:
    """Have the last step fail, with its effect where it can be undone, so that every undo has work to do."""
    last = trial.case.steps[-1]
    return trial.faults.fail(last.do, "before" if last.is_irrevocable else "after", times=1, is_final=True)


def _require_fired(trial: Trial, fault: Fault, times: int = 1) -> None:
    trial.require(
        fault.injections == times,
        "A case proves nothing unless its fault is injected. Is another worker on the task queue? Are the names right?",
        f"{fault.injections} injections, {times} wanted",
    )


def _require_undo_without_do(trial: Trial) -> None:
    undo = _step(trial).undo
    trial.require(
        trial.faults.attempts[undo] > 0,
        "A step that fails is undone too: it may have taken effect.",
        f"{undo} was not called",
    )


def _step(trial: Trial) -> Step:
    assert trial.case.step is not None
    return trial.case.step


_RUNS: dict[Kind, Callable[[Trial], Awaitable[None]]] = {
    Kind.PLAIN: _plain,
    Kind.CANCEL_AT_THE_START: _cancel_at_the_start,
    Kind.DO_FAILS_THEN_WORKS: _do_fails_then_works,
    Kind.DO_REFUSED: _do_refused,
    Kind.DO_GIVES_UP: _do_gives_up,
    Kind.DO_REPORT_LOST: _do_report_lost,
    Kind.DO_REPORT_LOST_FOR_GOOD: _do_report_lost_for_good,
    Kind.DO_LATE: _do_late,
    Kind.DO_LATE_AFTER_A_REPEAT: _do_late_after_a_repeat,
    Kind.CANCEL_BEFORE_EFFECT: _cancel_before_effect,
    Kind.CANCEL_AFTER_EFFECT: _cancel_after_effect,
    Kind.CANCEL_BESIDE_REPORT: _cancel_beside_report,
    Kind.UNDO_FAILS_THEN_WORKS: _undo_fails_then_works,
    Kind.UNDO_REPEATED: _undo_repeated,
    Kind.UNDO_LATE: _undo_late,
    Kind.UNDO_STUCK: _undo_stuck,
    Kind.UNDO_CANCELLED_BEFORE: _undo_cancelled_before,
    Kind.UNDO_CANCELLED_AFTER: _undo_cancelled_after,
    Kind.DO_RESTARTED_BEFORE: _do_restarted_before,
    Kind.DO_RESTARTED_AFTER: _do_restarted_after,
    Kind.UNDO_RESTARTED_BEFORE: _undo_restarted_before,
    Kind.UNDO_RESTARTED_AFTER: _undo_restarted_after,
}
