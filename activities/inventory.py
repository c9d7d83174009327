"""Step reserve and its undo: hold stock for a whole order, and give it back."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from activities import refusals
from activities.fence import GATE, do_once
from activities.orders import (
    fence_key,
    line_arrays,
    require_same_content,
)
from activities.undo import undo_step
from domain.errors import CheckoutError, StepAlreadyCompensated
from domain.model import CheckoutInput, OrderStatus, Reservation, Step, UndoInput
from domain.undo import UndoResult

# `outcome` is empty, and so the gate stays shut, unless the customer and every SKU are known, all in one
# currency, every line is in stock, and the order id is free or belongs to a pending order that asks for
# exactly this. A row that was committed since this statement began was not compared: the trigger on orders
# refuses the status that it would get, and takes the gate back. The stock rows come last: they are the ones
# that others wait for.
_RESERVE = text(f"""
WITH wanted AS (
    SELECT sku, quantity
      FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS integer[])) AS w (sku, quantity)
), priced AS (
    SELECT w.sku, w.quantity, p.unit_price_minor, p.currency
      FROM wanted w JOIN products p USING (sku)
), outcome AS (
    SELECT sum(quantity * unit_price_minor)::bigint AS total_minor, min(currency) AS currency,
           jsonb_build_object('total_minor', sum(quantity * unit_price_minor)::bigint,
                              'currency', min(currency)) AS result
      FROM priced
    HAVING count(*) = (SELECT count(*) FROM wanted)
       AND EXISTS (SELECT FROM accounts a WHERE a.account_id = :customer AND a.kind = 'customer'
                      AND a.currency = min(priced.currency) AND a.currency = max(priced.currency))
       AND NOT EXISTS (SELECT FROM priced p LEFT JOIN inventory i USING (sku)
                        WHERE coalesce(i.on_hand - i.reserved, 0) < p.quantity)
       AND NOT EXISTS (
           SELECT FROM orders o WHERE o.order_id = :order_id AND NOT (
               o.status = 'pending' AND o.customer = :customer
               AND (SELECT jsonb_object_agg(l.sku, l.quantity) FROM order_lines l WHERE l.order_id = :order_id)
                   IS NOT DISTINCT FROM (SELECT jsonb_object_agg(w.sku, w.quantity) FROM wanted w)))
), {GATE}, opened AS (
    INSERT INTO orders (order_id, customer, status, changed_by, fingerprint, total_minor, currency)
    SELECT :order_id, :customer, 'reserved', 'reserve', :fingerprint, outcome.total_minor, outcome.currency
      FROM gate, outcome
    ON CONFLICT (order_id) DO UPDATE
       SET status = CASE WHEN EXISTS (SELECT FROM orders seen WHERE seen.order_id = excluded.order_id)
                         THEN excluded.status ELSE 'came meanwhile' END,
           changed_by = excluded.changed_by, fingerprint = excluded.fingerprint,
           total_minor = excluded.total_minor, currency = excluded.currency
    RETURNING order_id
), kept AS (
    INSERT INTO order_lines (order_id, sku, quantity, unit_price_minor)
    SELECT opened.order_id, sku, quantity, unit_price_minor FROM opened, priced
    ON CONFLICT (order_id, sku) DO UPDATE SET unit_price_minor = excluded.unit_price_minor
), held AS (
    INSERT INTO reservations (order_id, sku, quantity)
    SELECT opened.order_id, sku, quantity FROM opened, priced
), locked AS (
    SELECT i.sku, w.quantity FROM opened, wanted w JOIN inventory i USING (sku)
     ORDER BY i.sku FOR NO KEY UPDATE OF i
), taken AS (
    UPDATE inventory i SET reserved = i.reserved + locked.quantity FROM locked WHERE i.sku = locked.sku
)
SELECT result FROM gate
""")  # noqa: S608 - put together from our own constants

_WHY_NOT = text("""
    SELECT (SELECT kind FROM accounts WHERE account_id = :customer) AS account_kind,
           (SELECT currency FROM accounts WHERE account_id = :customer) AS account_currency,
           (SELECT status FROM orders WHERE order_id = :order_id) AS order_status,
           (SELECT fingerprint FROM orders WHERE order_id = :order_id) AS order_fingerprint
""")

_WHICH_LINES = text("""
    SELECT w.sku, w.quantity, p.sku IS NOT NULL AS is_known, p.currency,
           coalesce(i.on_hand - i.reserved, 0) AS free
      FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS integer[])) AS w (sku, quantity)
      LEFT JOIN products p USING (sku) LEFT JOIN inventory i USING (sku)
     ORDER BY w.sku
""")

_RELEASE = text("""
    WITH released AS (
        UPDATE reservations SET state = 'released'
         WHERE order_id = :order_id AND state = 'held' RETURNING sku, quantity
    ), locked AS (
        SELECT i.sku, r.quantity FROM released r JOIN inventory i USING (sku)
         ORDER BY i.sku FOR NO KEY UPDATE OF i
    )
    UPDATE inventory i SET reserved = i.reserved - locked.quantity FROM locked WHERE i.sku = locked.sku
""")


class Inventory:
    """The activities of step reserve."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def reserve_inventory(self, order: CheckoutInput) -> Reservation:
        """Hold stock for every line of an order, price it and write its row: all of it or nothing.

        One statement. A repeat returns the first reservation.

        Raises:
            UnknownCustomer, UnknownSku, CurrencyMismatch, OutOfStock: facts found in the database.
            IdempotencyMismatch: the order id belongs to an order with other content.
            StepAlreadyCompensated: the release came first.
        """

        async def explain(connection: AsyncConnection) -> CheckoutError | None:
            return await _refusal(connection, order)

        result = await do_once(
            self._engine,
            fence_key(order, Step.RESERVE),
            _RESERVE,
            {"order_id": order.order_id, "customer": order.customer, **line_arrays(order)},
            explain=explain,
        )
        return Reservation(**result)

    @activity.defn
    async def release_inventory(self, undo: UndoInput) -> UndoResult:
        """Give back the stock that an order holds.

        Raises:
            CompensationImpossible: the order's parcel still stands.
        """

        async def reverse(connection: AsyncConnection) -> None:
            await connection.execute(_RELEASE, {"order_id": undo.order.order_id})

        return await undo_step(self._engine, undo, Step.RESERVE, reverse)


async def _refusal(connection: AsyncConnection, order: CheckoutInput) -> CheckoutError | None:
    asked = {"order_id": order.order_id, "customer": order.customer}
    why = (await connection.execute(_WHY_NOT, asked)).one()
    if why.order_status is not None:
        await require_same_content(connection, order, why.order_fingerprint)
        if why.order_status != OrderStatus.PENDING:
            return StepAlreadyCompensated(f"order {order.order_id} is already {why.order_status}")
    lines = (await connection.execute(_WHICH_LINES, line_arrays(order))).all()
    return refusals.of_reserve(order.customer, why, lines)
