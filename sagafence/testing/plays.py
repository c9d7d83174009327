"""How each kind of case runs: what is set up, what is waited for, and what must not happen then."""

import asyncio
from collections.abc import Awaitable, Callable

from sagafence.testing.cases import ONE_ATTEMPT, TIMES, Case, Ending, Kind
from sagafence.testing.commits import RUNS as COMMITS
from sagafence.testing.common import begin_unwind, require_fired, require_undo_without_do, step_of
from sagafence.testing.description import SagaUnderTest
from sagafence.testing.faults import Fault, Gate, Moment
from sagafence.testing.history import last_failure
from sagafence.testing.plan import Bounds
from sagafence.testing.struck import RUNS as STRUCK
from sagafence.testing.trial import Trial
from sagafence.testing.verdict import BrokenPromise

_A_WHILE_SECONDS = 1.0
"""How long the saga gets to do what it must not do."""


async def check(case: Case, saga: SagaUnderTest) -> None:
    """Run one saga through one case.

    Raises:
        BrokenPromise: the saga did what a saga must not do, or a fault of the case was never injected.
    """
    handle = await saga.start()
    before = await saga.probe(handle.id)
    trial = Trial(case, saga, handle, before)
    if case.is_past_local:
        trial.faults.pass_local(step_of(trial).do)
    try:
        await _RUNS[case.kind](trial)
    except BrokenPromise as promise:
        raise BrokenPromise(f"{promise}\n  last failure   {await last_failure(handle)}") from promise.__cause__
    finally:
        if saga.provider:
            saga.provider.clear()


async def _plain(trial: Trial) -> None:
    async with trial.working():
        await trial.ended()


async def _cancel_at_the_start(trial: Trial) -> None:
    await trial.handle.cancel()
    async with trial.working():
        await trial.ended()


# Steps ---------------------------------------------------------------------------------------------------


async def _do_fails_then_works(trial: Trial) -> None:
    await _failing(trial, trial.faults.fail(step_of(trial).do, "before", times=TIMES), times=TIMES)


async def _do_refused(trial: Trial) -> None:
    await _failing(trial, trial.faults.fail(step_of(trial).do, "before", times=1, is_final=True), times=1)


async def _do_gives_up(trial: Trial) -> None:
    step = step_of(trial)
    trial.faults.limit(step.do, attempts=TIMES)
    fault = trial.faults.fail(step.do, "before", times=None)
    async with trial.working():
        await trial.ended()
    passed = trial.faults.local_attempts[step.do] if trial.case.is_past_local else 0
    require_fired(trial, fault, trial.faults.attempts[step.do] - passed)
    require_undo_without_do(trial)


async def _do_report_lost(trial: Trial) -> None:
    await _report_lost(trial, is_final=False)


async def _do_report_lost_for_good(trial: Trial) -> None:
    await _report_lost(trial, is_final=True)


async def _do_late(trial: Trial) -> None:
    step = step_of(trial)
    trial.faults.limit(step.do, start_to_close=ONE_ATTEMPT, attempts=1)
    late = trial.faults.hold(step.do, "before", is_deaf=True)
    if trial.case.is_local:  # the ordinary attempt that follows would work
        trial.faults.fail(step.do, "before", times=None)
    async with trial.working():
        await trial.held(late)
        await trial.ended()
        require_undo_without_do(trial)
        refusal = await trial.let_go(late)
    await trial.is_all_or_nothing(Ending.UNDONE)
    trial.require(
        refusal is not None,
        "An attempt that comes after its undo is refused.",
        "it succeeded",
    )


async def _do_late_after_a_repeat(trial: Trial) -> None:
    await _late_after_a_repeat(trial, step_of(trial).do)


async def _do_stuck(trial: Trial) -> None:
    fault = trial.faults.fail(step_of(trial).do, "before", times=None, is_final=True)
    async with trial.working():
        await _stuck(trial, fault, "A saga does not end while a step after its point of no return is not done.")


# Steps side by side --------------------------------------------------------------------------------------


async def _beside_a_refusal_before(trial: Trial) -> None:
    await _beside_a_refusal(trial, trial.faults.hold(step_of(trial).do, "before"))


async def _beside_a_refusal_after(trial: Trial) -> None:
    await _beside_a_refusal(trial, trial.faults.hold(step_of(trial).do, "after"), trial.case.effect_so_far)


async def _beside_a_refusal(trial: Trial, gate: Gate, effect: Bounds | None = None) -> None:
    step = step_of(trial)
    refused = trial.case.plan.beside(step)[0]
    fault = trial.faults.fail(refused.do, "before", times=None, is_final=True)
    fault.once = (gate.has_held,)
    async with trial.working():
        await trial.held(gate, effect=effect)
        await trial.happens(fault.has_injected)
        # A saga that waits for its steps does nothing now. One that does not undoes them meanwhile, or ends.
        await trial.until(trial.faults.worked(step.undo), at_most_seconds=_A_WHILE_SECONDS)
        gate.open()
        await trial.ended()


# Cancels -------------------------------------------------------------------------------------------------


async def _cancel_before_effect(trial: Trial) -> None:
    await _cancelled(trial, trial.faults.hold(step_of(trial).do, "before"))


async def _cancel_after_effect(trial: Trial) -> None:
    await _cancelled(trial, trial.faults.hold(step_of(trial).do, "after"), trial.case.effect_so_far)


