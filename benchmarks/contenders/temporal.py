"""Temporal: the product in its two lanes, and workflows of the same shape that do nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from benchmarks.contenders import worker_process
from benchmarks.contenders.contender import Contender, Footprint
from benchmarks.workers.empty import TASK_QUEUE, start_empty
from client.checkouts import Checkouts
from devstack.process import ChildProcess
from devstack.stack import DevStack
from domain.model import CheckoutInput, Lane
from domain.policies import CHECKOUT_TASK_QUEUE, checkout_workflow_id

# A measurement should not spend the server's time on asking whether orders are stuck.
_LOOK_SECONDS = 30.0
YARDSTICKS = {"idle": "Idle", "bare": "Bare", "empty activities": "Empty"}
"""Workflows that do nothing, by what the tables call them."""


class OnTemporal:
    """What the contenders on Temporal have in common: whom they run on, and what their histories cost."""

    def __init__(self, name: str, worker: ChildProcess, stack: DevStack) -> None:
        self.name = name
        self._worker = worker
        self._stack = stack
        self._connected: Client | None = None

    @property
    def processes(self) -> dict[str, int]:
        """Its worker and the Temporal server."""
        return {"worker": self._worker.pid, "engine": self._stack.temporal.pid}

    async def footprint(self, orders: Sequence[CheckoutInput]) -> Footprint:
        """Count the events of their histories, and the server's idea of their size."""
        client = await self._client()
        events = size = 0
        for order in orders:
            handle = client.get_workflow_handle(self._workflow_id(order))
            described = (await handle.describe()).raw_description.workflow_execution_info
            events += described.history_length
            size += described.history_size_bytes
        return Footprint(events / len(orders), size / len(orders))

    async def close(self) -> None:
        """A client needs no closing."""

    def _workflow_id(self, order: CheckoutInput) -> str:
        return order.order_id

    async def _client(self) -> Client:
        if self._connected is None:
            self._connected = await Client.connect(self._stack.temporal.address, data_converter=DATA_CONVERTER)
        return self._connected


class Checkout(OnTemporal):
    """The product in one lane."""

    sells = True

    def __init__(self, lane: Lane, worker: ChildProcess, stack: DevStack) -> None:
        super().__init__(lane.value, worker, stack)
        self._lane = lane
        self._checkouts: Checkouts | None = None

    async def carry(self, order: CheckoutInput) -> str:
        """Start the order's saga as `starter.py` does, and follow it to its end."""
        if self._checkouts is None:
            self._checkouts = Checkouts(await self._client(), CHECKOUT_TASK_QUEUE, "")
        await self._checkouts.start(replace(order, lane=self._lane))
        return (await self._checkouts.outcome(order.order_id, look_every=_LOOK_SECONDS)).status

    def _workflow_id(self, order: CheckoutInput) -> str:
        return checkout_workflow_id(order.order_id)


class Yardstick(OnTemporal):
    """A workflow of benchmarks/workers/empty.py: the engine's share, without saga and database."""

    sells = False

    async def carry(self, order: CheckoutInput) -> str:
        """Start the workflow as a checkout is started, and wait for its end."""
        handle = await start_empty(await self._client(), YARDSTICKS[self.name], order, TASK_QUEUE, is_eager=False)
        await handle.result()
        return "completed"


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Start the product's worker and the one that does nothing, give the contenders, stop what is ours."""
    worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")  # it has no word then for being ready: the warm-up waits
    empty = worker_process.start(
        "empty", stack.temporal.address, folder=stack.folder, is_ready=worker_process.says_ready
    )
    try:
        yield [
            *(Yardstick(name, empty, stack) for name in YARDSTICKS),
            Checkout(Lane.CLASSIC, worker, stack),
            Checkout(Lane.FAST, worker, stack),
        ]
    finally:
        empty.stop()
