"""Who may do what: each role, table, verb and column, tried in both directions on both servers.

The tables and their columns are the catalogue's: a new one fails here until somebody has decided about it.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from devstack.stack import DATABASE, make_database, psql
from sagafence.devservers.postgres import PostgresServer
from tests.conftest import postgres_of_its_own

WORKER, READER, OPERATOR = "checkout", "checkout_reader", "checkout_operator"
ROLES = (WORKER, READER, OPERATOR)

# Each column, and who adds it (INSERT) or changes it (UPDATE): the worker in small letters, the operator in capitals.
# Everybody reads everything, and nobody deletes.
_COLUMNS = """
currencies: code minor_units
products: sku=A name=AC unit_price_minor=AC currency=AC
inventory: sku initial received on_hand=c reserved=c
delivery_zones: zone=A carrier=AC is_served=AC hands_over_at_once=AC
accounts: account_id=A kind=A name=AC balance_minor=c currency=A delivery_zone=AC
transfers: transfer_id=a order_id=a kind=a debit_account=a credit_account=a amount_minor=a currency=a created_at=a
orders: order_id=aA customer=aA status=ac changed_by=ac reason=ac ending=ac fingerprint=ac total_minor=ac currency=ac
orders: event_seq=a batch_workflow_id=a shipped_by=ac taken_back_by=ac created_at=a updated_at=ac
order_lines: order_id=aA sku=aA quantity=aA unit_price_minor=ac
reservations: order_id=a sku=a quantity=a state=ac
shipments: order_id=a tracking_number=a carrier=a zone=a state=ac created_at=a handed_over_at=ac
step_fence: saga_id=a step=a phase=ac had_effect=a fingerprint=a result=a created_at=a updated_at=ac
order_events: event_id txid order_id seq event previous_status status changed_by reason at
incidents: incident_id=a order_id=a steps=ac cause=ac opened_at=a closed_at=ac resolution=ac needs_review=ac
audit_events: event_id txid check_id=a subject=a event=a detail=a at
approvals: approval_id kind subject amount currency reference reason approved_by at
schema_version: is_the_row version
"""
_FUNCTIONS: dict[str, set[str]] = {
    "is_identifier": {WORKER, OPERATOR},
    "order_may_move": {WORKER, READER, OPERATOR},
    "order_stays_completed": {WORKER},
    "note_on_order": {WORKER},
    "orders_move": set(),
    "orders_log_move": set(),
    "transfers_refuse_deposit": set(),
    "deposit": {OPERATOR},
    "deliver": {OPERATOR},
    "approve_what_is_there": set(),
    "approvals_stay": set(),
}
_SEQUENCES: dict[str, set[str]] = {
    "order_events_event_id_seq": {WORKER},
    "incidents_incident_id_seq": set(),
    "approvals_approval_id_seq": set(),
}
# What a row may lack once the right to write it is there.
_UNFIT = (asyncpg.IntegrityConstraintViolationError,)


def _matrix() -> dict[tuple[str, str], str]:
    decided: dict[tuple[str, str], str] = {}
    for line in _COLUMNS.strip().splitlines():
        table, _, columns = line.partition(": ")
        for column in columns.split():
            name, _, letters = column.partition("=")
            decided[table, name] = letters
    return decided


@pytest.fixture(scope="module", params=[18, pytest.param(16, marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server with one database on which setup.sql was run; nothing is left in it by a test."""
    with postgres_of_its_own(tmp_path_factory.mktemp("rights"), version=int(request.param)) as made:
        make_database(made, DATABASE)
        yield made


