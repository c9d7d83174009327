"""What the worker's role may do beyond its work is told when a worker starts, with what an administrator runs."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import rights
from adapters.database import create_audit_engine, create_engine
from adapters.readiness import Engines, check_database
from devstack.ports import free_port
from devstack.postgres import PostgresServer
from devstack.stack import DATABASE, ROLE, ROOT, DevStack, give_passwords, make_database, psql
from tests.memory import folder_in_memory
from tests.unit.test_policies import SETUP


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of our own: what a role may do elsewhere on it is what this is about."""
    with folder_in_memory(tmp_path_factory.mktemp("alarms")) as folder:
        made = PostgresServer(folder / "pg", port=free_port(), log=folder / "log", fsync=False, guarded=True)
        made.start()
        make_database(made, DATABASE)
        give_passwords(made)
        yield made
        made.remove()


@pytest.fixture
async def engine(server: PostgresServer) -> AsyncIterator[AsyncEngine]:
    """The worker's engine on a database that is as setup.sql leaves it."""
    made = create_engine(server.url(DATABASE, ROLE))
    yield made
    await made.dispose()


async def test_of_a_role_as_setup_sql_makes_it_nothing_is_told(engine: AsyncEngine) -> None:
    assert await rights.too_much(engine) == []


_SETUP = f"\\i {ROOT / 'setup.sql'}"
# What somebody did, how it is taken back, and what is told.
_TOO_MUCH = {
    "attribute": (
        "ALTER ROLE checkout CREATEDB",
        "ALTER ROLE checkout NOCREATEDB",
        "it is CREATEDB (run ALTER ROLE checkout NOCREATEDB)",
    ),
    "membership": (
        "GRANT pg_monitor TO checkout",
        "REVOKE pg_monitor FROM checkout",
        "it is a member of pg_monitor (run REVOKE pg_monitor FROM checkout)",
    ),
    "no limit": (
        "ALTER ROLE checkout CONNECTION LIMIT -1",
        _SETUP,
        "it may take every session that the server has (run setup.sql)",
    ),
    "another database": (
        "CREATE DATABASE elsewhere",
        "DROP DATABASE elsewhere WITH (FORCE)",
        "it gets into other databases too: elsewhere (run REVOKE CONNECT ON DATABASE elsewhere FROM PUBLIC, checkout)",
    ),
    "settings of its own": (
        "ALTER ROLE checkout SET log_min_messages = 'panic'",
        "ALTER ROLE checkout RESET log_min_messages",
        (
            "it has settings of its own that setup.sql does not give it: log_min_messages"
            " (run ALTER ROLE checkout RESET log_min_messages)"
        ),
    ),
    "tables of its own": (
        "ALTER TABLE incidents OWNER TO checkout",
        _SETUP,
        "it owns tables of ours (run setup.sql)",
    ),
    "the schema": (
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        _SETUP,
        "it may make things in schema public (run setup.sql)",
    ),
    "temporary tables": (
        "GRANT TEMP ON DATABASE checkout TO PUBLIC",
        _SETUP,
        "it may make temporary tables or schemas in this database (run setup.sql)",
    ),
}


@pytest.mark.parametrize("what", _TOO_MUCH)
async def test_whatever_is_too_much_is_told(what: str, server: PostgresServer, engine: AsyncEngine) -> None:
    done, undone, told = _TOO_MUCH[what]
    psql(server, DATABASE, "-c", done)

    try:
        found = await rights.too_much(engine)
    finally:
        psql(server, DATABASE, "-f", "-", given=undone)

    assert found == [told]
    assert await rights.too_much(engine) == []


async def test_a_server_that_asks_for_no_password_is_told(stack: DevStack) -> None:
    engine = create_engine(stack.database_url)

    told = await rights.too_much(engine)
    await engine.dispose()

    assert "it is let in without a password (ask for one in pg_hba.conf: scram-sha-256)" in told


async def test_a_worker_says_so_as_it_starts_and_works_all_the_same(
    server: PostgresServer, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.url(DATABASE, ROLE)
    engines = Engines(engine, create_engine(url, is_patient=True), create_audit_engine(url))
    psql(server, DATABASE, "-c", "GRANT TEMP ON DATABASE checkout TO checkout")

    try:
        with caplog.at_level(logging.WARNING, "checkout.rights"):
            await check_database(engines)
    finally:
        psql(server, DATABASE, "-c", "REVOKE TEMP ON DATABASE checkout FROM checkout")
        await engines.dispose()

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "the worker's role may more than it needs: it may make temporary tables" in record.message


def test_the_settings_that_are_known_are_those_of_setup_sql() -> None:
    given = SETUP.partition("settings CONSTANT text[] := ARRAY[")[2].partition("]")[0]

    assert {line.strip().strip("',").partition("=")[0] for line in given.strip().splitlines()} == set(rights.SETTINGS)
