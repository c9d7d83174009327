"""A backlog: many sagas started while no worker runs, then one comes up."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import asyncpg
import psutil
from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from benchmarks.contenders.temporal import Checkout
from benchmarks.measure import batch
from benchmarks.report import table, tell
from client.checkouts import Checkouts
from devstack.process import ChildProcess
from devstack.stack import DATABASE, DevStack
from domain.model import CheckoutInput, Lane
from domain.policies import CHECKOUT_TASK_QUEUE

MOST_MEMORY = 500 * 2**20
"""The target for a worker with a backlog."""
_SAMPLE = 200
"""Orders whose histories are counted."""
_STARTS_AT_ONCE = 100
_DRAIN_SECONDS_PER_ORDER = 0.5
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Backlog:
    """What became of sagas that waited for a worker."""

    orders: int
    starts_per_second: float
    seconds: float
    """From the start of the worker to the last order's end."""
    not_completed: int
    events: float
    """Of a history; more than a single order's says that something was tried again."""
    memory: int
    """The worker's greatest, in bytes."""


async def drain(stack: DevStack, count: int) -> Backlog:
    """Start sagas with no worker, then a worker, and watch it until nothing is left."""
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER)
    checkouts = Checkouts(client, CHECKOUT_TASK_QUEUE, "")
    orders = [replace(order, lane=Lane.FAST) for order in batch(count, 0)]
    waiting = iter(orders)

    async def start_one_after_the_other() -> None:
        for order in waiting:
            await checkouts.start(order)

    begun = time.perf_counter()
    await asyncio.gather(*(start_one_after_the_other() for _ in range(_STARTS_AT_ONCE)))
    starts_per_second = count / (time.perf_counter() - begun)
    tell(f"backlog: {count} sagas started, {starts_per_second:.0f}/s")
    database = await asyncpg.connect(stack.postgres.url(DATABASE, driver="postgresql"))
    try:
        begun = time.perf_counter()
        worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
        memory = await _watch(worker, database, orders, begun + 60 + _DRAIN_SECONDS_PER_ORDER * count)
        seconds = time.perf_counter() - begun
        left = await _not_completed(database, orders)
    finally:
        await database.close()
    kept = await Checkout(Lane.FAST, worker, stack).footprint(orders[:: max(1, count // _SAMPLE)])
    worker.stop()
    return Backlog(count, starts_per_second, seconds, left, kept.events or 0.0, memory)


async def _watch(
    worker: ChildProcess,
    database: "asyncpg.Connection[asyncpg.Record]",
    orders: Sequence[CheckoutInput],
    deadline: float,
) -> int:
    process, memory, look = psutil.Process(worker.pid), 0, 0
    while True:
        memory, look = max(memory, process.memory_info().rss), look + 1
        if look % 20 == 0:
            left = await _not_completed(database, orders)
            if not left or time.perf_counter() > deadline:
                return memory
            if look % 200 == 0:
                tell(f"backlog: {left} left, {memory / 2**20:.0f} MB at most")
        await asyncio.sleep(_POLL_SECONDS)


async def _not_completed(database: "asyncpg.Connection[asyncpg.Record]", orders: Sequence[CheckoutInput]) -> int:
    ended = await database.fetchval(
        "SELECT count(*) FROM orders WHERE status = 'completed' AND starts_with(order_id, $1)",
        orders[0].order_id.rpartition("-")[0] + "-",
    )
    return len(orders) - int(ended)


def shown(backlog: Backlog) -> str:
    """Give the table."""
    return table(
        [
            "backlog",
            "started per second",
            "drained in, s",
            "orders/s",
            "not completed",
            "events per order",
            "worker, MB",
        ],
        [
            [
                str(backlog.orders),
                f"{backlog.starts_per_second:.0f}",
                f"{backlog.seconds:.0f}",
                f"{backlog.orders / backlog.seconds:.1f}",
                str(backlog.not_completed),
                f"{backlog.events:.2f}",
                f"{backlog.memory / 2**20:.0f}",
            ]
        ],
    )
