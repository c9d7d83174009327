"""How long an activity may take, and how it is retried."""

from dataclasses import dataclass
from datetime import timedelta

from temporalio.common import RetryPolicy


@dataclass(frozen=True)
class ActivityPolicy:
    """How long one operation may take and how it is retried.

    `start_to_close` bounds one attempt. Choose it above what the database lets a statement or a transaction take: then
    what an attempt that Temporal gave up is still doing ends soon after, and until then the fence keeps it harmless.
    `schedule_to_close` bounds all attempts together, backoff included; None means never give up. `heartbeat` is for
    attempts that take long: how soon Temporal notices that one is lost, and the attempt that its workflow has ended.
    """

    start_to_close: timedelta
    schedule_to_close: timedelta | None
    retry: RetryPolicy
    heartbeat: timedelta | None = None


def _retry(initial_ms: int, maximum_s: int, *, stops_when_refused: bool) -> RetryPolicy:
    return RetryPolicy(
        initial_interval=timedelta(milliseconds=initial_ms),
        maximum_interval=timedelta(seconds=maximum_s),
        non_retryable_error_types=["DatabaseRefusedStatement"] if stops_when_refused else None,
    )


STEP_POLICY = ActivityPolicy(timedelta(seconds=5), timedelta(minutes=1), _retry(100, 5, stops_when_refused=True))
"""A step, unless its declaration says otherwise."""
UNDO_POLICY = ActivityPolicy(timedelta(seconds=10), timedelta(minutes=15), _retry(200, 60, stops_when_refused=False))
"""One round of an undo, or of settling a pivot. Then the saga is stuck, and later rounds follow."""
RECORD_POLICY = ActivityPolicy(timedelta(seconds=10), None, _retry(200, 60, stops_when_refused=False))
"""Recording what happened: never gives up."""

UNDO_ATTEMPTS_WHEN_REFUSED = 5
"""How many attempts of an undo Postgres may refuse in a round; those that met an outage are not counted.

With the backoff of `UNDO_POLICY`: about 3 s, long enough for a grant or a deploy under way. After an outage it is
longer, since each of its attempts has doubled the backoff."""
