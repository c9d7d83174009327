"""Whose an order's id is: the first order's that was accepted under it."""

from http import HTTPStatus

from adapters.order_query import FoundOrder
from domain.model import CheckoutInput, order_id_conflict
from http_api.problems import Fault, Problem
from http_api.seats import Asked


def is_anothers(found: FoundOrder, placed: CheckoutInput) -> bool:
    """Return whether the id of an order belongs to one with other content."""
    record = found.record
    if record.fingerprint is not None:  # one inserted by hand has none until a saga has seen it
        return record.fingerprint != placed.fingerprint
    return (record.customer, frozenset(record.lines)) != (placed.customer, frozenset(placed.lines))


def conflict(asked: Asked) -> Problem:
    """Make the problem of an order whose id is another's."""
    if asked.is_chosen:
        why = order_id_conflict(asked.order.order_id)
        return Problem(HTTPStatus.CONFLICT, "order-id-conflict", f"{why}. Choose another order_id.")
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "idempotency-key-reused",
        "This Idempotency-Key was sent with another order before. Use a new key for a new order.",
        errors=[Fault(pointer="Idempotency-Key", detail="it belongs to an order with other content")],
    )
