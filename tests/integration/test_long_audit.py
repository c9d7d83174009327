"""An audit of many orders: it may take long, is seen to live, and ends when nobody waits for it any more."""

import asyncio

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.api.enums.v1 import EventType
from temporalio.testing import ActivityEnvironment

from activities.audit import Audit
from adapters.database import create_audit_engine, create_engine
from domain import policies
from domain.audit import AuditInput
from tests.conftest import Database, Shop
from workflows.maintenance import AuditWorkflow


@pytest.mark.parametrize(
    ("is_audit", "policy"),
    [(True, policies.AUDIT), (False, policies.MAINTENANCE)],
    ids=["audit", "sweep"],
)
async def test_what_reads_much_may_take_nearly_as_long_as_its_attempt(
    database: Database, is_audit: bool, policy: policies.ActivityPolicy
) -> None:
    engine = create_audit_engine(database.url) if is_audit else create_engine(database.url, is_patient=True)

    limits = await _limits(engine)

    attempt = policy.start_to_close.total_seconds() * 1000
    assert 0.9 * attempt < limits["statement_timeout"] < limits["transaction_timeout"] < attempt


async def test_temporal_lets_an_audit_take_long_and_soon_notices_a_lost_one(shop: Shop) -> None:
    async with shop.working():
        handle = await shop.client.start_workflow(
            AuditWorkflow.run, AuditInput(0.0), id=f"audit-{shop.task_queue}", task_queue=shop.task_queue
        )
        await handle.result()

    [audit, _] = [
        event.activity_task_scheduled_event_attributes
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]
    assert audit.activity_type.name == "run_audit"
    assert audit.start_to_close_timeout.ToTimedelta() == policies.AUDIT.start_to_close
    assert audit.heartbeat_timeout.ToTimedelta() == policies.AUDIT.heartbeat


async def test_an_audit_that_nobody_waits_for_any_more_leaves_postgres_alone(
    database: Database, engine: AsyncEngine
) -> None:
    await database.run(f'ALTER ROLE checkout IN DATABASE "{database.name}" SET lock_timeout = 0')
    environment, beats = ActivityEnvironment(), list[object]()
    environment.on_heartbeat = lambda *details: beats.append(details)
    holder = await asyncpg.connect(database.admin_url)

    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE inventory")
            running = asyncio.ensure_future(environment.run(Audit(engine).run_audit, AuditInput()))
            await _until_waiting(database, 1)
            environment.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await _until_waiting(database, 0)
    finally:
        await holder.close()

    assert beats


async def _until_waiting(database: Database, count: int) -> None:
    async with asyncio.timeout(30):
        while count != await database.value(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND usename = 'checkout' AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.02)


async def _limits(engine: AsyncEngine) -> dict[str, int]:
    try:
        async with engine.connect() as connection:
            rows = await connection.execute(
                text("SELECT name, setting::int AS ms FROM pg_settings WHERE name LIKE '%_timeout'")
            )
            return {row.name: row.ms for row in rows}
    finally:
        await engine.dispose()
