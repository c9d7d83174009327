"""Temporal is told the timeouts and retries of domain/policies.py, for each activity those that are meant for it."""

from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType

from domain import policies
from sagafence import ActivityPolicy
from tests.conftest import Shop
from tests.workflow.sagas import how_it_ended

FORWARD = {"reserve_inventory": policies.RESERVE, "charge_payment": policies.PAY, "ship_order": policies.SHIP}
UNWIND = {
    "cancel_shipment": policies.UNDO,
    "refund_payment": policies.UNDO,
    "release_inventory": policies.UNDO,
    "close_order": policies.RECORD,
}


@pytest.mark.parametrize(
    ("customer", "end", "expected"),
    [
        ("alice", "completed", {**FORWARD, "complete_order": policies.RECORD}),
        ("nemo", "OrderRejected", {**FORWARD, **UNWIND}),
    ],
    ids=["completed", "rejected"],
)
async def test_each_activity_has_the_policy_that_is_meant_for_it(
    customer: str, end: str, expected: dict[str, ActivityPolicy], shop: Shop
) -> None:
    async with shop.working():
        handle = await shop.start(shop.order(customer))
        ended = await how_it_ended(handle)

    scheduled = {
        event.activity_task_scheduled_event_attributes.activity_type.name: _told(
            event.activity_task_scheduled_event_attributes
        )
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    }
    assert ended == end
    assert scheduled.keys() <= expected.keys()
    assert scheduled.keys() >= FORWARD.keys()
    assert scheduled == {name: _meant(expected[name]) for name in scheduled}


def _told(event: Any) -> tuple[float, float, float, float, float, int]:
    retry = event.retry_policy
    return (
        event.start_to_close_timeout.ToTimedelta().total_seconds(),
        event.schedule_to_close_timeout.ToTimedelta().total_seconds(),
        retry.initial_interval.ToTimedelta().total_seconds(),
        retry.maximum_interval.ToTimedelta().total_seconds(),
        retry.backoff_coefficient,
        retry.maximum_attempts,
    )


def _meant(policy: ActivityPolicy) -> tuple[float, float, float, float, float, int]:
    assert policy.retry.maximum_interval is not None
    return (
        policy.start_to_close.total_seconds(),
        policy.schedule_to_close.total_seconds() if policy.schedule_to_close else 0.0,
        policy.retry.initial_interval.total_seconds(),
        policy.retry.maximum_interval.total_seconds(),
        policy.retry.backoff_coefficient,
        policy.retry.maximum_attempts,
    )
