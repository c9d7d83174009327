"""What a worker asks of its database before it works: nothing that it relies on may be missing, and it says what is."""

import pytest
from sqlalchemy import make_url

from adapters import schema
from devstack.stack import ROOT, DevStack, psql
from tests.conftest import Database, lacks
from tests.record_schema import facts

_SETUP = ("-f", str(ROOT / "setup.sql"))


async def test_the_code_expects_exactly_what_setup_sql_makes(database: Database) -> None:
    recorded = schema.RECORDING.read_text(encoding="utf-8").splitlines()

    made = await facts(database.url)

    assert made == recorded, "run: .venv/bin/python -m tests.record_schema"


async def test_a_database_on_which_setup_sql_has_run_lacks_nothing(database: Database) -> None:
    assert await lacks(database.url) == []


async def test_a_database_on_which_setup_sql_never_ran_is_reported_in_one_line(stack: DevStack) -> None:
    assert await lacks(stack.postgres.url("postgres")) == ["any of our tables: setup.sql has not been run on it"]


def _table(rows: str) -> dict[str, tuple[str, str]]:
    """Read rows of: what it is | the damage | what is told, line // line."""
    cells = (" ".join(row.split()).split(" | ") for row in rows.strip().splitlines())
    return {what: (damage, output.replace(" // ", "\n")) for what, damage, output in cells}


