"""A harness for one saga: its workflow tasks and activities are watched, counted, and held where the test says.

Two workers with the product's own parts serve it, one for workflow tasks and one for activities, on a task queue
of its own. Either may be absent for a while, so that a task stays scheduled.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import (
    PollerBehaviorSimpleMaximum,
    Worker,
    WorkerConfig,
    WorkflowInstance,
)

from adapters.config import WorkerSettings
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.attempts import AroundAttempts, Run
from tests.conftest import Shop
from tests.faults.runner import ObservedInstance, ObservedRunner, let_tasks_take_long
from tests.workflow.gates import Fault, Gate
from worker import build_worker
from workflows.checkout import CheckoutWorkflow

Handle = WorkflowHandle[CheckoutWorkflow, CheckoutStatus]
Role = Literal["workflows", "activities"]
ROLES: tuple[Role, ...] = ("workflows", "activities")
TASK = "task"
DEADLINE_SECONDS = 60.0


class Stop(NamedTuple):
    """A place in a saga's course: the n-th workflow task, or the n-th attempt of an activity, and a moment of it.

    Moments: `scheduled`, and taken by no worker; `started`, a workflow task that is held; `before` and `after`
    an activity's work; `waiting`, where only a timer or a person goes on.
    """

    what: str
    number: int
    moment: str

    def __str__(self) -> str:
        return f"{self.what}-{self.number}-{self.moment}"


@lru_cache(maxsize=1)
def _product_worker(client: Client, engine: AsyncEngine) -> Worker:
    # It registers itself when it is made, though it never runs: give it a task queue that nothing else uses.
    nowhere = f"nowhere-{uuid.uuid4().hex[:12]}"
    return build_worker(client, engine, WorkerSettings(task_queue=nowhere, shutdown_grace_seconds=30))


def product_parts(client: Client, engine: AsyncEngine) -> WorkerConfig:
    parts = _product_worker(client, engine).config()
    parts["plugins"] = []  # the audit's own slots, which no saga needs
    return parts


class Harness(AroundAttempts):
    """The two workers of one order's saga, and everything that happens on them."""

    def __init__(self, shop: Shop, order: CheckoutInput, *, task_queue: str = "", cached: int = 100) -> None:
        self.shop = replace(shop, task_queue=task_queue or f"harness-{uuid.uuid4().hex[:12]}")
        self.order = order
        self.trace: list[Stop] = []
        self.evictions = 0
        self.alive = 0
        self.attempts: list[tuple[str, int]] = []
        """Every attempt, with the number that the server gave it."""
        self._cached = cached
        self._numbers: Counter[str] = Counter()
        self._holds: dict[Stop, Gate] = {}
        self._faults: dict[tuple[str, str], Fault] = {}
        self._workers: dict[Role, Worker] = {}
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let everything go, whatever happened: a held thread would hold the whole session."""
        self.open_all()
        for role in ROLES:
            await self.dismiss(role)

    def hold(self, stop: Stop) -> Gate:
        return self._holds.setdefault(stop, Gate())

    def fail(self, name: str, moment: str, error: Callable[[], Exception], times: int | None = None) -> Fault:
        return self._faults.setdefault((name, moment), Fault(times, error))

    def mend(self) -> None:
        for fault in self._faults.values():
            fault.mend()

    def open_all(self) -> None:
        for hold in self._holds.values():
            hold.open()

    async def employ(self, *roles: Role) -> None:
        for role in roles or ROLES:
            if role not in self._workers:
                self._workers[role] = self._made(role)
                await self._workers[role].__aenter__()

    async def dismiss(self, role: Role) -> None:
        """Stop a worker; its cached workflows are evicted. It has to end in time."""
        if worker := self._workers.pop(role, None):
            await asyncio.wait_for(worker.__aexit__(None, None, None), DEADLINE_SECONDS)

    def attempts_of(self, name: str) -> int:
        return self._numbers[name]

    @property
    def handle(self) -> Handle:
        return self.shop.client.get_workflow_handle_for(CheckoutWorkflow.run, checkout_workflow_id(self.order.order_id))

    def is_ours(self, workflow_id: str | None) -> bool:
        return workflow_id == checkout_workflow_id(self.order.order_id)

    def next_number(self, what: str) -> int:
        self._numbers[what] += 1
        return self._numbers[what]

    async def come_to(self, stop: Stop) -> None:
        self.trace.append(stop)
        if hold := self._holds.get(stop):
            await hold.hold()
        if fault := self._faults.get((stop.what, stop.moment)):
            fault.strike()

    def come_from_thread(self) -> None:
        """Count a workflow task, and keep its thread where the test holds it."""

        async def come() -> None:
            await self.come_to(Stop(TASK, self.next_number(TASK), "started"))

        asyncio.run_coroutine_threadsafe(come(), self._loop).result()

    async def attempt(self, info: activity.Info, arguments: Any, run: Run) -> Any:  # noqa: ARG002
        if not self.is_ours(info.workflow_id):
            return await run()
        name = info.activity_type
        number = self.next_number(name)
        self.attempts.append((name, info.attempt))
        self.alive += 1
        try:
            await self.come_to(Stop(name, number, "before"))
            try:
                return await run()
            finally:
                await self.come_to(Stop(name, number, "after"))
        finally:
            self.alive -= 1

    def _made(self, role: Role) -> Worker:
        """Make a worker of the product's own parts, for one role, with its workflow runner wrapped."""
        parts = product_parts(self.shop.client, self.shop.engine)
        parts["task_queue"] = self.shop.task_queue
        parts["interceptors"] = [*parts["interceptors"], self]
        parts["max_cached_workflows"] = self._cached
        # One saga needs no more, and polls are most of what a harness costs.
        parts["workflow_task_poller_behavior"] = PollerBehaviorSimpleMaximum(2)
        parts["activity_task_poller_behavior"] = PollerBehaviorSimpleMaximum(1)
        if role == "activities":
            parts["workflows"] = []
            return Worker(**parts)
        parts["activities"] = []
        parts["workflow_runner"] = ObservedRunner(parts["workflow_runner"], self._observed)
        worker = Worker(**parts)
        let_tasks_take_long(worker)
        return worker

    def _observed(self, inner: WorkflowInstance, workflow_id: str) -> WorkflowInstance:
        return HarnessInstance(inner, self) if self.is_ours(workflow_id) else inner


class HarnessInstance(ObservedInstance):
    """Reports each workflow task and each eviction to its harness."""

    def __init__(self, inner: WorkflowInstance, harness: Harness) -> None:
        super().__init__(inner)
        self._harness = harness

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        if any(job.HasField("remove_from_cache") for job in act.jobs):
            self._harness.evictions += 1
        elif not act.is_replaying:
            self._harness.come_from_thread()
        return super().activate(act)
