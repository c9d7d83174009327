"""What the tests of external steps need."""

from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from sagafence.provider import Keeps, Provider
from tests.conftest import Database
from tests.sagafence.bench import Bench, make_tables
from tests.sagafence.http_provider import HttpProvider

MakeBench = Callable[..., Bench]


@pytest.fixture
async def http() -> AsyncIterator[HttpProvider]:
    async with HttpProvider() as running:
        yield running


@pytest.fixture
async def bench(engine: AsyncEngine, database: Database, http: HttpProvider) -> MakeBench:
    """Make a bench for a provider; the server over HTTP keeps under its keys what the declaration says."""
    await make_tables(database)

    def made(provider: Provider, *, can_look: bool = False) -> Bench:
        http.keeps = provider.keeps or Keeps.NOTHING
        http.void_blocks = provider.void_blocks
        return Bench(engine, database, http, provider, can_look)

    return made
