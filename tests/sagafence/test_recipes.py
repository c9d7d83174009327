"""The code of docs/recipes.md: what is quoted is here, and the stories run."""

import asyncio
import re
import uuid
from collections.abc import Sequence

import pytest
from httpx import AsyncClient, MockTransport, Request, Response
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.worker import Worker

from devstack.stack import ROOT
from sagafence import PostgresFence, Sweep, sweep_activities
from sagafence.fingerprint import fingerprint
from tests.conftest import Database
from tests.sagafence.recipes import ApprovedTrip, PaidTrip, SendLetter, TripWithLetter, cancel, make_schedule
from tests.sagafence.recipes_steps import Night, Payment, Steps, Trip

_TABLE = (
    "CREATE TABLE hotels (hotel text PRIMARY KEY, free_rooms integer NOT NULL);"
    "INSERT INTO hotels VALUES ('Seaside', 5), ('Alpine', 5), ('Full House', 0)"
)


class Agency:
    def __init__(self, client: Client, engine: AsyncEngine, database: Database) -> None:
        self.client, self.engine, self.database = client, engine, database
        self.queue = f"recipes-{uuid.uuid4().hex}"

    def worker(self) -> Worker:
        steps = PostgresFence(self.engine).activities_of(Steps())
        return Worker(
            self.client,
            task_queue=self.queue,
            workflows=[ApprovedTrip, TripWithLetter, SendLetter, Sweep],
            activities=[*steps, *sweep_activities(self.engine, self.client)],
        )

    async def start(self, *hotels: str) -> WorkflowHandle[ApprovedTrip, list[str]]:
        trip = Trip(f"trip-{uuid.uuid4()}", hotels)
        return await self.client.start_workflow(ApprovedTrip.run, trip, id=trip.trip_id, task_queue=self.queue)

    async def free(self) -> Sequence[int]:
        rows = await self.database.fetch("SELECT free_rooms FROM hotels ORDER BY hotel")
        return [row["free_rooms"] for row in rows]


@pytest.fixture
async def agency(client: Client, library_engine: AsyncEngine, library_database: Database) -> Agency:
    await library_database.run(_TABLE)
    return Agency(client, library_engine, library_database)


def test_every_block_of_the_recipes_is_a_part_of_these_modules() -> None:
    document = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    modules = (ROOT / "tests" / "sagafence" / name for name in ("recipes.py", "recipes_steps.py"))
    source = "\n".join(module.read_text(encoding="utf-8") for module in modules)

    assert len(blocks) >= 8
    assert [block for block in blocks if block not in source] == []


async def test_a_trip_is_paid_at_a_bank_and_what_follows_is_done(agency: Agency) -> None:
    paths = []

    def bank(request: Request) -> Response:
        paths.append(request.url.path)
        return Response(201, json={"id": len(paths)}) if len(paths) != 2 else Response(503)

    async with AsyncClient(transport=MockTransport(bank), base_url="http://bank") as http:
        steps = PostgresFence(agency.engine).activities_of(Steps(), Payment(http))
        async with Worker(agency.client, task_queue=agency.queue, workflows=[PaidTrip], activities=steps):
            trip = Trip(f"trip-{uuid.uuid4()}", ("Seaside",))
            result = await agency.client.execute_workflow(PaidTrip.run, trip, id=trip.trip_id, task_queue=agency.queue)

    assert result == ["Seaside", "payment 1", "receipt 3", f"thanks/{trip.trip_id}"]
    assert paths == ["/payments", "/receipts", "/receipts"]


async def test_a_story_waits_for_a_signal(agency: Agency) -> None:
    async with agency.worker():
        handle = await agency.start("Seaside", "Alpine")
        await handle.signal(ApprovedTrip.approve)
        assert await handle.result() == ["Seaside", "Alpine", f"confirmed/{handle.id}"]

        assert await cancel(handle) == "not cancelled: it has ended"
    assert await agency.free() == [4, 0, 4]


async def test_a_refusal_within_a_loop_undoes_what_the_loop_has_done(agency: Agency) -> None:
    async with agency.worker():
        handle = await agency.start("Seaside", "Full House")
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    assert await agency.free() == [5, 0, 5]


async def test_a_cancel_while_the_story_waits_undoes_it(agency: Agency) -> None:
    async with agency.worker():
        handle = await agency.start("Seaside")
        async with asyncio.timeout(20):
            while await agency.free() != [5, 0, 4]:
                await asyncio.sleep(0.05)

        assert await cancel(handle) == "being undone"
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    assert await agency.free() == [5, 0, 5]


async def test_a_child_workflow_follows_the_pivot_and_is_started_once(agency: Agency) -> None:
    trip = Trip(f"trip-{uuid.uuid4()}", ("Seaside", "Alpine"))
    async with agency.worker():
        ran = [
            await agency.client.execute_workflow(TripWithLetter.run, trip, id=trip.trip_id, task_queue=agency.queue)
            for _ in range(2)
        ]
        await agency.client.get_workflow_handle(f"letter-{trip.trip_id}").result()

    assert ran[0] == ran[1]
    assert await agency.free() == [4, 0, 4]


async def test_the_sweeps_schedule_can_be_made(agency: Agency) -> None:
    await make_schedule(agency.client, agency.queue)
    handle = agency.client.get_schedule_handle("sagafence-sweep")
    try:
        async with agency.worker():
            await handle.trigger()
            async with asyncio.timeout(30):
                while not (await handle.describe()).info.recent_actions:
                    await asyncio.sleep(0.1)
    finally:
        await handle.delete()


def test_a_field_with_a_default_changes_no_fingerprint() -> None:

    assert fingerprint(Night("t", "Seaside")) == fingerprint({"trip_id": "t", "hotel": "Seaside"})
    assert fingerprint(Trip("t", ())) == fingerprint({"trip_id": "t", "hotels": []})
