"""Which orders of a batch the database knows already, and what becomes of those in the batch."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from activities.steps import require_same_content
from domain.bulk import DELEGATED, ORDER_ID_CONFLICT, OWNED, Outcome
from domain.errors import OrderIdConflict
from domain.model import ENDINGS, CheckoutInput, order_id_conflict

_TAKEN = text("""
    SELECT order_id FROM orders WHERE order_id = ANY (CAST(:order_ids AS text[]))
    UNION
    SELECT saga_id FROM step_fence WHERE saga_id = ANY (CAST(:order_ids AS text[]))
""")
_ORDERS = text("""
    SELECT o.order_id, o.status, o.fingerprint, o.reason, o.total_minor, o.currency, s.tracking_number
      FROM orders o LEFT JOIN shipments s ON s.order_id = o.order_id AND s.state <> 'cancelled'
     WHERE o.order_id = ANY (CAST(:order_ids AS text[]))
""")


async def known_outcomes(
    connection: AsyncConnection, orders: Sequence[CheckoutInput]
) -> tuple[list[Outcome], list[CheckoutInput]]:
    """Return the outcomes of those orders that the database knows, and the others."""
    order_ids = [order.order_id for order in orders]
    taken = set((await connection.execute(_TAKEN, {"order_ids": order_ids})).scalars())
    rows = await connection.execute(_ORDERS, {"order_ids": list(taken)}) if taken else ()
    known = {row.order_id: row for row in rows}
    outcomes = [
        await _known_outcome(connection, order, known.get(order.order_id))
        for order in orders
        if order.order_id in taken
    ]
    return outcomes, [order for order in orders if order.order_id not in taken]


async def _known_outcome(connection: AsyncConnection, order: CheckoutInput, row: Row[Any] | None) -> Outcome:
    if row is not None:
        by_hand = row.fingerprint is None
        # A saga of its own would find that, and keep the order by hand from having one.
        if not (await _is_same(connection, order) if by_hand else row.fingerprint == order.fingerprint):
            return Outcome(order.order_id, ORDER_ID_CONFLICT, order_id_conflict(order.order_id))
        if row.status in ENDINGS and not by_hand:
            return Outcome(row.order_id, row.status, row.reason, row.total_minor, row.currency, row.tracking_number)
    return Outcome(order.order_id, DELEGATED, OWNED)


async def _is_same(connection: AsyncConnection, order: CheckoutInput) -> bool:
    try:
        await require_same_content(connection, order, None)
    except OrderIdConflict:
        return False
    return True
