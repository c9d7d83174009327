"""What Temporal Cloud would bill for a workflow, counted from its history.

The rules are those of https://docs.temporal.io/cloud/actions, the price is that of https://docs.temporal.io/cloud/pricing,
both as they have been since 2026-09-17 (looked up on 2026-11-29). Bytes in storage and the plan are billed besides.

Not in a history, and not counted: queries, heartbeats, rejected updates, and workflow tasks that only kept a local
activity going. No contender has any of them while nothing fails.
"""

from collections.abc import Iterable

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

USD_PER_MILLION = 50.0
"""The Developer plan at every volume, and the first five million a month of the other plans, which fall from there."""

# One action each; an activity that is tried again is one more for each try.
_BILLED = frozenset(
    {
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
        EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
        EventType.EVENT_TYPE_TIMER_STARTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED,
        EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,  # the start itself is in the child's history
    }
)
_OF_PATCHES = "TemporalChangeVersion"


def actions(history: Iterable[HistoryEvent]) -> int:
    """Return how many actions the events of a history are."""
    count = 0
    tasks_with_markers = set()
    for event in history:
        if event.event_type in _BILLED:
            count += 1
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            count += event.activity_task_started_event_attributes.attempt - 1
        elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            metered = event.workflow_task_completed_event_attributes.metering_metadata
            count += metered.nonfirst_local_activity_execution_attempts
        elif event.event_type == EventType.EVENT_TYPE_MARKER_RECORDED:
            # Local activities, however many a workflow task has run, are one action together.
            tasks_with_markers.add(event.marker_recorded_event_attributes.workflow_task_completed_event_id)
        elif event.event_type == EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES:
            upserted = event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
            count += set(upserted) != {_OF_PATCHES}
    return count + len(tasks_with_markers)


def usd_per_million_orders(actions_per_order: float) -> float:
    """Return the list price of the actions of a million orders."""
    return actions_per_order * USD_PER_MILLION
