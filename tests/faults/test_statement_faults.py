"""Postgres ends statements: locks, deadlocks, serialization failures, timeouts, and a schema that changes under load.

Foreign transactions and real settings bring each of them about; nothing is raised on the service's behalf.
"""

import uuid
from collections import Counter

import asyncpg
import pytest

from domain.model import CheckoutInput, OrderLine
from tests.faults.sites import Site, until

pytestmark = pytest.mark.timeout(600)

HOT = "item-001"
POOL_SIZE = 5
# A slow trigger that counts by a sequence, which no rollback takes back.
SLOW_STATEMENTS = 5
SLOW_TRIGGER = f"""
    CREATE SEQUENCE slow_statements;
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF nextval('slow_statements') <= {SLOW_STATEMENTS} THEN PERFORM pg_sleep(60); END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER slow BEFORE INSERT ON reservations FOR EACH ROW EXECUTE FUNCTION slow();
"""
# What the statements of the steps return is the fence's stored result: its type is part of every warm plan.
CHANGES_OF_THE_SCHEMA = (
    "ALTER TABLE orders ADD COLUMN note text NOT NULL DEFAULT 'added under load'",
    "CREATE INDEX added_under_load ON orders (customer)",
    "ALTER TABLE step_fence ALTER COLUMN result TYPE json",
    "ALTER TABLE step_fence ALTER COLUMN result TYPE jsonb",
    "ALTER TABLE orders ALTER COLUMN reason TYPE varchar(2000)",
    "ALTER TABLE inventory ALTER COLUMN reserved TYPE numeric",
    "ALTER TABLE inventory ALTER COLUMN reserved TYPE bigint",
    "DROP INDEX added_under_load",
    "ALTER TABLE orders DROP COLUMN note",
)


@pytest.mark.exhaustive
async def test_a_hot_row_that_a_foreign_transaction_keeps_locked_costs_no_order(
    site: Site, fired: Counter[str]
) -> None:
    await site.ready_worker()
    async with site.under_load(30, begun=5, mix="hot") as load, site.holding(HOT):
        await until(lambda: fails_as(site, "55P03", 5), "statements give up on the lock")
        fired["orders in flight"] = len(load.open)
    fired["lock timeouts"] = site.failed_attempts("55P03")


async def test_serialization_failures_cost_no_order(site: Site, fired: Counter[str]) -> None:
    await site.ready_worker()
    setting = f'ALTER DATABASE "{site.database.name}" {{}} default_transaction_isolation'
    async with site.under_load(150, begun=5, mix="hot") as load:
        await site.database.run(setting.format("SET") + ' = "repeatable read"')
        await site.end_sessions()  # a changed default takes hold in new ones
        await until(lambda: fails_as(site, "40001", 3), "two orders collide on the hot row")
        fired["orders in flight"] = len(load.open)
        await site.database.run(setting.format("RESET"))
        await site.end_sessions()
    fired["serialization failures"] = site.failed_attempts("40001")


async def test_a_deadlock_with_a_foreign_transaction_costs_no_order(site: Site, fired: Counter[str]) -> None:
    await site.ready_worker()

    async def deadlocked() -> bool:
        # The service locks stock in SKU order; only a stranger can come from the other end.
        order = CheckoutInput(f"d-{uuid.uuid4().hex[:12]}", "alice", (OrderLine(HOT, 1), OrderLine("item-002", 1)))
        async with site.holding("item-002") as foreign:
            # The stranger's own check comes late, so that the service's statement is the one to die.
            await foreign.execute("SET deadlock_timeout = '20s'")
            site.load([order])
            await until(site.is_waiting, "the order holds one row and waits for the other")
            await foreign.execute("SELECT FROM inventory WHERE sku = $1 FOR UPDATE", HOT)
        return site.failed_attempts("40P01") >= 1

    await until(deadlocked, "Postgres breaks a deadlock")
    await site.require_unharmed()
    fired["deadlocks"] = site.failed_attempts("40P01")


@pytest.mark.exhaustive
@pytest.mark.parametrize("all_by_themselves", [True, False])
async def test_statements_that_take_too_long_cost_no_order(
    site: Site, fired: Counter[str], all_by_themselves: bool
) -> None:
    await site.ready_worker()
    await site.database.run(SLOW_TRIGGER)

    site.load(20, at_once=10, all_by_themselves=all_by_themselves)
    await site.require_unharmed()

    # The first attempt of a batch gives up before Postgres does.
    fired["slow statements"] = min(await site.database.value("SELECT last_value FROM slow_statements"), SLOW_STATEMENTS)
    assert fired["slow statements"] == SLOW_STATEMENTS
    assert site.failed_attempts("57014") == SLOW_STATEMENTS if all_by_themselves else site.failed_attempts("57014") > 0


@pytest.mark.exhaustive
async def test_a_schema_that_changes_under_load_costs_one_attempt_per_connection_at_most(
    site: Site, fired: Counter[str]
) -> None:
    await site.ready_worker(CHECKOUT_DATABASE_POOL_SIZE=POOL_SIZE)
    async with site.under_load(80) as load:  # once so many have ended every plan is warm
        for change in CHANGES_OF_THE_SCHEMA:
            before, ended = stale_plans(site), len(load.ends)
            await change_schema(site, change)
            fired["changes"] += 1
            await load.ended(min(ended + 5, len(load.orders)))
            stale = stale_plans(site) - before
            assert stale <= POOL_SIZE, f"{change}: {stale} attempts failed on {POOL_SIZE} connections"
            fired["stale plans"] += stale
        assert load.open, "the load ended before the changes did"


async def fails_as(site: Site, sqlstate: str, times: int) -> bool:
    return site.failed_attempts(sqlstate) >= times


def stale_plans(site: Site) -> int:
    """Count the attempts that failed on a plan from before a change: the driver's own, or one inside a trigger."""
    return site.failed_attempts("0A000") + site.failed_attempts("42804")


async def change_schema(site: Site, change: str) -> None:
    """Change it as a migration should: never queueing behind, and ahead of, the service for long."""
    connection = await asyncpg.connect(site.database.admin_url)
    try:
        await connection.execute("SET lock_timeout = '1s'")

        async def changed() -> bool:
            try:
                await connection.execute(change)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                return False
            return True

        await until(changed, change)
    finally:
        await connection.close()
