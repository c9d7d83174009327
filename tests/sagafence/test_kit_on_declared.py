"""A declared saga under the test kit: steps side by side, a pivot, a step after it."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from temporalio.worker import Interceptor, Worker

from sagafence import PostgresFence
from sagafence.testing import Case, SagaUnderTest, Step, Together, check, matrix
from tests.faults.share import share
from tests.sagafence.trip_steps import TripSteps
from tests.sagafence.trip_story import BookTrip
from tests.sagafence.trips import Trips


def _seat(which: str) -> Step:
    return Step(f"seat-{which}", do=f"seat/{which}", undo=f"undo-seat/{which}", effect={"seat": +1})


STEPS = (
    Step("room", TripSteps.book_room.activity, TripSteps.book_room.undo_activity, {"room": +1}),
    Together(_seat("there"), _seat("back")),
    Step(
        "ticket",
        TripSteps.issue_ticket.activity,
        TripSteps.issue_ticket.activities["settle"],
        {"ticket": +1},
        is_irrevocable=True,
    ),
    Step("greeting", TripSteps.greet.activity, effect={"greeting": +1}),
)
# Its policies try three times.
CASES = [case for case in matrix(STEPS, can_be_retried=True) if "fails-then-works" not in case.kind]


@pytest.mark.parametrize("case", share(CASES, every=11))
async def test_a_declared_saga_keeps_its_promises(case: Case, trips: Trips) -> None:
    async def count(workflow_id: str) -> dict[str, int]:
        rows = await trips.database.fetch("SELECT step FROM effects WHERE saga_id = $1", workflow_id)
        return {step: sum(row["step"] == step for row in rows) for step in ("room", "seat", "ticket", "greeting")}

    def worker(interceptors: Sequence[Interceptor]) -> AbstractAsyncContextManager[Any]:
        return Worker(
            trips.client,
            task_queue=trips.task_queue,
            workflows=[BookTrip],
            activities=PostgresFence(trips.engine).activities_of(trips.steps),
            interceptors=interceptors,
        )

    saga = SagaUnderTest(trips.start, worker, count, retry=lambda handle: handle.execute_update(BookTrip.retry))
    await check(case, saga)
