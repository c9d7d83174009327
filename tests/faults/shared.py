"""One database for all cells of a module: cells that count differences need no world of their own."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from devstack.stack import DATABASE, ROLE, DevStack, psql
from tests.conftest import Database


@dataclass
class SharedDatabase(Database):
    """Looks through one connection that it keeps: cells look often."""

    _kept: list[asyncpg.Connection] = field(default_factory=list)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self._turn:
            if not self._kept:
                self._kept.append(await asyncpg.connect(self.admin_url))
            return list(await self._kept[0].fetch(query, *arguments))

    async def close(self) -> None:
        while self._kept:
            await self._kept.pop().close()


@asynccontextmanager
async def shared_database(stack: DevStack) -> AsyncIterator[SharedDatabase]:
    """Clone the database that setup.sql made, and drop the clone in the end."""
    name = f"shared_{uuid.uuid4().hex[:12]}"
    psql(stack.postgres, "postgres", "-c", f'CREATE DATABASE "{name}" TEMPLATE "{DATABASE}"')
    database = SharedDatabase(
        name, stack.postgres.url(name, ROLE), stack.postgres.url(name, "postgres", driver="postgresql")
    )
    try:
        yield database
    finally:
        await database.close()
        psql(stack.postgres, "postgres", "-c", f'DROP DATABASE "{name}" WITH (FORCE)')
