"""A worker that is told to stop while a step runs: it waits for that step as long as its settings say, and leaves.

The step is an activity of its own (the activity mode) that waits in Postgres for a row. A step of the local-first mode
runs within a workflow task, which the SDK finishes whatever the grace is, and would tell nothing about it.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle

from sagafence.devservers.process import ChildProcess
from tests.conftest import Database, Shop
from tests.integration.commands import DEADLINE_SECONDS, Commands
from tests.workflow.sagas import until

# As setup.sql has it a statement waits for a row for 1.5 s, which is not long enough to look around.
PATIENT = (
    'ALTER ROLE checkout IN DATABASE "{0}" SET statement_timeout = 4900;'
    'ALTER ROLE checkout IN DATABASE "{0}" SET lock_timeout = 4800'
)


async def is_draining(worker: ChildProcess) -> bool:
    return "draining: " in worker.tail(100)


@asynccontextmanager
async def paying(shop: Shop) -> AsyncIterator[WorkflowHandle[Any, Any]]:
    """Keep the payment of an order waiting in Postgres until the end of the block."""
    async with shop.database.locked("SELECT FROM accounts WHERE account_id = 'alice' FOR UPDATE"):
        handle = await shop.start(shop.order("alice"))
        await shop.database.until_blocked()
        yield handle


async def attempts(handle: WorkflowHandle[Any, Any]) -> dict[int, tuple[str, int]]:
    """Give each activity's type and its number of attempts, by its number in the history, of those that completed."""
    types: dict[int, str] = {}
    tries: dict[int, int] = {}
    done: dict[int, tuple[str, int]] = {}
    async for event in handle.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            types[event.event_id] = event.activity_task_scheduled_event_attributes.activity_type.name
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            started = event.activity_task_started_event_attributes
            tries[started.scheduled_event_id] = started.attempt
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            number = event.activity_task_completed_event_attributes.scheduled_event_id
            done[number] = (types[number], tries[number])
    return done


async def test_a_drained_worker_finishes_the_step_that_runs_and_ends_with_0(
    commands: Commands, own_shop: Shop, database: Database
) -> None:
    await database.run(PATIENT.format(database.name))
    worker = commands.ready_worker()

    async with paying(own_shop) as handle:
        worker.signal(signal.SIGTERM)
        await until(lambda: is_draining(worker))
        await asyncio.sleep(1)  # nothing happens meanwhile: that is what has to be seen
        assert await database.blocked(), "the step was cut off"
        assert worker.running
    status = await asyncio.to_thread(worker.wait, DEADLINE_SECONDS)

    assert status == 0
    assert "stopped" in worker.tail(5)
    # Committed, and reported: nobody has to try it again.
    assert await database.value("SELECT status FROM orders") == "paid"
    assert list((await attempts(handle)).values())[-1] == ("charge_payment", 1)
    # Nothing of the order was begun after that, and the next worker goes on with it.
    next_worker = commands.ready_worker()
    await asyncio.wait_for(handle.result(), DEADLINE_SECONDS)
    assert await asyncio.to_thread(next_worker.stop) == 0


async def test_a_drained_worker_waits_no_longer_than_its_grace(
    commands: Commands, own_shop: Shop, database: Database
) -> None:
    await database.run(PATIENT.format(database.name))
    worker = commands.ready_worker(CHECKOUT_SHUTDOWN_GRACE_SECONDS="0.2")

    async with paying(own_shop) as handle:
        worker.signal(signal.SIGTERM)
        # The lock is held all the while: only a step that is given up lets the worker go before its attempt is over.
        async with asyncio.timeout(timedelta(seconds=3).total_seconds()):
            status = await asyncio.to_thread(worker.wait, DEADLINE_SECONDS)

    assert status == 0
    commands.ready_worker()
    await asyncio.wait_for(handle.result(), DEADLINE_SECONDS)
    assert await database.value("SELECT status FROM orders") == "completed"


async def test_a_worker_that_is_interrupted_in_its_terminal_drains_too(
    commands: Commands, own_shop: Shop, database: Database
) -> None:
    await database.run(PATIENT.format(database.name))
    worker = commands.ready_worker()

    async with paying(own_shop):
        worker.signal(signal.SIGINT)
        await until(lambda: is_draining(worker))
    status = await asyncio.to_thread(worker.wait, DEADLINE_SECONDS)

    assert status == 0
    assert "Traceback" not in worker.tail(100)
    assert await database.value("SELECT status FROM orders") == "paid"


_IN_A_TERMINAL = """
import os
os.dup2(os.openpty()[1], 0)
import worker
from adapters.process_exit import leave
leave(worker.main())
"""


def test_a_worker_whose_terminal_is_closed_drains(commands: Commands) -> None:
    worker = commands.ready_worker(script=_IN_A_TERMINAL)

    worker.signal(signal.SIGHUP)

    worker.until(lambda: "draining" in worker.tail(100), timeout=20)
    assert worker.wait(DEADLINE_SECONDS) == 0
