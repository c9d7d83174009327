"""Every failure by name. The name crosses the wire and is public: match on `.type`, never on the text.

Three kinds, by who must act:

* *refusals* are facts about the order. They are not retried; the saga unwinds.
* *outages* pass by themselves. They are retried by policy; the customer never notices. What refuses the service as a
  whole (`DatabaseMisconfigured`) is an outage that an operator ends: the saga waits for that without limit.
* *broken* states need an operator. Going forward they end the saga; an undo keeps trying and parks the order.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory


class CheckoutError(ApplicationError):
    """The root of all of them. `type` is the class's name."""

    def __init__(
        self,
        message: str,
        *,
        details: Sequence[Any] = (),
        non_retryable: bool = True,
        next_retry_delay: timedelta | None = None,
        category: ApplicationErrorCategory = ApplicationErrorCategory.UNSPECIFIED,
    ) -> None:
        super().__init__(
            message,
            *details,
            type=type(self).__name__,
            non_retryable=non_retryable,
            next_retry_delay=next_retry_delay,
            category=category,
        )


class Refusal(CheckoutError):
    """A business refusal: expected, not retried, not an alarm."""

    def __init__(self, message: str, *, details: Sequence[Any] = ()) -> None:
        super().__init__(message, details=details, category=ApplicationErrorCategory.BENIGN)


class InvalidInput(Refusal):
    """The request is malformed. Its message names each problem and its fix."""


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


class StepAlreadyCompensated(Refusal):
    """The step's undo came first: a late attempt finds the tombstone and has no effect."""


class OrderIdConflict(Refusal):
    """The id already belongs to a request with other content: another customer, or other lines."""

    earlier_name: ClassVar[str] = "IdempotencyMismatch"
    """Its type in histories, and in the reasons of orders, from before it was renamed."""


class DatabaseUnavailable(CheckoutError):
    """Postgres is away, busy or being restarted. Retried."""

    def __init__(self, message: str, *, next_retry_delay: timedelta | None = None) -> None:
        super().__init__(message, non_retryable=False, next_retry_delay=next_retry_delay)


class DatabaseRefusedStatement(CheckoutError):
    """Postgres answers, but refuses what the statement wants to write: a constraint, a foreign trigger.

    Only an operator can fix that. The policies of forward steps do not retry it; an undo tries a few times and then
    parks the order; what records an ending tries until it works.
    """

    def __init__(self, message: str, *, non_retryable: bool = False) -> None:
        super().__init__(message, non_retryable=non_retryable)


class DatabaseMisconfigured(CheckoutError):
    """Postgres answers, and refuses the service itself: a password, a right, a table, a column, a read-only session.

    It says nothing about the order, so no customer is refused because of it: a step is retried without limit until an
    operator has fixed it. Every attempt is logged as an error.
    """

    def __init__(self, message: str, *, next_retry_delay: timedelta | None = None) -> None:
        super().__init__(message, non_retryable=False, next_retry_delay=next_retry_delay)


class CompensationImpossible(CheckoutError):
    """The rows contradict each other: undoing this step now would break an invariant."""


class DatabaseContradictsHistory(CheckoutError):
    """A step that the saga's history has as done is unknown to the database: it was restored to an earlier state.

    What happened in the world meanwhile is unknown, so the order is parked for an operator.
    """

    question: ClassVar[str] = "was it restored to an earlier instant? Nothing is undone before an operator's review"
    """What every such message ends with."""


class AuditViolation(CheckoutError):
    """How an audit ends that found violations: with the `AuditReport` as its detail."""


class OrderRejected(CheckoutError):
    """How a rejected saga ends: with the failed step, the cause and each undo's outcome."""


class OrderCancelled(Refusal):
    """How a saga ends that was cancelled by the `cancel` update, after a full unwind."""