async def _cancelled(trial: Trial, gate: Gate, effect: Bounds | None = None) -> None:
    async with trial.working():
        await trial.held(gate, effect=effect)
        is_taken = await _cancel_at(trial, gate)
        can_refuse = trial.case.is_local or not trial.case.plan.can_be_undone(step_of(trial))
        trial.require(is_taken or can_refuse, "A saga that is under way takes a cancel.", "it refused")
        gate.open()
        await trial.ended()


async def _cancel_beside_report(trial: Trial) -> None:
    gate = trial.faults.hold(step_of(trial).do, "after")
    async with trial.working():
        await trial.held(gate, effect=trial.case.effect_so_far)
        cancelling = asyncio.create_task(trial.taken(trial.saga.cancel(trial.handle)))
        gate.open()
        await cancelling
        await trial.ended()


async def _cancel_at(trial: Trial, gate: Gate) -> bool:
    """Cancel while an attempt is held; a workflow hears of it when its local attempts are over, and not before."""
    asking = asyncio.ensure_future(trial.taken(trial.saga.cancel(trial.handle)))
    await asyncio.wait([asking], timeout=_A_WHILE_SECONDS if trial.faults.is_held_locally else None)
    gate.open()
    return await asking


# Undos ---------------------------------------------------------------------------------------------------


async def _undo_fails_then_works(trial: Trial) -> None:
    unwinding = begin_unwind(trial)
    fault = trial.faults.fail(step_of(trial).undo, "before", times=TIMES)
    await _failing(trial, fault, unwinding, times=TIMES)


async def _undo_repeated(trial: Trial) -> None:
    unwinding = begin_unwind(trial)
    await _failing(trial, trial.faults.fail(step_of(trial).undo, "after", times=1), unwinding, times=1)


async def _undo_late(trial: Trial) -> None:
    unwinding = begin_unwind(trial)
    await _late_after_a_repeat(trial, step_of(trial).undo)
    require_fired(trial, unwinding)


async def _undo_stuck(trial: Trial) -> None:
    unwinding = begin_unwind(trial)
    fault = trial.faults.fail(step_of(trial).undo, "before", times=None, is_final=True)
    async with trial.working():
        await _stuck(trial, fault, "A saga does not end while one of its undos is undone.")
    require_fired(trial, unwinding)


async def _stuck(trial: Trial, fault: Fault, promise: str) -> None:
    await trial.happens(fault.has_injected)
    await trial.retried()
    found = f"it ended, with {step_of(trial).name} left as it was"
    trial.require(await trial.is_running(), promise, found)
    fault.stop()
    await trial.retried()
    await trial.ended()


async def _undo_cancelled_before(trial: Trial) -> None:
    await _undo_cancelled(trial, "before")


async def _undo_cancelled_after(trial: Trial) -> None:
    await _undo_cancelled(trial, "after")


async def _undo_cancelled(trial: Trial, moment: Moment) -> None:
    unwinding = begin_unwind(trial)
    gate = trial.faults.hold(step_of(trial).undo, moment)
    async with trial.working():
        await trial.held(gate)
        await _cancel_at(trial, gate)  # it may refuse: it is being undone already
        await trial.ended()
    require_fired(trial, unwinding)


# Workers -------------------------------------------------------------------------------------------------


async def _do_restarted_before(trial: Trial) -> None:
    await _restarted(trial, trial.faults.hold(step_of(trial).do, "before"))


async def _do_restarted_after(trial: Trial) -> None:
    await _restarted(trial, trial.faults.hold(step_of(trial).do, "after"), trial.case.effect_so_far)


async def _undo_restarted_before(trial: Trial) -> None:
    unwinding = begin_unwind(trial)
    await _restarted(trial, trial.faults.hold(step_of(trial).undo, "before"))
    require_fired(trial, unwinding)


async def _undo_restarted_after(trial: Trial) -> None:
    unwinding = begin_unwind(trial)
    await _restarted(trial, trial.faults.hold(step_of(trial).undo, "after"))
    require_fired(trial, unwinding)


async def _restarted(trial: Trial, gate: Gate, effect: Bounds | None = None) -> None:
    async with trial.working():
        await trial.held(gate, effect=effect)
    async with trial.working():
        await trial.ended()


# What they have in common --------------------------------------------------------------------------------


async def _failing(trial: Trial, *faults: Fault, times: int) -> None:
    """Run to the end with faults set up; the first is the case's own."""
    async with trial.working():
        await trial.ended()
    require_fired(trial, faults[0], times)
    for other in faults[1:]:
        require_fired(trial, other)


async def _report_lost(trial: Trial, *, is_final: bool) -> None:
    do = step_of(trial).do
    gate, fault = trial.faults.hold(do, "after"), trial.faults.fail(do, "after", times=1, is_final=is_final)
    async with trial.working():
        await trial.held(gate, effect=trial.case.effect_so_far)
        gate.open()
        await trial.ended()
    require_fired(trial, fault)


async def _late_after_a_repeat(trial: Trial, name: str) -> None:
    trial.faults.limit(name, start_to_close=ONE_ATTEMPT)
    late = trial.faults.hold(name, "before", is_deaf=True)
    async with trial.working():
        await trial.held(late)
        await trial.ended()
        await trial.let_go(late)
    await trial.is_all_or_nothing(trial.case.ending)


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
    Kind.DO_STUCK: _do_stuck,
    Kind.BESIDE_A_REFUSAL_BEFORE: _beside_a_refusal_before,
    Kind.BESIDE_A_REFUSAL_AFTER: _beside_a_refusal_after,
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
    **COMMITS,
    **STRUCK,
}
