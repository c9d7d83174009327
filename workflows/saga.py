"""Saga: the compensation stack. Knows no shop words; needs `compensation`, `waiting` and `domain.undo` alone.

Write the forward story as one coroutine of `saga.step(...)` calls and hand it to `saga.run(...)`:

    async def story() -> str:
        room = await saga.step("room", do=book_room, undo=cancel_room)
        return await saga.step("flight", do=book_flight, undo=cancel_flight)

    ended = await saga.run(story())

What it promises:

1. A step's undo is on the stack *before* the step runs: a step can take effect and still be reported as failed.
2. Any failure, and any cancel, unwinds the stack last in, first out, beginning with the failed step's own undo.
3. An undo that keeps failing does not stop the others. The saga is then *stuck*: it tells `on_stuck`, tries
   again after ever longer waits, and listens to `retry()` and `resolve()`, until every undo is settled; in another
   run where `ends_stuck` says that this one has grown too long.
4. Once begun, an unwind cannot be interrupted. Cancels that come later change nothing.
5. The first cause is kept, and every undo's outcome beside it.

Steps and undos are zero-argument coroutine functions, as a rule around one activity. An undo answers with a
`domain.undo.UndoResult`. Both must be safe to repeat: put a fence in front of their effects.

Failures that Temporal knows (`FailureError`, timeouts) unwind. Any other exception is a bug in workflow code:
it fails the workflow task, and the saga waits, where it is, for a corrected deploy.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from domain.undo import UndoOutcome, UndoResult
    from workflows.compensation import (
        SETTLED,
        Compensation,
        Completed,
        Irrevocable,
        Patience,
        StepState,
        StillStuck,
        Unwound,
        describe,
        failure_of,
        is_cut_short,
    )
    from workflows.waiting import wait_until

__all__ = ["Saga", "wait_until"]

T = TypeVar("T")

_HOPS = 5
"""Turns of the loop within which an activity's outcome reaches the story through future, handle and step; and to spare.

