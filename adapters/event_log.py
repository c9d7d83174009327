"""saga.log: every change of an order's status, in the order's own sequence, once; and what the audit found.

Made from `order_events` and `audit_events`, which number their rows from one sequence.

The file is its own bookmark (adapters/log_file.py): a worker that starts reads on from the last whole line. A lock
beside the file lets one worker of a machine write it; the others stand by and take over. A file that is moved away,
removed or emptied is followed by a new one that begins with the bookmark (adapters/log_target.py).

The statement that reads on (adapters/event_query.py) checks in its own snapshot whether the bookmark's event is still
there. Where it is not, the database was restored to an earlier instant, and all its events are logged again.
"""

import asyncio
import contextlib
import logging
from pathlib import Path

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import event_query
from adapters.event_query import DatabaseMatch, place_of
from adapters.log_file import BEGINNING, OTHER_DATABASE, Bookmark, marked
from adapters.log_setup import ORDERS_LOGGER
from adapters.log_target import LogFile, StandardOutput, Target
from adapters.polled_state import PolledState
from domain.identifiers import in_line
from domain.model import OrderStatus
from domain.policies import checkout_workflow_id
from domain.text import for_log_line
from sagafence import SagaError

_log = logging.getLogger("checkout.event_log")
_orders_log = logging.getLogger(ORDERS_LOGGER)

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_LAST_SECONDS = 3.0
_BATCH = 500
# What no batch does: its orders have sagas of their own by then.
_OWN_SAGA_ONLY = frozenset({"park", "operator", "handed over"})
_sleepers: set[asyncio.Event] = set()


async def follow(engine: AsyncEngine, path: Path, *, must_write: bool = False) -> None:
    """Write saga.log and the console until cancelled. Never raises for a database that is away.

    Args:
        engine: where the events are.
        path: the file. Where another worker has its lock, this one stands by.
        must_write: whether standing by is logged as an error.
    """
    file = LogFile(path)
    try:
        if not file.claim():
            level = logging.ERROR if must_write else logging.INFO
            _log.log(level, "another worker writes %s; this one stands by", path, extra={"action": "log_stands_by"})
            while not file.claim():  # noqa: ASYNC110 - nothing notifies of a released lock
                await asyncio.sleep(_RETRY_SECONDS)
            _log.info("this worker writes %s from now on", path, extra={"action": "log_taken_over"})
        await _follow(_Follower(engine, file))
    finally:
        file.close()


async def follow_to_stdout(engine: AsyncEngine) -> None:
    """Write the lines of new events to standard output, and the console, until cancelled.

    No later worker catches up on them, so those that are due when it is cancelled are written before it ends.
    """
    follower = _Follower(engine, StandardOutput())
    try:
        await _follow(follower)
    except asyncio.CancelledError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await follower.poll()
        raise


async def _follow(follower: "_Follower") -> None:
    wake_up = asyncio.Event()
    _sleepers.add(wake_up)
    try:
        while True:
            seconds = await follower.poll()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake_up.wait(), seconds)
            wake_up.clear()
    finally:
        _sleepers.discard(wake_up)


def reopen() -> None:
    """Check at once whether saga.log was moved away, and go on in a new file."""
    for wake_up in _sleepers:
        wake_up.set()


