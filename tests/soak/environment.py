"""What an operator does to the environment of a service that works: no order may end because of it.

The database is read-only for a while, and every session that was opened meanwhile is so for as long as it lives, as
after a failover that led to a reader. The password is rotated, and the workers' file has the new one later. A right is
taken away, or a column has another name, until a worker reports it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, cast

import asyncpg

from devstack.stack import DATABASE, ROLE
from tests.soak.harness import AWAY, Harness, SoakFailed
from tests.soak.plan import PlannedFault

_EVIDENCE_SECONDS = 20.0
_POLL_SECONDS = 0.2
_END_SESSIONS = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{ROLE}'"
_SESSIONS_OF = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}' AND backend_start BETWEEN $1 AND $2"
_CERTAINLY = timedelta(seconds=1)
"""A session that began so long before the setting went has read it."""
# What steps and undos need, and the audit does not, which goes on meanwhile.
_COLUMNS = (("products", "unit_price_minor"), ("delivery_zones", "hands_over_at_once"), ("orders", "taken_back_by"))


class Environment:
    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.acts: dict[str, Callable[[PlannedFault], Awaitable[str | None]]] = {
            "postgres-read-only": self._read_only,
            "postgres-password": self._rotate_password,
            "postgres-right": self._revoke_right,
            "postgres-column": self._rename_column,
        }

    async def _read_only(self, fault: PlannedFault) -> str | None:
        setting = f'ALTER DATABASE "{DATABASE}" {{}} default_transaction_read_only'
        begun: list[datetime] = []

        async def end() -> None:
            ended = await self._now()
            await self._run(setting.format("RESET"))
            await self._require_gone(begun[0], ended - _CERTAINLY)

        return await self._while_wrong(
            fault, [f"{setting.format('SET')} = on", _END_SESSIONS], end, "(25006)", begun=begun
        )

    async def _require_gone(self, first: datetime, last: datetime) -> None:
        deadline = time.monotonic() + _EVIDENCE_SECONDS
        while kept := await self._ask(_SESSIONS_OF, first, last):
            if time.monotonic() > deadline:
                raise SoakFailed(f"{kept} sessions that cannot write are kept")
            await asyncio.sleep(_POLL_SECONDS)

    async def _now(self) -> datetime:
        return cast("datetime", await self._ask("SELECT clock_timestamp()"))

    async def _rotate_password(self, fault: PlannedFault) -> str | None:
        password = f"password-{fault.number + 1}"

        async def tell_workers() -> None:
            self._harness.password_file.write_text(password + "\n", encoding="utf-8")

        changed = [f"ALTER ROLE {ROLE} PASSWORD '{password}'", _END_SESSIONS]
        return await self._while_wrong(fault, changed, tell_workers, "(28P01)")

    async def _revoke_right(self, fault: PlannedFault) -> str | None:
        granted = f"GRANT INSERT ON step_fence TO {ROLE}"
        revoked = f"REVOKE INSERT ON step_fence FROM {ROLE}"
        return await self._while_wrong(fault, [revoked], lambda: self._run(granted), "(42501)")

    async def _rename_column(self, fault: PlannedFault) -> str | None:
        table, column = _COLUMNS[fault.target % len(_COLUMNS)]
        rename = f"ALTER TABLE {table} RENAME COLUMN {{}} TO {{}}"
        away = f"{column}_renamed"
        return await self._while_wrong(
            fault, [rename.format(column, away)], lambda: self._run(rename.format(away, column)), "(42703)"
        )

    async def _while_wrong(
        self,
        fault: PlannedFault,
        begin: list[str],
        end: Callable[[], Awaitable[None]],
        code: str,
        *,
        begun: list[datetime] | None = None,
    ) -> str | None:
        """Leave the environment wrong for as long as planned and until a worker has noticed."""
        before, deadline = self._times_told(code), time.monotonic() + _EVIDENCE_SECONDS
        for statement in begin:
            await self._run(statement)
        if begun is not None:
            begun.append(await self._now())
        try:
            await asyncio.sleep(fault.seconds)
            while not (output := self._times_told(code) - before) and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            await end()
        return f"told {output} times by the workers" if output else None

    async def _run(self, statement: str) -> None:
        """Run a statement, again until it is done; without a queue behind one that waits for a lock."""
        while True:
            try:
                async with self._harness.asking() as connection:
                    await connection.execute("SET lock_timeout = '1s'")
                    await connection.execute(statement)
            except (*AWAY, asyncpg.LockNotAvailableError):
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return

    async def _ask(self, question: str, *parameters: Any) -> Any:
        while True:
            try:
                async with self._harness.asking() as connection:
                    return await connection.fetchval(question, *parameters)
            except AWAY:
                await asyncio.sleep(_POLL_SECONDS)

    def _times_told(self, code: str) -> int:
        return sum(
            worker.log.read_text(encoding="utf-8", errors="replace").count(code) for worker in self._harness.workers
        )
