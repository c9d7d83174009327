"""Running a worker that may fail for good: the SDK gives up a minute after Temporal began to refuse its polls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from temporalio.worker import Worker

# SDK 1.35 may wait for ever for the end of a worker that has failed.
_LEAVE_SECONDS = 5.0


class Failure:
    """What a worker or its companion has failed of, for `on_fatal_error`."""

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
        limit = _LEAVE_SECONDS if failure.known.done() else None
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
