"""The checkout's failures, beside those that every saga has (`sagafence`): refusals, and how a saga ends.

The name crosses the wire and is public: match on `.type`, never on the text.
"""

from typing import ClassVar

from sagafence import IdempotencyConflict, Refusal, SagaError


class UnknownCustomer(Refusal):
    """There is no such customer account."""


class UnknownSku(Refusal):
    """The catalogue does not have one of the SKUs."""


class CurrencyMismatch(Refusal):
    """The lines, or the customer's account, are not all in one currency."""


class OutOfStock(Refusal):
    """Fewer units are free than the order wants."""


class InsufficientFunds(Refusal):
    """The customer's balance is below the order's total."""


class UndeliverableAddress(Refusal):
    """No carrier serves the customer's delivery zone."""


class OrderIdConflict(IdempotencyConflict):
    """The id already belongs to a request with other content: another customer, or other lines."""

    earlier_name: ClassVar[str] = "IdempotencyMismatch"
    """Its type in histories, and in the reasons of orders, from before it was renamed."""


class DatabaseContradictsHistory(SagaError):
    """A step that the saga's history has as done is unknown to the database: it was restored to an earlier state.

    What happened in the world meanwhile is unknown, so the order is parked for an operator.
    """

    question: ClassVar[str] = "was it restored to an earlier instant? Nothing is undone before an operator's review"
    """What every such message ends with."""


class AuditViolation(SagaError):
    """How an audit ends that found violations: with the `AuditReport` as its detail."""


class OrderRejected(SagaError):
    """How a rejected saga ends: with the failed step, the cause and each undo's outcome."""


class OrderCancelled(Refusal):
    """How a saga ends that was cancelled by the `cancel` update, after a full unwind."""
