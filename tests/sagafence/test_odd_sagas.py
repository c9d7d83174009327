"""Declared sagas whose code or input is not as it should be: they end whole all the same, and say why."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from sagafence import PostgresFence, Refusal
from tests.sagafence.odd_steps import Odd, OddSteps, Tx
from tests.sagafence.odd_story import OddSaga
from tests.sagafence.trip_steps import Attempt
from tests.sagafence.trips import Trips

Handle = WorkflowHandle[OddSaga, list[str]]


@dataclass
class Odds:
    """The saga, and how it ends."""

    trips: Trips
    steps: OddSteps = field(default_factory=OddSteps)

    def working(self) -> Worker:
        """Run a worker inside the block."""
        activities = PostgresFence(self.trips.engine).activities_of(self.steps)
        return Worker(self.trips.client, task_queue=self.trips.task_queue, workflows=[OddSaga], activities=activities)

    async def start(self, kind: str = "", *, note: str = "", saga_id: str = "") -> Handle:
        """Start a saga, or another run of one."""
        odd = Odd(saga_id or f"odd-{uuid.uuid4().hex[:12]}", kind, note)
        return await self.trips.client.start_workflow(
            OddSaga.run, odd, id=odd.saga_id, task_queue=self.trips.task_queue
        )

    async def lost_in_two(self, kind: str) -> Handle:
        """Do what comes before the second step, and lose the run."""
        held = self.steps.held["two"] = Attempt()
        handle = await self.start(kind)
        await held.has_come.wait()
        await handle.terminate("lost")
        held.may_go.set()
        return handle

    async def failure_of(self, handle: Handle) -> str:
        """Wait for the end, which is a failure."""
        with pytest.raises(WorkflowFailureError) as failed:
            await asyncio.wait_for(handle.result(), 20)
        assert isinstance(failed.value.cause, ApplicationError)
        return failed.value.cause.message

    async def left(self, handle: Handle) -> tuple[Counter[str], list[tuple[Any, ...]]]:
        """Return what is in effect, and the saga's row."""
        rows = await self.trips.database.fetch("SELECT state, outcome FROM sagas")
        return await self.trips.effects(handle), [tuple(row) for row in rows]


@pytest.fixture
async def odds(trips: Trips) -> Odds:
    """The saga, with no worker running yet."""
    return Odds(trips)


async def _refuse(_: Tx) -> None:
    raise Refusal("no")


UNDONE: tuple[Counter[str], list[tuple[str, str]]] = (Counter(), [("ended", "unwound")])


async def test_a_step_that_an_earlier_run_began_with_another_input_is_undone_with_that_one(odds: Odds) -> None:
    async with odds.working():
        handle = await odds.lost_in_two("by the clock")
        again = await odds.start("by the clock", saga_id=handle.id)
        failure = await odds.failure_of(again)

    assert failure.startswith("IdempotencyConflict: ")
    assert await odds.left(handle) == UNDONE


async def test_an_input_that_postgres_cannot_store_is_refused_and_the_saga_ends(odds: Odds) -> None:
    async with odds.working():
        handle = await odds.start(note="a\0b")
        failure = await odds.failure_of(handle)

    assert failure.startswith("InvalidInput: the input of saga ")
    assert await odds.left(handle) == (Counter(), [])


async def test_what_a_story_does_to_its_input_changes_neither_its_undos_nor_a_second_run(odds: Odds) -> None:
    odds.steps.acts["two"] = _refuse
    async with odds.working():
        handle = await odds.lost_in_two("changes its input")
        stored = await odds.trips.database.value("SELECT input ->> 'notes' FROM sagas")
        again = await odds.start("changes its input", saga_id=handle.id)
        failure = await odds.failure_of(again)

    assert (stored, failure) == ("[]", "Refusal: no")
    assert (await odds.trips.activities(again)).count("undo-one") == 1
    assert await odds.left(handle) == UNDONE


async def test_an_unwind_of_earlier_steps_with_large_inputs_ends(odds: Odds) -> None:
    async with odds.working():
        handle = await odds.lost_in_two("large")
    again = await odds.start("large", saga_id=handle.id)
    await again.cancel()
    async with odds.working():
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(again.result(), 20)

    assert await odds.left(handle) == (Counter(), [("ended", "cancelled")])


async def test_a_run_of_a_cancelled_saga_whose_story_catches_every_failure_does_not_complete(odds: Odds) -> None:
    handle = await odds.start("optional")
    await handle.cancel()
    async with odds.working():
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        failure = await odds.failure_of(await odds.start("optional", saga_id=handle.id))

    assert failure.endswith("has ended as cancelled already, not as completed")
    assert await odds.left(handle) == (Counter(), [("ended", "cancelled")])


async def _commit(tx: Tx) -> None:
    await tx.commit()


async def _roll_back(tx: Tx) -> None:
    await tx.rollback()


async def _roll_back_by_hand(tx: Tx) -> None:
    await tx.execute(text("ROLLBACK"))


@pytest.mark.parametrize(
    ("step", "act"), [("one", _commit), ("two", _roll_back), ("one", _roll_back_by_hand), ("two", _roll_back_by_hand)]
)
async def test_a_step_that_ends_its_transaction_has_no_effect(
    odds: Odds, step: str, act: Callable[[Tx], Awaitable[None]]
) -> None:
    odds.steps.acts[step] = act
    async with odds.working():
        handle = await odds.start()
        failure = await odds.failure_of(handle)

    assert failure.startswith("StepLeftItsTransaction: ")
    assert await odds.left(handle) == UNDONE
