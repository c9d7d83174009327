"""A declared saga under the test kit: steps side by side, a pivot, a step after it; and one with a mistake."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from temporalio.worker import Interceptor, Worker

from sagafence import PostgresFence
from sagafence.testing import BrokenPromise, Case, SagaUnderTest, Step, Together, check, matrix
from tests.faults.share import share
from tests.sagafence.trip_steps import Booking, Trip, TripSteps
from tests.sagafence.trip_story import BookTrip
from tests.sagafence.trips import Trips


def _seat(which: str) -> Step:
    return Step(
        f"seat-{which}", do=f"seat/{which}", undo=f"undo-seat/{which}", effect={"seat": +1}, is_transaction=True
    )


ROOM = Step("room", TripSteps.book_room.activity, TripSteps.book_room.undo_activity, {"room": +1}, is_transaction=True)
STEPS = (
    ROOM,
    Together(_seat("there"), _seat("back")),
    Step(
        "ticket",
        TripSteps.issue_ticket.activity,
        TripSteps.issue_ticket.activities["settle"],
        {"ticket": +1},
        is_irrevocable=True,
        is_transaction=True,
    ),
    Step("greeting", TripSteps.greet.activity, effect={"greeting": +1}, is_transaction=True),
)
# Its policies try three times.
CASES = [case for case in matrix(STEPS, can_be_retried=True) if "fails-then-works" not in case.kind]


class TellingSteps(TripSteps):
    """A mistake: the room's step and its undo write to the hotel, which no rollback takes back."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = Counter[str]()

    async def _take(self, tx: AsyncConnection | AsyncSession, trip: Trip, step: str) -> Booking:
        self.letters[step] += 1
        return await super()._take(tx, trip, step)

    async def _give_back(self, tx: AsyncConnection | AsyncSession, done: Booking) -> None:
        self.letters[done.step] -= 1
        await super()._give_back(tx, done)


def _saga(trips: Trips, letters: Mapping[str, int]) -> SagaUnderTest:
    async def count(workflow_id: str) -> dict[str, int]:
        rows = await trips.database.fetch("SELECT step FROM effects WHERE saga_id = $1", workflow_id)
        steps = ("room", "seat", "ticket", "greeting")
        return {**{step: sum(row["step"] == step for row in rows) for step in steps}, "letters": letters["room"]}

    def worker(interceptors: Sequence[Interceptor]) -> AbstractAsyncContextManager[Any]:
        return Worker(
            trips.client,
            task_queue=trips.task_queue,
            workflows=[BookTrip],
            activities=PostgresFence(trips.engine).activities_of(trips.steps),
            interceptors=interceptors,
        )

    return SagaUnderTest(trips.start, worker, count, retry=lambda handle: handle.execute_update(BookTrip.retry))


@pytest.mark.parametrize("case", share(CASES, every=11))
async def test_a_declared_saga_keeps_its_promises(case: Case, trips: Trips) -> None:
    await check(case, _saga(trips, Counter()))


@pytest.mark.parametrize(
    ("name", "found"),
    [("plain", ""), ("room-do-report-lost", ""), ("room-do-commit-lost", "+2"), ("room-undo-commit-lost", "-1")],
)
async def test_an_effect_outside_of_the_transaction_is_found_where_the_transaction_is_lost(
    name: str, found: str, trips: Trips
) -> None:
    trips.steps = steps = TellingSteps()
    room = replace(ROOM, effect={"room": +1, "letters": +1})
    [case] = [case for case in matrix((room, *STEPS[1:])) if str(case) == name]
    if not found:
        await check(case, _saga(trips, steps.letters))
        return
    with pytest.raises(BrokenPromise, match=rf"found .*letters {re.escape(found)}") as broken:
        await check(case, _saga(trips, steps.letters))

    assert "had run when its COMMIT failed" in str(broken.value)


async def test_a_case_whose_step_never_comes_to_a_commit_proves_nothing_and_says_so(trips: Trips) -> None:
    misspelt = replace(ROOM, do="book_rooom")
    [case] = [case for case in matrix((misspelt, *STEPS[1:])) if str(case) == "room-do-commit-lost"]

    with pytest.raises(BrokenPromise, match="no attempt of book_rooom came to a COMMIT"):
        await check(case, _saga(trips, Counter()))
