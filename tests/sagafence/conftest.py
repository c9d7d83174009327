"""A database with the library's tables, and workers of declared sagas."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from temporalio.client import Client

from devstack.stack import DevStack
from tests.conftest import DROP, Database, named_database
from tests.sagafence.trips import Trips

# Until the library ships its tables.
_TABLES = """
CREATE TABLE step_fence (saga_id text NOT NULL, step text NOT NULL, phase text NOT NULL, had_effect boolean NOT NULL,
    fingerprint text NOT NULL, result jsonb, created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (saga_id, step));
CREATE TABLE sagas (saga_id text PRIMARY KEY, workflow_type text, task_queue text, input jsonb,
    state text DEFAULT 'open', outcome text, started_at timestamptz DEFAULT now(), ended_at timestamptz);
CREATE TABLE saga_verdicts (saga_id text, step text, verdict text, who text, why text, result jsonb,
    at timestamptz DEFAULT now());
"""
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
    await library_database.run(_TABLES)
    yield made
    await made.dispose()


@pytest.fixture
async def trips(client: Client, library_engine: AsyncEngine, library_database: Database) -> Trips:
    """The saga, with no worker running yet."""
    await library_database.run(_EFFECTS)
    return Trips(client, library_engine, library_database)
