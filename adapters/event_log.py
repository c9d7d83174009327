"""saga.log: every change of an order's state, in the order's own sequence, once; and what the audit found.

Made from `order_events` and `audit_events`, which number their rows from one sequence.

The file is its own bookmark (adapters/log_file.py), and a worker that starts reads on from the last whole line. A lock
beside the file lets one worker of a machine write it; the others stand by and take over when it goes. A file that is
moved away, removed or emptied is followed by a new one that begins with the bookmark (adapters/log_target.py).

Reading without gaps: an event's id says when it was written, not when it became visible. An event counts
as settled once every transaction that began before its own has ended, that is, below the snapshot's xmin.

Reading without gaps behind a restore: the statement that reads on asks in its own snapshot whether the event of the
bookmark is still there, as it was told. Where it is not, the database went back, and all that it has is told again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.database import single_statement
from adapters.log_file import BEGINNING, OTHER_DATABASE, Bookmark, append, marked
from adapters.log_setup import ORDERS_LOGGER
from adapters.log_target import LogFile, StandardOutput, Target
from domain.errors import CheckoutError
from domain.identifiers import in_line
from domain.model import OrderStatus
from domain.policies import checkout_workflow_id
from domain.text import for_log_line

_log = logging.getLogger("checkout.event_log")
_orders_log = logging.getLogger(ORDERS_LOGGER)

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_LAST_SECONDS = 3.0
_BATCH = 500
# What no batch does: its orders are in the hands of their own sagas by then.
_OWN_SAGA_ONLY = frozenset({"park", "operator", "handed over"})
_sleepers: set[asyncio.Event] = set()

# A row's place is that of the earliest transaction which wrote it or a later event of its order: a transaction
# that had begun earlier, and then waited for the order, has the lower txid and the higher number. `due` finds the
# rows whose own place counts; `told` adds the events of the same order that have to be told before them. Each side of
# `due` is cut by itself: otherwise Postgres reads and sorts all that is not told yet for each batch of it.
# `here` is one row, and says whether this is still the database that the bookmark was made in. Without an event to tell
# it comes alone.
_NEXT = text("""
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
    ), told AS (
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
    ), here AS (
        SELECT CASE
            WHEN greatest((SELECT max(txid) FROM order_events), (SELECT max(txid) FROM audit_events))
                 >= pg_snapshot_xmax(pg_current_snapshot()) THEN 'ahead'
            WHEN CAST(:event_id AS bigint) = 0
              OR EXISTS (SELECT FROM mark WHERE starts_with(:line, begins)) THEN 'same'
            WHEN pg_is_in_recovery() THEN 'behind'
            ELSE 'other' END AS database
    )
    SELECT here.database, CAST(place_txid AS text) AS place_txid, place_id, order_id, seq, event, previous_status,
           status, changed_by, reason, check_id, subject,
           (SELECT carrier FROM orders WHERE orders.order_id = told.order_id) AS carrier,
           to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at
      FROM here LEFT JOIN told ON here.database = 'same'
     ORDER BY told.place_txid, told.place_id, told.seq
""")


_OLDEST_OPEN = text("SELECT CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text)")


class Standing(StrEnum):
    """What the database is to the bookmark."""

    SAME = "same"
    """It has the bookmark's event: go on after it."""
    OTHER = "other"
    """It does not: it was restored to an earlier instant, or is another one."""
    BEHIND = "behind"
    """It does not yet: a standby that follows the one that we read."""
    AHEAD = "ahead"
    """It has events of transactions that this server has not come to: of another server's dump."""


class Found(NamedTuple):
    """What one look into the database has found."""

    database: Standing
    rows: Sequence[Row[tuple[object, ...]]]


async def follow(engine: AsyncEngine, path: Path, *, must_tell: bool = False) -> None:
    """Write saga.log and the console for as long as the worker runs. Never raises for a database that is away.

    Args:
        engine: where the events are.
        path: the file. Where another worker has it, this one stands by.
        must_tell: say of standing by as an error.
    """
    file = LogFile(path, append)
    try:
        is_told = False
        while not file.claim():  # the lock is another process's; no event tells of it
            if not is_told:
                level = logging.ERROR if must_tell else logging.INFO
                _log.log(level, "another worker writes %s; this one stands by", path, extra={"action": "log_stands_by"})
                is_told = True
            await asyncio.sleep(_RETRY_SECONDS)
        if is_told:
            _log.info("this worker writes %s from now on", path, extra={"action": "log_taken_over"})
        await _follow(_Follower(engine, file))
    finally:
        file.close()


async def follow_to_stdout(engine: AsyncEngine) -> None:
    """Write saga.log's lines to standard output, from what happens from now on, and the console.

    Nobody goes on after it, so what is settled when it is cancelled is told before it ends.
    """
    follower = _Follower(engine, StandardOutput())
    try:
        await _follow(follower)
    except asyncio.CancelledError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await follower.look()
        raise


async def _follow(follower: "_Follower") -> None:
    woken = asyncio.Event()
    _sleepers.add(woken)
    try:
        while True:
            seconds = await follower.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), seconds)
            woken.clear()
    finally:
        _sleepers.discard(woken)


