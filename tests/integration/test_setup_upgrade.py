"""setup.sql on a database of an earlier version that is in use: what it changes, and what it holds up meanwhile."""

import asyncio
import re
import subprocess

import asyncpg
import pytest

from devstack.stack import ROOT, DevStack, psql
from sagafence.devservers.process import ServerFailed
from tests.conftest import Database
from tests.integration.test_setup_sql import _SETUP, _dump

# As version 2 had them.
_VERSION_2 = """
    DROP FUNCTION is_identifier CASCADE;
    ALTER TABLE orders
        ADD CONSTRAINT orders_id_is_printable CHECK (order_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
        ADD CONSTRAINT orders_customer_is_printable CHECK (customer ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$');
    ALTER TABLE products ADD CONSTRAINT products_sku_is_printable CHECK (sku ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$');
    ALTER TABLE order_lines
        ADD CONSTRAINT order_lines_sku_is_printable CHECK (sku ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$');
    ALTER TABLE products DROP CONSTRAINT products_price_in_range,
        ADD CONSTRAINT products_price_in_range CHECK (unit_price_minor BETWEEN 1 AND 100000000);
    DROP TABLE currencies CASCADE;
    DROP INDEX orders_by_status, orders_by_customer;
    UPDATE schema_version SET version = 2;
"""
_UNSEEN = "SELECT conname FROM pg_constraint WHERE NOT convalidated ORDER BY 1"
_INDEXES = "SELECT indexrelid::regclass::text FROM pg_index WHERE indexrelid::regclass::text LIKE 'orders_by_%'"
_REAL = "INSERT INTO orders (order_id, customer) VALUES ('#1001', 'a@b.c')"


def _told(stack: DevStack, database: Database) -> str:
    """Run setup.sql and give what it complains about."""
    to = ["--host", "127.0.0.1", "--port", str(stack.postgres.port), "--username", "postgres", database.name]
    command = [str(stack.postgres.bin("psql")), "--no-psqlrc", "--quiet", *to, "-f", str(ROOT / "setup.sql")]
    env = stack.postgres.client_environment()
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stderr


async def test_a_database_of_stricter_ids_takes_those_of_other_systems(stack: DevStack, database: Database) -> None:
    fresh = _dump(stack, database.name)
    await database.run(_VERSION_2)
    with pytest.raises(asyncpg.CheckViolationError):
        await database.run(_REAL)

    psql(stack.postgres, database.name, *_SETUP)

    # The sequence of constraints apart.
    assert _lines(_dump(stack, database.name)) == _lines(fresh)
    assert await database.fetch(_UNSEEN) == []
    await database.run(_REAL)


async def test_an_upgrade_gives_up_before_others_wait_long_and_can_be_run_again(
    stack: DevStack, database: Database
) -> None:
    await database.run(_VERSION_2)
    before = _dump(stack, database.name)

    async with database.locked("LOCK TABLE orders IN ROW EXCLUSIVE MODE"):
        with pytest.raises(ServerFailed, match="lock timeout"):
            await asyncio.to_thread(psql, stack.postgres, database.name, *_SETUP)
    given_up = _dump(stack, database.name)
    psql(stack.postgres, database.name, *_SETUP)

    assert given_up == before
    await database.run(_REAL)


async def test_rows_are_looked_at_beside_those_who_write(stack: DevStack, database: Database) -> None:
    await database.run("""
        ALTER TABLE orders DROP CONSTRAINT orders_id_is_printable,
            ADD CONSTRAINT orders_id_is_printable CHECK (is_identifier(order_id)) NOT VALID
    """)

    async with database.locked("LOCK TABLE accounts, order_lines, orders, products IN ROW EXCLUSIVE MODE"):
        await asyncio.to_thread(psql, stack.postgres, database.name, *_SETUP)

    assert await database.fetch(_UNSEEN) == []


async def test_rows_that_a_new_constraint_does_not_allow_stay_and_are_reported_of(
    stack: DevStack, database: Database
) -> None:
    await database.run(_VERSION_2)
    await database.run("INSERT INTO accounts VALUES (E'b\\tb', 'customer', 'Bob', 0)")
    await database.run("UPDATE accounts SET currency = 'DEM' WHERE account_id = 'alice'")

    output = [_told(stack, database) for _ in range(2)]
    unseen = [row[0] for row in await database.fetch(_UNSEEN)]
    await database.run("UPDATE accounts SET balance_minor = 1 WHERE account_id = 'alice'")
    await database.run("DELETE FROM accounts WHERE name = 'Bob'; INSERT INTO currencies VALUES ('DEM', 2)")
    mended = _told(stack, database)

    assert unseen == ["accounts_currency_is_known", "accounts_id_is_printable"]
    for each in output:
        for constraint in unseen:
            assert f"WARNING:  accounts has rows that {constraint} does not allow" in each
    assert "WARNING" not in mended
    assert await database.fetch(_UNSEEN) == []


async def test_the_indexes_of_a_large_table_are_made_before_without_holding_up_who_writes(
    stack: DevStack, database: Database
) -> None:
    """The commands of docs/upgrades.md, as they stand there."""
    fresh = _dump(stack, database.name)
    await database.run("DROP INDEX orders_by_status, orders_by_customer; UPDATE schema_version SET version = 3")
    documented = (ROOT / "docs/upgrades.md").read_text(encoding="utf-8").partition("### To schema version 4")[2]
    [commands] = re.findall(r"```sql\n(.*?)```", documented.partition("\n### ")[0], re.DOTALL)

    psql(stack.postgres, database.name, "-v", "ON_ERROR_STOP=1", "-f", "-", given=commands)
    made = [row[0] for row in await database.fetch(_INDEXES)]
    # setup.sql would have to wait for this one, if it had an index to make.
    async with database.locked("LOCK TABLE orders IN ROW EXCLUSIVE MODE"):
        await asyncio.to_thread(psql, stack.postgres, database.name, *_SETUP)

    assert commands.count("CREATE INDEX CONCURRENTLY") == len(made) == 2
    assert _dump(stack, database.name) == fresh


def _lines(dump: str) -> list[str]:
    return sorted(line.rstrip(",") for line in dump.splitlines())
