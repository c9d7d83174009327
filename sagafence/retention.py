"""Retention: deleting what sagas leave that ended long ago.

A saga's own row stays behind as a tombstone without input, and goes on refusing steps that come late.
"""

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from sagafence.database import transaction
from sagafence.sweep import PURGE, Purged, PurgeInput

_TABLES = ("external_calls", "external_steps", "step_fence")
"""What is deleted; what people said of a saga (saga_verdicts) stays."""

# What came late from a provider waits for a person, who needs the rows to answer. Two at once take different sagas.
# The row's lock keeps everything else of the saga away until the end.
_TAKE = text("""
    SELECT saga_id FROM sagas
     WHERE state = 'ended' AND purged_at IS NULL AND ended_at < clock_timestamp() - CAST(:older_than AS interval)
       AND NOT EXISTS (
           SELECT FROM external_steps e WHERE e.saga_id = sagas.saga_id AND e.question = 'came_late')
     ORDER BY ended_at LIMIT :batch FOR UPDATE SKIP LOCKED
""")

_EMPTY = text("""
    UPDATE sagas SET input = NULL, purged_at = clock_timestamp() WHERE saga_id = ANY (CAST(:saga_ids AS text[]))
""")

_FORGET = text("""
    DELETE FROM sagas WHERE saga_id IN (
        SELECT saga_id FROM sagas
         WHERE purged_at IS NOT NULL AND ended_at < clock_timestamp() - CAST(:older_than AS interval)
         ORDER BY ended_at LIMIT :batch FOR UPDATE SKIP LOCKED)
""")


async def purge(
    engine: AsyncEngine, older_than: timedelta, batch: int = 500, *, tombstones_older_than: timedelta | None = None
) -> Purged:
    """Delete the rows of sagas that ended longer ago than that, and keep a tombstone of each.

    Never touches a saga that has not ended, nor one of which a person is asked about a success that came late. Safe at
    any time, and beside itself: each batch is a transaction.

    Args:
        engine: where the rows are.
        older_than: longer than Temporal retries a step and keeps a closed workflow: until then they are evidence.
        batch: how many sagas one transaction takes.
        tombstones_older_than: delete tombstones too, after this long. From then on the saga's id is as good as new: a
            step that comes later takes effect. None keeps them for ever.

    Raises:
        ValueError: a tombstone would go before what it stands for, or a batch is of none.
    """
    if batch < 1:
        raise ValueError(f"a batch of {batch} sagas is none")
    if tombstones_older_than is not None and tombstones_older_than < older_than:
        raise ValueError(f"tombstones are kept for {tombstones_older_than}, and what they stand for for {older_than}")
    purged = Purged()
    while True:
        async with transaction(engine) as connection:
            taken, rows = await _purge_batch(connection, older_than, batch)
        purged = Purged(purged.sagas + taken, purged.rows + rows)
        _heartbeat(purged)
        if taken < batch:
            break
    forgotten = 0
    while tombstones_older_than is not None:
        async with transaction(engine) as connection:
            given = {"older_than": tombstones_older_than, "batch": batch}
            gone = (await connection.execute(_FORGET, given)).rowcount
        forgotten += gone
        _heartbeat(purged)
        if gone < batch:
            break
    return Purged(purged.sagas, purged.rows, forgotten)


class Retention:
    """Retention as an activity."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn(name=PURGE)
    async def purge(self, asked: PurgeInput) -> Purged:
        """Delete what sagas left that ended long ago."""
        tombstones = asked.tombstones_older_than_seconds
        return await purge(
            self._engine,
            timedelta(seconds=asked.older_than_seconds),
            asked.batch,
            tombstones_older_than=None if tombstones is None else timedelta(seconds=tombstones),
        )


async def _purge_batch(connection: AsyncConnection, older_than: timedelta, batch: int) -> tuple[int, int]:
    given = {"older_than": older_than, "batch": batch}
    taken = {"saga_ids": list((await connection.execute(_TAKE, given)).scalars())}
    rows = 0
    if taken["saga_ids"]:
        for table in _TABLES:
            statement = text(f"DELETE FROM {table} WHERE saga_id = ANY (CAST(:saga_ids AS text[]))")  # noqa: S608
            rows += (await connection.execute(statement, taken)).rowcount
        await connection.execute(_EMPTY, taken)
    return len(taken["saga_ids"]), rows


def _heartbeat(purged: Purged) -> None:
    if activity.in_activity():
        activity.heartbeat(purged.sagas)
