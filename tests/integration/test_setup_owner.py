"""setup.sql by somebody who is no superuser, on an older server, and where the names mean something else."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from adapters import schema
from devstack.stack import ROOT, DevStack, psql
from sagafence.devservers.postgres import PostgresServer
from sagafence.devservers.process import ServerFailed
from tests.conftest import Database, lacks, postgres_of_its_own

_SETUP = ROOT / "setup.sql"
_ROLES = ("checkout", "checkout_reader", "checkout_operator", "checkout_owner")


@pytest.fixture(scope="module", params=[18, 16])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with postgres_of_its_own(tmp_path_factory.mktemp("server"), version=int(request.param)) as made:
        yield made


@pytest.fixture
def shop_of(server: PostgresServer) -> Iterator[str]:
    """A database of role `owner`, who may log in and nothing else, on a server without the checkout's roles."""
    psql(server, "postgres", "-c", "CREATE ROLE owner LOGIN", "-c", "CREATE DATABASE shop OWNER owner")
    yield "shop"
    psql(server, "postgres", "-c", "DROP DATABASE shop WITH (FORCE)")
    psql(server, "postgres", "-c", f"DROP ROLE IF EXISTS {', '.join(_ROLES)}", "-c", "DROP ROLE owner")


def _run(server: PostgresServer, database: str, file: Path = _SETUP, user: str = "owner") -> tuple[int, str]:
    """Run it as anybody would who has not read how: without ON_ERROR_STOP."""
    done = subprocess.run(
        [
            *(str(server.bin("psql")), "--no-psqlrc", "--quiet", "--host", "127.0.0.1", "--port", str(server.port)),
            *("--username", user, "--dbname", database, "--file", str(file)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


async def test_the_owner_of_a_database_who_may_make_roles_can_run_it(server: PostgresServer, shop_of: str) -> None:
    psql(server, "postgres", "-c", "ALTER ROLE owner CREATEROLE")

    first, again = _run(server, shop_of), _run(server, shop_of)

    assert (first[0], again[0]) == (0, 0), first[1]
    assert "WARNING" not in first[1] + again[1]
    assert await lacks(server.url(shop_of, "checkout")) == []


async def test_an_owner_who_may_not_is_reported_what_an_administrator_has_to_run(
    server: PostgresServer, shop_of: str
) -> None:
    code, output = _run(server, shop_of)
    [hint] = [line.removeprefix("HINT:  ") for line in output.splitlines() if line.startswith("HINT")]
    tables = psql(server, shop_of, "-Atc", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    psql(server, "postgres", "-c", hint.partition("again: ")[2])
    after = _run(server, shop_of)

    assert code == 3
    assert "owner may not make or change the checkout's roles" in output
    assert tables.strip() == "0"
    assert after[0] == 0, after[1]
    assert await lacks(server.url(shop_of, "checkout")) == []


async def test_a_role_that_lacks_a_setting_is_reported_as_well(server: PostgresServer, shop_of: str) -> None:
    psql(server, "postgres", "-c", "CREATE ROLE checkout LOGIN", "-c", "ALTER ROLE checkout SET lock_timeout = '9s'")

    code, output = _run(server, shop_of)

    assert code == 3
    assert "ALTER ROLE checkout SET lock_timeout = '1500ms'" in output


async def test_what_an_earlier_version_made_becomes_the_owners(server: PostgresServer, shop_of: str) -> None:
    psql(server, "postgres", "-c", "ALTER ROLE owner CREATEROLE")
    _run(server, shop_of)
    others = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relowner = 'owner'::regrole"
    for table in schema.tables() - {"approvals"}:
        psql(server, shop_of, "-c", f"ALTER TABLE {table} OWNER TO owner")
    for function in ("order_may_move", "order_stays_completed", "orders_move", "orders_log_move"):
        psql(server, shop_of, "-c", f"ALTER FUNCTION {function} OWNER TO owner")
    before = psql(server, shop_of, "-Atc", others)

    code, output = _run(server, shop_of)

    assert before.strip()
    assert code == 0, output
    assert psql(server, shop_of, "-Atc", others) == ""
    assert await lacks(server.url(shop_of, "checkout")) == []


def test_an_owner_of_the_schema_alone_is_reported_who_has_to_close_the_database(
    server: PostgresServer, shop_of: str
) -> None:
    psql(server, "postgres", "-c", "ALTER ROLE owner CREATEROLE", "-c", f"ALTER DATABASE {shop_of} OWNER TO postgres")
    psql(server, shop_of, "-c", "ALTER SCHEMA public OWNER TO owner")

    code, output = _run(server, shop_of)
    [hint] = [line.removeprefix("HINT:  ") for line in output.splitlines() if line.startswith("HINT")]
    psql(server, shop_of, "-c", hint.partition("run this: ")[2])
    after = _run(server, shop_of)

    assert code == 0
    assert "others than the checkout's roles may" in output
    assert after[0] == 0
    assert "WARNING" not in after[1], after[1]


@pytest.mark.parametrize("path", ["other", "other, public", "nowhere", ""])
async def test_any_search_path_will_do(server: PostgresServer, shop_of: str, path: str) -> None:
    psql(
        server,
        "postgres",
        "-c",
        "ALTER ROLE owner CREATEROLE",
        "-c",
        "ALTER DATABASE shop SET search_path = " + (path or "''"),
    )
    psql(
        server,
        shop_of,
        "-c",
        "CREATE SCHEMA other AUTHORIZATION owner",
        "-c",
        "CREATE TABLE other.orders (order_id text)",
    )

    code, output = _run(server, shop_of)
    by_hand = psql(
        server,
        shop_of,
        *("-c", "INSERT INTO public.orders (order_id, customer) VALUES ('o-1', 'alice')"),
        *("-c", "UPDATE public.orders SET status = 'cancelled'"),
        *("-Atc", "SELECT string_agg(status, ', ' ORDER BY seq) FROM public.order_events"),
    )

    assert code == 0, output
    assert by_hand.strip() == "pending, cancelled"
    assert await lacks(server.url(shop_of, "checkout")) == []


def test_a_server_that_is_too_old_is_refused_in_one_line(server: PostgresServer, shop_of: str, tmp_path: Path) -> None:
    # There is no older one to be had: the bound moves up instead.
    file = tmp_path / "setup.sql"
    file.write_text(_SETUP.read_text(encoding="utf-8").replace("150000", "990000"), encoding="utf-8")

    code, output = _run(server, shop_of, file)

    assert code == 3
    [line] = output.splitlines()
    assert "is too old: this needs 15 or newer" in line


# Names --------------------------------------------------------------------------------------------------

_ASIDE = "CREATE SCHEMA old; " + "".join(f"ALTER TABLE {table} SET SCHEMA old; " for table in schema.tables())


async def test_tables_that_were_put_aside_are_not_taken_for_ours(stack: DevStack, database: Database) -> None:
    await database.run(_ASIDE)

    psql(stack.postgres, database.name, "-f", str(_SETUP))
    await database.run("INSERT INTO orders (order_id, customer) VALUES ('o-1', 'alice')")
    await database.run("UPDATE orders SET status = 'rejected'")

    with pytest.raises(asyncpg.CheckViolationError, match="cannot move from rejected to pending"):
        await database.run("UPDATE orders SET status = 'pending'")
    assert await database.value("SELECT count(*) FROM order_events") == 2
    assert await lacks(database.url) == []


async def test_an_index_name_that_another_table_has_taken_is_reported(stack: DevStack, database: Database) -> None:
    await database.run("DROP INDEX transfers_by_debit; CREATE INDEX transfers_by_debit ON orders (customer)")

    with pytest.raises(ServerFailed, match='relation "transfers_by_debit" already exists'):
        psql(stack.postgres, database.name, "-f", str(_SETUP))
