"""A release whose worker meets the database of the release before: nobody is rejected, and it says what to run."""

from collections import Counter

import pytest

from devstack.stack import ROOT, DevStack, psql
from sagafence.devservers.ports import free_port
from tests.conftest import Database
from tests.integration.commands import DEADLINE_SECONDS, Commands, until

# What setup.sql of version 4 adds to that of version 3.
_VERSION_3 = """
    UPDATE schema_version SET version = 3;
    DROP INDEX orders_by_status, orders_by_customer;
"""
# What that of version 3 added to that of version 2, whose tables were whoever's ran it.
_VERSION_2 = f"""
    {_VERSION_3}
    UPDATE schema_version SET version = 2;
    DROP TABLE approvals;
    DROP FUNCTION is_identifier CASCADE;
    DROP TABLE currencies CASCADE;
    DROP FUNCTION deposit, deliver, approve_what_is_there, approvals_stay, note_on_order;
    DROP TRIGGER transfers_refuse_deposit ON transfers;
    DROP FUNCTION transfers_refuse_deposit;
    ALTER TABLE accounts ALTER COLUMN balance_minor DROP DEFAULT;
    ALTER FUNCTION orders_log_move() SECURITY INVOKER;
    ALTER FUNCTION orders_move() SET search_path = public, pg_temp;
    ALTER FUNCTION orders_log_move() SET search_path = public, pg_temp;
    GRANT INSERT ON order_events, audit_events TO checkout;
    GRANT UPDATE (event_seq) ON orders TO checkout;
    DO $$ DECLARE name regclass; BEGIN
        FOR name IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
            EXECUTE format('ALTER TABLE %s OWNER TO postgres', name);
        END LOOP;
    END $$;
    ALTER FUNCTION orders_move() OWNER TO postgres;
    ALTER FUNCTION orders_log_move() OWNER TO postgres;
"""


@pytest.mark.parametrize(
    ("version", "behind", "lacking"),
    [(3, _VERSION_3, "index orders.orders_by_status"), (2, _VERSION_2, "table approvals")],
    ids=["version 3", "version 2"],
)
async def test_a_schema_behind_rejects_no_order(
    version: int, behind: str, lacking: str, commands: Commands, database: Database, stack: DevStack
) -> None:
    await database.run(behind)
    ids = [f"behind-{database.name}-{number}" for number in range(6)]

    worker = commands.worker(CHECKOUT_STARTUP_TIMEOUT_SECONDS="2")
    for order_id in ids:
        started = commands.starter(
            "start", "--order-id", order_id, "--customer", "alice", "--line", "pen:1", "--no-wait"
        )
        assert started.code == 0, started.err
    refused = worker.wait(DEADLINE_SECONDS)
    untouched = await database.value("SELECT count(*) FROM orders")
    looked = commands.check()

    assert (refused, looked.code, untouched) == (1, 1, 0)
    for reported in (worker.tail(50), looked.err):
        assert f"schema version 6 (it has version {version})" in reported
        assert lacking in reported
        assert "psql -d checkout -f setup.sql" in reported
        assert "Traceback" not in reported

    psql(stack.postgres, database.name, "-f", str(ROOT / "setup.sql"))
    assert commands.check().code == 0
    commands.ready_worker()
    until(
        lambda: (
            Counter(psql(stack.postgres, database.name, "-Atc", "SELECT status FROM orders").split())
            == {"completed": len(ids)}
        )
    )


def test_a_check_of_a_sound_installation_says_so(commands: Commands) -> None:
    ran = commands.check()

    assert (ran.code, ran.out) == (0, "Nothing is lacking: a worker can start.\n")


@pytest.mark.parametrize(
    ("environment", "reported"),
    [
        ({"TEMPORAL_NAMESPACE": "nowhere"}, "temporal operator namespace create --namespace nowhere"),
        ({"CHECKOUT_LOG_FILE": "/nowhere/saga.log"}, "The log cannot be written"),
        ({"CHECKOUT_LOG_LEVEL": "loud"}, "CHECKOUT_LOG_LEVEL"),
    ],
)
def test_a_check_reports_what_the_start_would(commands: Commands, environment: dict[str, str], reported: str) -> None:
    ran = commands.check(**environment)

    assert ran.code == (2 if "LEVEL" in reported else 1)
    assert reported in ran.err


async def test_a_check_reports_both_servers_at_once(commands: Commands, database: Database) -> None:
    await database.run("DROP TRIGGER orders_move ON orders")
    nobody = f"127.0.0.1:{free_port()}"

    ran = commands.check(TEMPORAL_ADDRESS=nobody)

    assert ran.code == 1
    assert "trigger orders.orders_move" in ran.err
    assert nobody in ran.err
