"""A database with the library's tables, and workers of declared sagas."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from temporalio.client import Client

from devstack.stack import DevStack
from sagafence import install
from tests.conftest import DROP, Database, named_database
from tests.sagafence.trips import Trips

_EFFECTS = "CREATE TABLE effects (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, saga_id text, step text)"


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
    await library_database.run(_EFFECTS)
    return Trips(client, library_engine, library_database)
