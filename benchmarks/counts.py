"""What an order costs in things that can be counted on any machine: commits, statements, bytes, events.

Commits are transactions that wrote (they take a transaction id), on the whole Postgres server. Statements are those
that clients sent, BEGIN and COMMIT included: each is a round trip. What the server does in as many idle seconds is
subtracted. The orders come in parts, each after its own idle time, and the median part counts: a checkpoint or a vacuum
during one of them says nothing about orders. Each part has at least twice as many orders as there are at once, since
orders that come together may share what they cost.
"""

import asyncio
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg

from benchmarks.contenders.contender import Contender, Footprint
from benchmarks.measure import run_round
from devstack.stack import psql
from domain.model import CheckoutInput
from sagafence.devservers.postgres import PostgresServer

_PARTS = 3
_IDLE_SECONDS = 1.5
_STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*):")


@dataclass(frozen=True)
class Counts:
    """Per order, on average."""

    commits: float
    statements: float
    wal_bytes: float
    kept: Footprint


@dataclass(frozen=True)
class _Reading:
    at: float
    commits: int
    wal_bytes: int
    log_bytes: int


def enough(asked_for: int, at_once: int) -> int:
    """Return how many orders to count: as many as are asked for, or more where more come at once."""
    return max(asked_for, _PARTS * 2 * at_once)


class Ledger:
    """Counts on one Postgres server."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._postgres = postgres

    @contextmanager
    def listing(self) -> Iterator[None]:
        """Have the server log every statement inside the block."""
        self._set_up("ALTER SYSTEM SET log_statement = 'all'")
        try:
            yield
        finally:
            self._set_up("ALTER SYSTEM RESET log_statement")

    async def count(
        self, contender: Contender, orders: Sequence[CheckoutInput], at_once: int, ended: Sequence[CheckoutInput]
    ) -> Counts:
        """Process the orders and count; what is kept is that of orders which have ended. Call it inside `listing`."""
        connection = await asyncpg.connect(self._postgres.url(driver="postgresql"))
        try:
            number = min(_PARTS, len(orders))
            parts = [await self._count(connection, contender, orders[part::number], at_once) for part in range(number)]
        finally:
            await connection.close()
        commits, statements, wal_bytes = (statistics.median(each) for each in zip(*parts, strict=True))
        return Counts(commits, statements, wal_bytes, await contender.footprint(ended))

    async def _count(
        self,
        connection: "asyncpg.Connection[asyncpg.Record]",
        contender: Contender,
        orders: Sequence[CheckoutInput],
        at_once: int,
    ) -> tuple[float, float, float]:
        idle = await self._read(connection)
        await asyncio.sleep(_IDLE_SECONDS)
        begun = await self._read(connection)
        await run_round(contender, orders, at_once, self._postgres.pid)
        ended = await self._read(connection)
        share = (ended.at - begun.at) / (begun.at - idle.at)

        def per_order(done: int, while_idle: int) -> float:
            return (done - while_idle * share) / len(orders)

        return (
            per_order(ended.commits - begun.commits, begun.commits - idle.commits),
            per_order(self._statements(begun, ended), self._statements(idle, begun)),
            per_order(ended.wal_bytes - begun.wal_bytes, begun.wal_bytes - idle.wal_bytes),
        )

    async def _read(self, connection: "asyncpg.Connection[asyncpg.Record]") -> _Reading:
        row = await connection.fetchrow(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS transactions, "
            "pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS wal"
        )
        return _Reading(time.perf_counter(), row["transactions"], row["wal"], self._postgres.log.stat().st_size)

    def _statements(self, begun: _Reading, ended: _Reading) -> int:
        with self._postgres.log.open("rb") as log:
            log.seek(begun.log_bytes)
            text = log.read(ended.log_bytes - begun.log_bytes).decode(errors="replace")
        return len(_STATEMENT.findall(text)) - 1  # the second reading's own

    def _set_up(self, setting: str) -> None:
        psql(self._postgres, "postgres", "-c", setting)
        psql(self._postgres, "postgres", "-c", "SELECT pg_reload_conf()")
        time.sleep(0.5)  # for open sessions to reload it