A turn is a bare yield: it makes no command, and the same number of them comes with every replay."""


class Saga:
    """The compensation stack of one workflow run.

    Args:
        patience: how long to wait between rounds when stuck.
        on_change: called, without arguments, whenever a step changes state. Must not block.
        on_unwind: called once when an unwind begins, with the first cause (None for a cancel) and the
            step it struck, if any. Must not block.
        on_stuck: called after each fruitless round with the stuck compensations. It may answer
            `Irrevocable` when it finds that there is no way back. Where it finds more to undo, it says so with
            `must_undo`, and the next round begins at once. It must not give up.
        ends_stuck: asked while it waits between rounds: whether the run is to end, stuck as it is, because its
            history has grown long. Must not say so before all update handlers have finished.
        is_resumed: whether an earlier run has ended as `StillStuck`. It then counts as stuck from the start.
    """

    def __init__(  # noqa: PLR0913 - one callback for each thing that a workflow may want to know or decide
        self,
        *,
        patience: Patience,
        on_change: Callable[[], None] = lambda: None,
        on_unwind: Callable[[BaseException | None, str | None], None] = lambda _cause, _step: None,
        on_stuck: Callable[[Sequence[Compensation]], Awaitable[Irrevocable | None]],
        ends_stuck: Callable[[], bool] = lambda: False,
        is_resumed: bool = False,
    ) -> None:
        self._stack: list[Compensation] = []
        self._patience = patience
        self._on_change = on_change
        self._on_unwind = on_unwind
        self._on_stuck = on_stuck
        self._ends_stuck = ends_stuck
        self._is_resumed = is_resumed
        self._is_partly_undone = False
        self._cancel_requested = False
        self._unwinding = False
        self._retry_requested = False
        self._rounds = 0
        self._has_settled = False
        self._resolved: dict[str, str] = {}

    @property
    def compensations(self) -> Sequence[Compensation]:
        """Every step begun so far, the earliest first."""
        return tuple(self._stack)

    @property
    def stuck_steps(self) -> list[str]:
        """The steps whose undo failed and that wait for a retry or a person."""
        return [] if self._has_settled else [entry.step for entry in self._stack if entry.is_stuck]

    @property
    def unsettled_steps(self) -> list[str]:
        """The steps that are not undone yet, be their undos running, due or stuck."""
        return [] if self._has_settled else [entry.step for entry in reversed(self._unsettled())]

    @property
    def is_stuck(self) -> bool:
        """Tell whether a whole round of undos has left some that failed, be they tried again right now."""
        if self._is_resumed and self._rounds == 0:
            return not self._has_settled
        again = not self._has_settled and any(entry.state is StepState.UNDOING for entry in self._stack)
        return bool(self.stuck_steps) or (self._rounds > 0 and again)

    @property
    def is_unwinding(self) -> bool:
        """Tell whether the point has passed at which a cancel can still change anything."""
        return self._unwinding

    @property
    def rounds(self) -> int:
        """Rounds of undos ended so far."""
        return self._rounds

    @property
    def is_cancel_requested(self) -> bool:
        """Tell whether anybody has asked to cancel, through us or through Temporal."""
        return self._cancel_requested or workflow.cancellation_reason() is not None

    def cancel(self) -> None:
        """Ask for an unwind; the same as Temporal's own cancel. Without effect once unwinding."""
        self._cancel_requested = True

    def retry(self) -> None:
        """Ask a stuck saga for another round of its failed undos, now. Joins a round that is running."""
        if not any(entry.state is StepState.UNDOING for entry in self._stack):
            self._retry_requested = True

    async def round_ended(self) -> None:
        """Wait until the round that is running or due next has ended; return at once when nothing is stuck."""
        if not self.is_stuck:
            return
        ended = self._rounds
        await wait_until(lambda: self._rounds > ended or self._has_settled)

    def resolve(self, step: str, reason: str) -> None:
        """Count a stuck step as undone, on a person's word."""
        self._resolved[step] = reason
        for entry in self._stack:
            # A round that begins behind the resolution finds the step undone already: by that person.
            if entry.step == step and (entry.is_stuck or entry.was_undone_before):
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

    async def step(
        self,
        name: str,
        *,
        do: Callable[[], Awaitable[T]],
        undo: Callable[[], Awaitable[UndoResult]],
        detail: Callable[[T], str] = lambda _: "",
    ) -> T:
        """Run one step of the story, with its undo registered first.

        Args:
            name: the step's name, unique in this saga.
            do: the step; its failure ends the story.
            undo: reverses it, or makes sure that it never takes effect.
            detail: says in a few words what a successful step did.
        """
        if self.is_cancel_requested:
            # An await can swallow a cancel that arrives together with its result.
            raise asyncio.CancelledError
        entry = self.add_compensation(name, undo)
        self._on_change()
        try:
            value = await do()
        except BaseException as error:
            entry.state = StepState.CANCELLED if is_cancelled_exception(error) else StepState.FAILED
            entry.detail = describe(error)
            raise
        self._mark(entry, StepState.DONE, detail(value))
        return value

    async def run(
        self, story: Coroutine[Any, Any, T], *, is_partly_undone: bool = False
    ) -> Completed[T] | Unwound | Irrevocable | StillStuck:
        """Run the forward story; when it fails or is cancelled, unwind. Returns when all is settled, or `StillStuck`.

        Args:
            story: the steps.
            is_partly_undone: whether an earlier run has undone some of them, so that there is no way forward.
        """
        self._is_partly_undone = is_partly_undone
        forward = asyncio.create_task(story)
        await self._settled(forward, interruptible=True)
        cause = failure_of(forward)
        if cause is None and not forward.cancelled() and not self.is_cancel_requested:
            return Completed(forward.result())
        if self.is_cancel_requested and is_cut_short(cause):
            cause = None
        failed = next((e.step for e in self._stack if e.state in {StepState.FAILED, StepState.CANCELLED}), None)
        self._unwinding = True
        self._on_unwind(cause, failed)
        if other_end := await self.protect(self._unwind()):
            return other_end
        return Unwound(cause, failed, self.compensations)

    async def unwind_more(self) -> Irrevocable | StillStuck | None:
        """Undo what was put on the stack after `run` had unwound it. Call it inside `protect`."""
        self._has_settled = False
        return await self._unwind()

    async def protect(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something to its end, whatever cancels arrive meanwhile.

        It runs as a task of its own, because a cancel strikes the workflow's main task, and strikes it
        through a plain `asyncio.shield` too.
        """
        task = asyncio.create_task(work)
        await self._settled(task, interruptible=False)
        return task.result()

    async def _settled(self, task: "asyncio.Task[Any]", *, interruptible: bool) -> None:
        """Wait until a task is done. The first cancel request is passed on to it when `interruptible`."""
        passed_on = not interruptible
        hops = 0
        while not task.done():
            try:
                if not passed_on and self.is_cancel_requested:
                    # A refusal that arrived together with the cancel comes first: the SDK would drop it.
                    hops += 1
                    await asyncio.sleep(0)
                else:
                    await workflow.wait_condition(
                        lambda: task.done() or (not passed_on and self.is_cancel_requested)  # noqa: B023
                    )
            except asyncio.CancelledError:
                if workflow.cancellation_reason() is None and not self._cancel_requested:
                    raise  # an eviction: see `wait_until`
            if hops == _HOPS and not passed_on and not task.done():
                passed_on = True
                task.cancel()

    async def _unwind(self) -> Irrevocable | StillStuck | None:
        found: Irrevocable | StillStuck | None = None
        try:
            found = await self._rounds_until_settled()
            if isinstance(found, Irrevocable):
                for entry in self._stack:
                    if entry.is_stuck:  # there was nothing to undo after all: it stands
                        self._mark(entry, StepState.DONE, "")
            return found
        finally:
            self._has_settled = not isinstance(found, StillStuck)

    async def _rounds_until_settled(self) -> Irrevocable | StillStuck | None:
        while True:
            for entry in self._unsettled():
                result = await self._undo(entry)
                if result is not None and result.outcome is UndoOutcome.IRREVOCABLE:
                    if not self._anything_undone():
                        self._rounds += 1
                        return Irrevocable(entry.step, result.stored)
                    self._mark(entry, StepState.STUCK, "irrevocable, but other steps are undone already")
            self._rounds += 1
            if not (stuck := self._unsettled()):
                return None
            if forward_after_all := await self._on_stuck(stuck):
                return forward_after_all
            if all(entry.is_stuck for entry in self._unsettled()):
                await self._wait_for_another_round()
                if self._is_to_end():
                    return StillStuck(self._anything_undone())
                self._retry_requested = False

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
            if entry.step in self._resolved:  # a person was faster than this round
                self._mark(entry, StepState.RESOLVED, self._resolved[entry.step])
            else:
                self._mark(entry, StepState.STUCK, describe(error))
            return None
        entry.was_undone_before = result.outcome is UndoOutcome.ALREADY_UNDONE
        self._mark(entry, SETTLED[result.outcome], entry.detail)
        return result

    def _is_to_end(self) -> bool:
        return bool(self.stuck_steps) and not self._retry_requested and self._ends_stuck()

    async def _wait_for_another_round(self) -> None:
        if self._is_to_end():
            return
        try:
            await workflow.wait_condition(
                lambda: self._retry_requested or not self.stuck_steps or self._is_to_end(),
                timeout=self._patience.after(self._rounds),
                timeout_summary="try the failed undos again",
            )
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is None:
                raise
            # Its time is up, or what it waited for has come, and a cancel had come before. An eviction ends here.
            await wait_until(lambda: True)

    def _anything_undone(self) -> bool:
        return self._is_partly_undone or any(e.state in {StepState.UNDONE, StepState.RESOLVED} for e in self._stack)

    def _mark(self, entry: Compensation, state: StepState, detail: str) -> None:
        entry.state, entry.detail = state, detail
        self._on_change()
