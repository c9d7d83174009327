"""One external step under test: its rows, its provider over HTTP, and an author's functions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

import sagafence
from sagafence import FenceKey, UndoResult
from sagafence.errors import CallRejected, KeyReused, Refusal, StoredFailure
from sagafence.external_steps import Calls, ExternalSteps
from sagafence.provider import Happened, Key, Known, Never, Provider, Seen, Stands, Verdict
from tests.conftest import Database
from tests.sagafence.http_provider import HttpProvider, send

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SCHEMA = (Path(sagafence.__file__).parent / "schema" / "external.sql").read_text(encoding="utf-8")
_RIGHTS = "GRANT SELECT, INSERT, UPDATE ON external_steps, external_calls, saga_verdicts TO checkout"

Look = Callable[[Key, Any], Awaitable[int | None]]


class NoCredit(Refusal):
    """The provider's final no."""


class NoAnswer(Exception):
    """A 5xx that nobody marked, or no answer at all."""


@dataclass
class Bench:
    """A step, `buy`, whose result is the number of a thing."""

    engine: AsyncEngine
    database: Database
    http: HttpProvider
    provider: Provider
    can_look: bool = False
    key: FenceKey = field(default_factory=lambda: FenceKey("saga-1", "buy", "of this request"))
    request: Any = field(default_factory=lambda: {"size": 3})
    look_instead: Look | None = None

    @property
    def steps(self) -> ExternalSteps:
        return ExternalSteps(self.engine, self.provider)

    def calls(self) -> Calls[int]:
        look = (self.look_instead or self._look) if self.can_look else None
        return Calls(self._do, self._undo, look, dump=lambda number: number, load=int)

    async def do(self) -> int:
        return await self.steps.do(self.key, self.request, self.calls())

    async def undo(self) -> UndoResult:
        return await self.steps.undo(self.key, self.request, self.calls())

    async def settle(self) -> Happened[int] | Never:
        return await self.steps.settle(self.key, self.request, self.calls())

    async def resolve(
        self,
        verdict: Verdict,
        result: Any = None,
        *,
        who: str = "ann",
        why: str = "I looked",
        looked_at: datetime | None = None,
    ) -> None:
        await self.steps.resolve(self.key, verdict, who=who, why=why, result=result, looked_at=looked_at)

    async def row(self, column: str) -> Any:
        return await self.database.value(f"SELECT {column} FROM external_steps")

    async def phase(self) -> str:
        return str(await self.row("phase"))

    async def calls_made(self) -> list[tuple[str, bool, str | None]]:
        rows = await self.database.fetch("SELECT kind, live, status FROM external_calls ORDER BY n")
        return [(row["kind"], row["live"], row["status"]) for row in rows]

    async def grow_older(self, by: timedelta) -> None:
        """Let time pass, as the rows have it."""
        moved = ", ".join(f"{name} = {name} - $1::interval" for name in _INSTANTS)
        async with self.database.connected() as connection:
            await connection.execute(f"UPDATE external_steps SET {moved}", by)

    @asynccontextmanager
    async def held_do(self) -> AsyncIterator["asyncio.Task[int]"]:
        """Run a do whose request the provider holds, and let it go at the end of the block."""
        self.http.is_held.clear()
        self.http.may_go_on.clear()
        task = asyncio.create_task(self.do())
        await asyncio.wait_for(self.http.is_held.wait(), 20)
        yield task
        self.http.may_go_on.set()
        await asyncio.wait([task])

    async def _do(self, key: Key, request: Any) -> int:
        status, headers, body = await send(self.http.port, "POST", "/things", key, request)
        if status == 201:
            return int(body["id"])
        if status == 402:
            raise NoCredit(str(body))
        if status == 422:
            raise KeyReused(str(body))
        if status < 500:
            raise CallRejected(str(status))
        if "Idempotent-Replayed" in headers:
            raise StoredFailure(str(status))
        raise NoAnswer(str(status))

    async def _undo(self, key: Key, _request: Any, seen: Seen[int]) -> Stands[int] | None:
        if self.provider.settles.name == "BY_VOIDING":
            status, _, body = await send(self.http.port, "POST", "/voids", "", {"key": str(key)})
        else:
            assert isinstance(seen, Known)
            status, _, body = await send(self.http.port, "DELETE", f"/things/{seen.result}", key.undo)
        if status == 410:
            return Stands(seen.result if isinstance(seen, Known) else int(body["id"]))
        if status != 200:
            raise NoAnswer(str(status))
        return None

    async def _look(self, key: Key, _request: Any) -> int | None:
        _, _, found = await send(self.http.port, "GET", "/things", key)
        return found[0] if found else None


_INSTANTS = ("first_at", "last_at", "rev_first_at", "rev_last_at")


async def make_tables(database: Database) -> None:
    for _ in range(2):  # it can be run again
        await database.run(SCHEMA)
    await database.run(_RIGHTS)
