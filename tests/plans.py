"""How Postgres reads for the sweep, the audit and saga.log: by its own plans of the product's own statements."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import asyncpg

from activities.audit import _HAS_EVENT, _NEWEST_EVENT, audit_checks
from activities.lookups import _EVENTS_LOOKED_AT, _NEWEST
from activities.lookups import _UNFINISHED as _NEWEST_UNFINISHED
from activities.sweep import _UNFINISHED, _UNFINISHED_STILL
from adapters.event_query import NEXT_EVENTS

BIG = frozenset({"orders", "order_lines", "reservations", "transfers", "shipments", "step_fence", "order_events"})
"""The tables to which every order adds rows."""
BOUNDED_CHECKS = ("A3", "Q1", "Q7")
"""The audit's checks of unfinished orders and of the catalogue. The others read everything."""

_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")


@dataclass(frozen=True)
class Statement:
    """A statement of the product, with SQL in the place of what it binds."""

    name: str
    text: str
    values: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[object] = ()
    """What is bound by number, where the text is as the driver got it."""

    @property
    def sql(self) -> str:
        """The text with the values filled in."""
        return _PARAMETER.sub(lambda found: self.values[found[1]], self.text)


def audit() -> list[Statement]:
    """Return the audit's checks."""
    return [Statement(name, query.text, {"at_rest_after": "'1 hour'"}) for name, (_, query) in audit_checks().items()]


def page_of_the_sweep(
    after_at: object, after_id: str, *, name: str = "a later page of the sweep", limit: int = 100
) -> Statement:
    """Return the sweep's search for what comes after an order."""
    values = {"idle_for": "'60 s'", "limit": str(limit), "after_at": f"'{after_at}'", "after_id": f"'{after_id}'"}
    return Statement(name, _UNFINISHED.text, values)


async def bounded(connection: "asyncpg.Connection[asyncpg.Record]") -> list[Statement]:
    """Return what runs every minute or every half second: its cost must not grow with the orders that have ended."""
    middle = await connection.fetchrow(
        "SELECT updated_at, order_id FROM orders WHERE status = 'reserved' ORDER BY 1, 2 "
        "OFFSET (SELECT count(*) / 2 FROM orders WHERE status = 'reserved') LIMIT 1"
    )
    newest = await connection.fetchrow("SELECT * FROM order_events ORDER BY event_id DESC LIMIT 1")
    some = f"'{{{middle['order_id']}}}'"
    event = {name: f"'{newest[name]}'" for name in ("event_id", "order_id", "txid", "seq")}
    at = newest["at"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    newest_events = {"before": str(newest["event_id"] + 1), "oldest": str(newest["event_id"] + 1 - _EVENTS_LOOKED_AT)}
    line = f"{at}Z {newest['order_id']} #{newest['seq']} "
    return [
        page_of_the_sweep("0001-01-01", "", name="the sweep's first page"),
        page_of_the_sweep(middle["updated_at"], middle["order_id"]),
        Statement("the sweep's contradictions", _UNFINISHED_STILL.text, {"order_ids": some}),
        Statement("saga.log at its end", NEXT_EVENTS.text, {**event, "line": f"'{line}'", "limit": "500"}),
        Statement("saga.log behind a restore", NEXT_EVENTS.text, {**event, "line": "'another event'", "limit": "500"}),
        Statement(
            "saga.log at its beginning",
            NEXT_EVENTS.text,
            {"txid": "'0'", "event_id": "0", "line": "''", "limit": "500"},
        ),
        Statement("the audit's anchor", _NEWEST_EVENT.text),
        Statement("the audit's last anchor", _HAS_EVENT.text, {**event, "at": "'0'"}),
        Statement(
            "the newest orders of a list",
            _NEWEST.text,
            {**newest_events, "statuses": "'{}'", "limit": "100"},
        ),
        Statement(
            "the newest orders at a status that is rare",
            _NEWEST.text,
            {**newest_events, "statuses": "'{cancelled}'", "limit": "100"},
        ),
        Statement(
            "the unfinished orders of a list", _NEWEST_UNFINISHED.text, {"statuses": "'{stuck}'", "limit": "100"}
        ),
        *(check for check in audit() if check.name in BOUNDED_CHECKS),
    ]


async def scanned(connection: "asyncpg.Connection[asyncpg.Record]", statement: Statement) -> set[str]:
    """Return the big tables that the statement's plan reads from end to end."""
    plan = await _plan(connection, "EXPLAIN (FORMAT JSON)", statement)
    return {node["Relation Name"] for node in _nodes(plan) if node["Node Type"] == "Seq Scan"} & BIG


async def rows_read(connection: "asyncpg.Connection[asyncpg.Record]", statement: Statement) -> int:
    """Run the statement and count the rows of tables and indexes that were looked at for it."""
    plan = await _plan(connection, "EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON)", statement)
    read: float = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in _nodes(plan)
        if "Relation Name" in node
    )
    return round(read)


async def _plan(connection: "asyncpg.Connection[asyncpg.Record]", explain: str, statement: Statement) -> dict[str, Any]:
    [explained] = json.loads(await connection.fetchval(f"{explain} {statement.sql}", *statement.arguments))
    plan: dict[str, Any] = explained["Plan"]
    return plan


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from _nodes(below)
