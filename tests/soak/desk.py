"""The ways in which the soak's customers and its operator ask for something, again until somebody has answered."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import asyncpg
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from client.checkouts import Checkouts
from client.failures import NoWorker
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.soak.book import Book
from tests.soak.plan import Plan
from tests.soak.planned import PlannedOrder
from tests.soak.stage import AWAY, Stage
from workflows.checkout import CheckoutWorkflow

UNREACHABLE = (RPCError, NoWorker, TimeoutError)
PAUSE_SECONDS = 0.5
_T = TypeVar("_T")


class Desk:
    def __init__(self, stage: Stage, plan: Plan, client: Client, book: Book) -> None:
        self.stage = stage
        self.plan = plan
        self.client = client
        self.checkouts: Checkouts = stage.checkouts(client)
        self.book = book

    async def persist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Try until the server has answered. Whatever is tried has to be safe to repeat."""
        while True:
            try:
                return await attempt()
            except (*UNREACHABLE, *AWAY):
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from None  # an update's client may tell it as something else
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
        async with self.stage.asking() as connection:
            return await connection.fetchrow(
                "SELECT status, reason, fingerprint FROM orders WHERE order_id = $1", order_id
            )

    async def insert(self, order: CheckoutInput) -> None:
        """Write an order as a person would who has psql and no starter."""
        async with self.stage.asking() as connection, connection.transaction():
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
        async with self.stage.asking() as connection:
            with suppress(asyncpg.UniqueViolationError):  # it was taken in, and the answer was lost
                await connection.execute("SELECT deliver($1, $2, 'restocked', $3)", sku, units, f"soak/{number}")

    async def mend(self, order_id: str) -> None:
        async with self.stage.asking() as connection:
            await connection.execute("DELETE FROM soak.broken WHERE order_id = $1", order_id)
