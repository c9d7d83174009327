"""Steps of a declared saga side by side within others that are: all settle before anything is undone."""

import asyncio
import uuid
from collections import Counter
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError, WorkflowHandle, WorkflowUpdateStage
from temporalio.exceptions import ApplicationError

from tests.sagafence.trip_steps import Trip
from tests.sagafence.trip_story import BookTogether, IssueBeside
from tests.sagafence.trips import Trips


async def _start(trips: Trips, *fails: str) -> WorkflowHandle[Any, Any]:
    trip = Trip(f"trip-{uuid.uuid4().hex[:12]}", fails)
    return await trips.client.start_workflow(BookTogether.run, trip, id=trip.trip_id, task_queue=trips.task_queue)


async def test_steps_side_by_side_within_others_give_their_results_in_their_places(trips: Trips) -> None:
    async with trips.working():
        handle = await _start(trips)
        bookings = await handle.result()

    assert [one.step for one in bookings] == ["room", "seat", "seat"]
    assert await trips.effects(handle) == Counter({"room": 1, "seat": 2})


@pytest.mark.parametrize(
    ("fails", "first", "held"),
    [
        ("room", "room", ["seat/back"]),
        ("room", "room", ["seat/there", "seat/back"]),
        ("seat", "seat/there", ["seat/back"]),
        ("seat", "seat/there", ["seat/back", "room"]),
        ("a cancel", "", ["room"]),
        ("a cancel", "", ["seat/back"]),
    ],
)
async def test_steps_side_by_side_within_others_have_settled_before_anything_is_undone(
    trips: Trips, fails: str, first: str, held: list[str]
) -> None:
    attempts = [trips.steps.hold(f"before {name}") for name in held]
    async with trips.working():
        handle = await _start(trips, fails)
        await asyncio.gather(*(attempt.has_come.wait() for attempt in attempts))
        if first:
            await trips.until_step(handle, first, "failed")
        else:
            accepted = WorkflowUpdateStage.ACCEPTED
            await handle.start_update(BookTogether.cancel, "too dear", wait_for_stage=accepted)
        state = (await handle.query(BookTogether.status)).state
        for attempt in attempts:
            attempt.may_go.set()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()

    assert state == "running"
    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.type == ("SagaUnwound" if first else "SagaCancelled")
    assert list(failed.value.cause.details) == ([first] if first else [])
    assert await trips.effects(handle) == Counter()
    assert await trips.database.value("SELECT outcome FROM sagas") == ("unwound" if first else "cancelled")


@pytest.mark.parametrize(
    ("note", "says"),
    [("pivot first", '"room" comes after the pivot "ticket"'), ("", 'the pivot "ticket" has to wait for room')],
)
async def test_a_pivot_beside_another_step_stops_the_story_before_either_is_begun(
    trips: Trips, note: str, says: str
) -> None:
    async with trips.working():
        handle: Any = await trips.client.start_workflow(
            IssueBeside.run, Trip("beside", note=note), id=trips.task_queue, task_queue=trips.task_queue
        )
        async with asyncio.timeout(20):
            while not (failures := await _failed_tasks(handle)):
                await asyncio.sleep(0.02)
        begun = await trips.activities(handle)
        await handle.terminate("the test is over")

    assert failures[0].startswith(says)
    assert begun == []


async def _failed_tasks(handle: WorkflowHandle[Any, Any]) -> list[str]:
    failed = EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
    events = [event async for event in handle.fetch_history_events() if event.event_type == failed]
    return [event.workflow_task_failed_event_attributes.failure.message for event in events]
