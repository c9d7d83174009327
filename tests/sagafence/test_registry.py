"""The saga's row: written once, touched by every step, refused by everything after the end."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from sagafence import (
    IdempotencyConflict,
    InvalidInput,
    StepAlreadyCompensated,
    purge,
    transaction,
)
from sagafence.calls import Way
from sagafence.registry import Opening, State, begin_unwind, end, enter, move
from tests.sagafence.bare import Bare, write_fence

OPENING = Opening("s-1", "Move", "queue", {"from": "a", "to": ["b", None, 1.5]}, fingerprint="f1")
ANOTHERS = replace(OPENING, fingerprint="f2")
OF_ANOTHER_TYPE = replace(OPENING, workflow_type="Stay", fingerprint="")


async def entered(bare: Bare, saga: Opening | str) -> State:
    async with transaction(bare.engine) as connection:
        return await enter(connection, saga)


async def moved(bare: Bare, to: State, *came_from: State) -> None:
    async with transaction(bare.engine) as connection:
        await move(connection, OPENING.saga_id, to, *came_from)


async def unwinding(bare: Bare, saga: Opening | str) -> Way:
    async with transaction(bare.engine) as connection:
        return await begin_unwind(connection, saga)


async def ended(bare: Bare, saga: Opening | str, outcome: str) -> None:
    async with transaction(bare.engine) as connection:
        await end(connection, saga, outcome)


async def test_the_first_step_writes_what_it_takes_to_start_again(bare: Bare) -> None:
    await entered(bare, replace(OPENING, namespace="n"))

    [row] = await bare.rows(
        "SELECT workflow_id, workflow_type, namespace, task_queue, input, fingerprint, state, outcome FROM sagas"
    )
    assert row == ("s-1", "Move", "n", "queue", OPENING.input, "f1", "open", None)


async def test_every_later_step_touches_the_row(bare: Bare) -> None:
    await entered(bare, OPENING)

    for saga in (OPENING, "s-1"):
        [(started, updated)] = await bare.rows("SELECT started_at, updated_at FROM sagas")
        await entered(bare, saga)
        query = "SELECT started_at = :started, updated_at > :updated FROM sagas"
        assert await bare.rows(query, started=started, updated=updated) == [(True, True)]


async def test_a_saga_is_followed_to_another_queue_and_keeps_its_input(bare: Bare) -> None:
    await entered(bare, OPENING)
    await entered(bare, replace(OPENING, task_queue="elsewhere", input="another release writes it otherwise"))

    assert await bare.rows("SELECT task_queue, input FROM sagas") == [("elsewhere", OPENING.input)]


async def test_two_first_steps_side_by_side_write_one_row(bare: Bare) -> None:
    async with transaction(bare.engine) as first:
        await enter(first, OPENING)
        second = asyncio.create_task(entered(bare, OPENING))
        await bare.until_blocked()
    await second

    assert await bare.states() == {"s-1": "open"}


async def test_the_second_of_two_first_steps_writes_the_row_where_the_first_is_rolled_back(bare: Bare) -> None:
    async with bare.engine.connect() as first:
        await enter(first, OPENING)
        second = asyncio.create_task(entered(bare, OPENING))
        await bare.until_blocked()
        await first.rollback()
    await second

    assert await bare.states() == {"s-1": "open"}


async def test_a_step_after_the_end_is_told_so(bare: Bare) -> None:
    assert await entered(bare, OPENING) is State.OPEN
    await ended(bare, OPENING, "completed")

    assert [await entered(bare, saga) for saga in (OPENING, "s-1")] == [State.ENDED, State.ENDED]


async def test_a_step_that_waits_for_the_end_is_told_so(bare: Bare) -> None:
    await entered(bare, OPENING)
    async with transaction(bare.engine) as ending:
        await end(ending, "s-1", "completed")
        steps = [asyncio.create_task(entered(bare, saga)) for saga in (OPENING, "s-1")]
        await bare.until_blocked(2)

    assert await asyncio.gather(*steps) == [State.ENDED, State.ENDED]


async def test_an_end_waits_for_a_step_that_was_there_first(bare: Bare) -> None:
    async with transaction(bare.engine) as step:
        await enter(step, OPENING)
        ending = asyncio.create_task(ended(bare, OPENING, "completed"))
        await bare.until_blocked()
        await write_fence(step, "s-1", "a")
    await ending

    assert await bare.states() == {"s-1": "ended"}
    assert await bare.value("SELECT count(*) FROM step_fence") == 1


@pytest.mark.parametrize("anothers", [ANOTHERS, OF_ANOTHER_TYPE], ids=["input", "type"])
async def test_the_id_of_another_saga_is_refused_to_all_three(bare: Bare, anothers: Opening) -> None:
    await entered(bare, OPENING)

    for act in (entered, unwinding, partial(ended, outcome="completed")):
        with pytest.raises(IdempotencyConflict, match="s-1 already belongs to a saga with another type or input"):
            await act(bare, anothers)

    assert await bare.states() == {"s-1": "open"}


async def test_the_id_of_another_saga_is_refused_as_such_also_after_its_end(bare: Bare) -> None:
    await entered(bare, OPENING)
    await ended(bare, OPENING, "completed")

    with pytest.raises(IdempotencyConflict):
        await entered(bare, ANOTHERS)


async def test_inputs_are_not_compared_where_one_of_them_has_no_fingerprint(bare: Bare) -> None:
    await entered(bare, OPENING)
    await entered(bare, replace(OPENING, fingerprint="", input={}))

    assert await bare.value("SELECT fingerprint FROM sagas") == "f1"


async def test_an_unwinding_saga_lets_steps_in_and_stays_unwinding(bare: Bare) -> None:
    await entered(bare, OPENING)
    await unwinding(bare, "s-1")
    await unwinding(bare, OPENING)
    await entered(bare, OPENING)

    assert await bare.states() == {"s-1": "unwinding"}


@pytest.mark.parametrize(
    ("outcome", "way"), [("completed", Way.FORWARD), ("unwound", Way.NOWHERE), ("cancelled", Way.NOWHERE)]
)
async def test_an_undo_of_a_saga_that_has_ended_changes_nothing(bare: Bare, outcome: str, way: Way) -> None:
    """The undo of a run that should not be there would take back what a completed saga did."""
    await entered(bare, OPENING)
    await ended(bare, OPENING, outcome)

    assert [await unwinding(bare, saga) for saga in (OPENING, "s-1")] == [way, way]
    assert await bare.states() == {"s-1": "ended"}


@pytest.mark.parametrize(("outcome", "way"), [("completed", Way.GONE), ("unwound", Way.NOWHERE)])
async def test_an_undo_of_a_saga_whose_rows_are_deleted_is_told_whether_it_was_completed(
    bare: Bare, outcome: str, way: Way
) -> None:
    await entered(bare, OPENING)
    await ended(bare, OPENING, outcome)
    await purge(bare.engine, timedelta(0))

    assert await unwinding(bare, "s-1") is way


@pytest.mark.parametrize("state", [State.AT_PIVOT, State.PAST_PIVOT])
@pytest.mark.parametrize("saga", [OPENING, OPENING.saga_id], ids=["an opening", "an id"])
async def test_nothing_is_undone_at_the_pivot_and_past_it(bare: Bare, saga: Opening | str, state: State) -> None:
    await entered(bare, OPENING)
    await moved(bare, state, State.OPEN)

    assert await unwinding(bare, saga) is Way.FORWARD
    assert await bare.states() == {"s-1": state.value}


async def test_a_saga_that_unwinds_does_not_come_to_its_pivot(bare: Bare) -> None:
    await entered(bare, OPENING)
    assert await unwinding(bare, OPENING) is Way.BACK
    await moved(bare, State.PAST_PIVOT, State.OPEN, State.AT_PIVOT)

    assert await bare.states() == {"s-1": "unwinding"}


async def test_an_undo_before_any_step_notes_nothing(bare: Bare) -> None:
    await unwinding(bare, "s-1")

    assert await bare.states() == {}


async def test_an_unwind_before_any_step_writes_the_row_and_refuses_completion_only(bare: Bare) -> None:
    await unwinding(bare, OPENING)

    assert await bare.states() == {"s-1": "unwinding"}
    with pytest.raises(StepAlreadyCompensated, match="s-1 is being undone: it cannot be completed"):
        await ended(bare, OPENING, "completed")
    assert await bare.states() == {"s-1": "unwinding"}
    await ended(bare, OPENING, "unwound")
    assert await bare.states() == {"s-1": "ended"}


async def test_an_unwind_waits_for_the_first_step_that_is_under_way(bare: Bare) -> None:
    async with transaction(bare.engine) as step:
        await enter(step, OPENING)
        unwind = asyncio.create_task(unwinding(bare, OPENING))
        await bare.until_blocked()

    assert await unwind is Way.BACK
    assert await bare.states() == {"s-1": "unwinding"}


async def test_a_saga_whose_steps_never_committed_ends_with_a_row_that_refuses(bare: Bare) -> None:
    await ended(bare, "s-1", "unwound")

    assert await entered(bare, OPENING) is State.ENDED


async def test_an_end_can_be_repeated_and_not_be_changed(bare: Bare) -> None:
    await entered(bare, OPENING)
    await ended(bare, OPENING, "completed")
    first = await bare.value("SELECT ended_at FROM sagas")

    await ended(bare, OPENING, "completed")
    with pytest.raises(IdempotencyConflict, match="has ended as completed already, not as unwound"):
        await ended(bare, OPENING, "unwound")

    assert await bare.value("SELECT ended_at FROM sagas") == first


async def test_a_step_of_a_saga_that_has_no_row_any_more_is_refused(bare: Bare) -> None:
    with pytest.raises(StepAlreadyCompensated, match="there is no saga s-1"):
        await entered(bare, "s-1")


async def test_an_input_that_is_no_json_is_refused(bare: Bare) -> None:
    for value in ({1, 2}, float("nan")):
        with pytest.raises(InvalidInput, match="the input of saga s-1 is no JSON"):
            await entered(bare, replace(OPENING, input=value))