def reopen() -> None:
    """Look at once whether saga.log was moved away, and go on in a new file."""
    for woken in _sleepers:
        woken.set()


class _Follower:
    def __init__(self, engine: AsyncEngine, target: Target) -> None:
        self._engine = engine
        self._target = target
        self._told: Bookmark | None = None
        self._bookmark: Bookmark | None = None
        self._database = Standing.SAME

    async def look(self) -> float:
        """Tell what is new, and say how many seconds to wait before the next look."""
        try:
            return await self._tell_what_is_new()
        except CheckoutError as failure:
            _log.debug("saga.log waits: %s", failure.message)
        except BrokenPipeError:
            raise  # whoever reads our output is gone for good
        except OSError as failure:
            # A full disk must not stop the checkout. Whatever was half written is cut off again.
            _log.error("saga.log cannot be written and will catch up: %s", failure)
            self._bookmark = None
        return _RETRY_SECONDS

    async def _tell_what_is_new(self) -> float:
        if self._bookmark is None:
            self._bookmark = self._target.bookmark() or self._told or await self._begin_now()
        if self._target.follow_rotation(self._bookmark):
            _log.info("saga.log was moved away: a new file goes on after it", extra={"action": "log_reopened"})
            self._bookmark = self._target.bookmark() or self._bookmark
        bookmark = self._bookmark
        found = await _read(self._engine, bookmark)
        if found.database is not self._database:
            _say(found.database)
            self._database = found.database
        if found.database in {Standing.OTHER, Standing.AHEAD} and bookmark != BEGINNING:
            await self._target.append(OTHER_DATABASE)
            bookmark = self._bookmark = BEGINNING
        if found.rows:
            lines = [(_place(row), line(row)) for row in found.rows]
            await self._target.append("".join(marked(lines, bookmark)))
            self._bookmark = self._told = Bookmark.of(_place(found.rows[-1]), line(found.rows[-1]))
            for row in found.rows:
                _tell(row)
        if found.database in {Standing.BEHIND, Standing.AHEAD}:
            return _RETRY_SECONDS
        return 0.0 if len(found.rows) >= _BATCH else _POLL_SECONDS

    async def _begin_now(self) -> Bookmark:
        """Begin behind all that is settled, and say where: what was told before cannot be known."""
        async with single_statement(self._engine) as connection:
            xmin = str((await connection.execute(_OLDEST_OPEN)).scalar_one())
        await self._target.append(f"# begins with transaction {xmin}: what committed before is not told here\n")
        self._told = Bookmark(xmin, 0, "")
        return self._told


def _say(database: Standing) -> None:
    if database is Standing.OTHER:
        _log.error(
            "the event that saga.log ends with is not in the database any more: it was restored to an earlier instant, "
            "or is another one; saga.log tells all its events again",
            extra={"action": "log_begins_anew"},
        )
    elif database is Standing.AHEAD:
        _log.error(
            "order_events comes from another server's dump, and saga.log waits; run as its owner: "
            "UPDATE order_events SET txid = '0'; UPDATE audit_events SET txid = '0'",
            extra={"action": "log_waits"},
        )


def line(row: Row[tuple[object, ...]]) -> str:
    """Tell one event in one line, beginning with what a person looks for and ending with where to look on."""
    if row.check_id is not None:
        return for_log_line(f"{row.at} audit {row.check_id} {row.event} on {row.subject}: {row.reason}")
    moved = row.status if row.event == row.status else f"{row.event} ({row.status})"
    came_from = f"{row.previous_status} -> " if row.previous_status and row.event == row.status else ""
    reason = f": {row.reason.strip()}" if row.reason and row.reason.strip() else ""
    by = f"{row.changed_by}{reason} workflow={in_line(_workflow_of(row))}"
    return for_log_line(f"{row.at} {in_line(row.order_id)} #{row.seq} {came_from}{moved} by {by}")


def _workflow_of(row: Row[tuple[object, ...]]) -> str:
    """Name the workflow that has the history of an event: a batch's until it is sure that the order left it."""
    is_in_batch = row.carrier and row.changed_by not in _OWN_SAGA_ONLY and row.previous_status != OrderStatus.STUCK
    return str(row.carrier) if is_in_batch else checkout_workflow_id(row.order_id)


def _tell(row: Row[tuple[object, ...]]) -> None:
    if row.check_id is None:
        _orders_log.info("%s", line(row), extra={"action": "order_moved", "order_id": row.order_id})
    else:
        level = logging.ERROR if row.event == "violated" else logging.INFO
        _orders_log.log(level, "%s", line(row), extra={"action": f"audit_{row.event}"})


def _place(row: Row[tuple[object, ...]]) -> tuple[str, int]:
    return row.place_txid, row.place_id


async def _read(engine: AsyncEngine, bookmark: Bookmark) -> Found:
    asked = {"txid": bookmark.txid, "event_id": bookmark.event_id, "line": bookmark.line, "limit": _BATCH}
    async with single_statement(engine) as connection:
        rows = (await connection.execute(_NEXT, asked)).all()
    return Found(Standing(rows[0].database), [row for row in rows if row.place_id is not None])
