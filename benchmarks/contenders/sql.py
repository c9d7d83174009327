"""Bare SQL: the three statements of an order behind one HTTP request, and nothing that remembers them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.contenders import worker_process
from benchmarks.contenders.contender import Contender, Footprint, require_installed
from benchmarks.contenders.http import Asker
from devstack.ports import free_port
from devstack.process import ChildProcess
from devstack.stack import DevStack
from domain.bulk import pack
from domain.model import CheckoutInput


class BareSql:
    """The database's and the driver's share: what no engine can save."""

    name = "bare SQL"
    sells = True

    def __init__(self, worker: ChildProcess, port: int) -> None:
        self._worker = worker
        self._asker = Asker(f"http://127.0.0.1:{port}")

    @property
    def processes(self) -> dict[str, int]:
        """It has a worker alone."""
        return {"worker": self._worker.pid}

    async def carry(self, order: CheckoutInput) -> str:
        """Run the three statements; an order that is lost half way stays half way."""
        return str(await self._asker.post("/checkout", pack(order)))

    async def footprint(self, _orders: Sequence[CheckoutInput]) -> Footprint:
        """Nothing is remembered."""
        return Footprint()

    async def close(self) -> None:
        """Close the connections."""
        await self._asker.close()


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Start the worker, give the contender, stop the worker.

    Raises:
        Absent: what serves its requests is not installed.
    """
    require_installed("bare SQL", "aiohttp")
    port = free_port()
    worker = worker_process.start(
        "sql_app", str(port), stack.database_url, folder=stack.folder, is_ready=worker_process.says_ready
    )
    try:
        yield [BareSql(worker, port)]
    finally:
        worker.stop()
