"""Declared sagas that a worker drops from its memory while they wait: they go on as if it had not."""

import logging
from collections import Counter
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.scenes import SCENES, ended
from tests.sagafence.trip_story import BookTrip
from tests.sagafence.trips import Trips

ALL = Counter({"room": 1, "seat": 2, "ticket": 1, "greeting": 1})
_COMPLETED = {
    *("completed", "stuck-past-the-pivot", "told-again-past-the-pivot", "pivot-unknown-that-happened"),
    "settled-by-a-person",
}
_STANDS = {*_COMPLETED, "purged"}
_BY_HAND = {"stuck-and-resolved": Counter({"room": 1})}
"""What an operator says to have undone, and what in these tests nobody has."""


@pytest.mark.parametrize("name", SCENES)
async def test_a_saga_comes_to_its_end_on_a_worker_that_keeps_no_workflow_in_memory(
    trips: Trips, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    elsewhere = Elsewhere(trips.client, trips.engine, trips.database)
    with caplog.at_level(logging.ERROR, "temporalio.worker"):
        async with trips.working(max_cached_workflows=0), elsewhere.working(max_cached_workflows=0):
            handle = await SCENES[name](trips, elsewhere)
            await ended(handle)
        status = (await handle.describe()).status
        held: Any = await trips.effects(handle), elsewhere.crm.live, elsewhere.billing.live

    assert (status is WorkflowExecutionStatus.COMPLETED) == (name in _COMPLETED)
    here, there = (Counter({"room": 1}), 1) if elsewhere.crm.things else (ALL, 0)
    assert held == ((here, there, there) if name in _STANDS else (_BY_HAND.get(name, Counter()), 0, 0))
    assert [one.message for one in caplog.records if one.name.startswith("temporalio.worker")] == []


@pytest.mark.parametrize(("broken", "fails"), [("undo-seat", ["ticket"]), ("greeting", [])])
async def test_a_stuck_saga_that_makes_room_for_others_is_retried_as_if_it_were_still_in_memory(
    trips: Trips, broken: str, fails: list[str]
) -> None:
    trips.steps.broken.add(broken)
    async with trips.working(max_cached_workflows=1):
        stuck = await trips.start(*fails)
        before = await trips.until(stuck, "stuck")
        for _ in range(2):  # two that take its place, and each other's
            other = await trips.start("room")
            await ended(other)
        after = await stuck.query(BookTrip.status)
        trips.steps.broken.clear()
        await stuck.execute_update(BookTrip.retry)
        await ended(stuck)

    assert (before.state, after.state) == ("stuck", "stuck")
    assert await trips.effects(stuck) == (Counter() if fails else ALL)
