"""A declared saga of local steps, on the real Postgres and Temporal: done, undone, held and finished."""

import asyncio
from collections import Counter

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError, WorkflowUpdateStage
from temporalio.exceptions import ApplicationError, CancelledError

from sagafence import PostgresFence, Resolution, UndoOutcome, Verdict
from tests.sagafence.trip_steps import Booking, Trip
from tests.sagafence.trip_story import BookTrip, IssueTicket
from tests.sagafence.trips import Trips, call_late

ALL = Counter({"room": 1, "seat": 2, "ticket": 1, "greeting": 1})
ACCEPTED = WorkflowUpdateStage.ACCEPTED


def _cause(failed: pytest.ExceptionInfo[WorkflowFailureError]) -> ApplicationError:
    assert isinstance(failed.value.cause, ApplicationError)
    return failed.value.cause


async def test_a_saga_does_every_step_once_and_returns_their_results(trips: Trips) -> None:
    async with trips.working():
        handle = await trips.start()
        bookings = await handle.result()

    assert [type(one) for one in bookings] == [Booking] * 5
    assert [one.step for one in bookings] == ["room", "seat", "seat", "ticket", "greeting"]
    assert await trips.effects(handle) == ALL
    [row] = await trips.database.fetch("SELECT state, outcome, input->>'trip_id' AS trip FROM sagas")
    assert tuple(row) == ("ended", "completed", handle.id)


@pytest.mark.parametrize("step", ["room", "seat", "ticket"])
async def test_a_step_that_refuses_undoes_those_before_it_and_is_named(trips: Trips, step: str) -> None:
    async with trips.working():
        handle = await trips.start(step)
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()

    assert _cause(failed).type == "SagaUnwound"
    assert _cause(failed).message == f"Full: no {step} is left"
    assert _cause(failed).details[0].partition("/")[0] == step
    assert await trips.effects(handle) == Counter()
    assert await trips.database.value("SELECT count(*) FROM step_fence WHERE phase = 'done'") == 0


async def test_a_step_that_is_under_way_beside_one_that_failed_is_waited_for_before_anything_is_undone(
    trips: Trips,
) -> None:
    beside = trips.steps.hold("before seat/back")
    async with trips.working():
        handle = await trips.start("seat")
        await beside.has_come.wait()
        await trips.until_step(handle, "seat/there", "failed")
        status, held = await handle.query(BookTrip.status), await trips.effects(handle)
        beside.may_go.set()
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    assert status.state == "running"
    assert held == Counter({"room": 1})
    assert await trips.effects(handle) == Counter()


@pytest.mark.parametrize("by", ["update", "temporal"])
async def test_a_cancel_before_the_pivot_undoes_everything(trips: Trips, by: str) -> None:
    attempt = trips.steps.hold("seat")
    async with trips.working():
        handle = await trips.start()
        await attempt.has_come.wait()
        if by == "update":
            asked = await handle.start_update(BookTrip.cancel, "changed my mind", wait_for_stage=ACCEPTED)
        else:
            await handle.cancel()
        attempt.may_go.set()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        if by == "update":
            await asked.result()

    expected = "SagaCancelled" if by == "update" else None
    assert getattr(failed.value.cause, "type", None) == expected
    assert isinstance(failed.value.cause, CancelledError) == (by == "temporal")
    assert await trips.effects(handle) == Counter()


@pytest.mark.parametrize("by", ["update", "temporal"])
async def test_a_cancel_that_comes_while_the_pivot_acts_is_refused_where_it_took_effect(trips: Trips, by: str) -> None:
    attempt = trips.steps.hold("ticket")
    async with trips.working(max_concurrent_activities=5):
        handle = await trips.start()
        await attempt.has_come.wait()
        if by == "update":
            asked = await handle.start_update(BookTrip.cancel, "changed my mind", wait_for_stage=ACCEPTED)
        else:
            await handle.cancel()
        attempt.may_go.set()
        await handle.result()
        if by == "update":
            with pytest.raises(WorkflowUpdateFailedError):
                await asked.result()

    assert await trips.effects(handle) == ALL


