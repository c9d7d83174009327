"""The saga of the tests: its worker, and how to look at what it did."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
)
from temporalio.service import RPCError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from sagafence import PostgresFence, SagaStatus
from sagafence.calls import StepCall
from tests.conftest import Database
from tests.sagafence.bare import BLOCKED
from tests.sagafence.trip_steps import Booking, Full, Trip, TripSteps
from tests.sagafence.trip_story import BookTogether, BookTrip, IssueBeside, IssueTicket

BEFORE_ITS_FIRST_TASK = timedelta(seconds=30)
"""How long a run waits for its first task, so that a cancel comes before it: the cancel ends the wait."""


class _Losing(Interceptor):
    """Loses the answer of the first attempt of some activities, after it has committed, and holds those that are held.

    `steps.hold("before room")` holds the activity with the id `room` before it is in the database.
    """

    def __init__(self, steps: TripSteps) -> None:
        self._steps = steps

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        steps, lost = self._steps, self._steps.lost

        class Activities(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                attempt = steps.held.pop(f"before {activity.info().activity_id}", None)
                if attempt is None:
                    return await self._go_on(input)
                attempt.has_come.set()
                await attempt.may_go.wait()
                try:
                    return await self._go_on(input)
                finally:
                    attempt.is_over.set()

            async def _go_on(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                if (name := activity.info().activity_type) in steps.refuses:
                    steps.refuses.remove(name)
                    raise Full("not now")
                answer = await super().execute_activity(input)
                if name in lost:
                    lost.remove(name)
                    raise ConnectionResetError("the answer was lost")
                return answer

        return Activities(next)


async def call_late(handle: WorkflowHandle[Any, Any], activities: Sequence[Any], name: str, given: Any) -> Any:
    """Run an activity of a saga that has nobody to hear it, as one that outlives its run."""
    [late] = [one for one in activities if vars(one)["__temporal_activity_definition"].name == name]
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_id=handle.id)
    return await environment.run(late, given, StepCall())


@dataclass
class Trips:
    """The saga of the tests: its worker, and how to look at what it did."""

    client: Client
    engine: AsyncEngine
    database: Database
    steps: TripSteps = field(default_factory=TripSteps)
    task_queue: str = field(default_factory=lambda: f"trips-{uuid.uuid4().hex[:12]}")

    def working(self, **options: Any) -> AbstractAsyncContextManager[Any]:
        """Run a worker inside the block."""
        return Worker(
            self.client,
            task_queue=self.task_queue,
            workflows=[BookTrip, IssueTicket, BookTogether, IssueBeside],
            activities=PostgresFence(self.engine).activities_of(self.steps),
            interceptors=[_Losing(self.steps)],
            **options,
        )

    async def start(self, *fails: str, note: str = "") -> WorkflowHandle[BookTrip, list[Booking]]:
        """Start a saga whose steps of these names refuse it."""
        trip = Trip(f"trip-{uuid.uuid4().hex[:12]}", fails, note)
        return await self.client.start_workflow(BookTrip.run, trip, id=trip.trip_id, task_queue=self.task_queue)

    async def start_again(
        self, handle: WorkflowHandle[BookTrip, list[Booking]], note: str = "", *, is_cancelled: bool = False
    ) -> WorkflowHandle[BookTrip, list[Booking]]:
        """Start a second run under the same id, as a sweep does after the first was lost.

        One that `is_cancelled` learns of it in its first task.
        """
        trip = Trip(handle.id, (), note)
        again = await self.client.start_workflow(
            BookTrip.run,
            trip,
            id=trip.trip_id,
            task_queue=self.task_queue,
            start_delay=BEFORE_ITS_FIRST_TASK if is_cancelled else None,
        )
        if is_cancelled:
            await again.cancel()
        return again

    async def effects(self, handle: WorkflowHandle[Any, Any]) -> Counter[str]:
        """Count what a saga holds."""
        rows = await self.database.fetch("SELECT step FROM effects WHERE saga_id = $1", handle.id)
        return Counter(row["step"] for row in rows)

    async def until_blocked(self) -> None:
        """Wait until a session waits for a lock."""
        async with asyncio.timeout(20):
            while not await self.database.value(BLOCKED):
                await asyncio.sleep(0.005)

    async def activities(self, handle: WorkflowHandle[Any, Any]) -> list[str]:
        """List the ids of the activities that a saga has scheduled."""
        events = [event async for event in handle.fetch_history_events()]
        scheduled = [event.activity_task_scheduled_event_attributes.activity_id for event in events]
        return [activity_id for activity_id in scheduled if activity_id]

    async def until(self, handle: WorkflowHandle[BookTrip, Any], state: str) -> SagaStatus:
        """Wait for a state, and return the whole status."""
        async with asyncio.timeout(20):
            while (status := await handle.query(BookTrip.status)).state != state:
                await asyncio.sleep(0.02)
        return status

    async def ended_by_retries(self, run: WorkflowHandle[Any, Any]) -> None:
        """Wait for the end of a run, whatever it is, and retry what is stuck until then."""
        async with asyncio.timeout(20):
            while (await run.describe()).status is WorkflowExecutionStatus.RUNNING:
                with suppress(WorkflowQueryFailedError, WorkflowUpdateFailedError, RPCError):  # it has ended meanwhile
                    if (await run.query(BookTrip.status)).state == "stuck":
                        await run.execute_update(BookTrip.retry)
                await asyncio.sleep(0.02)

    async def until_step(self, handle: WorkflowHandle[BookTrip, Any], step: str, state: str) -> None:
        """Wait for the state of one step."""
        async with asyncio.timeout(20):
            while (step, state) not in {(one.step, one.state) for one in (await handle.query(BookTrip.status)).steps}:
                await asyncio.sleep(0.02)
