"""Saga: the compensation stack. Knows no shop words; needs `compensation`, `cancellation` and `sagafence.undo` alone.

Write the forward story as one coroutine of steps and hand it to `saga.run(...)`:

    async def story() -> str:
        with saga.step("room", undo=cancel_room):
            room = await book_room()
        with saga.step("flight", undo=cancel_flight):
            return await book_flight(room)

    ended = await saga.run(story())

What it promises:

1. A step's undo is on the stack *before* the step runs: a step can take effect and still be reported as failed.
2. Any failure, and any cancel, unwinds the stack last in, first out, beginning with the failed step's own undo.
3. An undo that keeps failing does not stop the others. The saga is then *stuck*: it calls `on_stuck`, tries again after
   waits that double up to a longest one, and accepts `retry()` and `resolve()`, until every undo is settled or
   `on_stuck` finds that there is no way back. Where `ends_stuck` says so, `run` returns `StillStuck` instead: continue
   as new, with a saga that `is_resumed`.
4. Once begun, an unwind cannot be interrupted. Cancels that come later change nothing.
5. The first cause is kept, and every undo's outcome beside it.

An undo is a coroutine function without arguments, as a rule around one activity. It returns a `UndoResult`.
Steps and undos must be safe to repeat: put a fence in front of their effects.

Failures that Temporal knows (`FailureError`, timeouts) unwind. Any other exception is a bug in workflow code:
it fails the workflow task, and the saga waits, where it is, for a corrected deploy.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from itertools import takewhile
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from sagafence.cancellation import Cancellation, wait_until
    from sagafence.compensation import (
        SETTLED,
        Compensation,
        Completed,
        Irrevocable,
        RetryBackoff,
        StepState,
        StillStuck,
        Unwound,
        describe,
        failure_of,
        is_cut_short,
    )
    from sagafence.undo import UndoOutcome, UndoResult

T = TypeVar("T")


class Phase(Enum):
    """Where a saga is."""

    FORWARD = auto()  # the story runs
    UNWINDING = auto()  # the first round of undos
    STUCK = auto()  # a round has left undos that failed: waiting for the next one, or in it
    SETTLED = auto()  # every undo is settled, or there is no way back


class CompensationStack:
    """The compensation stack of one workflow run.

    Args:
        backoff: how long to wait between rounds when stuck.
        on_change: called when a step begins, is done, and at each change of its undo's state. A step that fails or is
            cancelled calls `on_unwind` instead. Must not block.
        on_unwind: called once when an unwind begins, with the first cause (None for a cancel) and the step that failed,
            if any. Must not block.
        on_stuck: called after each round that leaves undos, with those; must not give up. It may return `Irrevocable`
            when it finds that there is no way back. Where it finds more to undo, it calls `must_undo`, and the next
            round begins at once.
        ends_stuck: asked while waiting between rounds: whether the run must end, stuck as it is, because its history
            has grown long. Must be false until all update handlers have finished.
        is_resumed: whether an earlier run has ended as `StillStuck`. It then counts as stuck from the start.
    """

    def __init__(  # noqa: PLR0913 - one callback for each event that a workflow may act on
        self,
        *,
        backoff: RetryBackoff,
        on_change: Callable[[], None] = lambda: None,
        on_unwind: Callable[[BaseException | None, str | None], None] = lambda _cause, _step: None,
        on_stuck: Callable[[Sequence[Compensation]], Awaitable[Irrevocable | None]],
        ends_stuck: Callable[[], bool] = lambda: False,
        is_resumed: bool = False,
    ) -> None:
        self.cancellation = Cancellation()
        self._stack: list[Compensation] = []
        self._backoff = backoff
        self._on_change = on_change
        self._on_unwind = on_unwind
        self._on_stuck = on_stuck
        self._ends_stuck = ends_stuck
        self._phase = Phase.STUCK if is_resumed else Phase.FORWARD
        self.rounds = 0
        """Rounds of undos ended so far."""
        self._retry_requested = False
        self._is_partly_undone = False

    @property
    def compensations(self) -> Sequence[Compensation]:
        """The stack, from its bottom: the steps that this run has begun, and those that it was told it `must_undo`."""
        return tuple(self._stack)

    @property
    def stuck_steps(self) -> list[str]:
        """The steps whose undo failed and waits for a retry or an operator."""
        return [entry.step for entry in self._stack if entry.is_stuck]

    @property
    def unsettled_steps(self) -> list[str]:
        """The steps that are not undone yet, whether their undos are running, due or stuck."""
        return [entry.step for entry in reversed(self._unsettled())]

    @property
    def is_stuck(self) -> bool:
        """Whether undos have failed, also while they are tried again."""
        is_begun = bool(self._stack)  # a resumed saga is stuck before it has its stack
        return bool(self.stuck_steps) or (self._phase is Phase.STUCK and (bool(self._unsettled()) or not is_begun))

    def retry(self) -> None:
        """Begin another round of the failed undos now.

        Joins a round that is running, unless an undo has failed in it already: then another follows at once, since what
        made that undo fail may have been fixed meanwhile.
        """
        # Before the patch every retry joined. One id for each round: a run that has joined one may not join the next.
        if not self._is_undoing or (
            self._has_failed_in_this_round() and workflow.patched(f"retry-what-has-failed-in-round-{self.rounds + 1}")
        ):
            self._retry_requested = True

    async def round_ended(self) -> None:
        """Wait until the round that `retry` has asked for or joined has ended; return at once when nothing is stuck."""
        if not self.is_stuck:
            return
        awaited = self.rounds + (2 if self._is_undoing and self._retry_requested else 1)
        await wait_until(lambda: self.rounds >= awaited or self._phase is Phase.SETTLED)

    def resolve(self, step: str, reason: str) -> None:
        """Count a stuck step as undone, because an operator says so."""
        for entry in self._stack:
            if entry.step == step:
                entry.resolution = reason
                # A round that begins after the resolution finds the step undone already: by that operator.
                if entry.is_stuck or entry.was_undone_before:
                    self._mark(entry, StepState.RESOLVED, reason)

    def add_compensation(self, step: str, undo: Callable[[], Awaitable[UndoResult]]) -> Compensation:
        """Put an undo on the stack. `step` must not be there yet."""
        if any(entry.step == step for entry in self._stack):
            raise ValueError(f"step {step} is already on the stack")
        entry = Compensation(step, undo, StepState.RUNNING)
        self._stack.append(entry)
        return entry

    def must_undo(self, step: str, undo: Callable[[], Awaitable[UndoResult]]) -> None:
        """Have a step undone that this run did not do, or has undone before; see `unwind_more`."""
        for entry in self._stack:
            if entry.step == step:
                entry.state = StepState.DONE
                return
        self.add_compensation(step, undo).state = StepState.DONE

    @contextmanager
    def step(self, name: str, undo: Callable[[], Awaitable[UndoResult]]) -> Iterator[Compensation]:
        """Register the undo of a step, unique by name, before the step is done within this context.

        `undo` reverses the step, or makes sure that it never takes effect. The `detail` of the yielded entry may say in
        a few words what the step did.
        """
        if self.cancellation.is_requested:
            raise asyncio.CancelledError
        entry = self.add_compensation(name, undo)
        self._on_change()
        try:
            yield entry
        except BaseException as error:
            entry.state = StepState.CANCELLED if is_cancelled_exception(error) else StepState.FAILED
            entry.detail = describe(error)
            raise
        self._mark(entry, StepState.DONE, entry.detail)

    async def run(
        self, story: Coroutine[Any, Any, T], *, is_partly_undone: bool = False
    ) -> Completed[T] | Unwound | Irrevocable | StillStuck:
        """Run the forward story; when it fails or is cancelled, unwind. Returns when all is settled, or `StillStuck`.

        There is no way forward any more where an earlier run has undone some of the steps (`is_partly_undone`).
        """
        self._is_partly_undone = is_partly_undone
        forward = await self.cancellation.interruptible(story)
        cause = failure_of(forward)
        is_cancelled = self.cancellation.is_requested
        if cause is None and not forward.cancelled() and not is_cancelled:
            return Completed(forward.result())
        if is_cancelled and is_cut_short(cause):
            cause = None
        failed = next((e.step for e in self._stack if e.state in {StepState.FAILED, StepState.CANCELLED}), None)
        if self._phase is Phase.FORWARD:
            self._phase = Phase.UNWINDING
        self._on_unwind(cause, failed)
        if other_end := await self.cancellation.protect(self._unwind()):
            return other_end
        return Unwound(cause, failed, self.compensations)

    async def unwind_more(self) -> Irrevocable | StillStuck | None:
        """Undo what was put on the stack after `run` had unwound it. Call it inside `protect`."""
        self._phase = Phase.STUCK
        return await self._unwind()

    async def _unwind(self) -> Irrevocable | StillStuck | None:
        """Run rounds of undos until all are settled."""
        while True:
            # A round that begins without a wait serves a retry as well. Before the patch another one followed it.
            if self._retry_requested and workflow.patched(f"retried-by-round-{self.rounds + 1}"):
                self._retry_requested = False
            for entry in self._unsettled():
                result = await self._undo(entry)
                if result is not None and result.outcome is UndoOutcome.IRREVOCABLE:
                    if not self._anything_undone():
                        self.rounds += 1
                        return self._go_forward(Irrevocable(entry.step, result.stored))
                    self._mark(entry, StepState.STUCK, "irrevocable, but other steps are undone already")
            self.rounds += 1
            if not (stuck := self._unsettled()):
                self._phase = Phase.SETTLED
                return None
            self._phase = Phase.STUCK
            if found := await self._on_stuck(stuck):
                return self._go_forward(found)
            if all(entry.is_stuck for entry in self._unsettled()):
                await self._wait_for_another_round()
                if self._is_to_end():
                    return StillStuck(self._anything_undone())
                self._retry_requested = False

    def _go_forward(self, found: Irrevocable) -> Irrevocable:
        for entry in self._stack:
            if entry.is_stuck:  # there is nothing to undo after all: it stays in effect
                self._mark(entry, StepState.DONE, "")
        self._phase = Phase.SETTLED
        return found

    def _unsettled(self) -> list[Compensation]:
        """List what has to be undone, the latest first."""
        settled = {*SETTLED.values(), StepState.RESOLVED}
        return [entry for entry in reversed(self._stack) if entry.state not in settled]

    async def _undo(self, entry: Compensation) -> UndoResult | None:
        entry.rounds += 1
        self._mark(entry, StepState.UNDOING, entry.detail)
        try:
            result = await entry.undo()
        except (FailureError, TimeoutError) as error:
            if entry.resolution is not None:  # an operator was faster than this round
                self._mark(entry, StepState.RESOLVED, entry.resolution)
            else:
                self._mark(entry, StepState.STUCK, describe(error))
            return None
        entry.was_undone_before = result.outcome is UndoOutcome.ALREADY_UNDONE
        self._mark(entry, SETTLED[result.outcome], entry.detail)
        return result

    @property
    def _is_undoing(self) -> bool:
        return any(entry.state is StepState.UNDOING for entry in self._stack)

    def _has_failed_in_this_round(self) -> bool:
        """Whether the round that is running has left a stuck step behind it: it goes from the top to the bottom."""
        passed = takewhile(lambda entry: entry.state is not StepState.UNDOING, reversed(self._stack))
        return any(entry.is_stuck for entry in passed)

    def _is_to_end(self) -> bool:
        return bool(self.stuck_steps) and not self._retry_requested and self._ends_stuck()

    async def _wait_for_another_round(self) -> None:
        if self._is_to_end():
            return
        try:
            await workflow.wait_condition(
                lambda: self._retry_requested or not self.stuck_steps or self._is_to_end(),
                timeout=self._backoff.after(self.rounds),
                timeout_summary="try the failed undos again",
            )
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is None:
                raise
            # The wait is over, by time or condition, and a cancel came meanwhile. An eviction is raised here.
            await wait_until(lambda: True)

    def _anything_undone(self) -> bool:
        return self._is_partly_undone or any(e.state in {StepState.UNDONE, StepState.RESOLVED} for e in self._stack)

    def _mark(self, entry: Compensation, state: StepState, detail: str) -> None:
        entry.state, entry.detail = state, detail
        self._on_change()
