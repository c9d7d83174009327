"""Retention and the sweep beside sagas that are alive, and runs of sagas whose rows retention has deleted."""

import asyncio
import uuid
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from sagafence import Purged, PurgeInput, Sweep, SweepInput, SweepReport, UndoOutcome, purge, sweep_activities
from sagafence.testing.faults import Faults
from tests.resets import reset
from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.elsewhere_steps import Order
from tests.sagafence.elsewhere_story import Fulfil
from tests.sagafence.scenes import ALLOW_ENDS, REFUSE_ENDS, ended
from tests.sagafence.trip_story import BookTrip
from tests.sagafence.trips import BEFORE_ITS_FIRST_TASK, Trips, call_late

ALL = Counter({"room": 1, "seat": 2, "ticket": 1, "greeting": 1})
AT_ONCE = timedelta(0)


async def _sweep(saga: Trips | Elsewhere) -> SweepReport:
    """Sweep, and delete whatever has ended, tombstones and all."""
    queue = f"sweep-{uuid.uuid4().hex[:12]}"
    activities = sweep_activities(saga.engine, saga.client)
    async with Worker(saga.client, task_queue=queue, workflows=[Sweep], activities=activities):
        asked = SweepInput(idle_seconds=0, purge=PurgeInput(0, 0))
        return await saga.client.execute_workflow(Sweep.run, asked, id=queue, task_queue=queue)


async def _failure(handle: WorkflowHandle[Any, Any]) -> tuple[str | None, str]:
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert isinstance(failed.value.cause, ApplicationError)
    return failed.value.cause.type, failed.value.cause.message


# Beside sagas that are alive ------------------------------------------------------------------------------------


async def test_nothing_of_a_saga_that_is_held_stuck_or_repaired_is_deleted_and_no_live_one_is_started(
    trips: Trips,
) -> None:
    attempts, sagas = [], list[WorkflowHandle[BookTrip, Any]]()
    trips.steps.broken |= {"undo-room", "greeting"}
    async with trips.working():
        lost_at = trips.steps.hold("before seat/back")
        sagas.append(lost := await trips.start())
        await lost_at.has_come.wait()
        await lost.terminate("lost")
        for fails in (("ticket",), ()):  # one whose undo is stuck, one stuck past its pivot
            sagas.append(handle := await trips.start(*fails))
            await trips.until(handle, "stuck")
        for held in ("before ticket", "ticket"):  # the second in its transaction, with its row locked
            attempts.append(attempt := trips.steps.hold(held))
            sagas.append(await trips.start())
            await attempt.has_come.wait()
        attempts += [lost_at, repairing := trips.steps.hold("before ticket")]
        before = await _rows(trips)

        repaired = await _sweep(trips)
        await repairing.has_come.wait()
        again = await _sweep(trips)
        after = await _rows(trips)

        trips.steps.broken.clear()
        for attempt in attempts:
            attempt.may_go.set()
        runs = [trips.client.get_workflow_handle(handle.id) for handle in sagas]
        await asyncio.gather(*(trips.ended_by_retries(run) for run in runs))
        ended = await asyncio.gather(*(run.result() for run in runs), return_exceptions=True)

    assert (repaired.idle, repaired.alive, repaired.started) == (5, 4, [lost.id])
    assert (again.idle, again.alive, again.started) == (5, 5, [])
    assert repaired.purged == again.purged == Purged()
    assert before <= after
    assert [isinstance(one, WorkflowFailureError) for one in ended] == [False, True, False, False, False]
    assert [await trips.effects(handle) for handle in sagas] == [ALL, Counter(), ALL, ALL, ALL]


async def _rows(saga: Trips | Elsewhere) -> set[tuple[Any, ...]]:
    rows = await saga.database.fetch(
        "SELECT saga_id, step, result::text FROM step_fence UNION ALL SELECT saga_id, 'saga', input::text FROM sagas"
        " UNION ALL SELECT saga_id, step, key FROM external_steps"
    )
    return {tuple(row) for row in rows}


async def test_retention_between_the_pivot_and_the_step_after_it_deletes_nothing_and_no_provider_is_called_again(
    elsewhere: Elsewhere,
) -> None:
    order_id = f"order-{uuid.uuid4().hex[:12]}"
    faults = Faults(order_id)
    no_mail = faults.fail("write", "before", times=None, is_final=True)
    async with elsewhere.working(interceptors=[faults]):
        lost = await elsewhere.start(order_id)
        await elsewhere.until(lost, "stuck")
        before = await _rows(elsewhere)

        purged = await purge(elsewhere.engine, AT_ONCE, tombstones_older_than=AT_ONCE)

        assert (purged, await _rows(elsewhere), await elsewhere.saga_state()) == (Purged(), before, "past_pivot")
        assert await elsewhere.held() == (1, 1, 1, 0)
        await lost.terminate("lost")
        swept = await _sweep(elsewhere)
        repaired = elsewhere.client.get_workflow_handle(order_id)
        await elsewhere.until(repaired, "stuck")
        again = await _sweep(elsewhere)
        assert await _rows(elsewhere) == before
        no_mail.stop()
        await repaired.execute_update(Fulfil.retry)
        await repaired.result()

    assert (swept.started, swept.purged, again.started, again.purged) == ([order_id], Purged(), [], Purged())
    assert await elsewhere.held() == (1, 1, 1, 1)
    assert [len(sent) for sent in elsewhere.requests()] == [1, 1, 1]
    [row] = await elsewhere.database.fetch("SELECT state, outcome FROM sagas")
    assert tuple(row) == ("ended", "completed")


