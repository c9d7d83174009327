"""The library's tables: made once however often and by whom, and missed by name where they are missing."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

import sagafence
from devstack.stack import ROOT, DevStack
from sagafence import DatabaseMisconfigured, DatabaseUnavailable, SchemaMissing, check, ddl, install, schema, tables
from tests.conftest import Database, engine_at
from tests.sagafence.bare import Bare, bare_database

_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
      FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = to_regclass('step_fence') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_CONSTRAINTS = """
    SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = to_regclass('step_fence') ORDER BY 1
"""
_STORAGE = "SELECT reloptions::text FROM pg_class WHERE oid = to_regclass('step_fence')"
_FACTS = """
    SELECT 'column', a.attrelid::regclass || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
     WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0
    UNION ALL
    SELECT 'constraint', conrelid::regclass || '.' || conname || ' ' || pg_get_constraintdef(oid)
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    ORDER BY 1, 2
"""


@pytest.fixture
async def empty(stack: DevStack, administrator: Any) -> AsyncIterator[Bare]:
    async with bare_database(stack, administrator, installed=False) as made:
        yield made


async def test_the_checkout_and_the_library_make_the_same_fence(bare: Bare, database: Database) -> None:
    """But for the input of declared steps, which the checkout has none of."""
    for query in (_COLUMNS, _CONSTRAINTS, _STORAGE):
        checkouts = [tuple(row) for row in await database.fetch(query)]
        assert [row for row in await bare.rows(query) if row[0] != "given"] == checkouts
        assert checkouts


async def test_a_second_run_changes_nothing_and_keeps_what_is_there(bare: Bare) -> None:
    await bare.run("INSERT INTO step_fence VALUES ('s', 'a', 'undone', false, 'f')")
    before = await bare.rows(_FACTS)

    await install(bare.engine)

    assert await bare.rows(_FACTS) == before
    assert await bare.value("SELECT count(*) FROM step_fence") == 1


async def test_many_that_install_at_once_take_turns(empty: Bare) -> None:
    await asyncio.gather(*(install(empty.engine) for _ in range(8)))

    await check(empty.engine)


async def test_a_run_beside_an_open_transaction_that_writes_waits_for_nothing(bare: Bare) -> None:
    async with bare.engine.begin() as writing:
        await writing.exec_driver_sql("INSERT INTO step_fence VALUES ('s', 'a', 'undone', false, 'f')")
        await writing.exec_driver_sql(
            "INSERT INTO sagas (saga_id, workflow_id, workflow_type, namespace, task_queue, input, fingerprint)"
            " VALUES ('s', 's', 't', '', 'q', '{}', '')"
        )
        async with asyncio.timeout(20):
            await install(bare.engine)


async def test_the_tables_that_check_looks_for_are_those_that_are_made(bare: Bare) -> None:
    found: dict[str, set[str]] = {}
    for table, column in await bare.rows(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    ):
        found.setdefault(table, set()).add(column)

    assert found == {table: set(columns) for table, columns in tables.tables().items()}
    assert {"sagas", "step_fence", "sagafence_schema"} <= set(found)


async def test_psql_makes_them_from_what_the_command_prints(empty: Bare, stack: DevStack) -> None:
    printed = run("schema")

    for _ in range(2):
        stack.postgres.psql(empty.engine.url.database or "", "-f", "-", given=printed.stdout)
        await check(empty.engine)

    assert (printed.returncode, printed.stderr) == (0, "")


async def test_psql_fails_where_a_statement_does(empty: Bare, stack: DevStack) -> None:
    await empty.run("CREATE VIEW sagas AS SELECT 1")

    with pytest.raises(Exception, match="sagas"):
        stack.postgres.psql(empty.engine.url.database or "", "-f", "-", given=tables.script())

    assert await empty.value("SELECT to_regclass('sagafence_schema')") is None


async def test_a_database_without_tables_is_refused_with_the_names_and_the_fix(empty: Bare) -> None:
    with pytest.raises(SchemaMissing) as refused:
        await check(empty.engine)

    assert "table sagas" in str(refused.value)
    assert "table step_fence" in str(refused.value)
    assert "python -m sagafence schema | psql" in str(refused.value)
    assert "install(engine)" in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        ("ALTER TABLE sagas DROP COLUMN task_queue", "column sagas.task_queue"),
        ("DROP TABLE step_fence", "table step_fence"),
        ("UPDATE sagafence_schema SET version = 0", f"schema version {tables.version()} (it has 0)"),
        ("DELETE FROM sagafence_schema", f"schema version {tables.version()} (it has 0)"),
    ],
)
async def test_whatever_a_database_lacks_is_named(bare: Bare, damage: str, missing: str) -> None:
    await bare.run(damage)

    with pytest.raises(SchemaMissing) as refused:
        await check(bare.engine)

    assert str(refused.value).startswith(f"the database lacks {missing}. Run ")


async def test_what_a_newer_release_has_added_is_fine_and_an_older_one_takes_nothing_back(bare: Bare) -> None:
    await bare.run("ALTER TABLE sagas ADD COLUMN newer text", "UPDATE sagafence_schema SET version = 900")

    await install(bare.engine)
    await check(bare.engine)

    assert await bare.value("SELECT version FROM sagafence_schema") == 900


async def test_a_missing_right_is_named(bare: Bare, database: Database) -> None:
    as_the_service = bare.engine.url.set(username=create_async_engine(database.url).url.username, password=None)

    async with engine_at(as_the_service.render_as_string(hide_password=False)) as engine:
        with pytest.raises(SchemaMissing) as refused:
            await check(engine)

    said = str(refused.value)
    for right in ("SELECT", "INSERT", "UPDATE"):
        assert f"right {right} on sagas" in said
    assert "right SELECT on sagafence_schema" in said
    assert "right INSERT on sagafence_schema" not in said


async def test_a_role_that_may_create_no_table_is_told_so(empty: Bare, database: Database) -> None:
    as_the_service = empty.engine.url.set(username=create_async_engine(database.url).url.username, password=None)

    async with engine_at(as_the_service.render_as_string(hide_password=False)) as engine:
        with pytest.raises(DatabaseMisconfigured, match="permission denied"):
            await install(engine)


async def test_another_database_than_postgres_is_refused() -> None:
    class Elsewhere:
        class dialect:  # noqa: N801 - as SQLAlchemy's attribute is called
            name = "sqlite"

    for ask in (install, check):
        with pytest.raises(SchemaMissing, match=r"needs PostgreSQL 14 or newer, and this engine is for sqlite"):
            await ask(Elsewhere())  # type: ignore[arg-type]  # what an engine for another database has in common


async def test_a_server_that_is_too_old_is_refused_by_all_three(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "OLDEST_SERVER", 99)
    for ask in (install, check):
        with pytest.raises(SchemaMissing, match=r"this server is PostgreSQL 1"):
            await ask(bare.engine)

    monkeypatch.setattr(tables, "OLDEST_SERVER", 99)
    monkeypatch.setattr(schema, "OLDEST_SERVER", 14)
    with pytest.raises(Exception, match="too old: sagafence needs 99 or newer"):
        await install(bare.engine)


async def test_a_server_that_is_away_is_an_outage() -> None:
    async with engine_at("postgresql+asyncpg://nobody@127.0.0.1:1/nothing") as engine:
        with pytest.raises(DatabaseUnavailable):
            await check(engine)


async def test_tables_are_never_made_in_front_of_those_that_are_there(bare: Bare) -> None:
    await bare.run("CREATE SCHEMA app")
    in_front = create_async_engine(bare.url, connect_args={"server_settings": {"search_path": "app, public"}})

    with pytest.raises(sagafence.SagaError, match="would be made in schema app, and hide what is there"):
        await install(in_front)

    await in_front.dispose()
    assert await bare.value("SELECT to_regclass('app.sagas')") is None


async def test_they_live_in_whatever_schema_comes_first(empty: Bare) -> None:
    await empty.run("CREATE SCHEMA app")
    in_app = create_async_engine(empty.url, connect_args={"server_settings": {"search_path": "app"}})

    await install(in_app)
    await check(in_app)

    await in_app.dispose()
    assert await empty.value("SELECT to_regclass('public.sagas')") is None
    assert await empty.value("SELECT to_regclass('app.sagas_unfinished')") is not None


async def test_a_search_path_that_leads_nowhere_is_named(empty: Bare) -> None:
    nowhere = create_async_engine(empty.url, connect_args={"server_settings": {"search_path": "nowhere"}})

    with pytest.raises(sagafence.SagaError, match="no schema of the search_path is there"):
        await install(nowhere)

    await nowhere.dispose()


def test_the_statements_for_a_migration_tool_begin_and_commit_nothing() -> None:
    words = {line.strip(" ;").upper() for line in ddl().splitlines() if line.endswith(";")}

    assert not words & {"BEGIN", "COMMIT", "ROLLBACK"}
    assert "\n\\" not in ddl()


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-m", "sagafence", *arguments], cwd=ROOT, text=True, check=False, **given)


def test_bad_arguments_are_told_in_lines_and_with_status_2() -> None:
    for arguments in ([], ["nonsense"], ["schema", "more"]):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        assert "usage:" in done.stderr


def test_a_reader_that_has_gone_and_a_full_disk_end_it_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone, Path("/dev/full").open("w", encoding="utf-8") as full:
        to_nobody, to_the_full = run("schema", stdout=gone), run("schema", stdout=full)

    assert (to_nobody.returncode, to_nobody.stderr) == (1, "")
    assert to_the_full.returncode == 1
    assert "could not be written: " in to_the_full.stderr
    assert "Traceback" not in to_the_full.stderr


def test_an_output_that_is_closed_is_no_success() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -m sagafence schema >&-"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
