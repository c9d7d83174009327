"""A workflow that is one saga: the subclass tells the story, and its run, query and updates come with it."""

import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from temporalio import workflow
from temporalio.exceptions import ActivityError, CancelledError

from sagafence.calls import Resolution, SagaInput
from sagafence.cancellation import wait_until
from sagafence.compensation import Compensation, Completed, Irrevocable, RetryBackoff, StillStuck, Unwound, describe
from sagafence.declare import In, Out
from sagafence.errors import InvalidInput, Refusal, SagaError
from sagafence.fingerprint import fingerprint
from sagafence.insisting import END_ACTIVITY
from sagafence.policy import UNDO_POLICY, ActivityPolicy
from sagafence.saga import Saga
from sagafence.signature import SagaMisuse

W = TypeVar("W")

RESOLVE_ACTIVITY = "sagafence.resolve"


class SagaUnwound(SagaError):
    """How a saga ends that failed and was undone: with the failed step as its detail, and its cause."""


class SagaPurged(Refusal):
    """How another run ends of a saga that has completed, once retention has deleted its rows.

    Its effects stand: nothing is done again or undone. Its result is not known any more.
    """


class SagaCancelled(Refusal):
    """How a saga ends that was cancelled by the `cancel` update, and undone."""


@dataclass(frozen=True)
class StepStatus:
    """One step, as people see it: `state` is a value of `StepState`, `detail` the failure or resolution behind it."""

    step: str
    state: str
    detail: str


@dataclass(frozen=True)
class SagaStatus:
    """Where a saga is: `running`, `unwinding`, `stuck`, or how it ended.

    `steps` has those that have begun, in that sequence; `reason` is a cancel's, and empty without one.
    """

    state: str
    steps: list[StepStatus] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class RecordedResolution:
    """A resolution, with what the fence has to know of its step."""

    resolution: Resolution
    activity: str
    given: Any
    instance: str


class _Run(Generic[In, Out]):
    """Types `run` as a method of each subclass, so that a handle knows its workflow and its result."""

    def __init__(self, fn: Callable[[Any, In], Coroutine[Any, Any, Out]]) -> None:
        self._fn = fn

    def __get__(self, instance: object, owner: type[W]) -> Callable[[W, In], Coroutine[Any, Any, Out]]:
        return self._fn


