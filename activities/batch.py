"""What the activities of a batch have in common: a transaction that decides again where its facts have changed."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from domain.model import CheckoutInput
from domain.text import tidy
from sagafence import DatabaseRefusedStatement, DatabaseUnavailable, SagaError, transaction

TRIES = 5
_T = TypeVar("_T")

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


def line_columns(orders: Iterable[CheckoutInput]) -> dict[str, list[Any]]:
    """Return the lines of many orders as columns: one bind value each, however many orders."""
    lines = [(order.order_id, line) for order in orders for line in order.lines]
    return {
        "line_ids": [order_id for order_id, _ in lines],
        "skus": [line.sku for _, line in lines],
        "quantities": [line.quantity for _, line in lines],
    }


def describe(refusal: SagaError) -> str:
    """Return a refusal as the reason that a saga would keep for it."""
    return tidy(f"{type(refusal).__name__}: {refusal.message}")