@asynccontextmanager
async def _as(
    server: PostgresServer, role: str, database: str = DATABASE
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(server.url(database, role, driver="postgresql"))
    try:
        yield connection
    finally:
        await connection.close()


async def _is_let(connection: "asyncpg.Connection[asyncpg.Record]", statement: str) -> bool:
    """Try a statement, and take it back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return False
    except _UNFIT:
        return True
    finally:
        await transaction.rollback()
    return True


async def _list(server: PostgresServer, query: str) -> list[tuple[Any, ...]]:
    async with _as(server, "postgres") as connection:
        return [tuple(row) for row in await connection.fetch(query)]


async def test_every_column_is_decided(server: PostgresServer) -> None:
    columns = await _list(
        server,
        "SELECT relname::text, attname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0"
        " AND NOT attisdropped WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('i', 'S', 't')",
    )

    assert set(columns) == set(_matrix())


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_do_exactly_what_was_decided(server: PostgresServer, role: str) -> None:
    adds, changes = {WORKER: ("a", "c"), OPERATOR: ("A", "C")}.get(role, ("-", "-"))
    of_table: dict[str, str] = defaultdict(str)
    for (table, _), letters in _matrix().items():
        of_table[table] += letters
    expected: dict[str, bool] = {}
    for (table, column), letters in _matrix().items():
        expected |= {
            f"SELECT {column} FROM {table} LIMIT 0": True,
            f"INSERT INTO {table} ({column}) VALUES (DEFAULT)": adds in letters,
            f"UPDATE {table} SET {column} = DEFAULT WHERE false": changes in letters,
            f"SELECT {column} FROM {table} LIMIT 0 FOR UPDATE": changes in of_table[table],
            f"DELETE FROM {table} WHERE {column} IS NULL": False,
            f"TRUNCATE {table} CASCADE": False,
            f"ALTER TABLE {table} DROP COLUMN {column}": False,
            f"ALTER TABLE {table} DISABLE TRIGGER USER": False,
            f"CREATE TRIGGER mine BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION orders_move()": False,
            f"DROP TABLE {table} CASCADE": False,
            f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE": False,
        }

    async with _as(server, role) as connection:
        found = {statement: await _is_let(connection, statement) for statement in expected}

    assert found == expected


async def test_no_role_refers_to_a_table_adds_a_trigger_to_it_or_maintains_it(server: PostgresServer) -> None:
    verbs = ["REFERENCES", "TRIGGER", "TRUNCATE", "DELETE"] + ["MAINTAIN"] * (server.version >= 17)

    granted = await _list(
        server,
        "SELECT role, relname::text, verb FROM pg_class, unnest(ARRAY['checkout', 'checkout_reader',"
        f" 'checkout_operator']) AS role, unnest(ARRAY{verbs}) AS verb WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p') AND has_table_privilege(role, oid, verb)",
    )

    assert granted == []


async def test_a_function_is_for_those_who_need_it(server: PostgresServer) -> None:
    rows = await _list(
        server,
        "SELECT proname::text, coalesce((SELECT string_agg(role, ' ') FROM unnest(ARRAY['checkout', 'checkout_reader',"
        " 'checkout_operator']) AS role WHERE has_function_privilege(role, p.oid, 'EXECUTE')), '')"
        " FROM pg_proc p WHERE pronamespace = 'public'::regnamespace",
    )

    assert {name: set(who.split()) for name, who in rows} == _FUNCTIONS


async def test_whatever_runs_as_its_owner_means_what_is_in_public(server: PostgresServer) -> None:
    rows = await _list(
        server,
        "SELECT proname::text, array_to_string(proconfig, ';'), proowner::regrole::text FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND (prosecdef OR prorettype = 'trigger'::regtype)",
    )

    assert {(path, owner) for _, path, owner in rows} == {("search_path=pg_catalog, public, pg_temp", "checkout_owner")}
    assert {"orders_log_move", "note_on_order"} <= {name for name, *_ in rows}


async def test_a_sequence_is_for_those_who_number_their_own_rows(server: PostgresServer) -> None:
    rows = await _list(
        server,
        "SELECT relname::text, coalesce((SELECT string_agg(role || ' ' || verb, ', ') FROM unnest(ARRAY['checkout',"
        " 'checkout_reader', 'checkout_operator']) AS role, unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) AS verb"
        " WHERE has_sequence_privilege(role, c.oid, verb)), '') FROM pg_class c"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'",
    )

    assert dict(rows) == {name: ", ".join(f"{who} USAGE" for who in whose) for name, whose in _SEQUENCES.items()}


async def test_the_owner_owns_everything_and_has_no_login(server: PostgresServer) -> None:
    owners = await _list(
        server,
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " UNION SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    )
    members = await _list(
        server,
        "SELECT member::regrole::text FROM pg_auth_members"
        " WHERE member::regrole::text LIKE 'checkout%' OR roleid = 'checkout_owner'::regrole",
    )

    assert owners == [("checkout_owner",)]
    assert members == []


async def test_the_roles_are_ordinary_and_the_workers_sessions_are_limited(server: PostgresServer) -> None:
    rows = await _list(
        server,
        "SELECT rolname::text, rolcanlogin, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls,"
        " rolconnlimit FROM pg_roles WHERE rolname LIKE 'checkout%' ORDER BY 1",
    )

    assert rows == [
        ("checkout", True, False, 160),
        ("checkout_operator", True, False, -1),
        ("checkout_owner", False, False, -1),
        ("checkout_reader", True, False, -1),
    ]


async def test_nothing_of_ours_is_everybodys(server: PostgresServer) -> None:
    everybodys = await _list(
        server,
        "SELECT relname::text, privilege_type FROM pg_class, aclexplode(coalesce(relacl, acldefault("
        "  CASE relkind WHEN 'S' THEN 's'::\"char\" ELSE 'r' END, relowner))) WHERE grantee = 0"
        "  AND relnamespace = 'public'::regnamespace"
        " UNION ALL SELECT attname::text, privilege_type FROM pg_attribute, aclexplode(attacl) WHERE grantee = 0"
        "  AND attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)"
        " UNION ALL SELECT proname::text, privilege_type FROM pg_proc, aclexplode(coalesce(proacl,"
        "  acldefault('f', proowner))) WHERE grantee = 0 AND pronamespace = 'public'::regnamespace"
        " UNION ALL SELECT nspname::text, privilege_type FROM pg_namespace, aclexplode(coalesce(nspacl,"
        "  acldefault('n', nspowner))) WHERE grantee = 0 AND nspname = 'public'"
        " UNION ALL SELECT datname::text, privilege_type FROM pg_database, aclexplode(coalesce(datacl,"
        "  acldefault('d', datdba))) WHERE grantee = 0 AND datallowconn",
    )

    assert everybodys == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine ()",
        "CREATE TEMP TABLE mine ()",
        "CREATE TABLE pg_temp.mine ()",
        "CREATE VIEW mine AS SELECT 1",
        "CREATE SEQUENCE mine",
        "CREATE TYPE mine AS (a integer)",
        "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "CREATE OR REPLACE FUNCTION order_may_move(a text, b text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "ALTER FUNCTION orders_log_move() SECURITY INVOKER",
        "SET ROLE checkout_owner",
        "SET SESSION AUTHORIZATION postgres",
        "SET session_replication_role = replica",
        "ALTER ROLE checkout SUPERUSER",
        "ALTER ROLE checkout CONNECTION LIMIT -1",
        "ALTER ROLE checkout_owner LOGIN",
        "GRANT checkout_owner TO CURRENT_USER",
        "COPY orders TO PROGRAM 'cat'",
        "COPY orders FROM '/etc/passwd'",
        "COPY orders TO '/tmp/orders'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT setval('order_events_event_id_seq', 1)",
        "SELECT orders_log_move()",
    ],
)
async def test_nobody_may(server: PostgresServer, role: str, statement: str) -> None:
    async with _as(server, role) as connection:
        assert not await _is_let(connection, statement)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("database", ["postgres", "template1"])
async def test_a_role_gets_into_its_database_alone(server: PostgresServer, role: str, database: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        async with _as(server, role, database):
            pass


_TRANSFER = "INSERT INTO transfers VALUES ('t-1', {order}, '{kind}', '{debit}', '{credit}', 1, 'EUR')"


async def test_the_worker_writes_no_deposit(server: PostgresServer) -> None:
    deposit = _TRANSFER.format(order="NULL", kind="deposit", debit="bank", credit="bob")
    capture = _TRANSFER.format(order="'o-1'", kind="capture", debit="bob", credit="shop")

    async with _as(server, WORKER) as connection:
        assert not await _is_let(connection, deposit)
        assert await _is_let(connection, capture)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="may not write a deposit"):
            await connection.copy_records_to_table(
                "transfers",
                records=[("t-1", "deposit", "bank", "bob", 1, "EUR")],
                columns=["transfer_id", "kind", "debit_account", "credit_account", "amount_minor", "currency"],
            )


async def test_an_event_is_written_by_a_move_and_by_a_persons_request_alone(server: PostgresServer) -> None:
    async with _as(server, WORKER) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("INSERT INTO orders (order_id, customer) VALUES ('o-1', 'alice')")
        await connection.execute("UPDATE orders SET status = 'unwinding'")
        await connection.execute("SELECT note_on_order('o-1', 'retry_requested', 'request 1')")
        await connection.execute("SELECT note_on_order('o-1', 'retry_requested', 'request 1')")
        events = await connection.fetch("SELECT seq, event, changed_by FROM order_events ORDER BY seq")
        with pytest.raises(asyncpg.InvalidParameterValueError, match="completed is no event of a person"):
            await connection.execute("SELECT note_on_order('o-1', 'completed', 'request 1')")
        await transaction.rollback()

    assert [tuple(row) for row in events] == [
        (1, "pending", "accept"),
        (2, "unwinding", "accept"),
        (3, "retry_requested", "operator"),
    ]


async def test_an_operator_writes_an_order_by_hand_and_opens_a_customer_with_nothing(server: PostgresServer) -> None:
    async with _as(server, OPERATOR) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("INSERT INTO orders (order_id, customer) VALUES ('by-hand-1', 'heidi')")
        await connection.execute("INSERT INTO order_lines (order_id, sku, quantity) VALUES ('by-hand-1', 'cap', 1)")
        await connection.execute(
            "INSERT INTO accounts (account_id, kind, name, delivery_zone) VALUES ('ines', 'customer', 'Ines', 'city')"
        )
        order = await connection.fetchrow("SELECT status, event_seq FROM orders")
        balance = await connection.fetchval("SELECT balance_minor FROM accounts WHERE account_id = 'ines'")
        assert not await _is_let(
            connection, "INSERT INTO orders (order_id, customer, status) VALUES ('x', 'y', 'stuck')"
        )
        await transaction.rollback()

    assert order is not None
    assert tuple(order) == ("pending", 1)
    assert balance == 0


async def test_a_second_run_gives_the_owner_nothing_new_and_takes_back_what_was_added(server: PostgresServer) -> None:
    psql(
        server,
        DATABASE,
        *("-c", "GRANT DELETE, UPDATE (amount_minor) ON transfers TO checkout, PUBLIC"),
        *("-c", "GRANT EXECUTE ON FUNCTION note_on_order TO PUBLIC"),
        *("-c", f"GRANT TEMP ON DATABASE {DATABASE} TO PUBLIC", "-c", "GRANT CREATE ON SCHEMA public TO PUBLIC"),
        *("-c", "ALTER ROLE checkout CONNECTION LIMIT -1"),  # as an earlier version made it
    )

    make_database(server, DATABASE)

    await test_nothing_of_ours_is_everybodys(server)
    await test_the_roles_are_ordinary_and_the_workers_sessions_are_limited(server)
    await test_a_role_may_do_exactly_what_was_decided(server, WORKER)
