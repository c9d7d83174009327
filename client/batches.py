"""Orders that a batch has delegated to sagas of their own."""

from client.checkouts import Checkouts
from client.listing import TERMINATED
from domain.bulk import DELEGATED, ORDER_ID_CONFLICT, UNKNOWN, Outcome
from domain.errors import OrderIdConflict
from domain.model import CheckoutInput, order_id_conflict

_POLL_SECONDS = 30.0
_CONFLICTS = (f"{OrderIdConflict.__name__}: ", f"{OrderIdConflict.earlier_name}: ")


async def delegated_outcome(checkouts: Checkouts, order: CheckoutInput) -> Outcome:
    """Wait for the end of an order that its batch has delegated to a saga of its own.

    The saga of that id may be of other content and started earlier: its end says nothing of this order, and a batch
    then learns from the database which order has the id. Or that saga has ended, and this order's own finds the id
    taken. Its own that was ended from outside meanwhile is started again.
    """
    outcome = Outcome(order.order_id, DELEGATED)
    for is_last in (False, True):
        if await checkouts.is_gone(order.order_id) and await checkouts.has_saga_of(order):
            await checkouts.start(order)
        status = await checkouts.outcome(order.order_id, poll_every=_POLL_SECONDS)
        if await checkouts.has_saga_of(order):
            if (status.reason or "").startswith(_CONFLICTS):
                return Outcome(order.order_id, ORDER_ID_CONFLICT, order_id_conflict(order.order_id))
            return Outcome(
                order.order_id,
                UNKNOWN if status.status == TERMINATED else status.status,
                status.reason,
                status.total_minor,
                status.currency,
                status.tracking_number,
            )
        if not is_last:
            [outcome] = await checkouts.process([order])
        if outcome.status != DELEGATED:
            return outcome
    return Outcome(order.order_id, UNKNOWN, order_id_conflict(order.order_id))
