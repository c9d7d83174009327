"""Temporal: the product with a saga for each order, and workflows of the same shape that do nothing."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from benchmarks.actions import actions
from benchmarks.contenders.contender import Contender, Footprint
from benchmarks.contenders.serving import product_worker, worker
from benchmarks.workers.empty import run_empty
from client.checkouts import Checkouts
from devstack.stack import DevStack
from domain.model import CheckoutInput
from domain.policies import CHECKOUT_TASK_QUEUE, checkout_workflow_id

_YARDSTICKS = {"idle": "Idle", "bare": "Bare", "empty activities": "Empty"}
"""The workflows of benchmarks/workers/empty.py, by their names in the tables."""
# A measurement should not spend the server's time on asking whether orders are stuck.
_POLL_SECONDS = 30.0


class OnTemporal(Contender):
    """A contender on the stack's Temporal server."""

    def __init__(self, name: str, processes: Mapping[str, int], stack: DevStack, *, is_checkout: bool = True) -> None:
        super().__init__(name, {**processes, "engine": stack.temporal.pid}, is_checkout=is_checkout)
        self._address = stack.temporal.address
        self._connected: Client | None = None

    async def footprint(self, orders: Sequence[CheckoutInput]) -> Footprint:
        """Count the events of their histories, and what they are billed; their size is as the server counts it."""
        client = await self._client()
        events = size = billed = 0
        for workflow_id in await self._workflow_ids(orders):
            handle = client.get_workflow_handle(workflow_id)
            described = await handle.describe()
            events += described.raw_description.workflow_execution_info.history_length
            size += described.raw_description.workflow_execution_info.history_size_bytes
            billed += actions((await handle.fetch_history()).events)
        return Footprint(events / len(orders), size / len(orders), billed / len(orders))

    async def _workflow_ids(self, orders: Sequence[CheckoutInput]) -> Collection[str]:
        return [checkout_workflow_id(order.order_id) if self.is_checkout else order.order_id for order in orders]

    async def _client(self) -> Client:
        if self._connected is None:
            self._connected = await Client.connect(self._address, data_converter=DATA_CONVERTER)
        return self._connected


class Activity(OnTemporal):
    """The product with a saga of its own for each order, each step an activity."""

    async def process(self, order: CheckoutInput) -> str:
        """Start the order's saga as `starter.py` does, and wait for its status at the end."""
        checkouts = Checkouts(await self._client(), CHECKOUT_TASK_QUEUE, "")
        await checkouts.start(order)
        return (await checkouts.outcome(order.order_id, poll_every=_POLL_SECONDS)).status


class Yardstick(OnTemporal):
    """A workflow that does nothing: the engine's share, without saga and database."""

    async def process(self, order: CheckoutInput) -> str:
        """Start the workflow as a checkout is started, and wait for its end."""
        return await run_empty(await self._client(), _YARDSTICKS[self.name], order)


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Run the product's worker and the one that does nothing inside the block, and yield the contenders."""
    product = product_worker(stack)
    with worker("empty", stack, stack.temporal.address) as processes:
        yield [
            *(Yardstick(name, processes, stack, is_checkout=False) for name in _YARDSTICKS),
            Activity("activity", {"worker": product.pid}, stack),
        ]