async def test_sagas_run_to_their_ends_while_retention_deletes_all_that_has_ended_all_the_time(trips: Trips) -> None:
    is_over = asyncio.Event()

    async def go_on_deleting() -> int:
        deleted = 0
        while not is_over.is_set():
            deleted += (await purge(trips.engine, AT_ONCE)).sagas
        return deleted

    deleting = asyncio.create_task(go_on_deleting())
    async with trips.working():
        sagas = [await trips.start(*(["ticket"] * (number % 2))) for number in range(6)]
        ended = await asyncio.gather(*(handle.result() for handle in sagas), return_exceptions=True)
    is_over.set()
    deleted = await deleting + (await purge(trips.engine, AT_ONCE)).sagas

    assert [isinstance(one, WorkflowFailureError) for one in ended] == [False, True] * 3
    assert [await trips.effects(handle) for handle in sagas] == [ALL, Counter()] * 3
    assert deleted == 6


@pytest.mark.parametrize("fails", [[], ["ticket"]], ids=["completed", "unwound"])
async def test_a_saga_that_was_lost_while_its_end_could_not_be_recorded_is_found_and_ends(
    trips: Trips, fails: list[str]
) -> None:
    await trips.database.run(REFUSE_ENDS)
    async with trips.working():
        handle = await trips.start(*fails)
        await trips.until(handle, "stuck")
        await handle.terminate("lost")
        await trips.database.run(ALLOW_ENDS)
        ending = trips.steps.hold("before end")  # else its end may come before the same sweep deletes
        swept = await _sweep(trips)
        ending.may_go.set()
        await ended(trips.client.get_workflow_handle(handle.id))
        again = await _sweep(trips)

    assert (swept.started, swept.purged) == ([handle.id], Purged())
    assert (again.idle, again.purged) == (0, Purged(sagas=1, rows=4 if fails else 5, tombstones=1))
    assert await trips.effects(handle) == (Counter() if fails else ALL)


# Runs of sagas whose rows are deleted ------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["started", "cancelled", "reset"])
async def test_another_run_of_a_completed_saga_whose_rows_are_deleted_says_that_it_was_completed(
    trips: Trips, again: str
) -> None:
    async with trips.working():
        handle = await trips.start()
        await handle.result()
        await purge(trips.engine, AT_ONCE)
        if again == "reset":
            await reset(trips.client, handle.id, handle.first_execution_run_id, 4)
        else:
            await trips.start_again(handle, is_cancelled=again == "cancelled")
        failure = await _failure(trips.client.get_workflow_handle(handle.id))

    assert failure == ("SagaPurged", f"{handle.id} has completed long ago, and its result is deleted")
    assert await trips.effects(handle) == ALL
    [row] = await trips.database.fetch("SELECT outcome, purged_at IS NOT NULL FROM sagas")
    assert tuple(row) == ("completed", True)


async def test_another_run_that_has_come_to_its_end_before_its_rows_are_deleted_answers_as_the_first(
    trips: Trips,
) -> None:
    async with trips.working():
        handle = await trips.start()
        first = await handle.result()
        held = trips.steps.hold("before end")
        again = await trips.start_again(handle)
        await held.has_come.wait()
        await purge(trips.engine, AT_ONCE)
        held.may_go.set()
        assert await again.result() == first


async def test_another_run_of_an_undone_saga_whose_rows_are_deleted_is_undone_as_the_first_was(trips: Trips) -> None:
    async with trips.working():
        handle = await trips.start("ticket")
        await _failure(handle)
        await purge(trips.engine, AT_ONCE)
        failure = await _failure(await trips.start_again(handle))

    assert failure[0] == "SagaUnwound"
    assert await trips.effects(handle) == Counter()


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_another_run_of_a_saga_elsewhere_whose_rows_are_deleted_calls_no_provider(
    elsewhere: Elsewhere, is_cancelled: bool
) -> None:
    async with elsewhere.working():
        handle = await elsewhere.start()
        await handle.result()
        await purge(elsewhere.engine, AT_ONCE)
        again = await elsewhere.start(handle.id, delay=BEFORE_ITS_FIRST_TASK if is_cancelled else None)
        if is_cancelled:
            await again.cancel()
        failure = await _failure(again)

    assert failure[0] == "SagaPurged"
    assert await elsewhere.held() == (1, 1, 1, 1)
    assert [len(one.requests) for one in (elsewhere.crm, elsewhere.billing, elsewhere.mail)] == [1, 1, 1]


@pytest.mark.parametrize("undo", ["give_back", "delete"])
async def test_an_undo_that_comes_after_retention_takes_nothing_back_and_says_so(
    elsewhere: Elsewhere, undo: str
) -> None:
    async with elsewhere.working():
        handle = await elsewhere.start()
        await handle.result()
        await purge(elsewhere.engine, AT_ONCE)
        undone = await call_late(handle, elsewhere.activities(), undo, Order(handle.id, 3))

    assert undone.outcome is UndoOutcome.IRREVOCABLE
    assert await elsewhere.held() == (1, 1, 1, 1)
