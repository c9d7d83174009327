"""An audit of many orders: it may take long, is seen to live, and ends when nobody waits for it any more."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.api.enums.v1 import EventType
from temporalio.testing import ActivityEnvironment

from activities.audit import Audit
from domain import policies
from domain.audit import AuditInput
from tests.conftest import Database, Shop
from workflows.maintenance import AuditWorkflow


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

    async with database.locked("LOCK TABLE inventory"):
        running = asyncio.ensure_future(environment.run(Audit(engine).run_audit, AuditInput()))
        await database.until_blocked()
        environment.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(30):
            while await database.blocked():
                await asyncio.sleep(0.02)

    assert beats
