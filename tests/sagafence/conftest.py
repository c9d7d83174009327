"""A database with the library's tables, workers of declared sagas, and a bench for one external step."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from temporalio.client import Client

from devstack.stack import DevStack
from sagafence import install
from sagafence.provider import Keeps, Provider
from tests.conftest import DROP, Database, named_database
from tests.sagafence.bare import Bare, bare_database
from tests.sagafence.bench import Bench, make_tables
from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.http_provider import HttpProvider
from tests.sagafence.trips import Trips

MakeBench = Callable[..., Bench]
EFFECTS = "CREATE TABLE effects (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, saga_id text, step text)"


@pytest.fixture
async def bare(stack: DevStack, administrator: Any) -> AsyncIterator[Bare]:
    """A database with the library's tables and nothing else."""
    async with bare_database(stack, administrator) as made:
        yield made


@pytest.fixture
async def library_database(
    stack: DevStack, administrator: "asyncpg.Connection[asyncpg.Record]"
) -> AsyncIterator[Database]:
    """An empty database."""
    made = named_database(stack.postgres)
    await administrator.execute(f'CREATE DATABASE "{made.name}"')
    yield made
    await administrator.execute(DROP.format(made.name))


@pytest.fixture
async def library_engine(library_database: Database) -> AsyncIterator[AsyncEngine]:
    """An engine on a database with the library's tables."""
    made = create_async_engine(library_database.admin_url.replace("postgresql:", "postgresql+asyncpg:"), pool_size=10)
    await install(made)
    yield made
    await made.dispose()


@pytest.fixture
async def trips(client: Client, library_engine: AsyncEngine, library_database: Database) -> Trips:
    """The saga, with no worker running yet."""
    await library_database.run(EFFECTS)
    return Trips(client, library_engine, library_database)


@pytest.fixture
async def http() -> AsyncIterator[HttpProvider]:
    """A provider over HTTP."""
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


@pytest.fixture
async def elsewhere(client: Client, library_engine: AsyncEngine, library_database: Database) -> Elsewhere:
    """The saga with effects elsewhere, with no worker running yet."""
    await library_database.run(EFFECTS)
    return Elsewhere(client, library_engine, library_database)
