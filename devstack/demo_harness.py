"""The demo's calls of starter.py, and its faults from outside the product."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from devstack.stack import DATABASE, ROOT, DevStack
from sagafence.devservers.process import ChildProcess

_TIMEOUT_SECONDS = 30.0


class DemoError(Exception):
    """The demo itself failed; that says nothing about the product."""


@dataclass(frozen=True)
class Answer:
    """The answer of a starter.py call."""

    code: int
    document: dict[str, Any]
    error: str

    @property
    def status(self) -> str:
        """The order's status, or the error."""
        return str(self.document.get("status") or self.error or f"exit {self.code}")

    @property
    def reason(self) -> str:
        """Why it ended so."""
        return str(self.document.get("reason") or "")


@dataclass(frozen=True)
class Holdings:
    """A SKU's stock and a customer's balance."""

    on_hand: int
    free: int
    balance_minor: int


class DemoHarness:
    """The running stack from outside: its commands, its processes and its database."""

    def __init__(self, stack: DevStack) -> None:
        self.stack = stack
        self.workers: list[ChildProcess] = []

    def add_worker(self) -> ChildProcess:
        """Start one more worker.py and wait until it is ready."""
        worker = self.stack.start_worker()
        worker.until(lambda: "ready: task queue" in worker.tail(50), timeout=_TIMEOUT_SECONDS)
        self.workers.append(worker)
        return worker

    async def starter(self, *arguments: str) -> Answer:
        """Run `starter.py ARGUMENTS --json` and return its answer."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "starter.py"),
            *arguments,
            "--json",
            cwd=ROOT,
            env=self.stack.environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), timeout=2 * _TIMEOUT_SECONDS)
        text = out.decode().strip()
        found = json.loads(text) if text else {}
        document = found if isinstance(found, dict) else {"found": found}
        return Answer(process.returncode or 0, document, " ".join(err.decode().split()))

    @asynccontextmanager
    async def database(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """Connect to the database as its superuser."""
        connection = await asyncpg.connect(self.stack.postgres.url(DATABASE, driver="postgresql"))
        try:
            yield connection
        finally:
            if not connection.is_closed():
                connection.terminate()

    async def holdings(self, sku: str, customer: str) -> Holdings:
        """Read a SKU's stock and a customer's balance."""
        async with self.database() as connection:
            row = await connection.fetchrow(
                "SELECT i.on_hand, i.on_hand - i.reserved AS free, a.balance_minor"
                " FROM inventory i, accounts a WHERE i.sku = $1 AND a.account_id = $2",
                sku,
                customer,
            )
        if row is None:
            raise DemoError(f"the catalogue has no {sku} or no {customer}")
        return Holdings(row["on_hand"], row["free"], row["balance_minor"])

    async def run_sql(self, statements: str) -> None:
        """Run statements by hand, as the superuser."""
        async with self.database() as connection:
            await connection.execute(statements)

    @asynccontextmanager
    async def account_locked(self, customer: str) -> AsyncIterator[None]:
        """Lock a customer's account row, so that the payment of the next order waits."""
        async with self.database() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("SELECT FROM accounts WHERE account_id = $1 FOR UPDATE", customer)
            yield
            if not connection.is_closed():
                await transaction.rollback()

    async def until_payment_waits(self) -> None:
        """Wait until a worker's payment is blocked by `account_locked`."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            async with self.database() as connection:
                waiting = await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE usename = 'checkout' AND wait_event_type = 'Lock'"
                )
            if waiting:
                return
            await asyncio.sleep(0.05)
        raise DemoError("no payment came to the locked account")
