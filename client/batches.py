"""What became of an order of a batch that its own saga processes."""

from client.checkouts import Checkouts
from client.listing import TERMINATED
from domain.bulk import HANDED_OVER, OTHER_CONTENT, UNKNOWN, Outcome
from domain.errors import IdempotencyMismatch
from domain.model import CheckoutInput, id_is_taken

_LOOK_SECONDS = 30.0


async def carried_on(checkouts: Checkouts, order: CheckoutInput) -> Outcome:
    """Wait for the end of an order that its batch has handed over to a saga of its own.

    The saga that has the id may be of other content, started before the hand-over. How that one ends says nothing of
    this order; whose the id is, the database can tell a batch by then. Or such a saga has ended, and this order's own
    finds the id taken. Its own that somebody has ended before we came is begun anew, and followed.
    """
    outcome = Outcome(order.order_id, HANDED_OVER)
    for is_last in (False, True):
        if await checkouts.is_gone(order.order_id) and await checkouts.has_saga_of(order):
            await checkouts.start(order)
        status = await checkouts.outcome(order.order_id, look_every=_LOOK_SECONDS)
        if await checkouts.has_saga_of(order):
            if (status.reason or "").startswith(f"{IdempotencyMismatch.__name__}: "):
                return Outcome(order.order_id, OTHER_CONTENT, id_is_taken(order.order_id))
            return Outcome(
                order.order_id,
                UNKNOWN if status.status == TERMINATED else status.status,
                status.reason,
                status.total_minor,
                status.currency,
                status.tracking_number,
            )
        if not is_last:
            [outcome] = await checkouts.carry([order])
        if outcome.status != HANDED_OVER:
            return outcome
    return Outcome(order.order_id, UNKNOWN, id_is_taken(order.order_id))
