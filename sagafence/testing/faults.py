"""The interceptor that injects faults into one saga's activities, holds their attempts at gates, and shortens waits.

The saga's own code stays as it is. On the workflow's side it shortens the waits between attempts to milliseconds, and,
where a case needs it, the timeout or the number of attempts of one activity. Everything else stays as the saga has it:
above all the failures that it does not retry.
"""

import asyncio
import contextlib
import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    StartActivityInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

Moment = Literal["before", "after"]
Place = tuple[str, Moment]

_FIRST_RETRY = timedelta(milliseconds=20)
_LONGEST_RETRY = timedelta(milliseconds=100)
_LONGEST_WAIT_SECONDS = 10.0
_OF_A_ROUND = re.compile(r"-\d+$")
"""What an activity id ends with where it is of a later round of the same step or undo."""


class Gate:
    """Holds the first attempt that comes to its place. Later ones pass."""

    def __init__(self, *, is_deaf: bool) -> None:
        self.has_held = asyncio.Event()
        self.has_ended = asyncio.Event()
        self.error: BaseException | None = None
        """How the real call of the attempt ended, once `has_ended` is set."""
        self.is_holding = False
        self.is_local = False
        """Whether the attempt that it holds is a local one."""
        self.is_deaf = is_deaf
        self._released: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def open(self) -> None:
        """Let the attempt go on."""
        if not self._released.done():
            self.is_holding = False
            self._released.set_result(None)

    def lose(self) -> None:
        """Fail the attempt as one whose worker was lost, unless it went on before."""
        if self.has_held.is_set() and not self._released.done():
            self._released.set_exception(ApplicationError("the worker was lost", type="WorkerLost"))

    async def hold(self) -> bool:
        """Hold the attempt up, if it is the first; return whether it was."""
        if self.has_held.is_set():
            return False
        self.has_held.set()
        self.is_holding = True
        self.is_local = activity.info().is_local
        try:
            await self._wait()
        finally:
            self.is_holding = False
        return True

    async def _wait(self) -> None:
        while True:
            try:
                await asyncio.shield(self._released)
            except asyncio.CancelledError:
                if not self.is_deaf:
                    raise
                # A late attempt is one that does not know that its time is over.
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
            else:
                return

    def note_end(self, error: BaseException | None) -> None:
        """Note how the attempt's real call ended."""
        self.error = error
        self.has_ended.set()


class Fault:
    """Makes attempts fail: the next `times`, or all of them until `stop`.

    It waits with that until `once` has happened elsewhere, for a while: a step beside it may not come at all.
    """

    def __init__(self, times: int | None, *, is_final: bool) -> None:
        self.injections = 0
        self.has_injected = asyncio.Event()
        self.once: Sequence[asyncio.Event] = ()
        self._left = times
        self._is_final = is_final

    def stop(self) -> None:
        """Let every later attempt pass."""
        self._left = 0

    async def inject(self) -> None:
        """Fail the attempt, if any is left to fail."""
        if self._left == 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
                for event in self.once:
                    await event.wait()
        if self._left == 0:
            return
        if self._left is not None:
            self._left -= 1
        self.injections += 1
        self.has_injected.set()
        raise ApplicationError("injected", type="Injected", non_retryable=self._is_final)


@dataclass(frozen=True)
class _Limits:
    start_to_close: timedelta | None
    attempts: int | None


