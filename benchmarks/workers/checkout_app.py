"""The product's worker as an HTTP server of its own: it takes the request and also runs the order. Run as a process.

python -m benchmarks.workers.checkout_app PORT SHOP_DATABASE_URL TEMPORAL_ADDRESS LOG_FILE

Server and worker share one client, so that Temporal returns the first task of a new order with the answer to its start.
Otherwise it is worker.py with its settings. The workflow that does nothing is served the same way, as the yardstick.
"""

import asyncio
import contextlib
import sys
from pathlib import Path

import uvloop
from temporalio.client import Client

from adapters import event_log
from adapters.config import WorkerSettings
from adapters.database import create_engine
from adapters.temporal import DATA_CONVERTER
from benchmarks.contenders.temporal import run_checkout
from benchmarks.workers.empty import build_empty_worker, run_empty
from benchmarks.workers.server import serve
from benchmarks.workers.steps import Wire
from client.checkouts import Checkouts
from domain.bulk import unpack
from domain.model import ExecutionMode
from worker import build_worker

_TASK_QUEUE = "checkout-app"
_IDLE_TASK_QUEUE = "checkout-app-idle"


async def main(port: int, shop_url: str, address: str, log_file: Path) -> None:
    """Serve until SIGTERM."""
    settings = WorkerSettings(task_queue=_TASK_QUEUE)
    client = await Client.connect(address, data_converter=DATA_CONVERTER)
    engine = create_engine(shop_url, pool_size=settings.database_pool_size)
    checkouts = Checkouts(client, _TASK_QUEUE, "")

    async def fast(wire: Wire) -> str:
        return await run_checkout(checkouts, unpack(wire), ExecutionMode.LOCAL_FIRST)

    async def idle(wire: Wire) -> str:
        return await run_empty(client, "Idle", unpack(wire), _IDLE_TASK_QUEUE, is_eager=True)

    follower = asyncio.create_task(event_log.follow(engine, log_file))
    async with build_worker(client, engine, settings), build_empty_worker(client, _IDLE_TASK_QUEUE):
        await serve(port, {"local-first": fast, "idle": idle})
    follower.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await follower
    await engine.dispose()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])))
