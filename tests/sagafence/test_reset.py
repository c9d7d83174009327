"""Declared sagas whose runs are reset: what has happened does not happen twice, and what was undone stays undone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle, WorkflowUpdateStage

from tests.conftest import Database
from tests.resets import completed_tasks, reset
from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.elsewhere_story import Fulfil
from tests.sagafence.http_provider import Fault, HttpProvider
from tests.sagafence.trip_story import BookTrip
from tests.sagafence.trips import Trips

ALL = Counter({"room": 1, "seat": 2, "ticket": 1, "greeting": 1})
_TASKS = pytest.mark.parametrize("task", [0, -1], ids=["first", "last"])


async def _reset_to(saga: Trips | Elsewhere, handle: WorkflowHandle[Any, Any], task: int) -> WorkflowHandle[Any, Any]:
    """Reset the first run to one of its tasks, and return the run that follows."""
    first = saga.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
    await reset(saga.client, handle.id, first.run_id, (await completed_tasks(first))[task])
    run: Any = BookTrip.run if isinstance(saga, Trips) else Fulfil.run
    return saga.client.get_workflow_handle_for(run, handle.id)


async def _resets_to_each_task(
    saga: Trips | Elsewhere, handle: WorkflowHandle[Any, Any]
) -> AsyncIterator[WorkflowHandle[Any, Any]]:
    """Reset a run that has closed to each of its tasks, one after the other."""
    first = saga.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
    for task in range(len(await completed_tasks(first))):
        yield await _reset_to(saga, handle, task)


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
        async for again in _resets_to_each_task(trips, handle):
            assert await again.result() == first
            assert (await trips.effects(handle), await _written(trips.database)) == (ALL, before)


@pytest.mark.parametrize("by", ["a refusal", "update", "temporal"])
async def test_a_saga_that_was_undone_and_is_reset_to_whichever_task_does_nothing_again(trips: Trips, by: str) -> None:
    held = trips.steps.hold("before seat/back")
    async with trips.working():
        handle = await trips.start(*["ticket"] * (by == "a refusal"))
        await held.has_come.wait()
        if by == "update":
            accepted = WorkflowUpdateStage.ACCEPTED
            await handle.start_update(BookTrip.cancel, "changed my mind", wait_for_stage=accepted)
        elif by == "temporal":
            await handle.cancel()
        held.may_go.set()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        before = await _written(trips.database)
        async for again in _resets_to_each_task(trips, handle):
            with pytest.raises(WorkflowFailureError):
                await again.result()
            assert (await trips.effects(handle), await _written(trips.database)) == (Counter(), before)


# One that is under way ----------------------------------------------------------------------------------------


@_TASKS
@pytest.mark.parametrize("held", ["before room", "room", "before seat/back", "seat", "before ticket", "ticket",
                                  "before greeting", "greeting", "before end"])  # fmt: skip
async def test_a_saga_that_is_reset_on_its_way_forward_does_every_step_once(trips: Trips, held: str, task: int) -> None:
    attempt = trips.steps.hold(held)
    async with trips.working():
        handle = await trips.start()
        await attempt.has_come.wait()
        again = await _reset_to(trips, handle, task)
        if held.startswith("before"):  # what is under way for the run of before comes after all of the next
            bookings = await again.result()
            attempt.may_go.set()
            await attempt.is_over.wait()
        else:
            await trips.until_blocked()
            attempt.may_go.set()
            bookings = await again.result()

    assert [one.step for one in bookings] == ["room", "seat", "seat", "ticket", "greeting"]
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
        again = await _reset_to(trips, handle, task)
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


# With effects elsewhere ---------------------------------------------------------------------------------------


async def test_a_saga_that_completed_and_is_reset_to_whichever_task_calls_no_provider_again(
    elsewhere: Elsewhere,
) -> None:
    async with elsewhere.working():
        handle = await elsewhere.start()
        first = await handle.result()
        requests = _requests(elsewhere)
        async for again in _resets_to_each_task(elsewhere, handle):
            assert await again.result() == first

    assert (await elsewhere.held(), _requests(elsewhere)) == ((1, 1, 1, 1), requests)


async def test_a_saga_that_was_undone_elsewhere_and_is_reset_to_whichever_task_calls_no_provider_again(
    elsewhere: Elsewhere,
) -> None:
    elsewhere.billing.faults.append(Fault.REFUSES_402)
    async with elsewhere.working():
        handle = await elsewhere.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        requests = _requests(elsewhere)
        async for again in _resets_to_each_task(elsewhere, handle):
            with pytest.raises(WorkflowFailureError):
                await again.result()

    assert (await elsewhere.held(), _requests(elsewhere)) == ((0, 0, 0, 0), requests)


_HELD = pytest.mark.parametrize("fault", [Fault.ACTS_AND_WAITS, Fault.WAITS])


@_TASKS
@_HELD
@pytest.mark.parametrize("where", ["crm", "mail"])
async def test_a_saga_that_is_reset_while_a_provider_is_called_has_its_effects_there_once(
    elsewhere: Elsewhere, where: str, fault: Fault, task: int
) -> None:
    provider = getattr(elsewhere, where)
    provider.faults.append(fault)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await provider.is_held.wait()
        again = await _reset_to(elsewhere, handle, task)
        results = await again.result()
        provider.may_go_on.set()
        await until_answered(provider)

    assert results == [1, 1, 1, 1]
    assert await elsewhere.held() == (1, 1, 1, 1)
    assert len(set(provider.sent("POST"))) == 1


@_TASKS
@_HELD
async def test_a_pivot_that_was_called_before_a_reset_is_voided_or_found_to_stand_and_not_called_again(
    elsewhere: Elsewhere, fault: Fault, task: int
) -> None:
    elsewhere.billing.faults.append(fault)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.billing.is_held.wait()
        elsewhere.billing.is_shipped = stands = fault is Fault.ACTS_AND_WAITS and task == 0
        again = await _reset_to(elsewhere, handle, task)
        if stands:
            await again.result()
        else:
            with pytest.raises(WorkflowFailureError):
                await again.result()
        elsewhere.billing.may_go_on.set()
        await until_answered(elsewhere.billing)

    assert await elsewhere.held() == ((1, 1, 1, 1) if stands else (0, 0, 0, 0))
    assert len([key for key in elsewhere.billing.sent("POST") if key]) == 1


@_TASKS
@_HELD
async def test_a_saga_that_is_reset_while_a_provider_reverses_is_undone_there_once(
    elsewhere: Elsewhere, fault: Fault, task: int
) -> None:
    elsewhere.billing.faults.append(Fault.REFUSES_402)
    elsewhere.crm.faults.extend([Fault.NONE, fault])
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.crm.is_held.wait()
        again = await _reset_to(elsewhere, handle, task)
        with pytest.raises(WorkflowFailureError):
            await again.result()
        elsewhere.crm.may_go_on.set()
        await until_answered(elsewhere.crm)

    assert await elsewhere.held() == (0, 0, 0, 0)
    assert (len(elsewhere.crm.things), elsewhere.crm.reversals, len(elsewhere.billing.things)) == (1, 1, 0)


async def until_answered(provider: HttpProvider) -> None:
    """Wait until the request that was held has had its effect, if it has one, and its answer."""
    async with asyncio.timeout(20):
        while provider.open:
            await asyncio.sleep(0.005)


def _requests(elsewhere: Elsewhere) -> list[list[tuple[str, str]]]:
    return [list(one.requests) for one in (elsewhere.crm, elsewhere.billing, elsewhere.mail)]
