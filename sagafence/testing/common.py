"""What several cases have in common."""

from sagafence.testing.description import Step
from sagafence.testing.faults import Fault
from sagafence.testing.trial import Trial


def begin_unwind(trial: Trial) -> Fault:
    """Have the last step that can be undone fail, with its effect, so that every undo has work to do."""
    plan = trial.case.plan
    last = plan.last_to_undo()
    fault = trial.faults.fail(last.do, "after", times=None, is_final=True)
    fault.once = [trial.faults.worked(other.do) for other in plan.beside(last)]
    return fault


def require_fired(trial: Trial, fault: Fault, times: int | None = None) -> None:
    """Check that a fault was injected: so often, or at all."""
    trial.require(
        fault.injections == times if times else fault.injections > 0,
        "A case proves nothing unless its fault is injected. Is another worker on the task queue? Are the names right?",
        f"{fault.injections} injections, {times or 1} wanted",
    )


def require_undo_without_do(trial: Trial) -> None:
    """Check that a step that never succeeded was undone."""
    undo = step_of(trial).undo
    trial.require(
        trial.faults.attempts[undo] > 0,
        "A step that fails is undone too: it may have taken effect.",
        f"{undo} was not called",
    )


def step_of(trial: Trial) -> Step:
    """Return the step that the case is about."""
    assert trial.case.step is not None
    return trial.case.step
