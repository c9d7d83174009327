import asyncio
import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient, MockTransport
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Interceptor

import sagafence
from airline import Airline
from sagafence.testing import Case, SagaUnderTest, Step, check
from trip_steps import Trip
from trip_story import BookTrip
from trip_worker import trip_worker

COUNT = text("SELECT (SELECT 100 - free_rooms FROM hotels WHERE hotel = 'Seaside'), (SELECT count(*) FROM invoices)")


class World:
    def __init__(self, client: Client, engine: AsyncEngine, queue: str) -> None:
        self.client, self.engine, self.queue = client, engine, queue
        self.airline = Airline()

    def worker(self, interceptors: Sequence[Interceptor] = ()) -> AbstractAsyncContextManager[Any]:
        http = AsyncClient(transport=MockTransport(self.airline), base_url="http://airline")
        return trip_worker(self.client, self.engine, http, self.queue, interceptors)

    async def start(self, hotel: str = "Seaside", flight: str = "PX1") -> WorkflowHandle[BookTrip, list[str]]:
        trip = Trip(f"trip-{uuid.uuid4()}", hotel, flight)
        return await self.client.start_workflow(BookTrip.run, trip, id=trip.trip_id, task_queue=self.queue)

    async def count(self, _workflow_id: str = "") -> dict[str, int]:
        async with self.engine.connect() as connection:
            rooms, invoices = (await connection.execute(COUNT)).one()
        return {"rooms": rooms, "seats": len(self.airline.seats), "invoices": invoices}


@pytest.fixture
async def world(saga_client: Client, saga_engine: AsyncEngine, saga_task_queue: str, saga_postgres: Any) -> World:
    await sagafence.install(saga_engine)
    saga_postgres.psql(saga_engine.url.database, "-f", str(Path(__file__).with_name("trip.sql")))
    return World(saga_client, saga_engine, saga_task_queue)


async def test_a_trip_is_booked(world: World) -> None:
    async with world.worker():
        handle = await world.start()
        async with asyncio.timeout(30):
            assert await handle.result() == ["Seaside", "seat 1", f"invoice/{handle.id}"]

    assert await world.count() == {"rooms": 1, "seats": 1, "invoices": 1}


@pytest.mark.parametrize(("hotel", "flight"), [("Full House", "PX1"), ("Seaside", "sold out")])
async def test_a_trip_that_is_refused_leaves_nothing(world: World, hotel: str, flight: str) -> None:
    async with world.worker():
        handle = await world.start(hotel, flight)
        with pytest.raises(WorkflowFailureError):
            async with asyncio.timeout(30):
                await handle.result()

    assert await world.count() == {"rooms": 0, "seats": 0, "invoices": 0}


STEPS = (
    Step("room", do="take_room", undo="free_room", effect={"rooms": +1}, is_transaction=True),
    Step(
        "seat",
        do="book_seat",
        undo="cancel_seat",
        effect={"seats": +1},
        calls="POST /seats",
        undo_calls="DELETE /seats/",
    ),
    Step(
        "invoice",
        do="send_invoice",
        undo="send_invoice.settle",
        effect={"invoices": +1},
        is_irrevocable=True,
        is_transaction=True,
    ),
)


@pytest.mark.saga_matrix(STEPS, can_be_retried=True)
async def test_whatever_goes_wrong_a_trip_is_booked_whole_or_not_at_all(case: Case, world: World) -> None:
    saga = SagaUnderTest(
        start=world.start,
        worker=world.worker,
        probe=world.count,
        retry=lambda handle: handle.execute_update(BookTrip.retry),
        provider=world.airline.strikes,
    )
    await check(case, saga)
