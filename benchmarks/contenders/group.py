"""Group commit: the product as a shop calls it. API and worker are processes with their usual settings."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import asyncpg

from benchmarks.contenders.contender import Contender, require_installed
from benchmarks.contenders.serving import Http, product_worker
from benchmarks.contenders.temporal import OnTemporal
from devstack.api_key import keep_api_key
from devstack.stack import DATABASE, DevStack
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id
from sagafence.devservers.process import ChildProcess

_WAIT_SECONDS = 20
"""The longest that the API takes."""
_START_SECONDS = 60.0
_BATCHES = "SELECT order_id, batch_workflow_id FROM orders WHERE order_id = ANY ($1)"


class Group(OnTemporal):
    """`POST /v1/orders`: the API puts orders that come at once into one workflow, and answers with the order's end."""

    def __init__(self, stack: DevStack, worker: ChildProcess, api: ChildProcess, key: str) -> None:
        super().__init__("group", {"API": api.pid, "worker": worker.pid}, stack)
        self._http = Http(stack.ports.api)
        self._authorization = f"Bearer {key}"
        self._database_url = stack.postgres.url(DATABASE, driver="postgresql")

    async def process(self, order: CheckoutInput) -> str:
        """Post the order and wait for its end."""
        placed = {
            "order_id": order.order_id,
            "customer": order.customer,
            "lines": [{"sku": line.sku, "quantity": line.quantity} for line in order.lines],
        }
        headers = {"Authorization": self._authorization, "Idempotency-Key": order.order_id}
        answer = await self._http.post(f"/v1/orders?wait={_WAIT_SECONDS}", placed, **headers)
        return str(answer["status"])

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _workflow_ids(self, orders: Sequence[CheckoutInput]) -> Collection[str]:
        """Return the batches of the orders, and the workflow of each that a batch has left to one of its own."""
        connection = await asyncpg.connect(self._database_url)
        try:
            rows = await connection.fetch(_BATCHES, [order.order_id for order in orders])
        finally:
            await connection.close()
        return {row["batch_workflow_id"] or checkout_workflow_id(row["order_id"]) for row in rows}


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Run API and worker, make a key, and yield the contender.

    Raises:
        Absent: aiohttp is not installed.
    """
    require_installed("group", "aiohttp")
    worker = product_worker(stack)
    keep_api_key(stack)
    key = (stack.folder / "api.key").read_text(encoding="utf-8").strip()
    api = stack.start_api(CHECKOUT_API_REQUESTS_PER_SECOND="1000000")  # all orders come from one caller
    api.until(lambda: "ready: http" in api.tail(50), timeout=_START_SECONDS)
    yield [Group(stack, worker, api, key)]
