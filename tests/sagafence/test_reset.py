"""Declared sagas whose runs are reset: what has happened does not happen twice, and what was undone stays undone."""

from collections import Counter
from typing import Any

import pytest
from temporalio.client import (
    WorkflowExecutionStatus,
    WorkflowFailureError,
)

from tests.conftest import Database
from tests.resets import number_of_tasks, reset_to_task
from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.scenes import SCENES, ended
from tests.sagafence.trip_steps import Booking
from tests.sagafence.trips import Trips

ALL = Counter({"room": 1, "seat": 2, "ticket": 1, "greeting": 1})
COMPLETED = WorkflowExecutionStatus.COMPLETED
_TASKS = pytest.mark.parametrize("task", [0, -1], ids=["first", "last"])


async def _written(database: Database) -> tuple[Any, ...]:
    """Return how many effects there have been, and how the saga has ended."""
    [row] = await database.fetch(
        "SELECT (SELECT last_value FROM effects_number_seq), state, outcome, ended_at FROM sagas"
    )
    return tuple(row)


# One that has ended -------------------------------------------------------------------------------------------


async def test_a_completed_saga_that_is_reset_to_whichever_task_answers_as_before_and_does_nothing(
    trips: Trips,
) -> None:
    async with trips.working():
        handle = await trips.start()
        first = await handle.result()
        before = await _written(trips.database)
        for task in range(await number_of_tasks(trips.client, handle)):
            await reset_to_task(trips.client, handle, task)
            again = await trips.client.get_workflow_handle(handle.id, result_type=list[Booking]).result()
            assert again == first
            assert (await trips.effects(handle), await _written(trips.database)) == (ALL, before)


@pytest.mark.parametrize("name", SCENES)
async def test_whichever_way_a_saga_has_gone_a_reset_to_whichever_task_changes_nothing(trips: Trips, name: str) -> None:
    elsewhere = Elsewhere(trips.client, trips.engine, trips.database)
    async with trips.working(), elsewhere.working():
        handle = await SCENES[name](trips, elsewhere)
        await ended(handle)
        before = await _all(trips, elsewhere), (await handle.describe()).status is COMPLETED
        for task in range(await number_of_tasks(trips.client, handle)):
            again = await reset_to_task(trips.client, handle, task)
            await trips.ended_by_retries(again)
            assert (task, await _all(trips, elsewhere), (await again.describe()).status is COMPLETED) == (task, *before)


async def _all(trips: Trips, elsewhere: Elsewhere) -> tuple[Any, ...]:
    held = await trips.database.fetch("SELECT * FROM effects ORDER BY number")
    return *(await _written(trips.database)), [tuple(row) for row in held], elsewhere.requests()


# One that is under way ----------------------------------------------------------------------------------------


@_TASKS
@pytest.mark.parametrize("held", ["before room", "room", "before seat/back", "seat", "before ticket", "ticket",
                                  "before greeting", "greeting", "before end"])  # fmt: skip
async def test_a_saga_that_is_reset_on_its_way_forward_does_every_step_once(trips: Trips, held: str, task: int) -> None:
    attempt = trips.steps.hold(held)
    async with trips.working():
        handle = await trips.start()
        await attempt.has_come.wait()
        again = await reset_to_task(trips.client, handle, task)
        if held.startswith("before"):  # what is under way for the run of before comes after all of the next
            bookings = await again.result()
            attempt.may_go.set()
            await attempt.is_over.wait()
        else:
            await trips.until_blocked()
            attempt.may_go.set()
            bookings = await again.result()

    assert [one["step"] for one in bookings] == ["room", "seat", "seat", "ticket", "greeting"]
    assert await trips.effects(handle) == ALL
    assert (await _written(trips.database))[1:3] == ("ended", "completed")


@_TASKS
@pytest.mark.parametrize("held", ["before unwind", "before undo-seat/back", "undo-seat", "before undo-room",
                                  "undo-room", "before end"])  # fmt: skip
async def test_a_saga_that_is_reset_while_it_is_undone_is_undone_once_and_does_nothing_again(
    trips: Trips, held: str, task: int
) -> None:
    attempt = trips.steps.hold(held)
    async with trips.working():
        handle = await trips.start("ticket")
        await attempt.has_come.wait()
        done = await trips.database.value("SELECT last_value FROM effects_number_seq")
        again = await reset_to_task(trips.client, handle, task)
        if held.startswith("before"):
            with pytest.raises(WorkflowFailureError):
                await again.result()
            attempt.may_go.set()
            await attempt.is_over.wait()
        else:
            await trips.until_blocked()
            attempt.may_go.set()
            with pytest.raises(WorkflowFailureError):
                await again.result()

    assert await trips.effects(handle) == Counter()
    assert (await _written(trips.database))[:3] == (done, "ended", "unwound")


@pytest.mark.parametrize(
    ("broken", "fails", "task"), [("undo-seat", ["ticket"], -1), ("greeting", [], 0), ("greeting", [], -1)]
)
async def test_a_saga_that_is_reset_while_it_is_stuck_is_stuck_until_it_is_retried_and_settled_once(
    trips: Trips, broken: str, fails: list[str], task: int
) -> None:
    trips.steps.broken.add(broken)
    async with trips.working():
        handle = await trips.start(*fails)
        await trips.until_step(handle, *(("room", "undone") if fails else ("greeting", "stuck")))
        again = await reset_to_task(trips.client, handle, task)
        await trips.until(again, "stuck")
        held = await trips.effects(handle)
        trips.steps.broken.clear()
        await trips.ended_by_retries(again)

    assert held == (Counter({"seat": 2}) if fails else ALL - Counter({"greeting": 1}))
    assert await trips.effects(handle) == (Counter() if fails else ALL)
    assert (await _written(trips.database))[1:3] == ("ended", "unwound" if fails else "completed")
