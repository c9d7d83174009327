"""saga.log: every change of an order's state, in the order's own sequence, once; and what the audit found.

Made from `order_events` and `audit_events`, which number their rows from one sequence.

The file is its own bookmark: each line ends with the position of its event, and a worker that starts reads on
from the last whole line. A lock on the file lets one worker of a machine write it; the others stand by and
take over when it goes.

Reading without gaps: an event's id says when it was written, not when it became visible. An event counts
as settled once every transaction that began before its own has ended, that is, below the snapshot's xmin.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import takewhile
from pathlib import Path
from typing import Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.database import single_statement
from adapters.telemetry import ORDERS_LOGGER
from domain.errors import CheckoutError
from domain.policies import checkout_workflow_id

_log = logging.getLogger("checkout.event_log")
_orders_log = logging.getLogger(ORDERS_LOGGER)

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_BATCH = 500
_BEGINNING: Final = ("0", 0)
_MARK = " pos="
_TAIL_BYTES = 65_536

# A row's place is that of the earliest transaction which wrote it or a later event of its order: a transaction
# that had begun earlier, and then waited for the order, has the lower txid and the higher number. `due` finds the
# rows whose own place counts; `told` adds the events of the same order that have to be told before them. Each side of
# `due` is cut by itself: otherwise Postgres reads and sorts all that is not told yet for each batch of it.
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
    )
    SELECT CAST(place_txid AS text) AS place_txid, place_id, order_id, seq, event, previous_status, status,
           changed_by, reason, check_id, subject,
           to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at
      FROM told ORDER BY told.place_txid, told.place_id, told.seq
""")
_IS_RESTORED = text("""
    SELECT coalesce(greatest((SELECT max(txid) FROM order_events), (SELECT max(txid) FROM audit_events))
                    >= pg_snapshot_xmax(pg_current_snapshot()), false)
""")
_KNOWS = text("""
    SELECT EXISTS (SELECT FROM order_events WHERE event_id = :event_id AND txid = CAST(CAST(:txid AS text) AS xid8))
        OR EXISTS (SELECT FROM audit_events WHERE event_id = :event_id AND txid = CAST(CAST(:txid AS text) AS xid8))
""")

Position = tuple[str, int]


async def follow(engine: AsyncEngine, path: Path) -> None:
    """Write saga.log and the console for as long as the worker runs. Never raises for a database that is away."""
    with path.open("a+b", buffering=0) as file:
        while not _claim(file):  # noqa: ASYNC110 - the lock is another process's; no event tells of it
            await asyncio.sleep(_RETRY_SECONDS)
        position: Position | None = None
        while True:
            try:
                if position is None:
                    position = await _bookmark(engine, file)
                rows = await _read(engine, position)
                if rows:
                    _append(file, "".join(marked_lines(rows, position)))
            except CheckoutError as failure:
                _log.debug("saga.log waits: %s", failure.message)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except OSError as failure:
                # A full disk must not stop the checkout. Whatever was half written is cut off again.
                _log.error("saga.log cannot be written and will catch up: %s", failure)
                position = None
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            for row in rows:
                _tell(row)
            if rows:
                position = (rows[-1].place_txid, rows[-1].place_id)
            if len(rows) < _BATCH:
                await asyncio.sleep(_POLL_SECONDS)


def line(row: Row[tuple[object, ...]]) -> str:
    """Tell one event in one line, beginning with what a person looks for and ending with where to look on."""
    if row.check_id is not None:
        return f"{row.at} audit {row.check_id} {row.event} on {row.subject}: {' '.join(row.reason.split())}"
    moved = row.status if row.event == row.status else f"{row.event} ({row.status})"
    came_from = f"{row.previous_status} -> " if row.previous_status and row.event == row.status else ""
    reason = " ".join(str(row.reason).split()) if row.reason else ""
    return (
        f"{row.at} {row.order_id} #{row.seq} {came_from}{moved} by {row.changed_by}"
        + (f": {reason}" if reason else "")
        + f" workflow={checkout_workflow_id(row.order_id)}"
    )


def _tell(row: Row[tuple[object, ...]]) -> None:
    if row.check_id is None:
        _orders_log.info("%s", line(row), extra={"action": "order_moved", "order_id": row.order_id})
    else:
        level = logging.ERROR if row.event == "violated" else logging.INFO
        _orders_log.log(level, "%s", line(row), extra={"action": f"audit_{row.event}"})


def marked_lines(rows: Sequence[Row[tuple[object, ...]]], before: Position) -> Iterator[str]:
    """Write each event's line with the position up to which everything has been told once it is there."""
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        place = (row.place_txid, row.place_id)
        # Told ahead of its own transaction: only the last line of such a group completes the place.
        is_last = following is None or (following.place_txid, following.place_id) != place
        before = place if is_last else before
        yield f"{line(row)}{_MARK}{before[0]}.{before[1]}\n"


def last_position(file: FileIO) -> Position:
    """Find the bookmark in the last whole line; cut off what a crash left half written, a line or a group of them."""
    size = file.seek(0, os.SEEK_END)
    tail_begins = max(0, size - _TAIL_BYTES)
    file.seek(tail_begins)
    tail = file.readall()
    lines = tail[: tail.rfind(b"\n") + 1].splitlines(keepends=True)
    marked = [(number, mark) for number, entry in enumerate(lines) if (mark := _mark_of(entry))]
    position = marked[-1][1] if marked else _BEGINNING
    # The first line with a mark completes its place. Those after it begin a group whose last line is missing; at the
    # beginning of a database nothing is complete.
    same = [number for number, _ in takewhile(lambda entry: entry[1] == position, reversed(marked))]
    if torn := same if position == _BEGINNING else same[:-1]:
        lines = lines[: torn[-1]]
    file.truncate(tail_begins + sum(map(len, lines)))
    file.seek(0, os.SEEK_END)
    return position


def _mark_of(entry: bytes) -> Position | None:
    _, mark, position = entry.decode(errors="replace").rstrip().rpartition(_MARK)
    txid, _, event_id = position.partition(".")
    return (txid, int(event_id)) if mark and txid.isdecimal() and event_id.isdecimal() else None


async def _bookmark(engine: AsyncEngine, file: FileIO) -> Position:
    async with single_statement(engine) as connection:
        if (await connection.execute(_IS_RESTORED)).scalar_one():
            _log.error(
                "order_events comes from another server's dump and hides new events from saga.log; run as its owner: "
                "UPDATE order_events SET txid = '0'; UPDATE audit_events SET txid = '0'; then start the worker again"
            )
    position = last_position(file)
    if position == _BEGINNING:
        return position
    async with single_statement(engine) as connection:
        known = (await connection.execute(_KNOWS, {"txid": position[0], "event_id": position[1]})).scalar_one()
    if known:
        return position
    _append(file, "# another database from here on\n")
    return _BEGINNING


async def _read(engine: AsyncEngine, position: Position) -> Sequence[Row[tuple[object, ...]]]:
    async with single_statement(engine) as connection:
        found = await connection.execute(_NEXT, {"txid": position[0], "event_id": position[1], "limit": _BATCH})
        return found.all()


def _append(file: FileIO, text: str) -> None:
    data = text.encode()
    if file.write(data) != len(data):
        raise OSError("only a part of the lines could be written")


def _claim(file: FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
