"""A compensation stack that also has what must work in the end, and leaves the saga stuck until it does.

Where there is no way back: settling a pivot, the steps after it, and what the saga records of itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import FailureError

from sagafence.compensation import Compensation, StepState, describe, find_cause
from sagafence.errors import IdempotencyConflict, InvalidInput, SagaError, StepAlreadyCompensated
from sagafence.stack import CompensationStack, Phase
from sagafence.undo import UndoOutcome, UndoResult

T = TypeVar("T")

END_ACTIVITY = "sagafence.end"
_FINAL = (StepAlreadyCompensated, IdempotencyConflict, InvalidInput)


class InsistingStack(CompensationStack):
    """What a saga insists on: tried in rounds, as its undos are, with the same alarm after each that fails."""

    async def record_end(self, attempt: Callable[[int], Awaitable[None]]) -> None:
        """Have the end recorded, before which the saga has none; stuck after each round that fails.

        Raises:
            ActivityError: the saga has ended in another way, or is being undone.
        """
        phase, entry = self._phase, Compensation(END_ACTIVITY, is_settled, StepState.RUNNING)

        def is_cancelled() -> bool:
            return phase is Phase.FORWARD and self.cancellation.is_requested

        async def uncancelled(rounds: int) -> None:
            if is_cancelled():
                raise asyncio.CancelledError  # it came while this waited for another round
            try:
                await attempt(rounds)
            except FailureError as error:
                if is_cancelled():
                    raise asyncio.CancelledError from error  # an attempt that fails after a cancel is not tried again
                raise

        if phase is not Phase.FORWARD:
            self._phase = Phase.UNWINDING
        await self._insist(entry, uncancelled, _FINAL)
        if entry in self._stack:
            self._mark(entry, StepState.DONE, "")
        self._phase = phase

    async def _insist(
        self, entry: Compensation, attempt: Callable[[int], Awaitable[T]], final: Sequence[type[SagaError]] = ()
    ) -> T:
        """Try until it works or an operator has resolved it; stuck after each round that fails."""
        while True:
            entry.rounds += 1
            try:
                return await attempt(entry.rounds)
            except (FailureError, TimeoutError) as error:
                if any(find_cause(error, kind.__name__) for kind in final):
                    raise
                if entry not in self._stack:
                    self._stack.append(entry)
                self._mark(entry, StepState.STUCK, describe(error))
            finally:
                self.rounds += 1  # whoever asked for it waits for its end, however it ends
            await self._on_stuck([entry])
            await self._wait_for_another_round()
            self._retry_requested = False
            self._mark(entry, StepState.RUNNING, "")

    async def _uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work to its end within the story, whatever cancels arrive."""
        task = asyncio.create_task(work)
        await self._until(task.done)
        return task.result()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait within the story, where a cancel of either kind strikes the task that waits."""
        while not condition():
            try:
                await workflow.wait_condition(condition)
            except asyncio.CancelledError:
                continue  # an eviction comes again, and as another kind, at the next wait


async def is_settled() -> UndoResult:
    """Undo a pivot that has been settled as never: there is nothing to undo."""
    return UndoResult(UndoOutcome.NOTHING_TO_UNDO)
