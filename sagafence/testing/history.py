"""What a saga's history says of its failures: the servers of a test are gone when its message is read."""

from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.service import RPCError

from sagafence.testing.description import Handle

_MISTAKE = "its own code: "
_LONGEST = 300


async def last_failure(handle: Handle) -> str:
    """Return the last failure of a workflow's history; a mistake in its own code comes before all others."""
    last, mistake = "", ""
    try:
        async for event in handle.fetch_history_events():
            if (failure := _failure_of(event)) is not None:
                last = _innermost(failure)
                mistake = f"{_MISTAKE}{last}" if event.HasField("workflow_task_failed_event_attributes") else mistake
    except RPCError as error:
        return f"its history could not be read: {error}"
    return mistake or last or "none"


def _failure_of(event: HistoryEvent) -> Failure | None:
    if event.HasField("workflow_task_failed_event_attributes"):
        return event.workflow_task_failed_event_attributes.failure
    if event.HasField("activity_task_failed_event_attributes"):
        return event.activity_task_failed_event_attributes.failure
    if event.HasField("activity_task_timed_out_event_attributes"):
        return event.activity_task_timed_out_event_attributes.failure
    attributes = event.activity_task_started_event_attributes  # of a repeat: what the attempt before it ended with
    return attributes.last_failure if attributes.HasField("last_failure") else None


def _innermost(failure: Failure) -> str:
    while failure.HasField("cause") and failure.cause.HasField("application_failure_info"):
        failure = failure.cause
    kind, message = failure.application_failure_info.type, failure.message
    text = message if not kind or message.startswith(f"{kind}:") else f"{kind}: {message}"
    return " ".join(text.split())[:_LONGEST]
