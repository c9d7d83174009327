"""How long an activity may take, and how it is retried."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy

from sagafence.errors import DatabaseRefusedStatement


class ActivityLimits(TypedDict):
    """What a policy is to `workflow.execute_activity`."""

    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta | None
    heartbeat_timeout: timedelta | None
    retry_policy: RetryPolicy


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

    def limits(self) -> ActivityLimits:
        """Return it as keyword arguments of `workflow.execute_activity` and its like."""
        return {
            "start_to_close_timeout": self.start_to_close,
            "schedule_to_close_timeout": self.schedule_to_close,
            "heartbeat_timeout": self.heartbeat,
            "retry_policy": self.retry,
        }


def retry_policy(initial_ms: int, maximum_s: int, *, stops_when_refused: bool = True) -> RetryPolicy:
    """Make the retries of a policy: after so many milliseconds, doubling up to so many seconds.

    A statement that Postgres refuses is not tried again, unless `stops_when_refused` is false: for undos and records.
    """
    return RetryPolicy(
        initial_interval=timedelta(milliseconds=initial_ms),
        maximum_interval=timedelta(seconds=maximum_s),
        non_retryable_error_types=[DatabaseRefusedStatement.__name__] if stops_when_refused else None,
    )


STEP_POLICY = ActivityPolicy(timedelta(seconds=5), timedelta(minutes=1), retry_policy(100, 5))
"""A step, unless its declaration says otherwise."""
UNDO_POLICY = ActivityPolicy(
    timedelta(seconds=10), timedelta(minutes=15), retry_policy(200, 60, stops_when_refused=False)
)
"""One round of an undo, or of settling a pivot. Then the saga is stuck, and later rounds follow."""

UNDO_ATTEMPTS_WHEN_REFUSED = 5
"""How many attempts of an undo Postgres may refuse in a round; those that met an outage are not counted.

With the backoff of `UNDO_POLICY`: about 3 s, long enough for a grant or a deploy under way. After an outage it is
longer, since each of its attempts has doubled the backoff."""
