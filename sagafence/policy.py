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


UNDO_ATTEMPTS_WHEN_REFUSED = 5
"""How often an undo is tried within a round when Postgres refuses its statement (not when it is away).

With the backoff above: about 3 s, long enough for a grant or a deploy under way."""