class Faults(Interceptor):
    """The gates and faults of one workflow, by activity; `before` the real call, or `after` it.

    Args:
        workflow_id: of the saga under test.
        names: what its steps call their activities, where that may be an activity id.
    """

    def __init__(self, workflow_id: str, names: Iterable[str] = ()) -> None:
        self.names = frozenset(names)
        self.attempts: Counter[str] = Counter()
        """All attempts of an activity so far, local ones included."""
        self.local_attempts: Counter[str] = Counter()
        self._workflow_id = workflow_id
        self._worked: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._past_local: set[str] = set()
        self._under_way = 0
        self._gates: dict[Place, Gate] = {}
        self._faults: dict[Place, Fault] = {}
        self._limits: dict[str, _Limits] = {}

    def hold(self, name: str, moment: Moment, *, is_deaf: bool = False) -> Gate:
        """Set up a gate. A deaf attempt goes on after its timeout, as one on a hung machine does."""
        return self._gates.setdefault((name, moment), Gate(is_deaf=is_deaf))

    def fail(self, name: str, moment: Moment, *, times: int | None, is_final: bool = False) -> Fault:
        """Set up a fault. After a final one the attempt is not repeated."""
        return self._faults.setdefault((name, moment), Fault(times, is_final=is_final))

    def limit(self, name: str, *, start_to_close: timedelta | None = None, attempts: int | None = None) -> None:
        """Limit the time of one attempt of an activity, or their number."""
        self._limits[name] = _Limits(start_to_close, attempts)

    def worked(self, name: str) -> asyncio.Event:
        """Return what is set once an attempt of an activity has succeeded."""
        return self._worked[name]

    def pass_local(self, name: str) -> None:
        """Have local attempts of an activity fail, without effect; gates and faults are for the ordinary ones."""
        self._past_local.add(name)

    @property
    def at_work(self) -> int:
        """How many attempts are under way and not held up."""
        return self._under_way - sum(gate.is_holding for gate in self._gates.values())

    @property
    def is_held_locally(self) -> bool:
        """Whether a local attempt is held up."""
        return any(gate.is_holding and gate.is_local for gate in self._gates.values())

    async def stop(self, worker: AbstractAsyncContextManager[Any]) -> None:
        """Stop a worker; every attempt at a gate is lost with it."""
        stopping = asyncio.ensure_future(worker.__aexit__(None, None, None))
        await asyncio.sleep(0)  # it stops taking tasks before it loses those it has
        for gate in self._gates.values():
            gate.lose()
        await stopping

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Intercept every activity of the worker."""
        return _Activities(next, self)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002, ARG002
    ) -> type[WorkflowInboundInterceptor]:
        """Intercept the workflow's calls of its activities."""
        workflow_id, limits, name_of = self._workflow_id, self._limits, self.name_of

        class _Workflow(WorkflowInboundInterceptor):
            def init(self, outbound: WorkflowOutboundInterceptor) -> None:
                super().init(_ShortWaits(outbound, workflow_id, limits, name_of))

        return _Workflow

    def name_of(self, activity_type: str, activity_id: str | None) -> str:
        """Name an activity as the steps name it: by its id where one of them does, else by its type."""
        by_id = _OF_A_ROUND.sub("", activity_id or "")
        return by_id if by_id in self.names else activity_type

    def is_about(self, info: activity.Info) -> bool:
        """Whether an attempt belongs to the workflow under test."""
        return info.workflow_id == self._workflow_id

    async def come_to(self, place: Place, *, has_failed: bool = False) -> Gate | None:
        """Run the gate and the fault of a place; return the gate that held the attempt."""
        gate, fault = self._gates.get(place), self._faults.get(place)
        was_held = await gate.hold() if gate else False
        is_late = was_held and gate is not None and gate.is_deaf  # it is to act
        if fault and not has_failed and not is_late:
            await fault.inject()
        return gate if was_held else None

    async def attempt(self, info: activity.Info, call: Callable[[], Awaitable[Any]]) -> Any:
        """Run one attempt through its gates and faults."""
        name = self.name_of(info.activity_type, info.activity_id)
        self.attempts[name] += 1
        if info.is_local:
            self.local_attempts[name] += 1
            if name in self._past_local:
                raise ApplicationError("injected", type="Injected")
        self._under_way += 1
        try:
            held_by = await self.come_to((name, "before"))
            error: BaseException | None = None
            try:
                answer = await call()
            except BaseException as raised:
                error = raised
                raise
            else:
                self._worked[name].set()
            finally:
                if held_by:
                    held_by.note_end(error)
                await self.come_to((name, "after"), has_failed=error is not None)
            return answer
        finally:
            self._under_way -= 1


class _Activities(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, faults: Faults) -> None:  # noqa: A002
        super().__init__(next)
        self._faults = faults

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        info = activity.info()
        if not self._faults.is_about(info):
            return await super().execute_activity(input)
        call = super().execute_activity
        return await self._faults.attempt(info, lambda: call(input))


_Start = TypeVar("_Start", StartActivityInput, StartLocalActivityInput)


class _ShortWaits(WorkflowOutboundInterceptor):
    def __init__(
        self,
        next: WorkflowOutboundInterceptor,  # noqa: A002
        workflow_id: str,
        limits: dict[str, _Limits],
        name_of: Callable[[str, str | None], str],
    ) -> None:
        super().__init__(next)
        self._name_of = name_of
        self._workflow_id = workflow_id
        self._limits = limits

    def start_activity(self, input: StartActivityInput) -> "workflow.ActivityHandle[Any]":  # noqa: A002
        return super().start_activity(self._shortened(input))

    def start_local_activity(self, input: StartLocalActivityInput) -> "workflow.ActivityHandle[Any]":  # noqa: A002
        return super().start_local_activity(self._shortened(input))

    def _shortened(self, given: _Start) -> _Start:
        if workflow.info().workflow_id != self._workflow_id:
            return given
        name = self._name_of(given.activity, given.activity_id)
        limits = self._limits.get(name, _Limits(None, None))
        policy = given.retry_policy or RetryPolicy()
        times = [at_most for at_most in (limits.start_to_close, given.start_to_close_timeout) if at_most is not None]
        attempts = [at_most for at_most in (limits.attempts, policy.maximum_attempts) if at_most]
        return dataclasses.replace(
            given,
            start_to_close_timeout=min(times, default=None),
            retry_policy=dataclasses.replace(
                policy,
                initial_interval=min(policy.initial_interval, _FIRST_RETRY),
                maximum_interval=_LONGEST_RETRY,
                maximum_attempts=min(attempts, default=0),  # a local attempt stays one, before the ordinary ones
            ),
        )
