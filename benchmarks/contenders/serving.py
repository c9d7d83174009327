"""A contender's worker process, and contenders that get each order as an HTTP request."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.contenders.contender import Contender
from devstack.stack import ROOT, DevStack
from domain.bulk import pack
from domain.model import CheckoutInput
from sagafence.devservers.process import ChildProcess

_START_SECONDS = 60.0


@contextmanager
def worker(
    module: str, stack: DevStack, *arguments: object, is_ready: Callable[[], bool] | None = None
) -> Iterator[dict[str, int]]:
    """Run a module of `benchmarks.workers` inside the block, and yield its process id by role.

    Without `is_ready` it is ready when it has printed so.
    """
    process = ChildProcess(
        module,
        [sys.executable, "-m", f"benchmarks.workers.{module}", *map(str, arguments)],
        log=stack.folder / f"{module}.log",
        env={name: value for name, value in os.environ.items() if not name.startswith(("CHECKOUT_", "TEMPORAL_"))},
        cwd=ROOT,
    )
    process.start()
    process.until(is_ready or (lambda: "ready" in process.tail()), timeout=_START_SECONDS)
    try:
        yield {"worker": process.pid}
    finally:
        process.stop()


def product_worker(stack: DevStack) -> ChildProcess:
    """Return the product's worker, one for all contenders that need it; started when there is none yet."""
    # It does not log that it is ready: the first order waits.
    return stack.workers[0] if stack.workers else stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")


class Http:
    """Posts JSON and returns the JSON of the answer, over as many connections as are used at once."""

    def __init__(self, port: int) -> None:
        self._base_url = f"http://127.0.0.1:{port}"
        self._session: Any = None

    async def post(self, path: str, body: Mapping[str, Any], **headers: str) -> Any:
        """Return the answer.

        Raises:
            RuntimeError: the status is not 2xx; the text has the answer.
        """
        if self._session is None:
            import aiohttp  # noqa: PLC0415 - of the layer `bench`; the contender has checked that it is there

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
            )
        async with self._session.post(self._base_url + path, json=body, headers=headers) as answer:
            if answer.status >= 300:
                raise RuntimeError(f"POST {path}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


class OverHttp(Contender):
    """A contender whose orders are posted to a path, in which `{order_id}` is filled in."""

    def __init__(self, name: str, processes: Mapping[str, int], port: int, path: str) -> None:
        super().__init__(name, processes)
        self._http = Http(port)
        self._path = path

    async def process(self, order: CheckoutInput) -> str:
        """Post the order and wait for its status."""
        return str(await self._http.post(self._path.format(order_id=order.order_id), pack(order)))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()
