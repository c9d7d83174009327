"""A second run of a declared saga that comes less far than the first: nothing that the first one did is left behind."""

from collections import Counter
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError, WorkflowUpdateStage

from sagafence import Resolution, Verdict
from tests.sagafence.trip_story import BookTrip
from tests.sagafence.trips import Trips

ACCEPTED = WorkflowUpdateStage.ACCEPTED


async def _lost_before_its_pivot(trips: Trips) -> WorkflowHandle[BookTrip, Any]:
    """Book a room and two seats, and lose the run."""
    trips.steps.broken.add("ticket")
    attempt = trips.steps.hold("before ticket")
    handle = await trips.start()
    await attempt.has_come.wait()
    await handle.terminate("lost")
    attempt.may_go.set()
    return handle


async def _lost_after_its_pivot(trips: Trips) -> WorkflowHandle[BookTrip, Any]:
    trips.steps.broken.add("greeting")
    async with trips.working():
        handle = await trips.start()
        await trips.until(handle, "stuck")
        await handle.terminate("lost")
    trips.steps.broken.clear()
    return handle


async def _state(trips: Trips) -> tuple[str, str]:
    [row] = await trips.database.fetch("SELECT state, outcome FROM sagas")
    return row["state"], row["outcome"]


async def test_what_is_cancelled_before_its_first_step_undoes_what_the_first_run_did(trips: Trips) -> None:
    async with trips.working():
        handle = await _lost_before_its_pivot(trips)
    again = await trips.start_again(handle, is_cancelled=True)
    async with trips.working():
        with pytest.raises(WorkflowFailureError):
            await again.result()
        undone = [name for name in await trips.activities(again) if name.startswith("undo")]

    assert (await trips.effects(handle), await _state(trips)) == (Counter(), ("ended", "cancelled"))
    assert (undone[-1], set(undone[:-1])) == ("undo-room", {"undo-seat/there", "undo-seat/back"})


async def test_a_row_of_the_fence_that_no_declared_step_wrote_is_left_to_whoever_wrote_it(trips: Trips) -> None:
    async with trips.working():
        handle = await _lost_before_its_pivot(trips)
    row = "INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, result)"
    await trips.database.run(f"{row} VALUES ('{handle.id}', 'another', 'done', true, 'f', '{{}}')")
    again = await trips.start_again(handle, is_cancelled=True)
    async with trips.working():
        with pytest.raises(WorkflowFailureError):
            await again.result()

    assert (await trips.effects(handle), await _state(trips)) == (Counter(), ("ended", "cancelled"))
    assert await trips.database.value("SELECT phase FROM step_fence WHERE step = 'another'") == "done"


async def test_what_fails_in_its_first_step_undoes_later_ones_of_the_first_run_first(trips: Trips) -> None:
    async with trips.working():
        handle = await _lost_before_its_pivot(trips)
        trips.steps.refuses.add("book_room")
        again = await trips.start_again(handle)
        with pytest.raises(WorkflowFailureError):
            await again.result()
        undone = [name for name in await trips.activities(again) if name.startswith("undo")]

    assert (await trips.effects(handle), await _state(trips)) == (Counter(), ("ended", "unwound"))
    assert (undone[-1], set(undone[:-1])) == ("undo-room", {"undo-seat/there", "undo-seat/back"})


async def test_a_cancel_that_was_accepted_is_not_forgotten_with_its_run(trips: Trips) -> None:
    attempt = trips.steps.hold("room")
    trips.steps.broken.add("undo-room")
    async with trips.working():
        handle = await trips.start()
        await attempt.has_come.wait()
        asked = await handle.start_update(BookTrip.cancel, "found it cheaper", wait_for_stage=ACCEPTED)
        attempt.may_go.set()
        await asked.result()
        await trips.until(handle, "stuck")
        await handle.terminate("lost")
        trips.steps.broken.clear()
        again = await trips.start_again(handle)
        with pytest.raises(WorkflowFailureError):
            await again.result()

    assert (await trips.effects(handle), await _state(trips)) == (Counter(), ("ended", "unwound"))
    assert await trips.activities(again) == ["room", "unwind", "undo-room", "end"]


async def test_a_step_that_is_under_way_for_a_lost_run_is_seen_by_the_unwind_of_the_next(trips: Trips) -> None:
    held = trips.steps.hold("room")
    async with trips.working():
        handle = await trips.start()
        await held.has_come.wait()
        await handle.terminate("lost")
        again = await trips.start_again(handle, is_cancelled=True)
        await trips.until_blocked()
        held.may_go.set()
        with pytest.raises(WorkflowFailureError):
            await again.result()

    assert (await trips.effects(handle), await _state(trips)) == (Counter(), ("ended", "cancelled"))


async def test_what_is_cancelled_before_its_first_step_goes_on_past_the_pivot_of_the_first(trips: Trips) -> None:
    handle = await _lost_after_its_pivot(trips)
    again = await trips.start_again(handle, is_cancelled=True)
    async with trips.working():
        await again.result()

    assert await _state(trips) == ("ended", "completed")
    assert sum((await trips.effects(handle)).values()) == 5


async def test_a_cancel_update_of_a_run_whose_predecessor_has_passed_the_pivot_is_refused(trips: Trips) -> None:
    handle = await _lost_after_its_pivot(trips)
    again = await trips.start_again(handle)
    begun = trips.steps.hold("before room")  # it cannot end before it is asked
    async with trips.working():
        asked = await again.start_update(BookTrip.cancel, "early", wait_for_stage=ACCEPTED)
        begun.may_go.set()
        with pytest.raises(WorkflowUpdateFailedError):
            await asked.result()
        await again.result()

    assert await _state(trips) == ("ended", "completed")


async def test_a_cancel_of_a_run_of_a_completed_saga_does_not_make_it_a_cancelled_one(trips: Trips) -> None:
    async with trips.working():
        handle = await trips.start()
        first = await handle.result()
        again = await trips.start_again(handle, is_cancelled=True)
        assert await again.result() == first

    assert await _state(trips) == ("ended", "completed")


async def test_what_an_operator_said_of_a_step_after_the_pivot_is_its_result_in_later_runs_too(trips: Trips) -> None:
    trips.steps.broken.add("greeting")
    async with trips.working():
        handle = await trips.start()
        await trips.until(handle, "stuck")
        said = Resolution("greeting", Verdict.HAPPENED, "ann", "I rang them", {"step": "greeting", "number": 7})
        await handle.execute_update(BookTrip.resolve, said)
        first = await handle.result()
        again = await trips.start_again(handle)
        second = await again.result()

    assert [booking.number for booking in (first[-1], second[-1])] == [7, 7]
