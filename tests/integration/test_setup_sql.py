"""setup.sql: it can be run again and by several people at once, and the database itself refuses what is wrong."""

import asyncio
import itertools
import re
import subprocess
import uuid
from collections.abc import Iterator
from datetime import timedelta

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from adapters.schema import tables
from devstack.stack import DATABASE, ROOT, DevStack, psql
from domain.currencies import MINOR_UNITS
from domain.model import OrderStatus
from sagafence.devservers.process import ServerFailed
from tests.conftest import Database, Shop

_SETUP = ("-v", "ON_ERROR_STOP=1", "-f", str(ROOT / "setup.sql"))
_DEMO = ("-f", str(ROOT / "devstack" / "demo.sql"))


def _dump(stack: DevStack, database: str) -> str:
    """Schema, rights and rows of a database, and the roles of its server."""
    address = ["--host", "127.0.0.1", "--port", str(stack.postgres.port), "--username", "postgres"]
    parts = (
        [str(stack.postgres.bin("pg_dump")), *address, "--restrict-key=same", "--inserts", database],
        [str(stack.postgres.bin("pg_dumpall")), *address, "--restrict-key=same", "--roles-only"],
    )
    return "\n".join(_output(stack, part) for part in parts)


def _output(stack: DevStack, command: list[str]) -> str:
    environment = stack.postgres.client_environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _timeless(dump: str) -> str:
    return re.sub(r"'\d{4}-\d\d-\d\d [\d:.+]+'", "'some time'", dump)


@pytest.fixture
def empty_databases(stack: DevStack) -> Iterator[list[str]]:
    """Two databases in which nothing was ever run."""
    names = [f"empty_{uuid.uuid4().hex[:8]}" for _ in range(2)]
    for name in names:
        psql(stack.postgres, "postgres", "-c", f'CREATE DATABASE "{name}" TEMPLATE template0')
    yield names
    for name in names:
        psql(stack.postgres, "postgres", "-c", f'DROP DATABASE "{name}" WITH (FORCE)')


# Running it again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["batch_workflow_id", "shipped_by", "taken_back_by"])
async def test_a_database_from_before_a_column_was_needed_gets_it(
    stack: DevStack, database: Database, column: str
) -> None:
    await database.run(
        f"ALTER TABLE orders DROP COLUMN {column}; INSERT INTO orders (order_id, customer) VALUES ('a', 'b')"
    )

    psql(stack.postgres, database.name, *_SETUP)

    assert [tuple(row) for row in await database.fetch(f"SELECT order_id, {column} FROM orders")] == [("a", None)]


async def test_a_column_that_had_another_name_keeps_what_it_had(stack: DevStack, database: Database) -> None:
    await database.run(
        "ALTER TABLE orders RENAME COLUMN batch_workflow_id TO carrier;"
        "INSERT INTO orders (order_id, customer, carrier) VALUES ('a', 'b', 'bulk-1')"
    )

    for _ in range(2):
        psql(stack.postgres, database.name, *_SETUP)

    assert await database.value("SELECT batch_workflow_id FROM orders") == "bulk-1"


async def test_a_database_from_before_customers_were_opened_with_nothing_opens_them_so(
    stack: DevStack, database: Database
) -> None:
    await database.run("ALTER TABLE accounts ALTER COLUMN balance_minor DROP DEFAULT")

    psql(stack.postgres, database.name, *_SETUP)
    await database.run("INSERT INTO accounts (account_id, kind, name) VALUES ('ines', 'customer', 'Ines')")

    assert await database.value("SELECT balance_minor FROM accounts WHERE account_id = 'ines'") == 0


