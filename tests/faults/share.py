"""What suites of many cases share: which part of them `make test` runs, and one database for all of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from devstack.stack import DevStack
from tests.conftest import Database, cloned_database


def share(cases: Iterable[Any], *, every: int) -> list[Any]:
    """Make test parameters of all cases; only each `every`-th stays in `make test`.

    Choose `every` coprime to the length of the innermost axis, so that the share meets all values of every axis.
    """
    marks = pytest.mark.exhaustive
    return [pytest.param(case, id=str(case), marks=() if n % every == 0 else marks) for n, case in enumerate(cases)]


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
    with cloned_database(stack) as made:
        database = SharedDatabase(made.name, made.url, made.admin_url)
        try:
            yield database
        finally:
            await database.close()