_MENDED_BY_SETUP = _table("""
version | UPDATE schema_version SET version = 1 | schema version 6 (it has version 1)
no version | DROP TABLE schema_version | schema version 6 (it has none) // table schema_version
table | DROP TABLE audit_events | table audit_events
column | ALTER TABLE orders DROP COLUMN batch_workflow_id | column orders.batch_workflow_id text
trigger | DROP TRIGGER orders_move ON orders | trigger orders.orders_move BEFORE INSERT OR UPDATE OF status FOR EACH \
    ROW EXECUTE public.orders_move
trigger disabled | ALTER TABLE orders DISABLE TRIGGER orders_log_move | trigger orders.orders_log_move enabled
trigger for replicas alone | ALTER TABLE orders ENABLE REPLICA TRIGGER orders_move | trigger orders.orders_move \
    enabled
trigger of another function | CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO checkout; CREATE FUNCTION \
    other.orders_move() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE OR REPLACE TRIGGER \
    orders_move BEFORE INSERT OR UPDATE OF status ON orders FOR EACH ROW EXECUTE FUNCTION other.orders_move() | \
    trigger orders.orders_move BEFORE INSERT OR UPDATE OF status FOR EACH ROW EXECUTE public.orders_move (it is \
    BEFORE INSERT OR UPDATE OF status FOR EACH ROW EXECUTE other.orders_move)
trigger on another event | CREATE OR REPLACE TRIGGER orders_log_move AFTER INSERT ON orders FOR EACH ROW EXECUTE \
    FUNCTION orders_log_move() | trigger orders.orders_log_move AFTER INSERT OR UPDATE OF status FOR EACH ROW EXECUTE \
    public.orders_log_move (it is AFTER INSERT FOR EACH ROW EXECUTE public.orders_log_move)
function body | CREATE OR REPLACE FUNCTION orders_move() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; \
    END';  | function orders_move() as setup.sql has it
function that is not the owner's any more | ALTER FUNCTION orders_log_move() SECURITY INVOKER | function \
    orders_log_move() as setup.sql has it
index | DROP INDEX orders_unfinished | index orders.orders_unfinished (updated_at, order_id)
unique index | DROP INDEX transfers_once_per_order | index transfers.transfers_once_per_order unique (order_id, kind) \
    WHERE (order_id IS NOT NULL)
right to add | REVOKE INSERT ON step_fence FROM checkout | right INSERT on step_fence
right to read | REVOKE SELECT ON delivery_zones FROM checkout | right SELECT on delivery_zones
right to change | REVOKE UPDATE (ending) ON orders FROM checkout | right UPDATE on orders.ending
right to a sequence | REVOKE USAGE ON SEQUENCE order_events_event_id_seq FROM checkout | right USAGE of its sequence \
    on order_events.event_id
right to the schema | REVOKE USAGE ON SCHEMA public FROM checkout, PUBLIC | right USAGE on schema public
right to a function | REVOKE EXECUTE ON FUNCTION order_stays_completed FROM checkout, PUBLIC | right EXECUTE on \
    order_stays_completed(status text, shipped_by text, taken_back_by text)
""")
_MENDED_BY_HAND = _table("""
type | ALTER TABLE shipments ALTER COLUMN tracking_number TYPE varchar(20) | column shipments.tracking_number text \
    (it is character varying(20))
default | ALTER TABLE order_events ALTER COLUMN at DROP DEFAULT | default order_events.at
not null | ALTER TABLE step_fence ALTER COLUMN fingerprint DROP NOT NULL | not null step_fence.fingerprint
constraint | ALTER TABLE inventory DROP CONSTRAINT inventory_never_oversold | constraint \
    inventory.inventory_never_oversold CHECK
key | ALTER TABLE step_fence DROP CONSTRAINT step_fence_pkey | constraint step_fence.step_fence_pkey PRIMARY KEY \
    (saga_id, step) // index step_fence.step_fence_pkey unique (saga_id, step)
foreign key disabled | ALTER TABLE reservations DISABLE TRIGGER ALL | constraint \
    reservations.reservations_order_id_fkey FOREIGN KEY (order_id) REFERENCES orders(order_id) (it is FOREIGN KEY \
    (order_id) REFERENCES orders(order_id), disabled) // constraint reservations.reservations_sku_fkey FOREIGN KEY \
    (sku) REFERENCES products(sku) (it is FOREIGN KEY (sku) REFERENCES products(sku), disabled)
row security | ALTER TABLE orders ENABLE ROW LEVEL SECURITY | table orders (it is hides rows by row security)
another index of that name | DROP INDEX transfers_by_debit; CREATE INDEX transfers_by_debit ON transfers (currency) | \
    index transfers.transfers_by_debit (debit_account) (it is (currency))
a column that must be given | ALTER TABLE incidents ADD COLUMN severity text NOT NULL | a default for column \
    incidents.severity
a column of ours that has become mandatory | ALTER TABLE orders ALTER COLUMN reason SET NOT NULL | null in column \
    orders.reason
unique among more rows than ours | DROP INDEX incidents_one_open_per_order; CREATE UNIQUE INDEX \
    incidents_one_open_per_order ON incidents (order_id) | index incidents.incidents_one_open_per_order unique \
    (order_id) WHERE (closed_at IS NULL) (it is unique (order_id))
triggers that do not fire | ALTER ROLE checkout IN DATABASE "{name}" SET session_replication_role = replica | trigger \
    approvals.approvals_stay enabled // trigger orders.orders_log_move enabled // trigger orders.orders_move enabled \
    // trigger transfers.transfers_refuse_deposit enabled
no statement_timeout | ALTER ROLE checkout IN DATABASE "{name}" SET statement_timeout = 0 | statement_timeout from 1 \
    to 4999 ms for the steps (it is 0)
search_path | CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO checkout; CREATE TABLE other.orders (); ALTER ROLE \
    checkout IN DATABASE "{name}" SET search_path = other, public | a search_path by which orders are those in public \
    (it is other, public)
search_path without it | CREATE SCHEMA other; GRANT USAGE ON SCHEMA other TO checkout; ALTER ROLE checkout IN \
    DATABASE "{name}" SET search_path = other | a search_path by which accounts, approvals, audit_events, currencies, \
    delivery_zones, incidents, inventory, order_events, order_lines, orders, products, reservations, schema_version, \
    shipments, step_fence, transfers are those in public (it is other)
no lock_timeout | ALTER ROLE checkout IN DATABASE "{name}" SET lock_timeout = 0 | lock_timeout from 1 to 2999 ms for \
    the steps (it is 0) // lock_timeout from 1 to 54999 ms for the sweep (it is 0) // lock_timeout from 1 to 1739999 \
    ms for the audit (it is 0)
statements that outlast their attempt | ALTER ROLE checkout IN DATABASE "{name}" SET statement_timeout = '6s' | \
    statement_timeout from 1 to 4999 ms for the steps (it is 6000)
transactions that outlast their attempt | ALTER ROLE checkout IN DATABASE "{name}" SET transaction_timeout = 0 | \
    transaction_timeout from 3000 to 9999 ms for the steps (it is 0)
idle for ever | ALTER ROLE checkout IN DATABASE "{name}" SET idle_in_transaction_session_timeout = 0 | \
    idle_in_transaction_session_timeout from 1 to 9999 ms for the steps (it is 0) // \
    idle_in_transaction_session_timeout from 1 to 9999 ms for the sweep (it is 0) // \
    idle_in_transaction_session_timeout from 1 to 9999 ms for the audit (it is 0)
""")


