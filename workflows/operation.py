"""One operation of a workflow on the outside world: an activity, called by its policy."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from temporalio import workflow

from domain.policies import ActivityPolicy

Given = TypeVar("Given")
Answer = TypeVar("Answer")


async def perform(
    activity: Callable[[Any, Given], Awaitable[Answer]],
    given: Given,
    policy: ActivityPolicy,
    activity_id: str | None,
    summary: str,
) -> Answer:
    """Run an activity to its end.

    Args:
        activity: a method that takes and gives one value.
        given: the value.
        policy: its timeouts and retries.
        activity_id: stable across deploys, so that people and tools can name it; None where it may be repeated.
        summary: what the UI's timeline shows beside the activity's name.
    """
    return await workflow.execute_activity_method(
        activity,
        given,
        activity_id=activity_id,
        summary=summary,
        start_to_close_timeout=policy.start_to_close,
        schedule_to_close_timeout=policy.schedule_to_close,
        retry_policy=policy.retry,
        # An unwind should begin after the step has stopped, not beside it. That is a courtesy to the
        # database; the fence is the guarantee.
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )
