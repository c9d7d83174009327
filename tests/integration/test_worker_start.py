"""A worker that starts while its servers come and go waits for them, and says what only a person can mend."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import PollerBehaviorAutoscaling

from adapters import readiness
from adapters.config import WorkerSettings
from adapters.database import create_audit_engine, create_engine
from tests.conftest import Database, Shop

Engines = tuple[AsyncEngine, AsyncEngine, AsyncEngine]


@pytest.fixture
async def engines(database: Database) -> AsyncIterator[Engines]:
    """The three that a worker has."""
    made = (
        create_engine(database.url),
        create_engine(database.url, is_patient=True),
        create_audit_engine(database.url),
    )
    yield made
    for engine in made:
        await engine.dispose()


class Flaky:
    """A client whose first calls for the search attributes find nobody."""

    def __init__(self, client: Client, failures: int) -> None:
        self._client = client
        self.failures = failures
        self.namespace = client.namespace

    @property
    def operator_service(self) -> "Flaky":
        return self

    async def list_search_attributes(self, request: Any) -> Any:
        if self.failures:
            self.failures -= 1
            raise RPCError("transport error", RPCStatusCode.UNAVAILABLE, b"")
        return await self._client.operator_service.list_search_attributes(request)


async def test_a_worker_waits_for_a_temporal_that_goes_away_again_while_it_starts(
    engines: Engines, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky(client, failures=3)

    async def connect(**_: Any) -> Flaky:
        return flaky

    monkeypatch.setattr(readiness, "connect", connect)

    usable: object = await readiness.wait_until_usable(
        WorkerSettings(startup_timeout_seconds=30), readiness.Engines(*engines)
    )

    assert usable is flaky
    assert flaky.failures == 0


async def test_a_temporal_that_stays_away_is_told_at_the_deadline(
    engines: Engines, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(**_: Any) -> Flaky:
        return Flaky(client, failures=1_000)

    monkeypatch.setattr(readiness, "connect", connect)

    with pytest.raises(readiness.CannotStart, match="did not answer in time: transport error"):
        await readiness.wait_until_usable(WorkerSettings(startup_timeout_seconds=1), readiness.Engines(*engines))


@pytest.mark.parametrize(("connections", "tasks"), [(1, 10), (20, 20), (500, 500)])
async def test_no_more_orders_are_done_at_once_than_have_connections_and_idle_polls_leave_them_their_slots(
    shop: Shop, connections: int, tasks: int
) -> None:
    async with shop.working(database_pool_size=connections) as working:
        made = working.config()

    polls = made["workflow_task_poller_behavior"]
    assert isinstance(polls, PollerBehaviorAutoscaling)
    assert made["max_concurrent_workflow_tasks"] == tasks
    # As many again may wait for tasks of cached workflows, which the fast lane has none of.
    assert polls.minimum <= polls.initial <= polls.maximum <= tasks / 4