class SagaWorkflow(Generic[In, Out]):
    """A workflow that is one saga. A subclass needs `@workflow.defn` and a `story`.

        @workflow.defn
        class OpenWorkspace(SagaWorkflow[Workspace, Opened]):
            async def story(self, saga: Saga, ws: Workspace, /) -> Opened:
                ...

    Its id is the saga's: business identity, which the fence keeps for good. Start it once under it, without execution
    or run timeouts, which would end it half done.
    """

    backoff: ClassVar[RetryBackoff] = RetryBackoff(timedelta(hours=1), timedelta(days=1))
    """How long a stuck saga waits before it tries again by itself."""
    record: ClassVar[ActivityPolicy] = UNDO_POLICY
    """How its end and what operators say are recorded. An end that is given up leaves the saga stuck, until another
    round; a resolution that is given up is refused. Where it never gives up, nobody is told."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        story: Callable[..., Any] = cls.story
        if story is SagaWorkflow.story:
            return
        if "run" in vars(cls):
            raise SagaMisuse(f"{cls.__name__} has a run of its own: write `story`, and run comes with it")
        if cls.__qualname__ != cls.__name__:
            raise SagaMisuse(f"{cls.__qualname__} has to stand at the top of its module: the sandbox finds it by name")
        parameters = list(inspect.signature(story).parameters.values())
        hints = get_type_hints(story)
        if (
            not inspect.iscoroutinefunction(story)
            or len(parameters) != 3
            or not {parameters[2].name, "return"} <= hints.keys()
        ):
            raise SagaMisuse(f"write {cls.__name__}.story as `async def story(self, saga: Saga, given: In, /) -> Out`")
        given, answer = hints[parameters[2].name], hints["return"]
        if isinstance(given, TypeVar) or isinstance(answer, TypeVar):
            return  # a generic base: its subclasses tell the story with types that can be decoded

        async def run(self: Any, given: Any) -> Any:
            return await self._run(given)

        # The SDK wants @workflow.run on the class itself, of the same module and qualified name. It takes names from
        # the signature, types from the annotations, and compares the signature with that of @workflow.init.
        run.__qualname__, run.__module__ = f"{cls.__name__}.run", cls.__module__
        both = inspect.Parameter.POSITIONAL_OR_KEYWORD
        positional = [one.replace(kind=both) for one in (parameters[0], parameters[2])]
        vars(run)["__signature__"] = inspect.Signature(positional)
        run.__annotations__ = {parameters[2].name: given, "return": answer}
        setattr(cls, "run", workflow.run(run))  # noqa: B010 - mypy knows `run` as the base's

    async def story(self, saga: Saga, given: In, /) -> Out:
        """Tell the story forward: steps of `saga`, one after the other or together."""
        raise NotImplementedError

    @_Run
    async def run(self, given: In) -> Out:
        """Run the saga to its end. Each subclass gets its own, with the types of its story.

        Raises:
            SagaUnwound: a step failed, and what was done is undone.
            SagaPurged: an earlier run has completed the saga, and retention has deleted its result.
            SagaCancelled: the `cancel` update was accepted, and what was done is undone. A cancel by Temporal ends the
                workflow as cancelled.
        """
        raise NotImplementedError

    def fingerprint_of(self, given: In) -> str:
        """Return what a second run under the same id must have in common with the first: its input, as it is."""
        return fingerprint(given)

    async def on_stuck(self, stuck: Sequence[Compensation]) -> None:
        """Raise an alarm after each round that left steps stuck. Override it; it must not fail.

        As it is, it writes an error to the worker's log.
        """
        workflow.logger.log(logging.ERROR, "stuck: %s", ", ".join(f"{entry.step} ({entry.detail})" for entry in stuck))

    # Its life ---------------------------------------------------------------------------------------------

    @property
    def _the_saga(self) -> Saga:
        """The saga, made when it is first asked for: a subclass need not call our constructor."""
        if "_saga" not in self.__dict__:
            self._ended_as = ""
            self._saga = self._new_saga()
        return self._saga

    def _new_saga(self) -> Saga:
        return Saga(backoff=self.backoff, on_change=self._show, on_stuck=self._alarm)

    async def _alarm(self, stuck: Sequence[Compensation]) -> None:
        self._show()
        await self.on_stuck(stuck)

    def _show(self) -> None:
        """Show every step in the UI's details."""
        status = self.status()
        lines = [f"* {one.step}: {one.state}" + (f" ({one.detail})" if one.detail else "") for one in status.steps]
        workflow.set_current_details("\n".join([f"**{status.state}**", "", *lines]))

    async def _run(self, given: In) -> Out:
        saga, opening = self._the_saga, SagaInput(given, self.fingerprint_of(given))
        saga.opens_with(opening)
        is_told_again = False
        while isinstance(ended := await saga.run(self._told(saga, given, opening)), Irrevocable) and not saga.is_purged:
            # An earlier run has passed the pivot, or come to it: the story is told again from what is stored.
            if is_told_again:
                await saga.cancellation.protect(saga.wait_to_go_forward())
            is_told_again = True
            saga = self._saga = self._new_saga()
            saga.opens_with(opening)
            saga.cancellation.overrule()
        outcome = _name_of(ended)
        if isinstance(ended, Unwound):
            await saga.cancellation.protect(self._end(saga, outcome, opening))
        self._ended_as = outcome
        self._show()
        await wait_until(workflow.all_handlers_finished)
        if isinstance(ended, Completed):
            return ended.value
        if isinstance(ended, Irrevocable):
            raise SagaPurged(f"{workflow.info().workflow_id} has completed long ago, and its result is deleted")
        assert isinstance(ended, Unwound), f"a declared saga does not end as {ended}"
        if ended.cause is not None:
            raise SagaUnwound(describe(ended.cause), details=[ended.failed_step]) from ended.cause
        if saga.cancellation.is_from_temporal:
            raise CancelledError("cancelled; everything is undone")
        raise SagaCancelled(saga.cancellation.reason)

    async def _told(self, saga: Saga, given: In, opening: SagaInput) -> Out:
        """Tell the story, and record that it came to its end: where another run is being undone, it has not."""
        value = await self.story(saga, deepcopy(given))  # what it does to its input is not the next run's input
        await self._end(saga, "completed", opening)
        return value

    async def _end(self, saga: Saga, outcome: str, opening: SagaInput) -> None:
        async def attempt(rounds: int) -> None:
            await workflow.execute_activity(
                END_ACTIVITY,
                args=[outcome, opening],
                activity_id="end" if rounds == 1 else f"end-{rounds}",
                summary=outcome,
                # What follows a cancel is an end too, with the same id.
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                **self.record.limits(),
            )

        await saga.record_end(attempt)

    # Queries and updates ----------------------------------------------------------------------------------

    @workflow.query
    def status(self) -> SagaStatus:
        """Return where the saga is, step by step."""
        saga = self._the_saga
        state = self._ended_as or ("stuck" if saga.is_stuck else "unwinding" if saga.is_unwinding else "running")
        steps = [StepStatus(one.step, one.state.value, one.detail) for one in saga.compensations]
        return SagaStatus(state, steps, saga.cancellation.reason if saga.cancellation.is_requested else "")

    @workflow.update
    async def cancel(self, reason: str) -> None:
        """Ask for an unwind, and return once it is recorded. Refused once an unwind has begun, and past the pivot.

        Where the pivot's outcome is unknown, to this run or an earlier one, this waits until it is settled.
        """
        self._the_saga.cancellation.request(reason)
        await wait_until(lambda: self._the_saga.goes_back or self._the_saga.is_past_pivot or bool(self._ended_as))
        if not self._the_saga.goes_back:
            raise InvalidInput("too late: the saga has passed its point of no return meanwhile")

    @cancel.validator
    def _validate_cancel(self, reason: str) -> None:
        saga = self._the_saga
        if not reason.strip():
            raise InvalidInput("a cancel needs a reason")
        if saga.is_past_pivot or self._ended_as == "completed":
            raise InvalidInput("too late: the saga is past its point of no return")
        if saga.is_unwinding or self._ended_as:
            raise InvalidInput("the saga is being undone already")

    @workflow.update
    async def retry(self) -> SagaStatus:
        """Try what is stuck again now, and return where the saga is after that round."""
        self._the_saga.retry()
        await self._the_saga.round_ended()
        return self.status()

    @retry.validator
    def _validate_retry(self) -> None:
        if not self._the_saga.is_stuck:
            raise InvalidInput("nothing is stuck")

    @workflow.update
    async def resolve(self, resolution: Resolution) -> SagaStatus:
        """Record what an operator says of a stuck step, and act on it."""
        saga = self._the_saga  # another takes its place where the story is told again meanwhile
        activity, given, instance = saga.begun(resolution.step)
        try:
            await workflow.execute_activity(
                RESOLVE_ACTIVITY,
                RecordedResolution(resolution, activity, given, instance),
                summary=f"{resolution.step}: {resolution.verdict}",
                **self.record.limits(),
            )
        except ActivityError as error:
            raise InvalidInput(f"the resolution was not taken: {describe(error)}") from error
        saga.judge(resolution)
        return self.status()

    @resolve.validator
    def _validate_resolve(self, resolution: Resolution) -> None:
        if not (resolution.who.strip() and resolution.why.strip()):
            raise InvalidInput("a resolution says who decided, and why")
        if problem := self._the_saga.refusal_of(resolution):
            raise InvalidInput(problem)


def _name_of(ended: Completed[Any] | Unwound | Irrevocable | StillStuck) -> str:
    if isinstance(ended, Unwound):
        return "unwound" if ended.cause else "cancelled"
    return "completed"
