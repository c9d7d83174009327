"""How the cases at the provider's boundary run."""

from collections.abc import Awaitable, Callable
from typing import Any

from sagafence.testing.cases import ONE_ATTEMPT, TIMES, Kind
from sagafence.testing.common import begin_unwind, step_of
from sagafence.testing.provider import ProviderStrikes, Strike, Struck
from sagafence.testing.trial import Trial

Run = Callable[[Trial], Awaitable[None]]


def _passing(strike: Strike, *, times: int = 1, in_undo: bool = False) -> Run:
    """Strike at the requests of the step, or of its undo, which may then work."""

    async def run(trial: Trial) -> None:
        step = step_of(trial)
        name, calls = (step.undo, step.undo_calls) if in_undo else (step.do, step.calls)
        if in_undo:
            begin_unwind(trial)
        struck = _provider(trial).strike(strike, match=calls, times=times)
        if strike is Strike.ACT_THEN_SILENCE:
            trial.faults.limit(name, start_to_close=ONE_ATTEMPT)
        async with trial.working():
            await _ended(trial, struck)
        _require_hits(trial, struck, calls)

    return run


def _for_good(strike: Strike) -> Run:
    """Strike until the step has given up; its undo then has a healthy provider."""

    async def run(trial: Trial) -> None:
        step = step_of(trial)
        is_slow = strike is not Strike.ACT_THEN_500
        trial.faults.limit(step.do, attempts=1 if is_slow else TIMES, start_to_close=ONE_ATTEMPT if is_slow else None)
        struck = _provider(trial).strike(
            strike,
            match=step.calls,
            times=1 if is_slow else None,
            unless=lambda: trial.faults.attempts[step.undo] > 0,
        )
        async with trial.working():
            await _ended(trial, struck)
        _require_hits(trial, struck, step.calls)

    return run


async def _ended(trial: Trial, struck: Struck) -> None:
    """Wait for the end; then let go of what is held up, and check the world again."""
    ending = await trial.ended()
    if struck.is_holding:
        struck.let_go()
        await trial.in_time(struck.has_ended.wait(), "A provider answers, late as it may be.")
        await trial.quiet()
        await trial.is_all_or_nothing(ending)


def _require_hits(trial: Trial, struck: Struck, calls: str) -> None:
    trial.require(
        struck.hits > 0,
        "A case proves nothing unless its fault is injected. Do the step's requests pass through `ProviderStrikes`?",
        f"no request began with {calls}",
    )


def _provider(trial: Trial) -> ProviderStrikes[Any, Any]:
    if trial.saga.provider is None:
        raise ValueError(f"{trial.case} needs SagaUnderTest.provider: the strikes of the step's provider")
    return trial.saga.provider


RUNS: dict[Kind, Run] = {
    Kind.PROVIDER_ACTS_THEN_500: _passing(Strike.ACT_THEN_500),
    Kind.PROVIDER_ACTS_IN_SILENCE: _passing(Strike.ACT_THEN_SILENCE),
    Kind.PROVIDER_HEARS_TWICE: _passing(Strike.ACT_TWICE),
    Kind.PROVIDER_IS_BUSY: _passing(Strike.IN_PROGRESS, times=TIMES),
    Kind.PROVIDER_ACTS_THEN_500_FOR_GOOD: _for_good(Strike.ACT_THEN_500),
    Kind.PROVIDER_ANSWERS_LATE: _for_good(Strike.ACT_THEN_SILENCE),
    Kind.PROVIDER_ACTS_LATE: _for_good(Strike.SILENCE_THEN_ACT),
    Kind.UNDO_PROVIDER_ACTS_THEN_500: _passing(Strike.ACT_THEN_500, in_undo=True),
    Kind.UNDO_PROVIDER_ACTS_IN_SILENCE: _passing(Strike.ACT_THEN_SILENCE, in_undo=True),
    Kind.UNDO_PROVIDER_HEARS_TWICE: _passing(Strike.ACT_TWICE, in_undo=True),
}
