"""What the activities of a batch have in common: a transaction that decides again where its facts have changed."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Row, TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from domain.bulk import ORDER_ID_CONFLICT, Outcome, StepReport
from domain.model import ENDINGS, CheckoutInput, OrderStatus, order_id_conflict
from domain.text import tidy
from sagafence import DatabaseRefusedStatement, DatabaseUnavailable, SagaError, transaction

TRIES = 5
# Written by hand, or being undone by another saga.
_OWNED_BY_A_SAGA = frozenset({OrderStatus.PENDING, OrderStatus.UNWINDING, OrderStatus.STUCK})
_T = TypeVar("_T")

_ORDERS = text("""
    SELECT o.order_id, o.customer, o.status, o.fingerprint, o.reason, o.total_minor, o.currency, s.tracking_number,
           a.balance_minor, a.delivery_zone, coalesce(z.is_served, false) AS is_served
      FROM orders o
      LEFT JOIN shipments s ON s.order_id = o.order_id AND s.state <> 'cancelled'
      LEFT JOIN accounts a ON a.account_id = o.customer
      LEFT JOIN delivery_zones z ON z.zone = a.delivery_zone
     WHERE o.order_id = ANY (CAST(:order_ids AS text[]))
""")
_LOCK_ORDERS = text("""
    SELECT order_id, status FROM orders
     WHERE order_id = ANY (CAST(:order_ids AS text[])) ORDER BY order_id FOR NO KEY UPDATE
""")
CATALOGUE = text("""
    SELECT p.sku, p.unit_price_minor, p.currency, coalesce(i.on_hand - i.reserved, 0) AS free
      FROM products p LEFT JOIN inventory i USING (sku) WHERE p.sku = ANY (CAST(:skus AS text[]))
""")
LOCK_STOCK = text("""
    SELECT sku, on_hand - reserved AS free FROM inventory
     WHERE sku = ANY (CAST(:skus AS text[])) ORDER BY sku FOR NO KEY UPDATE
""")
LOCK_BALANCES = text("""
    SELECT account_id, balance_minor FROM accounts
     WHERE account_id = ANY (CAST(:customers AS text[])) ORDER BY account_id FOR NO KEY UPDATE
""")


class Changed(Exception):
    """The facts of a decision have changed since they were read. Rolls the transaction back, and is tried again."""

    def __init__(self, fact: str) -> None:
        super().__init__(f"changed since it was read: {fact}")


async def until_unchanged(
    engine: AsyncEngine, attempt: Callable[[AsyncConnection], Awaitable[_T]], *, tries: int = TRIES
) -> _T:
    """Run a transaction until the facts that it decides on have not changed meanwhile, or so many times.

    Raises:
        DatabaseRefusedStatement: a constraint or a trigger refuses one of the orders, whatever is decided. It does not
            say which: each has to be tried by itself.
        DatabaseUnavailable: the facts keep changing. Retried.
    """
    changed: Changed | None = None
    refused: IntegrityError | None = None
    for _ in range(tries):
        try:
            async with transaction(engine) as connection:
                try:
                    return await attempt(connection)
                except IntegrityError as error:
                    refused = error
                    raise Changed("what a constraint allows") from None
        except Changed as error:
            changed = error
    if refused is not None:
        raise DatabaseRefusedStatement(f"one of the orders cannot be written: {str(refused.orig).splitlines()[0]}")
    raise DatabaseUnavailable(f"{tries} attempts in a row found something {changed}")


def is_due(report: StepReport, order: CheckoutInput, row: Row[Any] | None, before: Sequence[OrderStatus] = ()) -> bool:
    """Return whether the batch has something to do for an order; where not, add to the report what becomes of it.

    At a status in `before`, the step before this one is not done yet.
    """
    if row is None or row.status in before:
        report.missing_step.append(order.order_id)
    elif row.fingerprint is None:  # by hand: its saga compares the content
        report.delegated.append(order.order_id)
    elif row.fingerprint != order.fingerprint:
        report.ended.append(Outcome(order.order_id, ORDER_ID_CONFLICT, order_id_conflict(order.order_id)))
    elif row.status in ENDINGS:
        report.ended.append(outcome_of(row))
    elif row.status in _OWNED_BY_A_SAGA:
        report.delegated.append(order.order_id)
    else:
        return True
    return False


def outcome_of(row: Row[Any]) -> Outcome:
    """Return how an order has ended, by its row of `_ORDERS`."""
    return Outcome(row.order_id, row.status, row.reason, row.total_minor, row.currency, row.tracking_number)


async def read_orders(connection: AsyncConnection, order_ids: Iterable[str]) -> dict[str, Row[Any]]:
    """Read the rows of those orders that have one, by order id."""
    rows = await connection.execute(_ORDERS, {"order_ids": list(order_ids)})
    return {row.order_id: row for row in rows}


async def read_due(
    connection: AsyncConnection, report: StepReport, orders: Mapping[str, CheckoutInput], before: Sequence[OrderStatus]
) -> list[Row[Any]]:
    """Read the rows of those orders for which the batch has something to do; see `is_due`."""
    known = await read_orders(connection, orders)
    due = [
        known.get(order_id) for order_id, order in orders.items() if is_due(report, order, known.get(order_id), before)
    ]
    return [row for row in due if row is not None]


def line_columns(orders: Iterable[CheckoutInput]) -> dict[str, list[Any]]:
    """Return the lines of many orders as columns: one bind value each, however many orders."""
    lines = [(order.order_id, line) for order in orders for line in order.lines]
    return {
        "line_ids": [order_id for order_id, _ in lines],
        "skus": [line.sku for _, line in lines],
        "quantities": [line.quantity for _, line in lines],
    }


async def claim(
    connection: AsyncConnection,
    statement: TextClause,
    columns: Mapping[str, list[Any]],
    orders: Mapping[str, CheckoutInput],
    report: StepReport,
) -> list[str]:
    """Insert the fence rows of a step for those orders that have none, and return their ids.

    The step of the others was done or undone since they were read: their rows are read again, since the id may be
    that of another order by now. Where there is still something to do, it is for a saga.
    """
    claimed = set((await connection.execute(statement, columns)).scalars())
    if missed := [order_id for order_id in columns["order_ids"] if order_id not in claimed]:
        known = await read_orders(connection, missed)
        for order_id in missed:
            row = known.get(order_id)
            if row is None or is_due(report, orders[order_id], row):
                report.delegated.append(order_id)
    return [order_id for order_id in columns["order_ids"] if order_id in claimed]


async def lock_orders(connection: AsyncConnection, expected: Mapping[str, str]) -> None:
    """Lock the rows of orders whose fence rows were inserted, and require of each that it still has this status."""
    rows = await connection.execute(_LOCK_ORDERS, {"order_ids": list(expected)})
    if {row.order_id: row.status for row in rows} != expected:
        raise Changed("the status of an order")


def describe(refusal: SagaError) -> str:
    """Return a refusal as the reason that a saga would keep for it."""
    return tidy(f"{type(refusal).__name__}: {refusal.message}")