@pytest.mark.parametrize("what", [*_MENDED_BY_SETUP, *_MENDED_BY_HAND])
async def test_whatever_is_missing_is_named(what: str, database: Database, stack: DevStack) -> None:
    damage, reported = (_MENDED_BY_SETUP | _MENDED_BY_HAND)[what]
    await database.run(damage.replace("{name}", database.name))

    assert "\n".join(await lacks(database.url)) == reported
    if what in _MENDED_BY_SETUP:
        psql(stack.postgres, database.name, *_SETUP)
        assert await lacks(database.url) == []


async def test_an_index_of_another_definition_is_not_taken_for_ours(database: Database, stack: DevStack) -> None:
    await database.run(_MENDED_BY_HAND["another index of that name"][0])

    with pytest.raises(Exception, match=r"(?s)index transfers_by_debit is CREATE INDEX .*\(currency\).*DROP INDEX"):
        psql(stack.postgres, database.name, *_SETUP)


async def test_a_newer_schema_will_do(database: Database) -> None:
    await database.run(
        "UPDATE schema_version SET version = version + 1; CREATE TABLE later (id text PRIMARY KEY);"
        "ALTER TABLE orders ADD COLUMN later text NOT NULL DEFAULT 'x';"
        "ALTER TABLE orders ALTER COLUMN reason SET NOT NULL; CREATE INDEX later_index ON orders (later);"
        "CREATE OR REPLACE FUNCTION order_may_move(previous text, next text) RETURNS boolean"
        " LANGUAGE sql IMMUTABLE AS 'SELECT true'"
    )

    assert await lacks(database.url) == []


async def test_a_setup_sql_of_an_older_release_changes_nothing(database: Database, stack: DevStack) -> None:
    await database.run("UPDATE schema_version SET version = version + 1; DROP TRIGGER orders_move ON orders")

    with pytest.raises(Exception, match="has schema version 7, and this file makes version 6"):
        psql(stack.postgres, database.name, *_SETUP)

    assert await database.value("SELECT count(*) FROM pg_trigger WHERE tgname = 'orders_move'") == 0


async def test_the_rights_are_those_of_whoever_connects(database: Database, stack: DevStack) -> None:
    reader = f"reader_{database.name}"
    await database.run(f"CREATE ROLE {reader} LOGIN; GRANT pg_read_all_data TO {reader}")

    try:
        found = await lacks(make_url(database.url).set(username=reader).render_as_string())
    finally:
        psql(stack.postgres, "postgres", "-c", f"DROP ROLE {reader}")

    assert "right INSERT on orders" in found
    assert "right UPDATE on accounts.balance_minor" in found
    assert "right SELECT on orders" not in found
