"""What a story is told with: steps in sequence and side by side, the pivot, and what comes after it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload

from temporalio import workflow
from temporalio.exceptions import FailureError

from sagafence.calls import Resolution, SagaInput, Settled, StepCall
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
from sagafence.declare import External, Forward, In, Out, Pivot, Step, Undoable
from sagafence.errors import IdempotencyConflict
from sagafence.policy import ActivityPolicy
from sagafence.provider import Verdict
from sagafence.signature import SagaMisuse, may_be_none
from sagafence.stack import CompensationStack, Phase
from sagafence.undo import UndoOutcome, UndoResult

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")
Part = Coroutine[Any, Any, T]


@dataclass(frozen=True)
class _Begun:
    """A step as the story began it."""

    step: Step[Any, Any]
    given: Any
    call: StepCall


class Saga(CompensationStack):
    """A compensation stack, and the verbs of declared steps. Other workflows use it through `step` and `run`."""

    def __init__(
        self,
        *,
        backoff: RetryBackoff,
        on_stuck: Callable[[Sequence[Compensation]], Awaitable[Irrevocable | None]],
        **callbacks: Any,
    ) -> None:
        super().__init__(backoff=backoff, on_stuck=on_stuck, **callbacks)
        self._opening: SagaInput | None = None
        self._begun: dict[str, _Begun] = {}
        self._pivot: str | None = None
        self._is_past_pivot = False
        self._first_failed: str | None = None
        self._conflicts: set[str] = set()
        self._resolutions: dict[str, Resolution] = {}

    # What a story says ------------------------------------------------------------------------------------

    async def do(self, step: Undoable[In, Out], given: In, *, instance: str = "") -> Out:
        """Run a step whose undo goes on the stack first.

        `instance` tells several calls of one step apart, in a loop or side by side: by the item's own id.
        """
        self._require(step, Undoable, "do")
        begun, name = self._begin(step, given, instance)
        with self.step(name, lambda: self._undo_declared(name, begun)):
            value: Out = await self._attempt(begun, name)
        return value

    async def pivot(self, step: Pivot[In, Out], given: In) -> Out:
        """Run the step after which there is no way back. While its outcome is unknown, nothing is undone."""
        self._require(step, Pivot, "pivot")
        if running := [entry.step for entry in self._stack if entry.state is StepState.RUNNING]:
            raise SagaMisuse(f'the pivot "{step.name}" has to wait for {", ".join(running)}: it runs beside no step')
        begun, name = self._begin(step, given, "")
        self._pivot = name
        with self.step(name, _is_settled) as entry:
            try:
                value: Out = await self._attempt(begun, name)
            except (FailureError, TimeoutError, asyncio.CancelledError) as error:
                if name in self._conflicts:
                    raise  # the row is another request's: there is nothing of ours to settle
                settled = await self._uninterrupted(self._insist(entry, lambda: self._settle(name, begun)))
                if not settled.happened:
                    raise
                if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()):
                    task.uncancel()
                value = _typed(settled.result, step.result_type)
            self._is_past_pivot = True
            self.cancellation.overrule()
        return value

    async def then(self, step: Forward[In, Out], given: In, *, instance: str = "") -> Out:
        """Run a step after the pivot, until it is done or an operator says that it happened."""
        self._require(step, Forward, "then")
        begun, name = self._begin(step, given, instance)
        with self.step(name, _is_settled) as entry:
            done = await self._uninterrupted(self._insist(entry, lambda: self._forward(name, begun)))
        result: Out = _typed(done.result, step.result_type)
        return result

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
        if failures:
            for task in tasks:
                task.cancel()
            await self._until(are_done)
            raise next((error for error in failures if _is_bug(error)), failures[0])
        return tuple(task.result() for task in tasks)

    # What a workflow asks ---------------------------------------------------------------------------------

    @property
    def is_past_pivot(self) -> bool:
        """Whether the saga only goes forward."""
        return self._is_past_pivot

    def opens_with(self, given: SagaInput) -> None:
        """Have the first step record the saga with its input, for a sweep that has to start it again."""
        self._opening = given

    async def wait_to_go_forward(self, found: Irrevocable) -> None:
        """Be stuck at the step whose undo found no way back, until `retry` or the backoff's time."""
        entry = self._entry(found.step)
        self._mark(entry, StepState.STUCK, entry.detail)
        await self._on_stuck([entry])
        await self._wait_for_another_round()

    @property
    def is_unwinding(self) -> bool:
        """Whether an unwind has begun."""
        return self._phase is not Phase.FORWARD

    def judge(self, resolution: Resolution) -> None:
        """Act on what an operator says of a stuck step, once that is recorded."""
        name, step = resolution.step, self._begun[resolution.step].step
        # Of an external step, the next round finds in its row what was said.
        if not isinstance(step, External):
            if isinstance(step, Forward):
                self._resolutions[name] = resolution
            else:
                self.resolve(name, f"{resolution.verdict}: {resolution.why}")
        self.retry()

    def refusal_of(self, resolution: Resolution) -> str | None:  # noqa: PLR0911 - one way out for each reason
        """Say why a resolution cannot be taken, or None."""
        name, verdict = resolution.step, resolution.verdict
        if name not in self.stuck_steps:
            return f"{name} is not stuck; stuck: {', '.join(self.stuck_steps) or 'nothing'}"
        step = self._begun[name].step
        if self._phase is Phase.SETTLED:
            return f"{name} has no way back: the saga only goes forward, so retry it"
        if isinstance(step, (Pivot, Forward)) and verdict is Verdict.UNDONE_BY_HAND:
            return f"{name} is not being undone: say whether it {Verdict.HAPPENED} or {Verdict.NEVER} did"
        is_told = resolution.result is not None or not isinstance(step, External)
        if verdict is Verdict.HAPPENED and is_told and (problem := _unfit(resolution.result, step.result_type)):
            return f"{name} needs its result, as its do gives it: {problem}"
        if isinstance(step, External):
            return None
        if isinstance(step, Pivot):
            return f"{name} is in the database, which knows what became of it: retry once it answers"
        if isinstance(step, Forward) is not (verdict is Verdict.HAPPENED):
            wanted = Verdict.HAPPENED if isinstance(step, Forward) else Verdict.UNDONE_BY_HAND
            return f"{name} can only be resolved as {wanted}"
        return None

    def begun(self, step: str) -> tuple[Step[Any, Any], Any, StepCall]:
        """Return how the story began a step: its declaration, its input, and which call of it this is."""
        begun = self._begun[step]
        return begun.step, begun.given, begun.call

    async def run(
        self, story: Coroutine[Any, Any, T], *, is_partly_undone: bool = False
    ) -> Completed[T] | Unwound | Irrevocable | StillStuck:
        """Run the story; unwind it when it fails or is cancelled before the pivot."""
        ended = await super().run(self._guarded(story), is_partly_undone=is_partly_undone)
        if isinstance(ended, Unwound) and self._first_failed:  # side by side, not the one that was begun first
            return replace(ended, failed_step=self._first_failed)
        return ended

    async def _guarded(self, story: Coroutine[Any, Any, T]) -> T:
        try:
            return await story
        except (FailureError, TimeoutError) as error:
            if self._is_past_pivot:
                raise SagaMisuse(f"the story failed after its pivot {self._pivot}: {describe(error)}") from error
            raise

    # One step ---------------------------------------------------------------------------------------------

    def _require(self, step: Step[Any, Any], kind: type[Step[Any, Any]], verb: str) -> None:
        if not isinstance(step, kind):
            raise SagaMisuse(f"saga.{verb} takes a step of kind {kind.__name__}, not {step!r}")
        if kind is Forward and not self._is_past_pivot:
            raise SagaMisuse(f'"{step.name}" has no undo, and the pivot has not been passed')
        if kind is not Forward and self._pivot is not None:
            raise SagaMisuse(f'"{step.name}" comes after the pivot "{self._pivot}", where only saga.then may be used')

    def _begin(self, step: Step[Any, Any], given: Any, instance: str) -> tuple[_Begun, str]:
        name = f"{step.name}/{instance}" if instance else step.name
        if name in self._begun:
            raise SagaMisuse(f'the step "{name}" was begun before: tell its calls apart with instance=...')
        self._begun[name] = begun = _Begun(step, given, StepCall(instance, self._opening))
        return begun, name

    async def _attempt(self, begun: _Begun, name: str) -> Any:
        step = begun.step
        try:
            value = await _call(step.activity, begun, step.result_type, step.policy, name)
        except BaseException as error:
            self._first_failed = self._first_failed or name
            if find_cause(error, IdempotencyConflict.__name__):
                self._conflicts.add(name)
            raise
        self._opening = None  # a step has recorded it
        return value

    async def _undo_declared(self, name: str, begun: _Begun) -> UndoResult:
        step, rounds = begun.step, self._entry(name).rounds
        activity_id = f"undo-{name}" if rounds == 1 else f"undo-{name}-{rounds}"
        try:
            undone: UndoResult = await _call(step.undo_activity, begun, UndoResult, step.undo_policy, activity_id)
        except FailureError as error:
            # Only where the do was refused for the same reason does the row belong to another request.
            if name in self._conflicts and find_cause(error, IdempotencyConflict.__name__):
                return UndoResult(UndoOutcome.NOTHING_TO_UNDO)
            raise
        return undone

    async def _settle(self, name: str, begun: _Begun) -> Settled:
        step, rounds = begun.step, self._entry(name).rounds
        activity_id = f"settle-{name}" if rounds == 1 else f"settle-{name}-{rounds}"
        settled: Settled = await _call(step.activities["settle"], begun, Settled, step.undo_policy, activity_id)
        return settled

    async def _forward(self, name: str, begun: _Begun) -> Settled:
        step, rounds = begun.step, self._entry(name).rounds
        activity_id = name if rounds == 1 else f"{name}-{rounds}"
        return Settled(True, await _call(step.activity, begun, None, step.policy, activity_id))

    async def _insist(self, entry: Compensation, attempt: Callable[[], Awaitable[Settled]]) -> Settled:
        """Try until it works or an operator has resolved it; stuck after each round that fails."""
        while True:
            entry.rounds += 1
            try:
                return await attempt()
            except (FailureError, TimeoutError) as error:
                self._mark(entry, StepState.STUCK, describe(error))
            finally:
                self.rounds += 1  # whoever asked for it waits for its end, however it ends
            await self._on_stuck([entry])
            await self._wait_for_another_round()
            self._retry_requested = False
            self._mark(entry, StepState.RUNNING, "")
            if said := self._resolutions.pop(entry.step, None):
                return Settled(True, said.result)

    def _entry(self, name: str) -> Compensation:
        return next(entry for entry in self._stack if entry.step == name)

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


async def _call(name: str, begun: _Begun, answer: Any, policy: ActivityPolicy, activity_id: str) -> Any:
    return await workflow.execute_activity(
        name,
        args=[begun.given, begun.call],
        result_type=answer,
        activity_id=activity_id,
        summary=begun.step.summary(begun.given),
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        **policy.limits(),
    )


async def _is_settled() -> UndoResult:
    """Undo a pivot that has been settled as never: there is nothing to undo."""
    return UndoResult(UndoOutcome.NOTHING_TO_UNDO)


def _typed(value: Any, kind: Any) -> Any:
    converter = workflow.payload_converter()
    return converter.from_payload(converter.to_payload(value), kind)


def _unfit(value: Any, kind: Any) -> str | None:
    if value is None and kind is not Any and not may_be_none(kind):
        return "there is none"  # the converter lets it through
    try:
        _typed(value, kind)
    except Exception as error:  # noqa: BLE001 - the converter raises whatever the type's constructor does
        return describe(error)
    return None


def _is_bug(error: BaseException) -> bool:
    return not isinstance(error, (FailureError, TimeoutError, asyncio.CancelledError))