class _Follower:
    def __init__(self, engine: AsyncEngine, target: Target) -> None:
        self._engine = engine
        self._target = target
        self._written: Bookmark | None = None
        self._bookmark: Bookmark | None = None
        self._match = PolledState(DatabaseMatch.SAME)

    async def poll(self) -> float:
        """Write the new events; return how many seconds to wait before the next poll."""
        try:
            return await self._write_new_events()
        except SagaError as failure:
            _log.debug("saga.log waits: %s", failure.message)
        except BrokenPipeError:
            raise  # the reader of our output has gone for good
        except OSError as failure:
            # A full disk must not stop the checkout. What was half written is cut off again.
            _log.error("saga.log cannot be written and will catch up: %s", failure)
            self._bookmark = None
        return _RETRY_SECONDS

    async def _write_new_events(self) -> float:
        if self._bookmark is None:
            self._bookmark = self._target.bookmark() or self._written or await self._begin_now()
        if self._target.follow_rotation(self._bookmark):
            _log.info("saga.log was moved away: a new file goes on after it", extra={"action": "log_reopened"})
            self._bookmark = self._target.bookmark() or self._bookmark
        bookmark = self._bookmark
        match, events = await event_query.read_next(self._engine, bookmark, _BATCH)
        if self._match.update(match):
            _log_mismatch(match)
        if match in {DatabaseMatch.OTHER, DatabaseMatch.AHEAD} and bookmark != BEGINNING:
            await self._target.append(OTHER_DATABASE)
            bookmark = self._bookmark = BEGINNING
        if events:
            lines = [(place_of(row), line(row)) for row in events]
            await self._target.append("".join(marked(lines, bookmark)))
            self._bookmark = self._written = Bookmark.of(*lines[-1])
            for row, (_, text) in zip(events, lines, strict=True):
                _log_event(row, text)
        if match in {DatabaseMatch.BEHIND, DatabaseMatch.AHEAD}:
            return _RETRY_SECONDS
        return 0.0 if len(events) >= _BATCH else _POLL_SECONDS

    async def _begin_now(self) -> Bookmark:
        """Begin after every transaction that has ended, and write that: standard output cannot be read back."""
        xmin = await event_query.oldest_open_transaction(self._engine)
        await self._target.append(f"# begins with transaction {xmin}: what committed before is not logged here\n")
        self._written = Bookmark(xmin, 0, "")
        return self._written


def _log_mismatch(match: DatabaseMatch) -> None:
    if match is DatabaseMatch.OTHER:
        _log.error(
            "the event that saga.log ends with is not in the database any more: it was restored to an earlier instant, "
            "or is another one; saga.log gets all its events again",
            extra={"action": "log_begins_anew"},
        )
    elif match is DatabaseMatch.AHEAD:
        _log.error(
            "order_events comes from another server's dump, and saga.log waits; run as its owner: "
            "UPDATE order_events SET txid = '0'; UPDATE audit_events SET txid = '0'",
            extra={"action": "log_waits"},
        )


def line(row: Row[tuple[object, ...]]) -> str:
    """Format one event as a line that begins with its order and ends with the workflow that has its history."""
    if row.check_id is not None:
        return for_log_line(f"{row.at} audit {row.check_id} {row.event} on {row.subject}: {row.reason}")
    moved = row.status if row.event == row.status else f"{row.event} ({row.status})"
    came_from = f"{row.previous_status} -> " if row.previous_status and row.event == row.status else ""
    reason = f": {row.reason.strip()}" if row.reason and row.reason.strip() else ""
    by = f"{row.changed_by}{reason} workflow={in_line(_workflow_of(row))}"
    return for_log_line(f"{row.at} {in_line(row.order_id)} #{row.seq} {came_from}{moved} by {by}")


def _workflow_of(row: Row[tuple[object, ...]]) -> str:
    """Return the workflow with the history of an event: the batch's until the order surely has a saga of its own."""
    is_in_batch = (
        row.batch_workflow_id and row.changed_by not in _OWN_SAGA_ONLY and row.previous_status != OrderStatus.STUCK
    )
    return str(row.batch_workflow_id) if is_in_batch else checkout_workflow_id(row.order_id)


def _log_event(row: Row[tuple[object, ...]], text: str) -> None:
    if row.check_id is None:
        _orders_log.info("%s", text, extra={"action": "order_moved", "order_id": row.order_id})
    else:
        level = logging.ERROR if row.event == "violated" else logging.INFO
        _orders_log.log(level, "%s", text, extra={"action": f"audit_{row.event}"})
