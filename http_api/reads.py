"""What the API reads from Postgres, as a role that can do nothing else."""

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.database import snapshot
from adapters.order_query import FoundOrder, find_orders
from domain.model import ENDINGS, OrderStatus
from http_api.models import OrderStatusWord
from sagafence import single_statement

MOST_EVENTS = 1_000
MOST_COUNTED = 10_000
"""So many orders that have ended are counted of each status: there may be a hundred million."""

_STORED_AS: Mapping[OrderStatusWord, Sequence[OrderStatus]] = {
    OrderStatusWord.RUNNING: (OrderStatus.RESERVED, OrderStatus.PAID),
    OrderStatusWord.TERMINATED: (),  # Temporal knows it, and the database does not
}
_EVENTS = text("""
    SELECT seq, event, previous_status, status, changed_by, reason, at FROM order_events
     WHERE order_id = :order_id AND seq > :after ORDER BY seq LIMIT :limit
""")
_STATES = text("SELECT order_id, event_seq FROM orders WHERE order_id = ANY (CAST(:order_ids AS text[]))")
_FINDINGS = text("""
    SELECT check_id, subject, detail, at FROM (
        SELECT DISTINCT ON (check_id, subject) check_id, subject, event, detail, at
          FROM audit_events ORDER BY check_id, subject, event_id DESC) AS newest
     WHERE event = 'violated' ORDER BY check_id, subject LIMIT 1000
""")
_STUCK = text("SELECT count(*) FROM incidents WHERE closed_at IS NULL")
_MAY_WRITE = text("""
    SELECT current_user FROM pg_class c
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
       AND (has_any_column_privilege(c.oid, 'INSERT, UPDATE') OR has_table_privilege(c.oid, 'DELETE, TRUNCATE'))
     LIMIT 1
""")


class BadCursor(ValueError):
    """A cursor that no page has given."""


@dataclass(frozen=True)
class Cursor:
    """The last order of a page."""

    created_at: datetime
    order_id: str

    def __str__(self) -> str:
        content = json.dumps([self.created_at.isoformat(), self.order_id])
        return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, given: str) -> "Cursor":
        """Read a cursor; raise BadCursor where it is none."""
        try:
            content = base64.b64decode(given + "=" * (-len(given) % 4), altchars=b"-_", validate=True)
            created_at, order_id = json.loads(content)
            found = cls(datetime.fromisoformat(created_at), str(order_id))
            is_whole = found.created_at.tzinfo is not None and is_plausible(found.created_at)
            is_whole = is_whole and "\0" not in found.order_id
            found.order_id.encode()
        except (binascii.Error, ValueError, TypeError, RecursionError) as error:
            raise BadCursor from error
        if not is_whole:
            raise BadCursor
        return found


def is_plausible(instant: datetime) -> bool:
    """Return whether Postgres and every time zone know an instant."""
    return 1970 <= instant.year <= 2999


@dataclass(frozen=True)
class Wanted:
    """Which orders a list is of."""

    status: OrderStatusWord | None = None
    customers: frozenset[str] | None = None
    """None for all."""
    created_from: datetime | None = None
    created_before: datetime | None = None
    after: Cursor | None = None
    limit: int = 50