async def test_after_the_pivot_a_step_is_tried_until_it_works_and_no_cancel_is_taken(trips: Trips) -> None:
    trips.steps.broken.add("greeting")
    async with trips.working():
        handle = await trips.start()
        status = await trips.until(handle, "stuck")
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update(BookTrip.cancel, "too late")
        await handle.cancel()
        still = await handle.execute_update(BookTrip.retry)
        trips.steps.broken.clear()
        await handle.execute_update(BookTrip.retry)
        await handle.result()

    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.type == "InvalidInput"
    assert [one for one in await trips.activities(handle) if one.startswith("un")] == []
    assert status.steps[-1].detail == "ValueError: greeting is broken"
    assert still.state == "stuck"
    assert await trips.effects(handle) == ALL


async def test_a_pivot_that_never_happened_is_settled_and_everything_is_undone(trips: Trips) -> None:
    trips.steps.broken.add("ticket")
    async with trips.working():
        handle = await trips.start()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()

    assert _cause(failed).details == ("ticket",)
    assert await trips.effects(handle) == Counter()


async def test_an_undo_that_keeps_failing_leaves_the_saga_stuck_and_the_others_undone(trips: Trips) -> None:
    trips.steps.broken.add("undo-seat")
    async with trips.working():
        handle = await trips.start("ticket")
        await trips.until_step(handle, "room", "undone")
        stuck = await handle.query(BookTrip.status)
        held = await trips.effects(handle)
        trips.steps.broken.clear()
        await handle.execute_update(BookTrip.retry)
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()

    assert {one.step: one.state for one in stuck.steps} == {
        "room": "undone",
        "seat/there": "stuck",
        "seat/back": "stuck",
        "ticket": "nothing to undo",
    }
    assert held == Counter({"seat": 2})
    assert _cause(failed).message == "Full: no ticket is left"
    assert await trips.effects(handle) == Counter()


async def test_an_operator_can_say_that_a_step_was_undone_by_hand(trips: Trips) -> None:
    trips.steps.broken.add("undo-room")
    by_hand = Resolution("room", Verdict.UNDONE_BY_HAND, "ann", "called the hotel")
    async with trips.working():
        handle = await trips.start("seat")
        await trips.until(handle, "stuck")
        await trips.database.run("DELETE FROM effects")
        await handle.execute_update(BookTrip.resolve, by_hand)
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    [row] = await trips.database.fetch("SELECT saga_id, step, verdict, who, why FROM saga_verdicts")
    assert tuple(row) == (handle.id, "room", "undone_by_hand", "ann", "called the hotel")
    assert await trips.database.value("SELECT phase FROM step_fence WHERE step = 'room'") == "resolved"


@pytest.mark.parametrize(
    ("resolution", "problem"),
    [
        (Resolution("seat", Verdict.UNDONE_BY_HAND, "ann", "so"), "seat is not stuck; stuck: room"),
        (Resolution("room", Verdict.UNDONE_BY_HAND, " ", "so"), "a resolution says who decided, and why"),
    ],
)
async def test_a_resolution_that_cannot_be_taken_is_refused_with_its_reason(
    trips: Trips, resolution: Resolution, problem: str
) -> None:
    trips.steps.broken.add("undo-room")
    async with trips.working():
        handle = await trips.start("seat")
        await trips.until(handle, "stuck")
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update(BookTrip.resolve, resolution)
        await handle.terminate("the test is over")

    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.message == problem


async def test_an_operator_can_say_that_a_step_after_the_pivot_happened(trips: Trips) -> None:
    trips.steps.broken.add("greeting")
    said = Resolution("greeting", Verdict.HAPPENED, "ann", "I rang them", {"step": "greeting", "number": 7})
    async with trips.working():
        handle = await trips.start()
        await trips.until(handle, "stuck")
        await handle.execute_update(BookTrip.resolve, said)
        bookings = await handle.result()

    assert bookings[-1] == Booking("greeting", 7)


