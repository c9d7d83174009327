"""The statement that reads saga.log's next events, and compares the database with the log's bookmark.

Nothing is skipped: an event's id says when it was written, not when it became visible. So an event is read once every
transaction that began before its own has ended, that is, once its txid is below the snapshot's xmin.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.log_file import Bookmark, Place
from sagafence import single_statement

# A row's place is that of the earliest transaction which wrote it or a later event of its order: a transaction
# that had begun earlier, and then waited for the order, has the lower txid and the higher number. `due` finds the
# rows whose own place counts; `due_events` adds the events of the same order that have to come before them. Each side
# of `due` is limited by itself: otherwise Postgres reads and sorts all that is not logged yet for each batch of it.
# `comparison` is one row, and comes alone where there is no event to log.
NEXT_EVENTS = text("""
    WITH due AS (
        (SELECT txid, event_id, order_id, seq FROM order_events e
          WHERE (txid, event_id) > (CAST(CAST(:txid AS text) AS xid8), CAST(:event_id AS bigint))
            AND txid < pg_snapshot_xmin(pg_current_snapshot())
            AND NOT EXISTS (
                SELECT FROM order_events later
                 WHERE later.order_id = e.order_id AND later.seq > e.seq
                   AND (later.txid, later.event_id) < (e.txid, e.event_id))
          ORDER BY txid, event_id LIMIT :limit)
        UNION ALL
        (SELECT txid, event_id, NULL, NULL FROM audit_events
          WHERE (txid, event_id) > (CAST(CAST(:txid AS text) AS xid8), CAST(:event_id AS bigint))
            AND txid < pg_snapshot_xmin(pg_current_snapshot())
          ORDER BY txid, event_id LIMIT :limit)
         ORDER BY txid, event_id LIMIT :limit
    ), due_events AS (
        SELECT due.txid AS place_txid, due.event_id AS place_id, e.order_id, e.seq, e.event, e.previous_status,
               e.status, e.changed_by, e.reason, e.at, NULL AS check_id, NULL AS subject
          FROM due JOIN order_events e ON e.order_id = due.order_id AND e.seq <= due.seq
           AND (e.txid, e.event_id) >= (due.txid, due.event_id)
           AND NOT EXISTS (
               SELECT FROM order_events between_them
                WHERE between_them.order_id = e.order_id AND between_them.seq > e.seq
                  AND (between_them.txid, between_them.event_id) < (due.txid, due.event_id))
        UNION ALL
        SELECT a.txid, a.event_id, NULL, NULL, a.event, NULL, NULL, NULL, a.detail, a.at, a.check_id, a.subject
          FROM due JOIN audit_events a USING (txid, event_id)
    ), mark AS (
        SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') || ' ' || event || ' ' AS begins
          FROM (SELECT at, CASE WHEN order_id ~ '[ "]' THEN CAST(to_json(order_id) AS text) ELSE order_id END
                           || ' #' || seq AS event FROM order_events  -- as domain.identifiers.in_line has it
                 WHERE event_id = :event_id AND txid = CAST(CAST(:txid AS text) AS xid8)
                UNION ALL
                SELECT at, 'audit ' || check_id FROM audit_events
                 WHERE event_id = :event_id AND txid = CAST(CAST(:txid AS text) AS xid8)) AS its
    ), comparison AS (
        SELECT CASE
            WHEN greatest((SELECT max(txid) FROM order_events), (SELECT max(txid) FROM audit_events))
                 >= pg_snapshot_xmax(pg_current_snapshot()) THEN 'ahead'
            WHEN CAST(:event_id AS bigint) = 0
              OR EXISTS (SELECT FROM mark WHERE starts_with(:line, begins)) THEN 'same'
            WHEN pg_is_in_recovery() THEN 'behind'
            ELSE 'other' END AS match
    )
    SELECT comparison.match, CAST(place_txid AS text) AS place_txid, place_id, order_id, seq, event, previous_status,
           status, changed_by, reason, check_id, subject,
           (SELECT batch_workflow_id FROM orders WHERE orders.order_id = due_events.order_id) AS batch_workflow_id,
           to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at
      FROM comparison LEFT JOIN due_events ON comparison.match = 'same'
     ORDER BY due_events.place_txid, due_events.place_id, due_events.seq
""")
_OLDEST_OPEN = text("SELECT CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text)")


class DatabaseMatch(StrEnum):
    """How the database compares with the bookmark."""

    SAME = "same"
    """It has the bookmark's event."""
    OTHER = "other"
    """It does not: it was restored to an earlier instant, or is another one."""
    BEHIND = "behind"
    """It does not yet: a standby that follows the primary that we read."""
    AHEAD = "ahead"
    """It has events with transaction ids that this server has not reached: they come from another server's dump."""


class Found(NamedTuple):
    """What one poll of the database found."""

    match: DatabaseMatch
    events: Sequence[Row[tuple[object, ...]]]


async def read_next(engine: AsyncEngine, bookmark: Bookmark, limit: int) -> Found:
    """Read the next events after a bookmark, in the order of the log."""
    parameters = {"txid": bookmark.txid, "event_id": bookmark.event_id, "line": bookmark.line, "limit": limit}
    async with single_statement(engine) as connection:
        rows = (await connection.execute(NEXT_EVENTS, parameters)).all()
    return Found(DatabaseMatch(rows[0].match), [row for row in rows if row.place_id is not None])


async def oldest_open_transaction(engine: AsyncEngine) -> str:
    """Return the id below which every transaction has ended."""
    async with single_statement(engine) as connection:
        return str((await connection.execute(_OLDEST_OPEN)).scalar_one())


def place_of(row: Row[tuple[object, ...]]) -> Place:
    """Return the place of an event that was read."""
    return row.place_txid, row.place_id
