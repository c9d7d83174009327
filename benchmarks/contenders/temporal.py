"""Temporal: the product in its two modes, and workflows of the same shape that do nothing."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from benchmarks.actions import actions
from benchmarks.contenders.contender import Contender, Footprint, require_installed
from benchmarks.contenders.serving import Http, product_worker, worker
from benchmarks.workers.empty import TASK_QUEUE, run_empty
from client.checkouts import Checkouts
from devstack.stack import DevStack
from domain.bulk import pack
from domain.model import CheckoutInput, ExecutionMode
from domain.policies import CHECKOUT_TASK_QUEUE, checkout_workflow_id
from sagafence.devservers.ports import free_port

_YARDSTICKS = {"idle": "Idle", "bare": "Bare", "empty activities": "Empty"}
"""The workflows of benchmarks/workers/empty.py, by their names in the tables."""
# A measurement should not spend the server's time on asking whether orders are stuck.
_POLL_SECONDS = 30.0


async def run_checkout(checkouts: Checkouts, order: CheckoutInput, execution_mode: ExecutionMode) -> str:
    """Start the order's saga as `starter.py` does, and wait for its status at the end."""
    await checkouts.start(replace(order, execution_mode=execution_mode))
    return (await checkouts.outcome(order.order_id, poll_every=_POLL_SECONDS)).status


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


class Checkout(OnTemporal):
    """The product in one execution mode."""

    def __init__(self, execution_mode: ExecutionMode, worker_pid: int, stack: DevStack) -> None:
        super().__init__(execution_mode.value, {"worker": worker_pid}, stack)
        self._execution_mode = execution_mode

    async def process(self, order: CheckoutInput) -> str:
        """Start the order's saga and wait for its end."""
        return await run_checkout(Checkouts(await self._client(), CHECKOUT_TASK_QUEUE, ""), order, self._execution_mode)


class Yardstick(OnTemporal):
    """A workflow that does nothing: the engine's share, without saga and database."""

    async def process(self, order: CheckoutInput) -> str:
        """Start the workflow as a checkout is started, and wait for its end."""
        return await run_empty(await self._client(), _YARDSTICKS[self.name], order, TASK_QUEUE, is_eager=False)


class Eager(OnTemporal):
    """The local-first mode, or the workflow without steps, in benchmarks/workers/checkout_app.py."""

    def __init__(self, path: str, processes: Mapping[str, int], port: int, stack: DevStack) -> None:
        super().__init__(f"{path}, eager", processes, stack, is_checkout=path == "local-first")
        self._path = path
        self._http = Http(port)

    async def process(self, order: CheckoutInput) -> str:
        """Post the order to the worker."""
        return str(await self._http.post(f"/{self._path}", pack(order)))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Run the product's worker and the one that does nothing inside the block, and yield the contenders."""
    product = product_worker(stack)
    with worker("empty", stack, stack.temporal.address) as processes:
        yield [
            *(Yardstick(name, processes, stack, is_checkout=False) for name in _YARDSTICKS),
            *(
                Checkout(execution_mode, product.pid, stack)
                for execution_mode in (ExecutionMode.ACTIVITY, ExecutionMode.LOCAL_FIRST)
            ),
        ]


@contextmanager
def running_eager(stack: DevStack) -> Iterator[list[Contender]]:
    """Run the worker that takes requests itself inside the block, so that starts are eager; yield the contenders.

    Raises:
        Absent: aiohttp is not installed.
    """
    require_installed("the eager start", "aiohttp")
    port, log_file = free_port(), stack.folder / "checkout_app_saga.log"
    with worker("checkout_app", stack, port, stack.database_url, stack.temporal.address, log_file) as processes:
        yield [Eager(path, processes, port, stack) for path in ("idle", "local-first")]
