"""Temporal with the worker and the door in one process: starts are eager, and a request is HTTP as for the peers."""

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contenders import worker_process
from benchmarks.contenders.contender import Contender, require_installed
from benchmarks.contenders.http import Asker
from benchmarks.contenders.temporal import OnTemporal
from devstack.ports import free_port
from devstack.process import ChildProcess
from devstack.stack import DevStack
from domain.bulk import pack
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id


class Eager(OnTemporal):
    """One door of benchmarks/workers/checkout_app.py: the product in its fast lane, or the workflow without steps."""

    def __init__(self, door: str, worker: ChildProcess, port: int, stack: DevStack) -> None:
        super().__init__(f"{door}, eager", worker, stack)
        self.sells = door == "fast"
        self._door = door
        self._asker = Asker(f"http://127.0.0.1:{port}")

    async def carry(self, order: CheckoutInput) -> str:
        """Ask the worker's own door."""
        return str(await self._asker.post(f"/{self._door}", pack(order)))

    async def close(self) -> None:
        """Close the connections."""
        await self._asker.close()

    def _workflow_id(self, order: CheckoutInput) -> str:
        return checkout_workflow_id(order.order_id) if self.sells else order.order_id


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Start the worker with its doors, give the contenders, stop the worker.

    Raises:
        Absent: what serves its requests is not installed.
    """
    require_installed("the eager start", "aiohttp")
    port = free_port()
    worker = worker_process.start(
        "checkout_app",
        str(port),
        stack.database_url,
        stack.temporal.address,
        str(stack.folder / "checkout_app_saga.log"),
        folder=stack.folder,
        is_ready=worker_process.says_ready,
    )
    try:
        yield [Eager(door, worker, port, stack) for door in ("idle", "fast")]
    finally:
        worker.stop()
