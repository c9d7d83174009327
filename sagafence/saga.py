"""What a story is told with: steps in sequence and side by side, the pivot, and what comes after it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, overload

from temporalio import workflow
from temporalio.exceptions import FailureError

from sagafence.begun import Begun, undo_earlier
from sagafence.calls import EarlierStep, Resolution, SagaInput, StepCall, Unwinding, Way
from sagafence.compensation import (
    Compensation,
    Completed,
    Irrevocable,
    RetryBackoff,
    StepState,
    StillStuck,
    Unwound,
    describe,
    find_cause,
)
from sagafence.declare import Forward, In, Out, Pivot, Step, Undoable
from sagafence.errors import IdempotencyConflict
from sagafence.insisting import END_ACTIVITY, InsistingStack, is_settled
from sagafence.misuse import wrong_verb
from sagafence.policy import UNDO_POLICY
from sagafence.resolutions import is_external, why_not
from sagafence.signature import SagaMisuse
from sagafence.stack import Phase
from sagafence.undo import UndoResult

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")
Part = Coroutine[Any, Any, T]

UNWIND_ACTIVITY = "sagafence.unwind"
_RECORDS = {UNWIND_ACTIVITY: "unwind", END_ACTIVITY: "end"}


class Saga(InsistingStack):
    """A compensation stack, and the verbs of declared steps. Other workflows use it through `step` and `run`."""

    def __init__(
        self,
        *,
        backoff: RetryBackoff,
        on_stuck: Callable[[Sequence[Compensation]], Awaitable[Irrevocable | None]],
        **callbacks: Any,
    ) -> None:
        super().__init__(backoff=backoff, on_stuck=on_stuck, **callbacks)
        self._input: SagaInput | None = None
        self._opening: SagaInput | None = None
        self._begun: dict[str, Begun] = {}
        self._pivot: str | None = None
        self._is_past_pivot = False
        self._failures: list[tuple[str, BaseException]] = []
        self._conflicts: set[str] = set()
        self._earlier: dict[str, EarlierStep] = {}
        self._goes_back = False
        self._is_purged = False

    # What a story says ------------------------------------------------------------------------------------

    async def do(self, step: Undoable[In, Out], given: In, *, instance: str = "") -> Out:
        """Run a step whose undo goes on the stack first.

        `instance` tells several calls of one step apart, in a loop or side by side: by the item's own id.
        """
        self._require(step, Undoable, "do")
        begun = self._begin(step, given, instance)
        with self.step(begun.name, lambda: begun.undo(self._entry(begun.name).rounds)):
            value: Out = await self._attempt(begun)
        if (task := asyncio.current_task()) and task.cancelling():
            # The result was faster than the cancel, and has swallowed it: what the story waits for next may never come.
            raise asyncio.CancelledError
        return value

    async def pivot(self, step: Pivot[In, Out], given: In) -> Out:
        """Run the step after which there is no way back. While its outcome is unknown, nothing is undone."""
        self._require(step, Pivot, "pivot")
        if running := [entry.step for entry in self._stack if entry.state is StepState.RUNNING]:
            raise SagaMisuse(f'the pivot "{step.name}" has to wait for {", ".join(running)}: it runs beside no step')
        begun = self._begin(step, given, "")
        self._pivot = name = begun.name
        with self.step(name, is_settled) as entry:
            try:
                value: Out = await self._attempt(begun)
            except (FailureError, TimeoutError, asyncio.CancelledError):
                if name in self._conflicts:
                    raise  # the row is another request's: there is nothing of ours to settle
                settled = await self._uninterrupted(self._insist(entry, begun.settle))
                if not settled.happened:
                    raise
                value = _typed(settled.result, step.result_type)
            self._is_past_pivot = True
            self.cancellation.overrule()
            while (task := asyncio.current_task()) and task.cancelling():
                task.uncancel()
        return value

    async def then(self, step: Forward[In, Out], given: In, *, instance: str = "") -> Out:
        """Run a step after the pivot, until it is done or an operator says that it happened."""
        self._require(step, Forward, "then")
        begun = self._begin(step, given, instance)
        with self.step(begun.name, is_settled) as entry:
            result = await self._uninterrupted(self._insist(entry, begun.do))
        value: Out = _typed(result, step.result_type)
        return value

    @overload
    async def together(self, a: Part[A], b: Part[B], /) -> tuple[A, B]: ...
    @overload
    async def together(self, a: Part[A], b: Part[B], c: Part[C], /) -> tuple[A, B, C]: ...
    @overload
    async def together(self, a: Part[A], b: Part[B], c: Part[C], d: Part[D], /) -> tuple[A, B, C, D]: ...
    @overload
    async def together(self, *parts: Part[A]) -> tuple[A, ...]: ...
    async def together(self, *parts: Part[Any]) -> tuple[Any, ...]:
        """Run parts of the story side by side, and return their results in the sequence of the parts.

        When one fails, or a cancel comes, the others are cancelled, and all of them settle before anything is undone.
        What is raised is the failure that came first.
        """
        tasks, failures = [asyncio.create_task(part) for part in parts], list[BaseException]()

        def note(task: "asyncio.Task[Any]") -> None:
            if not task.cancelled() and (error := task.exception()):
                failures.append(error)

        for task in tasks:
            task.add_done_callback(note)

        def are_done() -> bool:
            return all(task.done() for task in tasks)

        try:
            await workflow.wait_condition(lambda: are_done() or bool(failures))
        except asyncio.CancelledError as cancel:
            failures.append(cancel)  # an eviction comes again, and as another kind, at the next wait
        _raise_bug(failures)  # at once: then what this workflow task would have begun is not begun
        if failures:
            for task in tasks:
                task.cancel()
            await self._until(are_done)
            _raise_bug(failures)
            raise failures[0]
        return tuple(task.result() for task in tasks)

    # What a workflow asks ---------------------------------------------------------------------------------

    @property
    def is_past_pivot(self) -> bool:
        """Whether the saga only goes forward."""
        return self._is_past_pivot

    def opens_with(self, given: SagaInput) -> None:
        """Have the saga recorded with its input: by its first step, for a sweep that has to start it again."""
        self._input = self._opening = given

    @property
    def goes_back(self) -> bool:
        """Whether it is certain that the saga is undone: no run of it has come to the pivot, and none will."""
        return self._goes_back

    @property
    def is_purged(self) -> bool:
        """Whether an earlier run has completed the saga, and retention has deleted what it did."""
        return self._is_purged

    async def wait_to_go_forward(self) -> None:
        """Be stuck at the step that failed where there is no way back, until `retry` or the backoff's time."""
        failed = [entry for entry in self._stack if entry.state is StepState.FAILED]
        entry = [*self._stack, *failed][-1] if self._stack else self.add_compensation("story", is_settled)
        self._mark(entry, StepState.STUCK, entry.detail)
        await self._on_stuck([entry])
        await self._wait_for_another_round()

    @property
    def is_unwinding(self) -> bool:
        """Whether an unwind has begun."""
        return self._phase is not Phase.FORWARD

    def judge(self, resolution: Resolution) -> None:
        """Act on what an operator says of a stuck step, once that is recorded."""
        step = self._step_of(resolution.step)
        # Of other steps than these, the next round finds in their row what was said.
        if not (is_external(step) or isinstance(step, Forward)):
            self.resolve(resolution.step, f"{resolution.verdict}: {resolution.why}")
        self.retry()

    def refusal_of(self, resolution: Resolution) -> str | None:
        """Say why a resolution cannot be taken, or None."""
        if resolution.step not in self.stuck_steps:
            return f"{resolution.step} is not stuck; stuck: {', '.join(self.stuck_steps) or 'nothing'}"
        if record := _RECORDS.get(resolution.step):
            return f"the {record} is not recorded yet, which nobody can do by hand: retry once the database takes it"
        if self._phase is Phase.SETTLED:
            return f"{resolution.step} has no way back: the saga only goes forward, so retry it"
        return why_not(resolution, self._step_of(resolution.step))

    def begun(self, name: str) -> tuple[str, Any, str]:
        """Return how a step was begun: as which activity, with which input, and which of its calls it is."""
        if earlier := self._earlier.get(name):
            return earlier.activity, None, earlier.instance
        begun = self._begun[name]
        return begun.step.activity, begun.given, begun.call.instance

    def _step_of(self, name: str) -> Step[Any, Any] | EarlierStep:
        return self._earlier.get(name) or self._begun[name].step

    async def run(
        self, story: Coroutine[Any, Any, T], *, is_partly_undone: bool = False
    ) -> Completed[T] | Unwound | Irrevocable | StillStuck:
        """Run the story; unwind it when it fails or is cancelled before the pivot."""
        ended = await super().run(self._guarded(story), is_partly_undone=is_partly_undone)
        if inspect.getcoroutinestate(story) is inspect.CORO_CREATED:  # a cancel was there before its first line
            story.close()
        if isinstance(ended, Unwound) and self._failures:  # not the one begun first, nor one that the story has caught
            return replace(ended, failed_step=self._failed_step(ended.cause))
        return ended

    def _failed_step(self, cause: BaseException | None) -> str | None:
        while cause is not None:
            if found := [name for name, error in self._failures if error is cause]:
                return found[0]
            cause = cause.__cause__
        return None

    async def _guarded(self, story: Coroutine[Any, Any, T]) -> T:
        try:
            return await story
        except (FailureError, TimeoutError) as error:
            if self._is_past_pivot:
                raise SagaMisuse(f"the story failed after its pivot {self._pivot}: {describe(error)}") from error
            raise

    # Its unwind -------------------------------------------------------------------------------------------

    async def _unwind(self) -> Irrevocable | StillStuck | None:
        if self._input is not None and not self._goes_back:
            record = Compensation(UNWIND_ACTIVITY, is_settled, StepState.RUNNING)
            found = await self._insist(record, self._begin_unwind)
            self._is_purged = found.way is Way.GONE
            if found.way in {Way.FORWARD, Way.GONE}:
                return self._go_forward(Irrevocable(self._stack[-1].step if self._stack else ""))
            if record.rounds == 1:
                self.rounds = 0  # it is a round of its own only where it has failed
            self._goes_back, self._opening = True, None
            if found.way is Way.NOWHERE:  # nothing is in effect, or nothing of it is ours
                for entry in self._stack:
                    entry.undo = is_settled
            for earlier in found.earlier:
                self._earlier[earlier.step] = earlier
                self.must_undo(earlier.step, partial(self._undo_earlier, earlier.step))
        return await super()._unwind()

    async def _begin_unwind(self, rounds: int) -> Unwinding:
        """Record that the saga unwinds, before anything is undone, and learn what earlier runs have left to undo."""
        found: Unwinding = await workflow.execute_activity(
            UNWIND_ACTIVITY,
            args=[[entry.step for entry in self._stack if entry.step not in self._earlier], self._input],
            result_type=Unwinding,
            activity_id="unwind" if rounds == 1 else f"unwind-{rounds}",
            summary="cancelled" if self.cancellation.is_requested else "failed",
            **UNDO_POLICY.limits(),
        )
        return found

    async def _undo_earlier(self, name: str) -> UndoResult:
        rounds = self._entry(name).rounds
        if rounds > 1 and not self._earlier[name].undo_activity:  # a worker that has it may be deployed by now
            found = await self._begin_unwind(rounds)
            self._earlier.update((earlier.step, earlier) for earlier in found.earlier)
        return await undo_earlier(self._earlier[name], rounds)

    # One step ---------------------------------------------------------------------------------------------

    def _require(self, step: Step[Any, Any], kind: type[Step[Any, Any]], verb: str) -> None:
        if wrong := wrong_verb(step, verb):
            raise SagaMisuse(wrong)
        if kind is Forward and not self._is_past_pivot:
            raise SagaMisuse(f'"{step.name}" has no undo: before saga.pivot use a step with one, and saga.do')
        if kind is not Forward and self._pivot is not None:
            raise SagaMisuse(f'"{step.name}" comes after the pivot "{self._pivot}", where only saga.then may be used')

    def _begin(self, step: Step[Any, Any], given: Any, instance: str) -> Begun:
        name = f"{step.name}/{instance}" if instance else step.name
        if name in self._begun:
            raise SagaMisuse(f'the step "{name}" was begun before: tell its calls apart with instance=...')
        # A copy: an undo is called with the same, whatever the story does to its own.
        self._begun[name] = begun = Begun(name, step, deepcopy(given), StepCall(instance, self._opening))
        return begun

    async def _attempt(self, begun: Begun) -> Any:
        name = begun.name
        try:
            value = await begun.do(answer=begun.step.result_type)
        except BaseException as error:
            self._failures.append((name, error))
            if find_cause(error, IdempotencyConflict.__name__):
                self._conflicts.add(name)
            raise
        self._opening = None  # a step has recorded it
        return value

    def _entry(self, name: str) -> Compensation:
        return next(entry for entry in self._stack if entry.step == name)


def _typed(value: Any, kind: Any) -> Any:
    converter = workflow.payload_converter()
    return converter.from_payload(converter.to_payload(value), kind)


def _raise_bug(failures: list[BaseException]) -> None:
    for error in failures:
        if not isinstance(error, (FailureError, TimeoutError, asyncio.CancelledError)):
            raise error
