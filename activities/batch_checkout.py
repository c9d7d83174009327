"""The checkout of many orders at once, with their neighbours kept apart from what one of them runs into.

An order whose row others have locked, or that the database refuses, is left to a saga of its own; the others go on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity

from activities.batch import TRIES, describe, until_unchanged
from activities.batch_together import LockTimeout, check_out, end_unbegun, names_in
from domain.bulk import DELEGATED, BatchReport, Outcome, StepInput, StepReport, UnwindInput, unpack
from domain.model import CheckoutInput, Ending
from sagafence import DatabaseRefusedStatement, limited_refusals, transaction

_TRIES = 3
_TRIES_TOGETHER = 2
_LOOKS_AGAIN_SECONDS = 0.1
_Undo = tuple[str, Ending]

_LOCKED_BY_OTHERS = text("""
    WITH free_accounts AS (
        SELECT account_id FROM accounts WHERE account_id = ANY (CAST(:customers AS text[]))
           FOR NO KEY UPDATE SKIP LOCKED
    ), free_stock AS (
        SELECT sku FROM inventory WHERE sku = ANY (CAST(:skus AS text[])) FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT 'account' AS kind, account_id AS name, xmax::text AS holder FROM accounts
     WHERE account_id = ANY (CAST(:customers AS text[])) AND account_id NOT IN (SELECT account_id FROM free_accounts)
    UNION ALL
    SELECT 'stock', sku, xmax::text FROM inventory
     WHERE sku = ANY (CAST(:skus AS text[])) AND sku NOT IN (SELECT sku FROM free_stock)
""")


class BatchCheckout:
    """The activities of a batch: to check its orders out together, and to end those that were not."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def check_out_orders(self, asked: StepInput) -> BatchReport:
        """Complete or reject every new order, and return how each has ended, in the batch's order.

        One that has ended already is returned as it is. Those that are `DELEGATED` need sagas of their own: nothing was
        done for them. A repeat does nothing twice.

        Raises:
            DatabaseUnavailable: facts keep changing. Retried.
        """
        orders = [unpack(packed) for packed in asked.orders]
        outcomes = {outcome.order_id: outcome for outcome in await self._check_out(asked.batch_workflow_id, orders)}
        return BatchReport.of([outcomes[order.order_id] for order in orders])

    @activity.defn
    async def unwind_orders(self, asked: UnwindInput) -> StepReport:
        """End those orders that nothing was done for. One that has ended meanwhile keeps its ending.

        Where something was done for one, it is delegated: its own saga has begun it, or a batch of an earlier build. So
        is one that cannot be written, or whose row another transaction has locked.

        Raises:
            DatabaseUnavailable: facts keep changing. Retried.
        """
        undos = {
            unpack(packed): (reason, Ending(ending))
            for packed, reason, ending in zip(asked.orders, asked.reasons, asked.endings, strict=True)
        }
        batch_workflow_id = activity.info().workflow_id if activity.in_activity() else None
        async with limited_refusals():
            outcomes = await self._end(batch_workflow_id, undos, list(undos))
        return StepReport(
            ended=[outcome for outcome in outcomes if outcome.status != DELEGATED],
            delegated=[outcome.order_id for outcome in outcomes if outcome.status == DELEGATED],
        )

    async def _end(
        self, batch_workflow_id: str | None, undos: Mapping[CheckoutInput, _Undo], orders: Sequence[CheckoutInput]
    ) -> list[Outcome]:
        why, part = "", {order: undos[order] for order in orders}
        attempt = partial(end_unbegun, batch_workflow_id=batch_workflow_id, undos=part)
        for _ in range(_TRIES if len(orders) == 1 else 1):
            try:
                return await until_unchanged(self._engine, attempt)
            except LockTimeout as timeout:
                why = str(timeout)
            except DatabaseRefusedStatement as refused:
                why = describe(refused)
                break
        return await _by_halves(orders, partial(self._end, batch_workflow_id, undos), why)

    async def _check_out(self, batch_workflow_id: str, orders: Sequence[CheckoutInput]) -> list[Outcome]:
        aside: list[Outcome] = []
        for _ in range(_TRIES):
            if not orders:
                return aside
            try:
                attempt = partial(check_out, batch_workflow_id=batch_workflow_id, orders=orders)
                # A constraint that refuses may be one order's for good: it is not tried often with all the others.
                tries = TRIES if len(orders) == 1 else _TRIES_TOGETHER
                return aside + await until_unchanged(self._engine, attempt, tries=tries)
            except LockTimeout as timeout:
                why = str(timeout)
                waiting = await self._waiting(orders)
                aside += [Outcome(order_id, DELEGATED, rows) for order_id, rows in waiting.items()]
                orders = [order for order in orders if order.order_id not in waiting]
            except DatabaseRefusedStatement as refused:
                why = describe(refused)
                break
        return aside + await _by_halves(orders, partial(self._check_out, batch_workflow_id), why)

    async def _waiting(self, orders: Sequence[CheckoutInput]) -> Mapping[str, str]:
        """Return the orders whose customer or stock another transaction has locked for long, each with the rows."""
        first = await self._locked(orders)
        await asyncio.sleep(_LOOKS_AGAIN_SECONDS)
        locked = {row for row, _ in first & await self._locked(orders)}
        needs = {
            order.order_id: {("account", order.customer), *(("stock", line.sku) for line in order.lines)} & locked
            for order in orders
        }
        return {
            order_id: f"locked by another transaction: {', '.join(' '.join(row) for row in sorted(rows))}"
            for order_id, rows in needs.items()
            if rows
        }

    async def _locked(self, orders: Sequence[CheckoutInput]) -> set[tuple[tuple[str, str], str]]:
        """Return which rows others have locked, each with the transaction that has: another one is another lock."""
        async with transaction(self._engine) as connection:
            rows = await connection.execute(_LOCKED_BY_OTHERS, names_in(orders))
            return {((row.kind, row.name), row.holder) for row in rows}


async def _by_halves(
    orders: Sequence[CheckoutInput], attempt: Callable[[Sequence[CheckoutInput]], Awaitable[list[Outcome]]], why: str
) -> list[Outcome]:
    """Try each half by itself: one of the orders is to blame, and the others go without it, which is delegated."""
    if len(orders) <= 1:
        return [Outcome(order.order_id, DELEGATED, why) for order in orders]
    middle = len(orders) // 2
    return [*await attempt(orders[:middle]), *await attempt(orders[middle:])]
