"""The product's worker with a door of its own: who takes the request also carries the order. Run as a process.

python -m benchmarks.workers.checkout_app PORT SHOP_DATABASE_URL TEMPORAL_ADDRESS LOG_FILE

The door and the worker share one client, so that the server hands the first task of a new order back with the answer
to its start. That is all which differs from worker.py with its settings. The workflow that does nothing has the same
door, as the yardstick.
"""

import asyncio
import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import uvloop
from temporalio.client import Client

from adapters import event_log
from adapters.config import WorkerSettings
from adapters.database import create_engine
from adapters.temporal import DATA_CONVERTER
from benchmarks.workers.door import serve
from benchmarks.workers.empty import build_empty_worker, start_empty
from benchmarks.workers.steps import Wire
from client.checkouts import Checkouts
from domain.bulk import unpack
from domain.model import Lane
from worker import build_worker

TASK_QUEUE = "with-a-door"
IDLE_TASK_QUEUE = "empty-with-a-door"
# A measurement should not spend the server's time on asking whether orders are stuck.
LOOK_SECONDS = 30.0


async def main(port: int, shop_url: str, address: str, log_file: Path) -> None:
    """Answer until SIGTERM."""
    settings = WorkerSettings(task_queue=TASK_QUEUE)
    client = await Client.connect(address, data_converter=DATA_CONVERTER)
    engine = create_engine(shop_url, pool_size=settings.database_pool_size)
    checkouts = Checkouts(client, TASK_QUEUE, "")

    async def carry(wire: Wire) -> str:
        order = replace(unpack(wire), lane=Lane.FAST)
        await checkouts.start(order)
        return (await checkouts.outcome(order.order_id, look_every=LOOK_SECONDS)).status

    async def idle(wire: Wire) -> str:
        order = unpack(wire)
        handle = await start_empty(client, "Idle", order, IDLE_TASK_QUEUE, is_eager=True)
        await handle.result()
        return "completed"

    follower = asyncio.create_task(event_log.follow(engine, log_file))
    async with build_worker(client, engine, settings), build_empty_worker(client, IDLE_TASK_QUEUE):
        await serve(port, {"fast": carry, "idle": idle})
    follower.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await follower
    await engine.dispose()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])))
