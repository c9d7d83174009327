"""A database of one test with the library's tables and nothing else."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from devstack.stack import DevStack
from sagafence import install, transaction
from sagafence.registry import Opening, enter

BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@dataclass
class Bare:
    """A database, and the superuser's engine on it."""

    url: str
    engine: AsyncEngine

    async def rows(self, query: str, **given: Any) -> list[tuple[Any, ...]]:
        async with self.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query), given)]

    async def value(self, query: str, **given: Any) -> Any:
        [(value,)] = await self.rows(query, **given)
        return value

    async def run(self, *statements: str) -> None:
        async with self.engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    async def open(self, opening: Opening) -> None:
        """Write a saga's row, as its first step does."""
        async with transaction(self.engine) as connection:
            await enter(connection, opening)

    async def states(self) -> dict[str, str]:
        return {row[0]: row[1] for row in await self.rows("SELECT saga_id, state FROM sagas")}

    async def until_blocked(self, sessions: int = 1) -> None:
        """Return once so many sessions wait for a lock."""
        async with asyncio.timeout(20):
            while await self.value(BLOCKED) < sessions:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def bare_database(stack: DevStack, administrator: Any, *, installed: bool = True) -> AsyncIterator[Bare]:
    """Make a database, and drop it after the block."""
    name = f"bare_{uuid.uuid4().hex[:12]}"
    await administrator.execute(f'CREATE DATABASE "{name}"')
    url = stack.postgres.url(name)
    engine = create_async_engine(url, pool_size=10)
    try:
        if installed:
            await install(engine)
        yield Bare(url, engine)
    finally:
        await engine.dispose()
        await administrator.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


async def write_fence(connection: AsyncConnection, saga_id: str, step: str, phase: str = "done") -> None:
    """Write a fence row, as a step or its undo does."""
    await connection.execute(
        text("INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, result)"
             " VALUES (:saga_id, :step, :phase, true, 'f', CAST(:result AS jsonb))"),
        {"saga_id": saga_id, "step": step, "phase": phase, "result": json.dumps({"at": step})},
    )  # fmt: skip
