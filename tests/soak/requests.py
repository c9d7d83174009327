"""What the soak's customers and its operator ask for, again until a server has answered."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from client.checkouts import Checkouts
from client.failures import NoSuchOrder, NoWorker, Refused
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.soak.book import Book
from tests.soak.door import Door
from tests.soak.harness import AWAY, Harness, SoakFailed
from tests.soak.plan import Plan, PlannedOrder
from workflows.checkout import CheckoutWorkflow

UNREACHABLE = (RPCError, NoWorker, TimeoutError)
PAUSE_SECONDS = 0.5
_T = TypeVar("_T")


class Requests:
    def __init__(self, harness: Harness, plan: Plan, client: Client, book: Book) -> None:
        self.harness = harness
        self.plan = plan
        self.client = client
        self.checkouts: Checkouts = harness.checkouts(client)
        self.door = Door(harness)
        self.book = book

    async def persist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Try until the server has answered. Whatever is tried has to be safe to repeat."""
        while True:
            try:
                return await attempt()
            except (*UNREACHABLE, *AWAY):
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from None  # an update's client may raise it as something else
                self.book.counts["requests repeated"] += 1
                await asyncio.sleep(PAUSE_SECONDS)

    def planned(self, order_id: str) -> PlannedOrder:
        return self.plan.order(self.plan.number_of(order_id))

    def saga(self, order_id: str) -> WorkflowHandle[CheckoutWorkflow, CheckoutStatus]:
        return self.client.get_workflow_handle_for(CheckoutWorkflow.run, checkout_workflow_id(order_id))

    async def newest_run(self, handle: WorkflowHandle[Any, Any]) -> WorkflowExecutionDescription | None:
        try:
            return await handle.describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise

    async def row(self, order_id: str) -> asyncpg.Record | None:
        async with self.harness.asking() as connection:
            return await connection.fetchrow(
                "SELECT status, reason, fingerprint FROM orders WHERE order_id = $1", order_id
            )

    async def insert(self, order: CheckoutInput) -> None:
        """Write an order as a person would who has psql and no starter."""
        async with self.harness.asking() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO orders (order_id, customer) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                order.order_id,
                order.customer,
            )
            await connection.executemany(
                "INSERT INTO order_lines (order_id, sku, quantity) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                [(order.order_id, line.sku, line.quantity) for line in order.lines],
            )

    async def deliver(self, number: int, sku: str, units: int) -> None:
        """Take a delivery in, once, whatever happens to the answer."""
        async with self.harness.asking() as connection:
            with suppress(asyncpg.UniqueViolationError):  # it was taken in, and the answer was lost
                await connection.execute("SELECT deliver($1, $2, 'restocked', $3)", sku, units, f"soak/{number}")

    async def mend(self, order_id: str) -> None:
        async with self.harness.asking() as connection:
            await connection.execute("DELETE FROM soak.broken WHERE order_id = $1", order_id)


async def interrupt(
    kind: str, handle: WorkflowHandle[Any, Any], update: Callable[[], Awaitable[None]] | None = None
) -> str:
    """Cancel, call off or terminate a workflow; return whether that was accepted, refused or left unanswered."""
    try:
        if kind == "update":
            assert update is not None
            await update()
        elif kind == "cancel":
            await handle.cancel(reason="the customer has changed her mind")
        else:
            await handle.terminate(reason="somebody has pulled the plug")
    except (Refused, NoSuchOrder):
        return "refused"
    except UNREACHABLE as error:
        is_over = isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND
        return "refused" if is_over else "unanswered"
    return "accepted"


_POLL_SECONDS = 0.5
_ANSWER_WITHIN = timedelta(seconds=5)


class Operator:
    """Keeps an eye on the stuck orders, and does to each what the plan says."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._book, self._checkouts, self._persist = requests.book, requests.checkouts, requests.persist
        self._stuck: set[str] = set()
        self._vouched: dict[int, set[str]] = {}

    async def watch(self) -> None:
        """Keep track of which orders are stuck. One whose undos are not broken on purpose must not be."""
        while True:
            try:
                async with self._requests.harness.asking() as connection:
                    while True:
                        rows = await connection.fetch("SELECT order_id FROM orders WHERE status = 'stuck'")
                        self._stuck = {row["order_id"] for row in rows}
                        if groundless := [name for name in self._stuck if not self._requests.planned(name).broken]:
                            raise SoakFailed(f"stuck without a cause: {', '.join(sorted(groundless))}")
                        await asyncio.sleep(_POLL_SECONDS)
            except AWAY:
                await asyncio.sleep(_POLL_SECONDS)

    @asynccontextmanager
    async def tending(self, planned: PlannedOrder) -> AsyncIterator[None]:
        """Settle an order whenever it is stuck, as long as the block runs."""
        operating = asyncio.create_task(self._operate(planned)) if planned.broken else None
        try:
            yield
        finally:
            if operating is not None:
                operating.cancel()
                await asyncio.wait([operating])
                if not operating.cancelled() and (failure := operating.exception()):
                    raise failure

    async def vouched(self, planned: PlannedOrder, status: str, output: frozenset[str]) -> frozenset[str]:
        """Give the steps of an order that has ended which a person has settled by hand.

        Args:
            planned: the order.
            status: how it ended.
            output: what the end of its saga says.

        Raises:
            SoakFailed: the saga has accepted such a word, and forgotten it.
        """
        found = output
        if planned.broken and planned.remedy == "resolve" and status == "cancelled":
            # Such an ending says nothing else, and the answers to the operator may have been lost.
            found = await self._vouched_in_history(planned.order.order_id)
        if lost := self._vouched.pop(planned.number, set()) - found:
            raise SoakFailed(f"{planned.order.order_id}: accepted as resolved, and forgotten: {sorted(lost)}")
        return found

    async def _operate(self, planned: PlannedOrder) -> None:
        name = planned.order.order_id
        while True:
            if name not in self._stuck:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            self._book.stuck.add(planned.number)
            await asyncio.sleep(planned.remedy_after)
            if planned.remedy == "resolve":
                for step in planned.broken:
                    await self._resolve(planned, step)
            else:
                await self._persist(lambda: self._requests.mend(name))
            await self._retry(name)
            self._stuck.discard(name)

    async def _resolve(self, planned: PlannedOrder, step: str) -> None:
        name = planned.order.order_id
        checkouts = self._checkouts
        try:
            status = await self._persist(lambda: checkouts.resolve(name, step, "settled by hand, slip 77"))
        except (Refused, NoSuchOrder):
            # Not stuck in this step; or an earlier request did it, whose answer was lost.
            status = await self._persist(lambda: checkouts.status(name))
        if step in resolved(status):
            self._vouched.setdefault(planned.number, set()).add(step)
            self._book.counts["steps resolved"] += 1

    async def _retry(self, order_id: str) -> None:
        try:
            await self._persist(lambda: self._checkouts.retry(order_id))
        except (Refused, NoSuchOrder):
            return  # it is not stuck any more
        self._book.counts["retries asked for"] += 1

    async def _vouched_in_history(self, order_id: str) -> frozenset[str]:
        """Ask a closed saga that left no details which of its steps were resolved."""
        saga = self._requests.saga(order_id)
        while True:
            try:
                return resolved(await saga.query(CheckoutWorkflow.status, rpc_timeout=_ANSWER_WITHIN))
            except (RPCError, WorkflowQueryFailedError):
                await asyncio.sleep(PAUSE_SECONDS)


def resolved(status: CheckoutStatus) -> frozenset[str]:
    return frozenset(step.step for step in status.steps if step.state == "resolved")
