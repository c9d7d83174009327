"""The trip booking under the test kit: the example of docs/testing-your-saga.md, and every case of its matrix."""

import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.client import Client

from adapters.database import create_engine
from devstack.stack import DevStack
from sagafence.testing import Case, Kind, SagaUnderTest, Step, check, matrix
from tests.faults.share import shared_database
from tests.integration.test_trip_booking import TABLES, Agency, TripWorkflow


@pytest.fixture(scope="module")
async def agency(client: Client, stack: DevStack) -> AsyncIterator[Agency]:
    """An agency that never runs out of rooms and seats."""
    async with shared_database(stack) as database:
        await database.run(TABLES + "INSERT INTO hotels VALUES ('Seaside', 99); INSERT INTO flights VALUES ('PX1', 99)")
        engine = create_engine(database.url, pool_size=5)
        yield Agency(client, engine, database, f"trips-{uuid.uuid4().hex[:12]}")
        await engine.dispose()


STEPS = (
    Step("room", do="book_room", undo="cancel_room", effect={"free rooms": -1}),
    Step("seat", do="book_seat", undo="cancel_seat", effect={"free seats": -1}),
)


@pytest.fixture
def trips(agency: Agency) -> SagaUnderTest:
    async def count(_workflow_id: str) -> dict[str, int]:
        rooms, seats = await agency.free("Seaside", "PX1")
        return {"free rooms": rooms, "free seats": seats}

    return SagaUnderTest(
        start=lambda: agency.start("Seaside", "PX1"),
        worker=agency.working,
        probe=count,
        retry=lambda handle: handle.execute_update(TripWorkflow.retry),
    )


@pytest.mark.parametrize("case", matrix(STEPS, can_be_retried=True), ids=str)
async def test_a_trip_keeps_its_promises(case: Case, trips: SagaUnderTest) -> None:
    await check(case, trips)


def test_there_is_a_case_for_every_kind_and_step() -> None:
    elsewhere = {
        kind for kind in Kind if "provider-" in kind or "commit-" in kind or kind.startswith(("beside-", "do-stuck"))
    }

    cases = {str(case) for case in matrix(STEPS, can_be_retried=True)}

    assert len(cases) == 2 + (len(Kind) - 2 - len(elsewhere)) * len(STEPS)


def test_every_block_of_the_document_is_a_part_of_a_test() -> None:
    here = Path(__file__)
    document = (here.parents[2] / "docs" / "testing-your-saga.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    tests = (here, here.with_name("moving.py"), here.parents[1] / "unit" / "test_provider_strikes.py")
    source = "\n\n".join(test.read_text(encoding="utf-8") for test in tests)

    assert len(blocks) >= 5
    assert [block for block in blocks if block not in source] == []
