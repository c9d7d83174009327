"""Retention: what ended long ago goes, its tombstone stays, and nothing else is touched."""

import asyncio
from datetime import timedelta

import pytest

from sagafence import Purged, purge, transaction
from sagafence.calls import Way
from sagafence.registry import Opening, State, begin_unwind, end, enter
from tests.sagafence.bare import Bare, write_fence

A_WEEK = timedelta(days=7)


def opening(saga_id: str) -> Opening:
    return Opening(saga_id, "Move", "queue", {"secret": "of a person"})


async def a_saga(bare: Bare, saga_id: str, *, days_ago: int, is_ended: bool = True) -> None:
    """Let a saga do two steps, and end; so long ago."""
    async with transaction(bare.engine) as connection:
        await enter(connection, opening(saga_id))
        await write_fence(connection, saga_id, "a")
        await write_fence(connection, saga_id, "b")
    await bare.run(
        "INSERT INTO external_steps (saga_id, step, provider, fingerprint, key, undo_key, request, phase)"
        f" VALUES ('{saga_id}', 'c', 'p', 'f', 'k-{saga_id}', 'u', '{{}}', 'undone')",
        "INSERT INTO external_calls (saga_id, step, n, kind, live)"
        f" VALUES ('{saga_id}', 'c', 1, 'do', false), ('{saga_id}', 'c', 2, 'reverse', false)",
        "INSERT INTO saga_verdicts (saga_id, step, verdict, who, why)"
        f" VALUES ('{saga_id}', 'c', 'never', 'ann', 'asked them')",
    )
    async with transaction(bare.engine) as connection:
        if is_ended:
            await end(connection, saga_id, "completed")
    await bare.run(
        f"UPDATE sagas SET started_at = started_at - interval '{days_ago} days',"
        f" updated_at = updated_at - interval '{days_ago} days', ended_at = ended_at - interval '{days_ago} days'"
        f" WHERE saga_id = '{saga_id}'"
    )


async def left(bare: Bare, saga_id: str) -> dict[str, int]:
    tables = ("sagas", "step_fence", "external_steps", "external_calls", "saga_verdicts")
    return {
        table: await bare.value(f"SELECT count(*) FROM {table} WHERE saga_id = :saga_id", saga_id=saga_id)
        for table in tables
    }


WHOLE = {"sagas": 1, "step_fence": 2, "external_steps": 1, "external_calls": 2, "saga_verdicts": 1}
TOMBSTONE = {"sagas": 1, "step_fence": 0, "external_steps": 0, "external_calls": 0, "saga_verdicts": 1}


async def test_an_old_saga_becomes_a_tombstone_that_goes_on_refusing(bare: Bare) -> None:
    await a_saga(bare, "old", days_ago=8)

    purged = await purge(bare.engine, A_WEEK)

    assert purged == Purged(sagas=1, rows=5)
    assert await left(bare, "old") == TOMBSTONE
    assert await bare.rows("SELECT state, outcome, input, purged_at IS NOT NULL FROM sagas") == [
        ("ended", "completed", None, True)
    ]
    for saga in (opening("old"), "old"):
        async with bare.engine.connect() as connection:
            assert await enter(connection, saga) is State.ENDED
            assert await begin_unwind(connection, saga) is Way.GONE


async def test_a_saga_that_has_not_ended_is_never_touched_however_old(bare: Bare) -> None:
    await a_saga(bare, "open", days_ago=9000, is_ended=False)
    await a_saga(bare, "unwinding", days_ago=9000, is_ended=False)
    await bare.run("UPDATE sagas SET state = 'unwinding' WHERE saga_id = 'unwinding'")
    before = await bare.rows("SELECT * FROM sagas ORDER BY 1")

    assert await purge(bare.engine, timedelta(0), tombstones_older_than=timedelta(0)) == Purged()

    assert await left(bare, "open") == await left(bare, "unwinding") == WHOLE
    assert await bare.rows("SELECT * FROM sagas ORDER BY 1") == before


async def test_a_saga_stays_while_a_person_is_asked_about_what_came_late(bare: Bare) -> None:
    await a_saga(bare, "asked", days_ago=9000)
    await bare.run("UPDATE external_steps SET question = 'came_late' WHERE saga_id = 'asked'")

    assert await purge(bare.engine, A_WEEK, tombstones_older_than=A_WEEK) == Purged()
    assert await left(bare, "asked") == WHOLE

    await bare.run("UPDATE external_steps SET question = NULL WHERE saga_id = 'asked'")
    assert (await purge(bare.engine, A_WEEK)).sagas == 1


async def test_what_ended_lately_stays(bare: Bare) -> None:
    await a_saga(bare, "young", days_ago=6)

    assert await purge(bare.engine, A_WEEK) == Purged()
    assert await left(bare, "young") == WHOLE


async def test_more_than_a_batch_are_all_purged_and_a_second_run_finds_nothing(bare: Bare) -> None:
    for number in range(5):
        await a_saga(bare, f"old-{number}", days_ago=8)

    assert await purge(bare.engine, A_WEEK, 2) == Purged(sagas=5, rows=25)
    assert await purge(bare.engine, A_WEEK, 2) == Purged()


async def test_two_at_once_purge_each_saga_once(bare: Bare) -> None:
    for number in range(12):
        await a_saga(bare, f"old-{number}", days_ago=8)

    both = await asyncio.gather(*(purge(bare.engine, A_WEEK, 1) for _ in range(2)))

    # The one that finds the last saga taken is done: a later run takes what a rolled back batch left.
    assert sum(each.sagas for each in both) == 12
    assert sum(each.rows for each in both) == 60


async def test_a_saga_whose_row_is_held_is_left_to_the_next_run(bare: Bare) -> None:
    await a_saga(bare, "old", days_ago=8)
    async with bare.engine.connect() as held:
        await enter(held, opening("old"))  # which holds its lock until the end of the transaction
        assert await purge(bare.engine, A_WEEK) == Purged()
        await held.rollback()

    assert await purge(bare.engine, A_WEEK) == Purged(sagas=1, rows=5)


async def test_tombstones_go_when_that_is_asked_for_and_not_before_what_they_stand_for(bare: Bare) -> None:
    await a_saga(bare, "older", days_ago=40)
    await a_saga(bare, "old", days_ago=8)

    purged = await purge(bare.engine, A_WEEK, 1, tombstones_older_than=timedelta(days=30))

    assert purged == Purged(sagas=2, rows=10, tombstones=1)
    assert await bare.states() == {"old": "ended"}
    with pytest.raises(ValueError, match="tombstones are kept for 6 days"):
        await purge(bare.engine, A_WEEK, tombstones_older_than=timedelta(days=6))
    with pytest.raises(ValueError, match="a batch of 0 sagas is none"):
        await purge(bare.engine, A_WEEK, 0)