class Reads:
    """Reads through one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._asked_for: dict[str, asyncio.Future[FoundOrder | None]] = {}
        self._reading: set[asyncio.Task[None]] = set()

    async def order(self, order_id: str) -> FoundOrder | None:
        """Return an order; None where there is none.

        What is asked for at one time, as by those whom one batch has answered, is read at once.
        """
        if not self._asked_for:
            reading = asyncio.create_task(self._read_orders())
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)
        found = self._asked_for.setdefault(order_id, asyncio.get_running_loop().create_future())
        return await asyncio.shield(found)

    async def _read_orders(self) -> None:
        asked, self._asked_for = self._asked_for, {}
        try:
            async with snapshot(self._engine) as connection:
                orders = await find_orders(connection, list(asked))
        except Exception as error:  # noqa: BLE001 - each of those who asked raises it
            for found in asked.values():
                found.set_exception(error)
                found.exception()  # they may have gone
        else:
            for order_id, found in asked.items():
                found.set_result(orders.get(order_id))

    async def page(self, wanted: Wanted) -> Sequence[Row[Any]]:
        """Return a page of orders, the newest first."""
        statuses = tuple(OrderStatus) if wanted.status is None else stored_as(wanted.status)
        if not statuses or wanted.customers == frozenset():
            return []
        query, given = _page(wanted, statuses)
        async with single_statement(self._engine) as connection:
            return (await connection.execute(text(query), given)).all()

    async def counts(self, customers: frozenset[str] | None, most: int = MOST_COUNTED) -> Mapping[OrderStatus, int]:
        """Count the orders of each status: all that have not ended, and of the others one more than `most` at most."""
        given: dict[str, Any] = {"more_than_counted": most + 1}
        whose = ""
        if customers is not None:
            whose, given["customers"] = " AND customer = ANY (CAST(:customers AS text[]))", sorted(customers)
        selects = [
            f"SELECT '{status.value}' AS status, count(*) AS orders FROM (SELECT FROM orders"  # noqa: S608 - our own constants
            f" WHERE status = '{status.value}'{whose}"
            f"{' LIMIT :more_than_counted' if status in ENDINGS else ''}) AS counted"
            for status in OrderStatus
        ]
        async with single_statement(self._engine) as connection:
            rows = (await connection.execute(text(" UNION ALL ".join(selects)), given)).all()
        return {OrderStatus(row.status): row.orders for row in rows}

    async def events(self, order_id: str, after: int, limit: int = MOST_EVENTS) -> Sequence[Row[Any]]:
        """Return an order's events from a number on, the oldest first."""
        given = {"order_id": order_id, "after": after, "limit": limit}
        async with single_statement(self._engine) as connection:
            return (await connection.execute(_EVENTS, given)).all()

    async def newest_events(self, order_ids: Sequence[str]) -> dict[str, int]:
        """Return the number of the newest event of each order that there is."""
        async with single_statement(self._engine) as connection:
            rows = (await connection.execute(_STATES, {"order_ids": list(order_ids)})).all()
        return {row.order_id: row.event_seq for row in rows}

    async def findings(self) -> tuple[Sequence[Row[Any]], int]:
        """Return what the audits found that is not over, and how many orders are stuck."""
        async with snapshot(self._engine) as connection:
            found = (await connection.execute(_FINDINGS)).all()
            return found, (await connection.execute(_STUCK)).scalar_one()

    async def writer(self) -> str | None:
        """Return the name of our role where it may write, for which there is no reason."""
        async with single_statement(self._engine) as connection:
            return (await connection.execute(_MAY_WRITE)).scalar_one_or_none()


def stored_as(status: OrderStatusWord) -> Sequence[OrderStatus]:
    """Return the statuses in the database that are shown as this one."""
    stored = _STORED_AS.get(status)
    return (OrderStatus(status.value),) if stored is None else stored


def _page(wanted: Wanted, statuses: Sequence[OrderStatus]) -> tuple[str, dict[str, Any]]:
    """Put a page together from the first rows of each status and customer, which an index has in sequence.

    So a page costs the same wherever it is, and however many orders there are.
    """
    given: dict[str, Any] = {"limit": wanted.limit}
    bounds = whose = ""
    if wanted.created_from is not None:
        bounds, given["created_from"] = bounds + " AND created_at >= :created_from", wanted.created_from
    if wanted.created_before is not None:
        bounds, given["created_before"] = bounds + " AND created_at < :created_before", wanted.created_before
    if wanted.after is not None:
        bounds += " AND (created_at, order_id) < (:last_at, CAST(:last_id AS text))"
        given |= {"last_at": wanted.after.created_at, "last_id": wanted.after.order_id}
    if wanted.customers is not None:
        # A part for each of them would take seconds to plan for hundreds.
        bounds += " AND customer = c.name"
        whose, given["customers"] = "unnest(CAST(:customers AS text[])) AS c (name),", sorted(wanted.customers)
    columns = "order_id, customer, status, reason, total_minor, currency, created_at, updated_at"
    selects = [
        f"(SELECT part.* FROM {whose} LATERAL (SELECT {columns}"  # noqa: S608 - our own constants
        f" FROM orders WHERE status = '{status.value}'{bounds}"
        " ORDER BY created_at DESC, order_id DESC LIMIT :limit) AS part)"
        for status in statuses
    ]
    # Both constants and placeholders are ours; what a caller gives is bound.
    union = " UNION ALL ".join(selects)
    return f"SELECT * FROM ({union}) AS page ORDER BY created_at DESC, order_id DESC LIMIT :limit", given  # noqa: S608
