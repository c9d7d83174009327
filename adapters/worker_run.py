"""Running a worker, a companion beside it, and the end of both when one of them fails for good.

The SDK gives up a minute after Temporal began to refuse a worker's polls.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from temporalio.client import Client
from temporalio.plugin import SimplePlugin
from temporalio.worker import Worker

# SDK 1.35 may wait for ever for the end of a worker that has failed.
_SHUTDOWN_SECONDS = 5.0


class Failure:
    """The first fatal error of a worker or its companion; `note` is for `on_fatal_error`."""

    def __init__(self) -> None:
        self.known: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def note(self, error: BaseException) -> None:
        """Keep the first failure."""
        if not self.known.done():
            self.known.set_result(error)


@asynccontextmanager
async def running(worker: Worker, failure: Failure) -> AsyncIterator[Worker]:
    """Run a worker inside the block and drain it at the end, unless it has failed."""
    run = asyncio.create_task(_run(worker, failure))
    try:
        yield worker
    finally:
        shutdown = asyncio.create_task(worker.shutdown())
        ends: set[asyncio.Future[Any]] = {shutdown, failure.known}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        limit = _SHUTDOWN_SECONDS if failure.known.done() else None
        await asyncio.wait({shutdown, run}, timeout=limit)
        shutdown.cancel()
        run.cancel()


async def _run(worker: Worker, failure: Failure) -> None:
    try:
        await worker.run()
    except BaseException as error:  # a cancel is the companion's, which has failed first
        await failure.note(error)
        if not isinstance(error, Exception):
            raise


def use_client(worker: Worker, client: Client) -> None:
    """Give a running worker and its companions another client of the same runtime."""
    worker.client = client
    for plugin in worker.config()["plugins"]:
        if isinstance(plugin, Companion):
            plugin.use_client(client)


class Companion(SimplePlugin):
    """Runs a second worker beside a worker, whose slots it must not take; ends it once the first has drained."""

    def __init__(self, make: Callable[[Worker], Worker]) -> None:
        super().__init__("checkout.companion")
        self._make = make
        self._running: Worker | None = None

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:  # noqa: A002
        """Run both; where the companion fails for good, the worker ends with its error."""
        async with self._make(worker) as self._running:
            await next(worker)

    def use_client(self, client: Client) -> None:
        """Give the running companion another client."""
        if self._running is not None:
            self._running.client = client
