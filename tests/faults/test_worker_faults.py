"""Workers are drained, killed, stopped, deaf or wrong about the time, while orders stream in.

Whatever happens to one of them, another, or the next one, takes its orders over; they end as they would have.
"""

import asyncio
import time
from collections import Counter
from signal import SIGCONT, SIGSTOP, SIGTERM, SIGUSR1, SIGUSR2, Signals

import pytest
from temporalio.api.enums.v1 import EventType

from domain.policies import checkout_workflow_id
from tests.faults.sites import Load, Site, said

pytestmark = pytest.mark.timeout(600)

# Longer than an attempt may take, and than a killed worker's cached workflows stay with it.
AWAY_SECONDS = 12.0
ODD = ("-m", "tests.faults.odd_workers")


async def lost_tasks(site: Site, load: Load) -> Counter[str]:
    """Count what Temporal gave up waiting for: no worker reported how it went."""
    lost: Counter[str] = Counter(attempts=0, workflow_tasks=0)
    rows = await site.database.fetch("SELECT order_id, batch_workflow_id FROM orders")
    assert {row[0] for row in rows} >= {order.order_id for order in load.orders}
    for workflow_id in {row[1] or checkout_workflow_id(row[0]) for row in rows}:
        async for event in site.client.get_workflow_handle(workflow_id).fetch_history_events():
            if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
                failure = event.activity_task_started_event_attributes.last_failure
                lost["attempts"] += failure.HasField("timeout_failure_info")
            lost["workflow_tasks"] += event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT
    return lost


@pytest.mark.exhaustive
async def test_a_drained_worker_finishes_what_it_began_and_loses_no_attempt(site: Site, fired: Counter[str]) -> None:
    leaving = await site.ready_worker()
    await site.ready_worker()
    async with site.under_load(80, begun=20) as load:
        fired["orders in flight"] = len(load.open)
        leaving.signal(SIGTERM)

    assert leaving.wait(timeout=60) == 0
    fired["drained"] = said(leaving, "draining") and said(leaving, "stopped")
    assert (await lost_tasks(site, load))["attempts"] == 0


@pytest.mark.exhaustive
async def test_orders_wait_for_the_next_worker_when_all_were_killed(site: Site, fired: Counter[str]) -> None:
    killed = [await site.ready_worker() for _ in range(2)]
    async with site.under_load() as load:
        for worker in killed:
            worker.kill()
        fired["orders in flight"] = len(load.open)
        await asyncio.sleep(AWAY_SECONDS)
        fired["ended before"] = len(load.ends)
        await site.ready_worker()


@pytest.mark.exhaustive
async def test_a_worker_that_is_frozen_delays_its_own_orders_and_wakes_up_harmless(
    site: Site, fired: Counter[str]
) -> None:
    frozen = await site.ready_worker()
    await site.ready_worker()
    async with site.under_load(80) as load:
        frozen.signal(SIGSTOP)
        fired["orders in flight"] = len(load.open)
        begun = time.monotonic()
        await load.all_ended()
        # Its late attempts meet what the other has done meanwhile.
        await asyncio.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - begun)))
        frozen.signal(SIGCONT)
        site.load(20)

    assert frozen.running
    fired["tasks lost"] = (await lost_tasks(site, load)).total()


@pytest.mark.exhaustive
async def test_a_worker_whose_event_loop_stands_still_delays_its_own_orders_and_no_others(
    site: Site, fired: Counter[str]
) -> None:
    deaf = await site.ready_worker(*ODD, "deaf-loop")
    sound = await site.ready_worker()
    async with site.under_load(80) as load:
        deaf.signal(SIGUSR1)
        fired["orders in flight"] = len(load.open)
        await site.logged(deaf, "event loop blocked")
        ended = len(load.ends)
        await site.logged(deaf, "event loop goes on")
        fired["ended meanwhile"] = len(load.ends) - ended

    fired["blocked"] = said(deaf, "event loop blocked")
    assert sound.running
    assert deaf.running


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", [SIGUSR1, SIGUSR2], ids=["fast", "slow"])
async def test_a_worker_whose_clock_is_an_hour_off_and_jumps_back_ends_every_order(
    site: Site, fired: Counter[str], first: Signals
) -> None:
    wrong = await site.ready_worker(*ODD, "wrong-clock")
    async with site.under_load(80, begun=0) as load:
        for number, output in enumerate((first, SIGUSR1 if first == SIGUSR2 else SIGUSR2), start=1):
            await load.ended(15 * number)
            wrong.signal(output)
            await site.logged(wrong, "clock wrong by", times=number)
            # The driver judges stale plans, and the pool stale connections, by stamps of this clock.
            for kind in ("json", "jsonb"):
                await load.ended(15 * number + 5)
                await site.database.run(f"ALTER TABLE step_fence ALTER COLUMN result TYPE {kind}")
            await load.ended(15 * number + 10)
            await site.end_sessions()
        fired["orders in flight"] = len(load.open)

    fired["jumps"] = sum(said(wrong, f"clock wrong by {jump} s, {jump} s as a date") for jump in ("+3600", "-3600"))
    assert fired["jumps"] == 2
