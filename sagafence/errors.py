"""Every failure by name. The name crosses the wire and is public: match on `.type`, never on the text.

Three kinds, by who must act:

* *refusals* are facts about the request. They are not retried; the saga unwinds.
* *outages* pass by themselves. They are retried by policy; the caller never notices. What refuses the service as a
  whole (`DatabaseMisconfigured`) is an outage that an operator ends: a saga may wait for that without limit.
* *broken* states need an operator. Going forward they end the saga; an undo keeps trying, and the saga is stuck.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory


class SagaError(ApplicationError):
    """The root of all of them. Its type, which crosses the wire, is the class's name."""

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


class Refusal(SagaError):
    """A business refusal: expected, not retried, not an alarm. Raise a subclass of it from a step.

    Its details travel with it as JSON, to whoever looks at the failed workflow.
    """

    def __init__(self, message: str, *, details: Sequence[Any] = ()) -> None:
        super().__init__(message, details=details, category=ApplicationErrorCategory.BENIGN)


class InvalidInput(Refusal):
    """The request is malformed. Its message names each problem and its fix."""


class StepAlreadyCompensated(Refusal):
    """The step's undo came first: a late attempt finds the tombstone and has no effect."""


class IdempotencyConflict(Refusal):
    """The id already belongs to a request with other content. Nothing was done."""


class DatabaseUnavailable(SagaError):
    """Postgres is away, busy or being restarted. Retried, as the step's policy says."""

    def __init__(self, message: str, *, next_retry_delay: timedelta | None = None) -> None:
        super().__init__(message, non_retryable=False, next_retry_delay=next_retry_delay)


class DatabaseRefusedStatement(SagaError):
    """Postgres answers, but refuses what the statement wants to write: a constraint, a foreign trigger.

    Only an operator can fix that. The policies of forward steps do not retry it; an undo tries a few times and then
    leaves the saga stuck.
    """

    def __init__(self, message: str, *, non_retryable: bool = False) -> None:
        super().__init__(message, non_retryable=non_retryable)


class DatabaseMisconfigured(SagaError):
    """Postgres answers, and refuses the service itself: a password, a right, a table, a column, a read-only session.

    It says nothing about the request, which is not refused because of it: a step is retried until an operator has
    fixed it. Every attempt is logged as an error.
    """

    def __init__(self, message: str, *, next_retry_delay: timedelta | None = None) -> None:
        super().__init__(message, non_retryable=False, next_retry_delay=next_retry_delay)


class CompensationImpossible(SagaError):
    """The rows contradict each other: undoing this step now would break an invariant.

    Not retried within a round: the saga is stuck until the rows are mended and another round follows.
    """


class CallRejected(SagaError):
    """A provider turned one call away: that call had no effect and will have none. It says nothing about others.

    For an author's call to raise: 400, 401, 429, or 409 while another request with the key is worked on. Retried.
    """

    def __init__(self, message: str, *, next_retry_delay: timedelta | None = None) -> None:
        super().__init__(message, non_retryable=False, next_retry_delay=next_retry_delay)


class KeyReused(SagaError):
    """A provider says that the key was used with other content. For an author's call to raise; a person must look."""

    def __init__(self, message: str) -> None:
        super().__init__(message, non_retryable=False)


class StoredFailure(SagaError):
    """A provider repeats a stored error: no call under the key can act any more, and one may have acted.

    For an author's call to raise.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, non_retryable=False)


class OutcomeUnknown(SagaError):
    """Nobody but a person can say whether a step had its effect elsewhere.

    Its only detail says what to look for: `saga_id`, `step`, `provider`, `key`, `undo_key`, `question`, `late_until`,
    and `calls`, the first and the last ten, with their times and answers. Retried within a round of an undo, or of
    settling a pivot, where the request may be repeated, since a repeat may tell too.
    """


class NotSettledYet(SagaError):
    """A request may still be under way, so nothing can be settled yet. Retried when it is too late for it.

    The delay before the next attempt is the time until then: see `Provider.late_by_at_most`.
    """

    def __init__(self, message: str, *, next_retry_delay: timedelta | None = None) -> None:
        super().__init__(message, non_retryable=False, next_retry_delay=next_retry_delay)


class VerdictRefused(Refusal):
    """A person's word on a step does not count, or not yet. Its message says why."""


class CannotConnect(ConnectionError):
    """No host gives a session that can write. An outage, whatever Postgres says: no statement was refused."""

    def __init__(self, message: str, *, sqlstate: str | None = None, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.is_refusal = is_refusal
        """Whether a server answers and refuses our credentials, the database's name or a right."""
