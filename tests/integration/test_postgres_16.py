"""The oldest server that can be had here, 16, below the 17 that limits a transaction's age: a part of the suite.

The rest runs on it with `EMBEDDED_POSTGRES=16 .venv/bin/python -m pytest`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client, WorkflowFailureError

from adapters import schema
from adapters.database import create_audit_engine, create_engine
from devstack.stack import DATABASE, make_database
from sagafence import DatabaseUnavailable, transaction
from sagafence import database as library
from sagafence.devservers.postgres import PostgresServer
from tests.conftest import Database, Shop, database_on, postgres_of_its_own
from tests.identifiers import disagreements


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with postgres_of_its_own(tmp_path_factory.mktemp("old"), version=16) as made:
        make_database(made, DATABASE)
        yield made


@pytest.fixture
def database(server: PostgresServer) -> Iterator[Database]:
    with database_on(server) as made:
        yield made


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    made = create_engine(database.url)
    yield made
    await made.dispose()


@pytest.fixture
def shop(client: Client, engine: AsyncEngine, database: Database) -> Shop:
    return Shop(client, engine, database)


async def test_nothing_is_lacking(database: Database, engine: AsyncEngine) -> None:
    sweep, audit = create_engine(database.url, has_long_statements=True), create_audit_engine(database.url)

    lacks = await schema.problems(engine, sweep, audit)
    async with audit.connect() as connection:
        limit = (await connection.execute(text("SHOW statement_timeout"))).scalar_one()

    assert lacks == []
    assert limit == "29min"
    assert str(await database.value("SHOW server_version")).startswith("16.")
    await sweep.dispose()
    await audit.dispose()


async def test_an_order_completes_another_is_undone_and_nothing_is_violated(shop: Shop) -> None:
    async with shop.working():
        done = await (await shop.start(shop.order("alice"))).result()
        with suppress(WorkflowFailureError):
            await (await shop.start(shop.order("nemo"))).result()
        report = await shop.audit()

    assert done.status == "completed"
    assert dict(await shop.database.fetch("SELECT status, count(*) FROM orders GROUP BY 1")) == {
        "completed": 1,
        "rejected": 1,
    }
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'refund'") == 1
    assert report.violation_count == 0


async def test_every_character_means_the_same_to_it(database: Database) -> None:
    assert await disagreements(database, "a{}b".format, "'a' || chr(c) || 'b'") == set()


async def test_a_transaction_that_lives_too_long_is_ended_and_is_an_outage(
    database: Database, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_TRANSACTION_SECONDS", 0.5)

    async def go_on() -> None:
        async with asyncio.timeout(20), transaction(engine) as connection:
            await connection.execute(text("UPDATE inventory SET reserved = 1 WHERE sku = 'lamp'"))
            while True:
                await connection.execute(text("SELECT pg_sleep(0.05)"))

    with pytest.raises(DatabaseUnavailable):
        await go_on()

    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND usename = 'checkout'"
    async with asyncio.timeout(10):
        while await database.value(open_ones):
            await asyncio.sleep(0.02)
    assert await database.value("SELECT reserved FROM inventory WHERE sku = 'lamp'") == 0


async def test_a_transaction_whose_client_is_gone_is_ended_by_the_server(database: Database) -> None:
    limits = await database.value(
        "SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'checkout'::regrole AND setdatabase = 0"
    )

    assert {"idle_in_transaction_session_timeout=5s", "statement_timeout=3s"} <= set(limits)
    assert not any(limit.startswith("transaction_timeout") for limit in limits)
