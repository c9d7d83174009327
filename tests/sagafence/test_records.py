"""What a declared saga must record and Postgres refuses: a person hears of it, and the saga ends once it is taken."""

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError, WorkflowUpdateStage
from temporalio.worker import Worker

from sagafence import PostgresFence
from tests.sagafence.odd_steps import Odd, OddSteps
from tests.sagafence.odd_story import OddSaga
from tests.sagafence.scenes import ALLOW_ENDS, REFUSE_ENDS
from tests.sagafence.trip_steps import Trip
from tests.sagafence.trip_story import BookTogether, BookTrip
from tests.sagafence.trips import Trips

TASK_FAILED = EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
ALL = Counter({"room": 1, "seat": 2, "ticket": 1, "greeting": 1})


@pytest.mark.parametrize(
    ("fails", "state", "left"),
    [((), "ended", ALL), (("seat",), "ended", Counter()), (("seat",), "unwinding", Counter({"room": 1}))],
    ids=["a completion", "an end that was undone", "an unwind"],
)
async def test_what_postgres_refuses_to_record_raises_the_alarm_within_seconds_and_is_recorded_on_a_retry(
    trips: Trips, caplog: pytest.LogCaptureFixture, fails: tuple[str, ...], state: str, left: Counter[str]
) -> None:
    await trips.database.run(REFUSE_ENDS.replace("'ended'", f"'{state}'"))
    record = "sagafence.end" if state == "ended" else "sagafence.unwind"
    async with trips.working():
        handle = await trips.start(*fails)
        with caplog.at_level(logging.ERROR, "temporalio.workflow"):
            status = await trips.until(handle, "stuck")
        [stuck] = [step for step in status.steps if step.state == "stuck"]
        held, details = await trips.effects(handle), await _details(handle)
        row = await trips.database.value("SELECT state FROM sagas")
        await handle.cancel()  # which comes too late
        await trips.database.run(ALLOW_ENDS)
        await handle.execute_update(BookTrip.retry)
        ended: Any = (await asyncio.gather(handle.result(), return_exceptions=True))[0]

    assert (stuck.step, stuck.detail.partition(":")[0]) == (record, "DatabaseRefusedStatement")
    assert f"stuck: {record} (DatabaseRefusedStatement: " in caplog.text
    assert details.startswith("**stuck**")
    assert (held, row != "ended") == (left, True)
    assert isinstance(ended, WorkflowFailureError if fails else list)
    assert await trips.effects(handle) == (Counter() if fails else ALL)
    outcome = "unwound" if fails else "completed"
    assert await trips.database.value("SELECT outcome FROM sagas") == outcome


async def _details(handle: Any) -> str:
    """Return what the UI shows of the workflow."""
    found = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return str(found.current_details)


@pytest.mark.parametrize("by", ["update", "temporal"])
async def test_a_saga_without_a_pivot_whose_completion_cannot_be_recorded_can_still_be_cancelled(
    trips: Trips, by: str
) -> None:
    await trips.database.run(REFUSE_ENDS)
    activities = PostgresFence(trips.engine).activities_of(OddSteps())
    odd = Odd(trips.task_queue)

    async def is_stuck_and(reason: str) -> None:
        async with asyncio.timeout(20):
            while (status := await handle.query(OddSaga.status)).state != "stuck" or status.reason != reason:
                await asyncio.sleep(0.02)

    async with Worker(trips.client, task_queue=trips.task_queue, workflows=[OddSaga], activities=activities):
        handle = await trips.client.start_workflow(OddSaga.run, odd, id=odd.saga_id, task_queue=trips.task_queue)
        await is_stuck_and("")
        held = await trips.effects(handle)
        if by == "update":
            await handle.execute_update(OddSaga.cancel, "changed my mind")
        else:
            await handle.cancel(reason="changed my mind")
        async with asyncio.timeout(20):
            while left := await trips.effects(handle):
                await asyncio.sleep(0.02)
        await is_stuck_and("changed my mind")
        await trips.database.run(ALLOW_ENDS)
        await handle.execute_update(OddSaga.retry)
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    assert (held, left) == (Counter({"one": 1, "two": 1}), Counter())
    assert await trips.database.value("SELECT outcome FROM sagas") == "cancelled"


@pytest.mark.parametrize("attempt", ["commits", "fails", "is late"])
async def test_a_cancel_while_the_end_of_a_saga_without_a_pivot_is_being_recorded_is_honoured_or_comes_too_late(
    trips: Trips, attempt: str
) -> None:
    """The attempt that is to record the completion commits or fails after the cancel, or once its time is over."""
    held = trips.steps.hold("before end")
    trip = Trip(trips.task_queue)
    async with trips.working():
        handle = await trips.client.start_workflow(BookTogether.run, trip, id=trip.trip_id, task_queue=trips.task_queue)
        await held.has_come.wait()
        accepted = WorkflowUpdateStage.ACCEPTED
        asked = await handle.start_update(BookTogether.cancel, "found it cheaper", wait_for_stage=accepted)
        if attempt == "fails":
            trips.steps.refuses.add("sagafence.end")
        if attempt != "is late":
            held.may_go.set()
        ended, said = await asyncio.gather(handle.result(), asked.result(), return_exceptions=True)
        held.may_go.set()
        await held.is_over.wait()
        failed = [event async for event in handle.fetch_history_events() if event.event_type == TASK_FAILED]

    assert failed == []
    [row] = await trips.database.fetch("SELECT state, outcome FROM sagas")
    if attempt != "commits":
        assert (isinstance(ended, WorkflowFailureError), said, tuple(row)) == (True, None, ("ended", "cancelled"))
        assert await trips.effects(handle) == Counter()
    else:
        assert (isinstance(ended, list), isinstance(said, WorkflowUpdateFailedError)) == (True, True)
        assert (tuple(row), sum((await trips.effects(handle)).values())) == (("ended", "completed"), 3)
