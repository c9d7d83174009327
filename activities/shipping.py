"""Step ship and its undo. Ship is the pivot: once the carrier has the parcel there is no way back."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from activities.steps import fence_key, refusal, undo_step, workflow_run
from domain.errors import UndeliverableAddress
from domain.model import CheckoutInput, OrderStatus, Shipment, Step, UndoInput
from sagafence import GATE, SagaError, StepAlreadyCompensated, UndoResult, do_once

TRACKING_NUMBER = "'PX' || upper(left(encode(sha256(convert_to(o.order_id, 'UTF8')), 'hex'), 16))"
"""The SQL that makes a parcel's number of the id of its order `o`: the same for every attempt."""

_SHIP = text(f"""
WITH parcel AS (
    SELECT o.order_id, z.zone, z.carrier, z.hands_over_at_once,
           {TRACKING_NUMBER} AS tracking_number
      FROM orders o JOIN accounts a ON a.account_id = o.customer
      JOIN delivery_zones z ON z.zone = a.delivery_zone AND z.is_served
     WHERE o.order_id = :order_id AND o.status = 'paid' AND o.fingerprint = :fingerprint
), outcome AS (
    SELECT jsonb_build_object('tracking_number', tracking_number, 'carrier', carrier,
                              'is_handed_over', hands_over_at_once) AS result
      FROM parcel
), {GATE}, advanced AS (
    UPDATE orders o SET status = 'completed', changed_by = 'ship', shipped_by = :run
      FROM gate WHERE o.order_id = :order_id
    RETURNING o.order_id
), labelled AS (
    INSERT INTO shipments (order_id, tracking_number, carrier, zone, state, handed_over_at)
    SELECT order_id, tracking_number, carrier, zone,
           CASE WHEN hands_over_at_once THEN 'handed_over' ELSE 'label' END,
           CASE WHEN hands_over_at_once THEN now() END
      FROM parcel JOIN advanced USING (order_id)
), consumed AS (
    UPDATE reservations r SET state = 'consumed' FROM advanced
     WHERE r.order_id = advanced.order_id AND r.state = 'held' RETURNING r.sku, r.quantity
), locked AS (
    SELECT i.sku, c.quantity FROM consumed c JOIN inventory i USING (sku)
     ORDER BY i.sku FOR NO KEY UPDATE OF i
), gone AS (
    UPDATE inventory i SET on_hand = i.on_hand - locked.quantity, reserved = i.reserved - locked.quantity
      FROM locked WHERE i.sku = locked.sku
)
SELECT result FROM gate
""")  # noqa: S608 - put together from our own constants

_FACTS = text("""
    SELECT o.status, o.fingerprint, a.delivery_zone,
           EXISTS (SELECT FROM delivery_zones z WHERE z.zone = a.delivery_zone AND z.is_served) AS is_served
      FROM orders o LEFT JOIN accounts a ON a.account_id = o.customer
     WHERE o.order_id = :order_id
""")

_STATUS = text("SELECT status FROM orders WHERE order_id = :order_id")

# Locked, so that no carrier collects the parcel before the transaction ends. Anything else can be undone, also a label
# that was cancelled by hand.
_IS_HANDED_OVER = text("""
    SELECT state = 'handed_over' FROM shipments WHERE order_id = :order_id FOR NO KEY UPDATE
""")

_CANCEL_LABEL = text("""
    WITH cancelled AS (
        UPDATE shipments SET state = 'cancelled' WHERE order_id = :order_id AND state = 'label'
    ), held AS (
        UPDATE reservations SET state = 'held'
         WHERE order_id = :order_id AND state = 'consumed' RETURNING sku, quantity
    ), locked AS (
        SELECT i.sku, h.quantity FROM held h JOIN inventory i USING (sku)
         ORDER BY i.sku FOR NO KEY UPDATE OF i
    )
    UPDATE inventory i SET on_hand = i.on_hand + locked.quantity, reserved = i.reserved + locked.quantity
      FROM locked WHERE i.sku = locked.sku
""")


def why_not_shipped(customer: str, delivery_zone: str | None, *, is_served: bool) -> SagaError | None:
    """Return why an order cannot be shipped; None when it can."""
    if is_served:
        return None
    return UndeliverableAddress(f"no carrier delivers to {customer} in zone {delivery_zone or '(none)'}")


def _refuse(order: CheckoutInput, rows: Sequence[Row[Any]]) -> SagaError | None:
    [row] = rows
    return why_not_shipped(order.customer, row.delivery_zone, is_served=row.is_served)


async def _is_being_undone(order: CheckoutInput, connection: AsyncConnection) -> SagaError | None:
    status = (await connection.execute(_STATUS, {"order_id": order.order_id})).scalar_one()
    if status == OrderStatus.COMPLETED:
        return None
    return StepAlreadyCompensated(f"order {order.order_id} is {status}; its shipment is to be cancelled")


class Shipping:
    """The activities of step ship."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def ship_order(self, order: CheckoutInput) -> Shipment:
        """Send the parcel: its stock leaves the shelf and the order is completed.

        One statement. A repeat returns the first shipment. A courier takes the parcel at once; elsewhere
        it is a label until the carrier collects it.

        Raises:
            UndeliverableAddress: no carrier serves the customer's zone.
            StepAlreadyCompensated: the cancellation came first, or the order is not waiting to be shipped, or it is
                being undone although its shipment is still in effect.
            DatabaseContradictsHistory: the order's payment is gone.
        """
        result = await do_once(
            self._engine,
            fence_key(order, Step.SHIP),
            _SHIP,
            {"order_id": order.order_id, "run": workflow_run()},
            explain=partial(refusal, order, Step.SHIP, _FACTS, _refuse),
            recheck=partial(_is_being_undone, order),
        )
        return Shipment(**result)

    @activity.defn
    async def cancel_shipment(self, undo: UndoInput) -> UndoResult:
        """Cancel the label and put the goods back, or report that the parcel was handed over.

        `IRREVOCABLE` changes nothing: the saga goes forward to `completed`. Irrevocable is a parcel that was handed
        over, and an order that stays completed.
        """
        return await undo_step(self._engine, undo, Step.SHIP, _CANCEL_LABEL, is_irrevocable=_IS_HANDED_OVER)
