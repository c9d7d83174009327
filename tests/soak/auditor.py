"""Checks every invariant of activities/audit.sql about once a second while the soak runs.

A round is one REPEATABLE READ, READ ONLY transaction on a connection of its own, with the very SQL of the audit.

The audit reads everything, and everything grows: at 100 000 orders a whole round would take the machine away
from the checkout. So a round is whole as often as that costs a tenth of the time at most. In between, the checks
that look at one order at a time see only the orders that are open or have ended lately: the same SQL, with a
schema of views of the same names in front. The checks of sums (`_SUMS`) always see everything.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import asyncpg

from activities.audit import audit_checks
from tests.soak.harness import AWAY, Harness, SoakFailed

_PERIOD_SECONDS = 0.7
_WHOLE_SHARE = 0.1
_SUMS = {"A1", "A2", "A3", "A4", "A12", "A13"}
PER_ORDER = {
    "orders": "order_id",
    "order_lines": "order_id",
    "reservations": "order_id",
    "shipments": "order_id",
    "transfers": "order_id",
    "order_events": "order_id",
    "incidents": "order_id",
    "step_fence": "saga_id",
}
"""The tables whose rows belong to one order, and the column that says to which."""
# Joined with, and not compared with as an array: that would be taken apart anew for each row.
_LATELY = "SELECT unnest(string_to_array(current_setting('soak.lately'), ','))"


@dataclass
class AuditCounts:
    whole: int = 0
    partial: int = 0
    waited: int = 0
    slowest_whole: float = 0.0
    slowest_partial: float = 0.0
    longest_gap: float = 0.0
    """Seconds from one round to the next, Postgres being up all the time."""
    slowest: dict[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds that each check has taken in all rounds together; those in partial rounds by themselves."""

    @property
    def snapshots(self) -> int:
        return self.whole + self.partial


class Auditor:
    def __init__(self, harness: Harness, lately: Callable[[], Iterable[str]], is_away: Callable[[], bool]) -> None:
        self._harness = harness
        self._is_away = is_away
        self._lately = lately
        self._checks = {name: query.text for name, (_, query) in audit_checks().items() if name.startswith("A")}
        self._next_whole = 0.0
        self.counts = AuditCounts()

    async def prepare(self) -> None:
        views = "".join(
            f"CREATE VIEW soak.{table} AS SELECT * FROM public.{table} WHERE {key} IN ({_LATELY});"
            for table, key in PER_ORDER.items()
        )
        async with self._harness.asking() as connection:
            await connection.execute(views)

    async def run(self) -> None:
        before = time.monotonic()
        while True:
            try:
                async with self._harness.asking() as connection:
                    while True:
                        begun = time.monotonic()
                        await self._round(connection)
                        self.counts.longest_gap = max(self.counts.longest_gap, begun - before)
                        before = begun
                        await asyncio.sleep(max(0.0, begun + _PERIOD_SECONDS - time.monotonic()))
            except AWAY:
                self.counts.waited += 1
                await asyncio.sleep(0.2)
                if self._is_away():
                    before = time.monotonic()

    async def _round(self, connection: asyncpg.Connection) -> None:
        begun = time.monotonic()
        is_whole = begun >= self._next_whole
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute("SELECT set_config('soak.lately', $1, true)", ",".join(self._lately()))
            for name, query in self._checks.items():
                begun_check = time.monotonic()
                schemas = "public" if is_whole or name in _SUMS else "soak, public"
                await connection.execute(f"SET LOCAL search_path = {schemas}")
                if rows := await connection.fetch(query):
                    found = json.dumps([dict(row) for row in rows[:20]], default=str)
                    raise SoakFailed(f"{name} is violated in a live snapshot: {found}")
                took = time.monotonic() - begun_check
                self.counts.spent[name if is_whole else f"{name}, partial"] += took
                if is_whole:
                    self.counts.slowest[name] = max(self.counts.slowest.get(name, 0.0), round(took, 4))
        took = time.monotonic() - begun
        if is_whole:
            self.counts.whole += 1
            self.counts.slowest_whole = max(self.counts.slowest_whole, took)
            self._next_whole = time.monotonic() + took / _WHOLE_SHARE
        else:
            self.counts.partial += 1
            self.counts.slowest_partial = max(self.counts.slowest_partial, took)