@pytest.mark.parametrize("step", ["book_room", "issue_ticket", "greet"])
async def test_an_attempt_whose_answer_is_lost_has_one_effect(trips: Trips, step: str) -> None:
    trips.steps.lost.add(step)
    async with trips.working():
        handle = await trips.start()
        await handle.result()

    assert await trips.effects(handle) == ALL


async def test_a_saga_that_is_begun_again_under_its_id_repeats_nothing(trips: Trips) -> None:
    async with trips.working():
        handle = await trips.start()
        first = await handle.result()
        second = await (await trips.start_again(handle)).result()

    assert second == first
    assert await trips.effects(handle) == ALL


@pytest.mark.parametrize("lost_at", ["greeting", "the end"])
async def test_a_cancel_of_a_second_run_takes_nothing_back_that_the_first_has_passed_the_pivot_with(
    trips: Trips, lost_at: str
) -> None:
    trips.steps.broken.add("greeting")
    async with trips.working():
        handle = await trips.start()
        await trips.until(handle, "stuck")
        if lost_at == "greeting":
            await handle.terminate("lost")
        trips.steps.broken.clear()
        if lost_at == "the end":
            await handle.execute_update(BookTrip.retry)
            await handle.result()
        trips.steps.hold("room")  # for ever: its code must not run again
        begun = trips.steps.hold("before room")  # it cannot end before it is cancelled
        again = await trips.start_again(handle)
        await begun.has_come.wait()
        await again.cancel()
        begun.may_go.set()
        await again.result()

    assert await trips.effects(handle) == ALL


async def test_a_saga_that_was_terminated_goes_on_from_what_it_has_done(trips: Trips) -> None:
    attempt = trips.steps.hold("ticket")
    async with trips.working():
        handle = await trips.start()
        await attempt.has_come.wait()
        await handle.terminate("lost")
        attempt.may_go.set()
        await (await trips.start_again(handle)).result()

    assert await trips.effects(handle) == ALL


async def test_another_request_under_the_same_id_is_refused_and_takes_nothing_back(trips: Trips) -> None:
    attempt = trips.steps.hold("seat")
    async with trips.working():
        handle = await trips.start()
        await attempt.has_come.wait()
        await handle.terminate("lost")
        attempt.may_go.set()
        other = await trips.start_again(handle, note="another")
        with pytest.raises(WorkflowFailureError) as failed:
            await other.result()
        held = await trips.effects(handle)
        await (await trips.start_again(handle)).result()

    assert _cause(failed).message.startswith("IdempotencyConflict: ")
    assert held["room"] == 1
    assert await trips.effects(handle) == ALL


async def test_a_pivot_of_another_request_under_the_same_id_is_refused_and_not_settled(trips: Trips) -> None:
    attempt = trips.steps.hold("ticket")
    async with trips.working():
        handle = await trips.client.start_workflow(
            IssueTicket.run, Trip("ticket-1"), id="ticket-1", task_queue=trips.task_queue
        )
        await attempt.has_come.wait()
        await handle.terminate("lost")
        attempt.may_go.set()
        async with asyncio.timeout(20):
            while not await trips.effects(handle):
                await asyncio.sleep(0.02)
        other = await trips.client.start_workflow(
            IssueTicket.run, Trip("ticket-1", note="another"), id="ticket-1", task_queue=trips.task_queue
        )
        with pytest.raises(WorkflowFailureError) as failed:
            await other.result()

    assert _cause(failed).message.startswith("IdempotencyConflict: ")
    assert await trips.effects(handle) == Counter({"ticket": 1})
    assert await trips.database.value("SELECT state FROM sagas") == "past_pivot"


async def test_an_undo_that_outlives_its_run_takes_nothing_back_past_the_pivot(trips: Trips) -> None:
    trips.steps.broken.add("greeting")
    async with trips.working():
        handle = await trips.start()
        await trips.until(handle, "stuck")
        activities = PostgresFence(trips.engine).activities_of(trips.steps)
        undone = await call_late(handle, activities, "cancel_room", Trip(handle.id))
        held = await trips.effects(handle)
        await handle.terminate("the test is over")

    assert undone.outcome is UndoOutcome.IRREVOCABLE
    assert held == ALL - Counter({"greeting": 1})
