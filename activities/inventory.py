"""Step reserve and its undo: hold stock for a whole order, and give it back."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity

from activities.steps import fence_key, line_arrays, refusal, undo_step
from domain.errors import CurrencyMismatch, OutOfStock, UnknownCustomer, UnknownSku
from domain.model import CheckoutInput, Reservation, Step, UndoInput
from sagafence import GATE, SagaError, UndoResult, do_once

# `outcome` is empty, and so the gate stays shut, unless the customer and every SKU are known, all in one currency,
# every line is in stock, and the order id is free or is that of a pending order, by hand, with this very content.
# A row that was committed since this statement began was not compared: the update does not see it, the insert violates
# the primary key, and all is rolled back, gate included. The stock rows come last: they are the ones others wait for.
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
), {GATE}, by_hand AS (
    UPDATE orders o SET status = 'reserved', changed_by = 'reserve', fingerprint = :fingerprint,
           total_minor = outcome.total_minor, currency = outcome.currency
      FROM gate, outcome WHERE o.order_id = :order_id
    RETURNING o.order_id
), new AS (
    INSERT INTO orders (order_id, customer, status, changed_by, fingerprint, total_minor, currency)
    SELECT :order_id, :customer, 'reserved', 'reserve', :fingerprint, outcome.total_minor, outcome.currency
      FROM gate, outcome WHERE NOT EXISTS (SELECT FROM by_hand)
    RETURNING order_id
), opened AS (
    SELECT order_id FROM by_hand UNION ALL SELECT order_id FROM new
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

_FACTS = text("""
    SELECT w.sku, w.quantity, p.currency, coalesce(i.on_hand - i.reserved, 0) AS free,
           a.currency AS account_currency, o.status, o.fingerprint
      FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS integer[])) AS w (sku, quantity)
      LEFT JOIN products p USING (sku) LEFT JOIN inventory i USING (sku)
      LEFT JOIN accounts a ON a.account_id = :customer AND a.kind = 'customer'
      LEFT JOIN orders o ON o.order_id = :order_id
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


class LineFacts(NamedTuple):
    """What an order asks for of one SKU, and what there is."""

    sku: str
    quantity: int
    currency: str | None
    """What it is priced in; None where the catalogue does not have it."""
    free: int


def why_not_reserved(customer: str, account_currency: str | None, lines: Sequence[LineFacts]) -> SagaError | None:
    """Return why an order cannot be reserved; None when it can. There is no such customer without a currency."""
    if account_currency is None:
        return UnknownCustomer(f"there is no customer {customer}")
    if unknown := [line.sku for line in lines if line.currency is None]:
        return UnknownSku(f"the catalogue has no {', '.join(unknown)}")
    if currencies := {str(line.currency) for line in lines} - {account_currency}:
        return CurrencyMismatch(
            f"{customer} pays in {account_currency}, the order is priced in {', '.join(sorted(currencies))}"
        )
    if short := [line for line in lines if line.free < line.quantity]:
        return OutOfStock("; ".join(f"{line.sku}: {line.quantity} wanted, {max(line.free, 0)} free" for line in short))
    return None


def _refuse(order: CheckoutInput, rows: Sequence[Row[Any]]) -> SagaError | None:
    lines = [LineFacts(row.sku, row.quantity, row.currency, row.free) for row in rows]
    return why_not_reserved(order.customer, rows[0].account_currency, lines)


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
            OrderIdConflict: the id belongs to an order with other content.
            StepAlreadyCompensated: the release came first.
        """
        result = await do_once(
            self._engine,
            fence_key(order, Step.RESERVE),
            _RESERVE,
            {"order_id": order.order_id, "customer": order.customer, **line_arrays(order)},
            explain=partial(refusal, order, Step.RESERVE, _FACTS, _refuse),
        )
        return Reservation(**result)

    @activity.defn
    async def release_inventory(self, undo: UndoInput) -> UndoResult:
        """Give back the stock that an order holds.

        Raises:
            CompensationImpossible: the order's shipment is in effect.
        """
        return await undo_step(self._engine, undo, Step.RESERVE, _RELEASE)