async def test_an_index_that_was_never_finished_is_reported_with_what_to_do(
    stack: DevStack, database: Database
) -> None:
    index = "incidents_one_open_per_order"
    await database.run(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass")

    with pytest.raises(ServerFailed, match=f"index {index} is invalid") as output:
        psql(stack.postgres, database.name, *_SETUP)

    assert f"Run DROP INDEX CONCURRENTLY public.{index}, and this file again." in str(output.value)


async def test_an_order_that_an_earlier_version_parked_for_a_review_needs_one_still(
    stack: DevStack, database: Database
) -> None:
    await database.run("""
        ALTER TABLE incidents DROP COLUMN needs_review;
        INSERT INTO orders (order_id, customer) VALUES ('parked', 'b'), ('mended', 'b'), ('failing', 'b');
        INSERT INTO incidents (order_id, steps, cause, closed_at, resolution) VALUES
            ('parked', '{pay}', 'DatabaseContradictsHistory: step pay is gone', NULL, NULL),
            ('mended', '{pay}', 'DatabaseContradictsHistory: step pay is gone', now(), 'every undo was done'),
            ('failing', '{pay}', 'DatabaseRefusedStatement: no right', NULL, NULL)
    """)

    psql(stack.postgres, database.name, *_SETUP)
    reviewed = await database.fetch("UPDATE incidents SET needs_review = false WHERE needs_review RETURNING order_id")
    psql(stack.postgres, database.name, *_SETUP)

    assert [row[0] for row in reviewed] == ["parked"]
    assert await database.value("SELECT count(*) FROM incidents WHERE needs_review") == 0


async def test_a_run_among_orders_changes_nothing_and_waits_for_no_open_transaction(
    stack: DevStack, database: Database, shop: Shop
) -> None:
    for customer in ("alice", "carol"):
        order = shop.order(customer, ("tea-mug", 2), ("last-one", 1) if customer == "alice" else ("poster", 1))
        await Inventory(shop.engine).reserve_inventory(order)
        await Payments(shop.engine).charge_payment(order)
        await Shipping(shop.engine).ship_order(order)
    await Inventory(shop.engine).reserve_inventory(shop.order("bob"))
    before = _dump(stack, database.name)

    async with database.locked(f"LOCK TABLE {', '.join(sorted(tables()))} IN ROW EXCLUSIVE MODE"):
        await asyncio.to_thread(psql, stack.postgres, database.name, *_SETUP)

    assert _dump(stack, database.name) == before


def test_a_database_that_does_not_keep_every_text_is_refused_with_what_to_do(stack: DevStack) -> None:
    name = f"latin_{uuid.uuid4().hex[:8]}"
    make = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'"
    psql(stack.postgres, "postgres", "-c", make)

    try:
        with pytest.raises(
            ServerFailed, match=r"(?s)keeps text in LATIN1.*createdb --template=template0 --encoding=UTF8"
        ):
            psql(stack.postgres, name, *_SETUP)
        tables = psql(stack.postgres, name, "-Atc", "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    finally:
        psql(stack.postgres, "postgres", "-c", f"DROP DATABASE {name} WITH (FORCE)")

    assert tables == ""


def test_it_sells_nothing_to_nobody(stack: DevStack, empty_databases: list[str]) -> None:
    name = empty_databases[0]

    psql(stack.postgres, name, *_SETUP)
    filled = {
        table: int(count)
        for table in tables()
        if (count := psql(stack.postgres, name, "-Atc", f"SELECT count(*) FROM {table}").strip()) != "0"
    }
    house = psql(stack.postgres, name, "-Atc", "SELECT account_id, kind, balance_minor FROM accounts ORDER BY 1")

    assert filled == {"accounts": 2, "currencies": len(MINOR_UNITS), "schema_version": 1}
    assert house.splitlines() == ["bank|house|", "shop|house|"]


async def test_a_run_keeps_what_the_shop_has_changed_in_its_catalogue(stack: DevStack, database: Database) -> None:
    await database.run(
        "UPDATE products SET unit_price_minor = 1, name = 'Sale'; DELETE FROM inventory WHERE sku = 'lamp';"
        "UPDATE inventory SET on_hand = 7, initial = 7; UPDATE delivery_zones SET is_served = false"
    )

    psql(stack.postgres, database.name, *_SETUP)

    assert await database.fetch("SELECT FROM inventory WHERE sku = 'lamp'") == []

    psql(stack.postgres, database.name, *_DEMO)

    assert await database.value("SELECT count(*) FROM products WHERE name <> 'Sale'") == 0
    assert await database.fetch("SELECT FROM inventory WHERE sku <> 'lamp' AND on_hand <> 7") == []
    assert await database.value("SELECT on_hand FROM inventory WHERE sku = 'lamp'") == 20  # it was missing
    assert await database.value("SELECT count(*) FROM delivery_zones WHERE is_served") == 0


async def test_two_people_can_run_it_on_one_database_at_once(stack: DevStack, empty_databases: list[str]) -> None:
    name = empty_databases[0]

    await asyncio.gather(*(asyncio.to_thread(psql, stack.postgres, name, *_SETUP) for _ in range(4)))
    psql(stack.postgres, name, *_DEMO)

    assert _timeless(_dump(stack, name)) == _timeless(_dump(stack, DATABASE))


async def test_two_databases_of_one_server_can_be_set_up_at_once(stack: DevStack, empty_databases: list[str]) -> None:
    for _ in range(5):
        await asyncio.gather(*(asyncio.to_thread(psql, stack.postgres, name, *_SETUP) for name in empty_databases))

    one, other = (_timeless(_dump(stack, name)) for name in empty_databases)
    assert one == other


# Constraints --------------------------------------------------------------------------------------------

_ORDER = "INSERT INTO orders (order_id, customer) VALUES ('o-1', 'alice'); "
_TRANSFER = (
    "INSERT INTO transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency) VALUES "
)
_PARCEL = "INSERT INTO shipments (order_id, tracking_number, carrier, zone, state, handed_over_at) VALUES "
_APPROVAL = "INSERT INTO approvals (kind, subject, amount, currency, reason) VALUES "
_VIOLATIONS = {
    "products_sku_is_printable": "INSERT INTO products VALUES ('tea-mug ', 'A blank', 100)",
    "products_price_in_range": "INSERT INTO products VALUES ('gift', 'For nothing', 0)",
    "products_currency_is_iso": "INSERT INTO products VALUES ('gift', 'In euros', 100, 'euro')",
    "products_currency_is_known": "UPDATE products SET currency = 'XXX' WHERE sku = 'lamp'",
    "accounts_currency_is_known": "UPDATE accounts SET currency = 'EUX' WHERE account_id = 'bob'",
    "currencies_code_is_iso": "INSERT INTO currencies VALUES ('eur', 2)",
    "currencies_minor_units_in_range": "INSERT INTO currencies VALUES ('XTS', 5)",
    "inventory_never_oversold": "UPDATE inventory SET reserved = on_hand + 1 WHERE sku = 'lamp'",
    "inventory_never_negative": "UPDATE inventory SET reserved = -1 WHERE sku = 'lamp'",
    "accounts_id_is_printable": "INSERT INTO accounts VALUES (E'b\\tb', 'customer', 'Bob', 0)",
    "accounts_kind_is_known": "INSERT INTO accounts VALUES ('x', 'supplier', 'X', NULL)",
    "accounts_balance_is_a_customers": "UPDATE accounts SET balance_minor = 0 WHERE account_id = 'shop'",
    "accounts_never_overdrawn": "UPDATE accounts SET balance_minor = -1 WHERE account_id = 'bob'",
    "accounts_currency_is_iso": "UPDATE accounts SET currency = '€' WHERE account_id = 'bob'",
    "transfers_kind_is_known": _TRANSFER + "('t', NULL, 'gift', 'bank', 'bob', 1, 'EUR')",
    "transfers_amount_is_positive": _TRANSFER + "('t', NULL, 'deposit', 'bank', 'bob', 0, 'EUR')",
    "transfers_between_two_accounts": _TRANSFER + "('t', NULL, 'deposit', 'bank', 'bank', 1, 'EUR')",
    "transfers_sides_fit_the_kind": _TRANSFER + "('t', 'o-1', 'capture', 'bob', 'alice', 1, 'EUR')",
    "transfers_once_per_order": _TRANSFER
    + "('t1', 'o-1', 'capture', 'bob', 'shop', 1, 'EUR'), ('t2', 'o-1', 'capture', 'alice', 'shop', 1, 'EUR')",
    "orders_id_is_printable": "INSERT INTO orders (order_id, customer) VALUES (repeat('o', 129), 'alice')",
    "orders_customer_is_printable": "INSERT INTO orders (order_id, customer) VALUES ('o', E'al\\nice')",
    # The trigger on moves would be faster to refuse it.
    "orders_status_is_known": _ORDER
    + "SET LOCAL session_replication_role = replica; UPDATE orders SET status = 'lost'",
    "orders_moves_are_legal": _ORDER + "UPDATE orders SET status = 'completed'",
    "orders_ending_is_known": _ORDER + "UPDATE orders SET ending = 'completed'",
    "orders_reason_is_bounded": _ORDER + "UPDATE orders SET reason = repeat('x', 1001)",
    "orders_total_is_positive": _ORDER + "UPDATE orders SET total_minor = 0",
    "orders_priced_when_reserved": _ORDER + "UPDATE orders SET status = 'reserved'",
    "order_lines_sku_is_printable": _ORDER + "INSERT INTO order_lines VALUES ('o-1', '', 1)",
    "order_lines_quantity_in_range": _ORDER + "INSERT INTO order_lines VALUES ('o-1', 'lamp', 1001)",
    "approvals_kind_is_known": _APPROVAL + "('gift', 'bob', 1, NULL, 'x')",
    "approvals_deposit_has_a_currency": _APPROVAL + "('deposit', 'bob', 1, NULL, 'x')",
    "approvals_amount_is_something": _APPROVAL + "('delivery', 'lamp', 0, NULL, 'x')",
    "approvals_reason_is_given": _APPROVAL + "('delivery', 'lamp', 1, NULL, ' ')",
    "approvals_once_per_reference": "INSERT INTO approvals (kind, subject, amount, reference, reason)"
    " VALUES ('delivery', 'lamp', 1, 'r', 'x'), ('delivery', 'cap', 1, 'r', 'x')",
    "reservations_quantity_is_positive": _ORDER + "INSERT INTO reservations VALUES ('o-1', 'lamp', 0)",
    "reservations_state_is_known": _ORDER + "INSERT INTO reservations VALUES ('o-1', 'lamp', 1, 'lost')",
    "shipments_state_is_known": _ORDER + _PARCEL + "('o-1', 'T', 'Post', 'city', 'lost', NULL)",
    "shipments_handed_over_has_an_instant": _ORDER + _PARCEL + "('o-1', 'T', 'Post', 'city', 'handed_over', NULL)",
    "shipments_tracking_number_key": _ORDER
    + "INSERT INTO orders (order_id, customer) VALUES ('o-2', 'bob'); "
    + _PARCEL
    + "('o-1', 'T', 'Post', 'city', 'label', NULL), ('o-2', 'T', 'Post', 'city', 'label', NULL)",
    "step_fence_phase_is_known": "INSERT INTO step_fence VALUES ('o-1', 'pay', 'perhaps', true, 'f', '{}')",
    "step_fence_done_had_effect": "INSERT INTO step_fence VALUES ('o-1', 'pay', 'done', true, 'f', NULL)",
    "order_events_numbered_once": _ORDER
    + "INSERT INTO order_events (order_id, seq, event, status, changed_by) VALUES ('o-1', 1, 'x', 'x', 'x')",
    "incidents_name_a_step": _ORDER + "INSERT INTO incidents (order_id, steps, cause) VALUES ('o-1', '{}', 'x')",
    "incidents_closed_with_a_resolution": _ORDER
    + "INSERT INTO incidents (order_id, steps, cause, closed_at) VALUES ('o-1', '{pay}', 'x', now())",
    "incidents_one_open_per_order": _ORDER
    + "INSERT INTO incidents (order_id, steps, cause) VALUES ('o-1', '{pay}', 'x'), ('o-1', '{ship}', 'y')",
    "schema_version_is_one_row": "INSERT INTO schema_version VALUES (false, 1)",
    "audit_events_event_is_known": "INSERT INTO audit_events (check_id, subject, event, detail)"
    " VALUES ('A1', 'lamp', 'perhaps', 'x')",
}


@pytest.mark.parametrize("constraint", _VIOLATIONS)
async def test_the_database_refuses_what_its_constraint_forbids(stack: DevStack, constraint: str) -> None:
    connection = await asyncpg.connect(stack.postgres.url(DATABASE, driver="postgresql"))

    try:
        transaction = connection.transaction()
        await transaction.start()
        with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
            await connection.execute(_VIOLATIONS[constraint])
        await transaction.rollback()
    finally:
        await connection.close()

    assert refused.value.constraint_name == constraint


async def test_every_constraint_has_a_row_that_violates_it(database: Database) -> None:
    named = await database.fetch(
        "SELECT conname FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND (contype IN ('c', 'u') OR confrelid = 'currencies'::regclass)"
        " UNION SELECT indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE c.relnamespace = 'public'::regnamespace AND i.indisunique AND NOT i.indisprimary"
    )

    assert {row[0] for row in named} | {"orders_moves_are_legal"} == set(_VIOLATIONS)


# Rights -------------------------------------------------------------------------------------------------


async def test_the_statement_of_a_worker_that_was_killed_holds_its_locks_for_a_second(stack: DevStack) -> None:
    connection = await asyncpg.connect(make_url(stack.database_url).set(drivername="postgresql").render_as_string())

    try:
        assert await connection.fetchval("SHOW client_connection_check_interval") == "1s"
    finally:
        await connection.close()


# The state machine --------------------------------------------------------------------------------------

_LEGAL = {
    "pending": {"reserved", "unwinding", "rejected", "cancelled", "stuck"},
    "reserved": {"paid", "unwinding", "stuck"},
    "paid": {"completed", "unwinding", "stuck"},
    "completed": {"unwinding", "stuck"},
    "unwinding": {"rejected", "cancelled", "stuck"},
    "stuck": {"unwinding", "rejected", "cancelled", "completed"},
    "rejected": set(),
    "cancelled": set(),
}
_FIRST = {"pending", "reserved", "rejected", "cancelled", "stuck"}


def test_the_moves_speak_of_every_status() -> None:
    assert set(_LEGAL) == {status.value for status in OrderStatus}


@pytest.mark.parametrize("previous", _LEGAL)
async def test_a_status_moves_only_to_where_it_may(database: Database, previous: str) -> None:
    moved = set()

    async with database.connected() as connection:
        for following in _LEGAL:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(
                "SET LOCAL session_replication_role = replica;"
                " INSERT INTO orders (order_id, customer, status, total_minor, currency, event_seq, taken_back_by)"
                f" VALUES ('o-1', 'alice', '{previous}', 100, 'EUR', 4, 'cancel');"
                " SET LOCAL session_replication_role = origin"
            )
            try:
                await connection.execute(f"UPDATE orders SET status = '{following}', reason = 'by hand'")
                logged = await connection.fetch("SELECT seq, event, previous_status, status, reason FROM order_events")
                moved |= {following} if following != previous else set()
                expected = [(5, following, previous, following, "by hand")] if following != previous else []
                assert [tuple(row) for row in logged] == expected
            except asyncpg.CheckViolationError as refused:
                assert refused.constraint_name == "orders_moves_are_legal"  # noqa: PT017
            await transaction.rollback()

    assert moved == _LEGAL[previous]


@pytest.mark.parametrize("status", _LEGAL)
async def test_an_order_begins_only_where_it_may(database: Database, status: str) -> None:
    insert = (
        "INSERT INTO orders (order_id, customer, status, total_minor, currency, event_seq)"
        f" VALUES ('o-1', 'alice', '{status}', 100, 'EUR', 77)"
    )

    if status in _FIRST:
        await database.run(insert)
    else:
        with pytest.raises(asyncpg.CheckViolationError, match="cannot begin as"):
            await database.run(insert)

    logged = await database.fetch("SELECT seq, previous_status, status FROM order_events")
    assert [tuple(row) for row in logged] == ([(1, None, status)] if status in _FIRST else [])


@pytest.mark.parametrize("following", ["unwinding", "stuck"])
async def test_an_order_stays_completed_once_its_parcel_is_handed_over(database: Database, following: str) -> None:
    await database.run(
        "INSERT INTO orders (order_id, customer, status, total_minor, currency)"
        " VALUES ('o-1', 'alice', 'reserved', 100, 'EUR');"
        "UPDATE orders SET status = 'paid'; UPDATE orders SET status = 'completed';"
        + _PARCEL
        + "('o-1', 'T', 'Post', 'city', 'handed_over', now())"
    )

    with pytest.raises(asyncpg.CheckViolationError, match="cannot move from completed") as refused:
        await database.run(f"UPDATE orders SET status = '{following}', taken_back_by = 'cancel'")

    assert refused.value.constraint_name == "orders_moves_are_legal"
    assert await database.value("SELECT status FROM orders") == "completed"


async def test_moves_made_by_hand_are_numbered_without_a_gap_whoever_makes_them(
    database: Database, stack: DevStack
) -> None:
    insert = "INSERT INTO orders (order_id, customer) VALUES ('o-1', 'alice')"
    reserved = "UPDATE orders SET status = 'reserved', changed_by = 'me', total_minor = 1, currency = 'EUR'"
    moves = [insert, reserved, "UPDATE orders SET reason = 'not a move'"]
    moves += [f"UPDATE orders SET status = '{status}'" for status in ("paid", "paid", "unwinding", "rejected")]

    for move, role in zip(moves, itertools.cycle(["postgres", "checkout"]), strict=False):
        psql(stack.postgres, database.name, "-c", f"SET ROLE {role}", "-c", move)

    logged = await database.fetch("SELECT seq, status, changed_by FROM order_events ORDER BY event_id")
    assert [tuple(row) for row in logged] == [
        (1, "pending", "accept"),
        (2, "reserved", "me"),
        (3, "paid", "me"),
        (4, "unwinding", "me"),
        (5, "rejected", "me"),
    ]


async def test_a_move_sets_the_clock_of_how_long_an_order_has_was_idle(database: Database) -> None:
    since = "SELECT now() - updated_at FROM orders"
    await database.run("INSERT INTO orders (order_id, customer, updated_at) VALUES ('o-1', 'alice', '2020-01-01')")

    await database.run("UPDATE orders SET reason = 'not a move'")
    idle_for = await database.value(since)
    await database.run("UPDATE orders SET status = 'unwinding'")
    moved = await database.value(since)

    assert idle_for > timedelta(days=365)
    assert moved < timedelta(minutes=1)
