"""Calling an activity by its policy."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError
from temporalio.exceptions import TimeoutError as TemporalTimeoutError

from sagafence.policy import ActivityPolicy

Given = TypeVar("Given")
Answer = TypeVar("Answer")

# An unwind begins after the step has stopped, which spares the database; the fence is the guarantee.
_WAIT = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED


async def perform(  # noqa: PLR0913 - what an operation is called with
    activity: Callable[[Any, Given], Awaitable[Answer]],
    given: Given,
    policy: ActivityPolicy,
    activity_id: str | None,
    summary: str,
    *,
    local_attempt: timedelta | None = None,
) -> Answer:
    """Run an activity to its end.

    With a `local_attempt` it is tried once as a local activity: within the workflow task, so the server needs no task
    of its own for it. Where that fails for a reason that may pass, it begins again as an ordinary activity with every
    retry. Both attempts may run at once, so this is for activities behind a fence.

    Args:
        activity: a method with one argument.
        given: the argument.
        policy: its timeouts and retries.
        activity_id: stable across deploys, for tools and replay; None where the activity may be repeated.
        summary: what the UI's timeline shows beside the activity's name.
        local_attempt: how long a local attempt may take; well below the timeout of a workflow task. None means there
            is none. A history replays only with what it began with.
    """
    if local_attempt is not None:
        try:
            return await workflow.execute_local_activity_method(
                activity,
                given,
                activity_id=activity_id,
                start_to_close_timeout=local_attempt,
                retry_policy=RetryPolicy(maximum_attempts=1),
                cancellation_type=_WAIT,
            )
        except FailureError as error:
            if not _may_pass(error, policy):
                raise
            if (caller := asyncio.current_task()) and caller.cancelling():
                # The cancel went to the attempt that failed; the next one would never receive it.
                raise asyncio.CancelledError from error
    return await workflow.execute_activity_method(
        activity,
        given,
        activity_id=activity_id,
        summary=summary,
        cancellation_type=_WAIT,
        **policy.limits(),
    )


def _may_pass(error: FailureError, policy: ActivityPolicy) -> bool:
    """Whether the policy would have retried this failure. A cancel is not retried.

    A local attempt that ran out of time is an `ActivityError` with its cause when it happens, and the bare cause when
    its history is replayed (SDK 1.35): both must be taken for the same.
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, ApplicationError):
        return not cause.non_retryable and cause.type not in (policy.retry.non_retryable_error_types or ())
    return isinstance(cause, TemporalTimeoutError)
