"""The stories of docs/recipes.md."""

import contextlib
from datetime import timedelta

from temporalio import workflow
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from sagafence import PurgeInput, Saga, SagaWorkflow, SweepInput

with workflow.unsafe.imports_passed_through():
    from tests.sagafence.recipes_steps import Night, Payment, Steps, TooLate, Trip


@workflow.defn
class ApprovedTrip(SagaWorkflow[Trip, list[str]]):
    def __init__(self) -> None:
        self._is_approved = False

    @workflow.signal
    def approve(self) -> None:
        self._is_approved = True

    async def story(self, saga: Saga, trip: Trip, /) -> list[str]:
        rooms = [await saga.do(Steps.take_room, Night(trip.trip_id, hotel), instance=hotel) for hotel in trip.hotels]
        try:
            await workflow.wait_condition(lambda: self._is_approved, timeout=timedelta(days=2))
        except TimeoutError:
            raise TooLate("nobody approved the trip within two days") from None
        return [*rooms, await saga.pivot(Steps.confirm, trip)]


@workflow.defn
class TripWithLetter(SagaWorkflow[Trip, list[str]]):
    async def story(self, saga: Saga, trip: Trip, /) -> list[str]:
        nights = [Night(trip.trip_id, hotel) for hotel in trip.hotels]
        rooms = await saga.together(*(saga.do(Steps.take_room, night, instance=night.hotel) for night in nights))
        confirmed = await saga.pivot(Steps.confirm, trip)
        if workflow.patched("a-letter-follows"):
            await self._start_letter(trip)
        return [*rooms, confirmed]

    async def _start_letter(self, trip: Trip) -> None:
        with contextlib.suppress(WorkflowAlreadyStartedError):  # by an earlier run of this saga
            await workflow.start_child_workflow(
                SendLetter.run,
                trip,
                id=f"letter-{trip.trip_id}",
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )


@workflow.defn
class PaidTrip(SagaWorkflow[Trip, list[str]]):
    async def story(self, saga: Saga, trip: Trip, /) -> list[str]:
        rooms = [await saga.do(Steps.take_room, Night(trip.trip_id, hotel), instance=hotel) for hotel in trip.hotels]
        payment = await saga.pivot(Payment.pay, trip)
        receipt = await saga.then(Payment.send_receipt, trip)
        return [*rooms, f"payment {payment}", f"receipt {receipt}", await saga.then(Payment.thank, trip)]


@workflow.defn
class SendLetter:
    @workflow.run
    async def run(self, trip: Trip) -> None:
        workflow.logger.info("a letter about %s", trip.trip_id)


async def cancel(handle: WorkflowHandle[ApprovedTrip, list[str]]) -> str:
    try:
        await handle.execute_update(ApprovedTrip.cancel, "changed their mind")
    except WorkflowUpdateFailedError as refused:
        return f"not cancelled: {refused.cause}"
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return "not cancelled: it has ended"
    return "being undone"


async def make_schedule(client: Client, queue: str) -> None:
    a_month = timedelta(days=30).total_seconds()
    await client.create_schedule(
        "sagafence-sweep",
        Schedule(
            ScheduleActionStartWorkflow(
                "sagafence.Sweep", SweepInput(purge=PurgeInput(a_month)), id="sagafence-sweep", task_queue=queue
            ),
            ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(minutes=1))]),
            policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP),
        ),
    )
