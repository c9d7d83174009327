"""The sweep and the audit run by themselves, once each, as the settings say."""

import asyncio
import uuid
from datetime import timedelta

import pytest
from temporalio.client import Client, ScheduleHandle
from temporalio.service import RPCError, RPCStatusCode

from client import schedules
from client.schedules import Every
from tests.conftest import Shop
from tests.workflow.sagas import until

EVERY = Every(sweep=timedelta(seconds=60), audit=timedelta(seconds=300))


@pytest.fixture
def task_queue() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


async def interval_of(handle: ScheduleHandle) -> timedelta:
    [interval] = (await handle.describe()).schedule.spec.intervals
    return interval.every


async def test_many_workers_make_each_schedule_once(client: Client, task_queue: str) -> None:
    await asyncio.gather(*(schedules.ensure(client, task_queue, EVERY) for _ in range(10)))

    assert await interval_of(client.get_schedule_handle(f"sweep-{task_queue}")) == EVERY.sweep
    assert await interval_of(client.get_schedule_handle(f"audit-{task_queue}")) == EVERY.audit


async def test_a_changed_setting_changes_the_schedule_and_leaves_a_pause_alone(client: Client, task_queue: str) -> None:
    handle = client.get_schedule_handle(f"sweep-{task_queue}")
    await schedules.ensure(client, task_queue, EVERY)
    await handle.pause(note="while we look")

    await schedules.ensure(client, task_queue, Every(sweep=timedelta(seconds=30), audit=EVERY.audit))

    found = await handle.describe()
    assert await interval_of(handle) == timedelta(seconds=30)
    assert (found.schedule.state.paused, found.schedule.state.note) == (True, "while we look")


async def test_zero_means_never(client: Client, task_queue: str) -> None:
    await schedules.ensure(client, task_queue, EVERY)

    for _ in range(2):
        await schedules.ensure(client, task_queue, Every(sweep=EVERY.sweep, audit=timedelta()))

    assert await interval_of(client.get_schedule_handle(f"sweep-{task_queue}")) == EVERY.sweep
    with pytest.raises(RPCError) as gone:
        await client.get_schedule_handle(f"audit-{task_queue}").describe()
    assert gone.value.status is RPCStatusCode.NOT_FOUND


async def test_what_a_schedule_starts_does_its_work(shop: Shop) -> None:
    await schedules.ensure(shop.client, shop.task_queue, EVERY)
    await shop.database.run(
        "INSERT INTO orders (order_id, customer) VALUES ('by-hand', 'alice');"
        "INSERT INTO order_lines (order_id, sku, quantity) VALUES ('by-hand', 'tea-mug', 1);"
        "UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'lamp'"
    )

    async with shop.working():
        for name in ("sweep", "audit"):
            await shop.client.get_schedule_handle(f"{name}-{shop.task_queue}").trigger()

        async def both_have_run() -> bool:
            status = await shop.database.value("SELECT status FROM orders")
            found = await shop.database.value("SELECT count(*) FROM audit_events")
            return bool(status == "completed" and found == 1)

        await until(both_have_run)
