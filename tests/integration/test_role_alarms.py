"""What the worker's role may do beyond its work is logged when a worker starts, with what an administrator runs."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import rights
from adapters.database import create_audit_engine, create_engine
from adapters.readiness import Engines, check_database
from devstack.stack import DATABASE, ROLE, ROOT, DevStack, give_passwords, make_database, psql
from sagafence.devservers.postgres import PostgresServer
from tests.conftest import postgres_of_its_own


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of our own: what a role may do elsewhere on it is what this is about."""
    with postgres_of_its_own(tmp_path_factory.mktemp("alarms"), guarded=True) as made:
        make_database(made, DATABASE)
        give_passwords(made)
        yield made


@pytest.fixture
async def engine(server: PostgresServer) -> AsyncIterator[AsyncEngine]:
    """The worker's engine on a database that is as setup.sql leaves it."""
    made = create_engine(server.url(DATABASE, ROLE))
    yield made
    await made.dispose()


async def test_of_a_role_as_setup_sql_makes_it_nothing_is_logged(engine: AsyncEngine) -> None:
    assert await rights.too_much(engine) == []


_SETUP = f"\\i {ROOT / 'setup.sql'}"
# What it is, what somebody did, how it is taken back, and what is told.
_TOO_MUCH = [
    " ".join(row.split()).split(" | ")
    for row in """
attribute | ALTER ROLE checkout CREATEDB | ALTER ROLE checkout NOCREATEDB | it is CREATEDB (run ALTER ROLE checkout \
    NOCREATEDB)
membership | GRANT pg_monitor TO checkout | REVOKE pg_monitor FROM checkout | it is a member of pg_monitor (run \
    REVOKE pg_monitor FROM checkout)
no limit | ALTER ROLE checkout CONNECTION LIMIT -1 | setup.sql | it may take every session that the server has (run \
    setup.sql)
another database | CREATE DATABASE elsewhere | DROP DATABASE elsewhere WITH (FORCE) | it gets into other databases \
    too: elsewhere (run REVOKE CONNECT ON DATABASE elsewhere FROM PUBLIC, checkout)
settings of its own | ALTER ROLE checkout SET log_min_messages = 'panic' | ALTER ROLE checkout RESET log_min_messages \
    | it has settings of its own that setup.sql does not give it: log_min_messages (run ALTER ROLE checkout RESET \
    log_min_messages)
tables of its own | ALTER TABLE incidents OWNER TO checkout | setup.sql | it owns tables of ours (run setup.sql)
the schema | GRANT CREATE ON SCHEMA public TO PUBLIC | setup.sql | it may make things in schema public (run \
    setup.sql)
temporary tables | GRANT TEMP ON DATABASE checkout TO PUBLIC | setup.sql | it may make temporary tables or schemas in \
    this database (run setup.sql)
""".strip().splitlines()
]


@pytest.mark.parametrize("case", _TOO_MUCH, ids=lambda case: case[0])
async def test_whatever_is_too_much_is_reported(case: list[str], server: PostgresServer, engine: AsyncEngine) -> None:
    _, done, undone, output = case
    psql(server, DATABASE, "-c", done)

    try:
        found = await rights.too_much(engine)
    finally:
        psql(server, DATABASE, "-f", "-", given=_SETUP if undone == "setup.sql" else undone)

    assert found == [output]
    assert await rights.too_much(engine) == []


async def test_a_server_that_asks_for_no_password_is_logged(stack: DevStack) -> None:
    engine = create_engine(stack.database_url)

    logged = await rights.too_much(engine)
    await engine.dispose()

    assert "it is let in without a password (ask for one in pg_hba.conf: scram-sha-256)" in logged


async def test_a_worker_says_so_as_it_starts_and_works_all_the_same(
    server: PostgresServer, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.url(DATABASE, ROLE)
    engines = Engines(engine, create_engine(url, has_long_statements=True), create_audit_engine(url))
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
    given = (
        (ROOT / "setup.sql")
        .read_text(encoding="utf-8")
        .partition("settings CONSTANT text[] := ARRAY[")[2]
        .partition("]")[0]
    )

    assert {line.strip().strip("',").partition("=")[0] for line in given.strip().splitlines()} == set(rights.SETTINGS)
