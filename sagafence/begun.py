"""A step that was begun, by the story or by an earlier run: the activities that do it, settle it and undo it."""

from dataclasses import dataclass, replace
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError

from sagafence.calls import EarlierStep, Settled, StepCall
from sagafence.compensation import find_cause
from sagafence.declare import Step
from sagafence.errors import IdempotencyConflict
from sagafence.policy import UNDO_POLICY, ActivityPolicy
from sagafence.undo import UndoResult


@dataclass(frozen=True)
class Begun:
    """A step as the story began it. A later round of an activity has another id."""

    name: str
    step: Step[Any, Any]
    given: Any
    call: StepCall

    async def do(self, rounds: int = 1, answer: Any = None) -> Any:
        """Do it; returns the result as JSON where no type is given."""
        return await self._call("", self.step.activity, answer, self.step.policy, rounds)

    async def undo(self, rounds: int) -> UndoResult:
        """Undo it. Where the row has another input, an earlier run of the saga has begun it, with that one."""
        try:
            return await self._undo(self.call, rounds)
        except FailureError as error:
            if not find_cause(error, IdempotencyConflict.__name__):
                raise
        return await self._undo(replace(self.call, as_stored=True), rounds)

    async def _undo(self, call: StepCall, rounds: int) -> UndoResult:
        step, activity_id = self.step, _id(f"undo-{self.name}", rounds)
        undone: UndoResult = await _execute(
            step.undo_activity, self.given, call, UndoResult, step.undo_policy, activity_id, step.summary(self.given)
        )
        return undone

    async def settle(self, rounds: int) -> Settled:
        """Find out what became of it."""
        step = self.step
        settled: Settled = await self._call("settle-", step.activities["settle"], Settled, step.undo_policy, rounds)
        return settled

    async def _call(self, what: str, activity: str, answer: Any, policy: ActivityPolicy, rounds: int) -> Any:
        activity_id, summary = _id(f"{what}{self.name}", rounds), self.step.summary(self.given)
        return await _execute(activity, self.given, self.call, answer, policy, activity_id, summary)


async def undo_earlier(earlier: EarlierStep, rounds: int) -> UndoResult:
    """Undo what an earlier run has begun.

    Raises:
        ApplicationError: no worker has the step any more.
    """
    if not earlier.undo_activity:
        raise ApplicationError(
            f"an earlier run has done {earlier.step}, and no worker has such a step: deploy one that has it",
            type="StepNotDeclared",
        )
    # How the step was declared is not known here.
    call, policy = StepCall(earlier.instance, as_stored=True), UNDO_POLICY
    activity_id = _id(f"undo-{earlier.step}", rounds)
    undone: UndoResult = await _execute(
        earlier.undo_activity, None, call, UndoResult, policy, activity_id, earlier.step
    )
    return undone


def _id(name: str, rounds: int) -> str:
    return name if rounds == 1 else f"{name}-{rounds}"


async def _execute(  # noqa: PLR0913, PLR0917 - what makes an activity
    activity: str, given: Any, call: StepCall, answer: Any, policy: ActivityPolicy, activity_id: str, summary: str
) -> Any:
    return await workflow.execute_activity(
        activity,
        args=[given, call],
        result_type=answer,
        activity_id=activity_id,
        summary=summary,
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        **policy.limits(),
    )
