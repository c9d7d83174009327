from temporalio import workflow

from sagafence import Saga, SagaWorkflow

with workflow.unsafe.imports_passed_through():
    from trip_steps import Steps, Trip


@workflow.defn
class BookTrip(SagaWorkflow[Trip, list[str]]):
    async def story(self, saga: Saga, trip: Trip, /) -> list[str]:
        hotel = await saga.do(Steps.take_room, trip)
        seat = await saga.do(Steps.book_seat, trip)
        invoice = await saga.pivot(Steps.send_invoice, trip)
        return [hotel, f"seat {seat}", invoice]
