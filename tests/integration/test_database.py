"""What the service makes of the errors that a real Postgres gives."""

import asyncio
import dataclasses
import socket
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.testing import ActivityEnvironment

from activities.inventory import Inventory
from adapters.database import snapshot
from domain import policies
from domain.model import Ending, UndoInput
from sagafence import (
    UNDO_ATTEMPTS_WHEN_REFUSED,
    ActivityPolicy,
    DatabaseMisconfigured,
    DatabaseRefusedStatement,
    DatabaseUnavailable,
    InvalidInput,
    SagaError,
    classify,
    single_statement,
    transaction,
    translated_errors,
)
from sagafence.devservers.ports import free_port
from tests.conftest import Database, Shop, engine_at

_SECRET = "4111-1111-1111-1111"
_SLOW = "SELECT pg_sleep(30), CAST(:secret AS text) AS leaky_column"


async def _run(engine: AsyncEngine, statement: str = _SLOW, **parameters: Any) -> None:
    async with single_statement(engine) as connection:
        await connection.execute(text(statement), parameters or {"secret": _SECRET})


async def _failure(attempt: Awaitable[Any]) -> SagaError:
    with pytest.raises(SagaError) as raised:
        await attempt
    return raised.value


def _assert_outage(failure: SagaError) -> None:
    assert type(failure) is DatabaseUnavailable
    assert failure.type == "DatabaseUnavailable"
    assert not failure.non_retryable
    _assert_discreet(failure)


def _assert_discreet(failure: SagaError) -> None:
    """Nothing of the statement or its values, and nothing in its causes that would show them."""
    for word in ("CAST", "INSERT INTO", "leaky_column", "[SQL", "[parameters", _SECRET, "\n"):
        assert word not in failure.message
    assert 0 < len(failure.message) < 500
    assert failure.__cause__ is None
    assert failure.__suppress_context__


async def _for_the_service(database: Database, setting: str) -> None:
    """Change a setting for the service's new sessions on the test's database."""
    await database.run(f'ALTER ROLE checkout IN DATABASE "{database.name}" SET {setting}')


# Nobody answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
async def test_a_refused_connection_is_an_outage(host: str) -> None:
    async with engine_at(f"postgresql+asyncpg://checkout@{host}:{free_port()}/checkout") as engine:
        failure = await _failure(_run(engine))

    _assert_outage(failure)


async def test_a_server_that_accepts_and_never_answers_is_an_outage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with engine_at(f"postgresql+asyncpg://checkout@127.0.0.1:{silent.getsockname()[1]}/checkout") as engine:
            failure = await _failure(asyncio.wait_for(_run(engine), 4.5))

    _assert_outage(failure)
    assert failure.next_retry_delay is not None


async def test_a_server_that_closes_the_connection_at_once_is_an_outage() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with engine_at(f"postgresql+asyncpg://checkout@127.0.0.1:{port}/checkout") as engine:
            failure = await _failure(_run(engine))

    _assert_outage(failure)


async def test_an_exhausted_pool_is_an_outage_from_which_not_all_come_back_at_once(
    database: Database,
) -> None:
    async with engine_at(database.url, pool_size=1) as engine, engine.connect():
        failures = await asyncio.gather(*(_failure(_run(engine)) for _ in range(5)))

    for failure in failures:
        _assert_outage(failure)
    delays = {failure.next_retry_delay for failure in failures}
    assert len(delays) == 5
    assert all(delay and timedelta(0) < delay < timedelta(seconds=5) for delay in delays)


# It passes by itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_a_session_or_a_statement_that_somebody_ends_is_an_outage(
    database: Database, engine: AsyncEngine, end: str
) -> None:
    running = asyncio.create_task(_failure(_run(engine)))
    asleep = f"FROM pg_stat_activity WHERE datname = '{database.name}' AND wait_event = 'PgSleep'"
    async with asyncio.timeout(5):
        while not await database.value(f"SELECT count(*) {asleep}"):
            await asyncio.sleep(0.005)

    await database.run(f"SELECT {end}(pid) {asleep}")

    _assert_outage(await running)


async def test_the_pool_recovers_by_itself_after_its_sessions_were_terminated(
    database: Database, engine: AsyncEngine
) -> None:
    await asyncio.gather(*(_run(engine, "SELECT pg_sleep(0.05)") for _ in range(5)))
    await database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'checkout'")

    failure = await _failure(_run(engine, "SELECT 1"))
    await asyncio.gather(*(_run(engine, "SELECT 1") for _ in range(5)))

    _assert_outage(failure)


@pytest.mark.parametrize("timeout", ["statement_timeout", "transaction_timeout"])
async def test_a_statement_that_takes_too_long_is_an_outage(
    database: Database, engine: AsyncEngine, timeout: str
) -> None:
    await _for_the_service(database, f"{timeout} = '50ms'")

    failure = await _failure(_run(engine))

    _assert_outage(failure)


async def test_a_transaction_that_is_idle_too_long_cannot_commit_and_is_an_outage(
    database: Database, engine: AsyncEngine
) -> None:
    await _for_the_service(database, "transaction_timeout = '50ms'")

    async def dawdle() -> None:
        async with transaction(engine) as connection:
            await connection.execute(text("UPDATE inventory SET reserved = 1 WHERE sku = 'lamp'"))
            async with asyncio.timeout(5):
                while await database.value(
                    "SELECT count(*) FROM pg_stat_activity WHERE usename = 'checkout' AND datname = current_database()"
                ):
                    await asyncio.sleep(0.01)

    failure = await _failure(dawdle())

    _assert_outage(failure)
    assert await database.value("SELECT reserved FROM inventory WHERE sku = 'lamp'") == 0


async def test_a_hot_row_that_somebody_else_holds_is_an_outage(shop: Shop, database: Database) -> None:
    await _for_the_service(database, "lock_timeout = '50ms'")

    async with database.locked("SELECT FROM inventory WHERE sku = 'tea-mug' FOR UPDATE"):
        failure = await _failure(Inventory(shop.engine).reserve_inventory(shop.order()))

    _assert_outage(failure)


async def test_a_deadlock_is_an_outage_for_one_of_the_two(database: Database, engine: AsyncEngine) -> None:
    await _for_the_service(database, "deadlock_timeout = '20ms'")
    both_hold_one = asyncio.Barrier(2)

    async def cross(first: str, second: str) -> None:
        update = text("UPDATE inventory SET on_hand = on_hand WHERE sku = :sku")
        async with transaction(engine) as connection:
            await connection.execute(update, {"sku": first})
            await both_hold_one.wait()
            await connection.execute(update, {"sku": second})

    answers = await asyncio.gather(cross("lamp", "poster"), cross("poster", "lamp"), return_exceptions=True)
    await engine.dispose()  # a session hands its counters in when it ends

    [failure] = [answer for answer in answers if answer is not None]
    assert isinstance(failure, SagaError)
    _assert_outage(failure)
    assert "40P01" in failure.message
    counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    async with asyncio.timeout(5):
        while await database.value(counted) != 1:
            await asyncio.sleep(0.01)


async def test_a_serialization_failure_is_an_outage(database: Database, engine: AsyncEngine) -> None:
    async def overtaken() -> None:
        async with translated_errors(), engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            await connection.execute(text("SELECT count(*) FROM inventory"))
            await database.run("UPDATE inventory SET on_hand = on_hand WHERE sku = 'lamp'")
            await connection.execute(text("UPDATE inventory SET on_hand = on_hand WHERE sku = 'lamp'"))

    failure = await _failure(overtaken())

    _assert_outage(failure)
    assert "40001" in failure.message


async def test_too_many_connections_are_an_outage_from_which_not_all_come_back_at_once(
    database: Database, engine: AsyncEngine
) -> None:
    await database.run(f'ALTER DATABASE "{database.name}" CONNECTION LIMIT 0')

    failures = [await _failure(_run(engine)) for _ in range(3)]

    for failure in failures:
        _assert_outage(failure)
        assert "53300" in failure.message
    assert len({failure.next_retry_delay for failure in failures}) == 3


async def test_a_plan_that_a_migration_made_stale_costs_at_most_one_attempt(
    database: Database,
) -> None:
    async with engine_at(database.url, pool_size=1) as engine:
        await _run(engine, "SELECT * FROM delivery_zones WHERE zone = :zone", zone="city")
        await database.run("ALTER TABLE delivery_zones ADD COLUMN note text")

        attempts = await asyncio.gather(
            *(_run(engine, "SELECT * FROM delivery_zones WHERE zone = :zone", zone="city") for _ in range(3)),
            return_exceptions=True,
        )

    failures = [answer for answer in attempts if isinstance(answer, SagaError)]
    assert len(failures) <= 1
    for failure in failures:
        _assert_outage(failure)


async def test_a_session_whose_triggers_planned_before_a_schema_change_is_left(database: Database) -> None:
    await database.run(
        "CREATE TABLE touched (reason text);"
        "CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.reason := NEW.reason || '!'; RETURN NEW; END $$;"
        "CREATE TRIGGER remember BEFORE INSERT ON touched FOR EACH ROW EXECUTE FUNCTION remember();"
        "GRANT INSERT ON touched TO checkout"
    )
    insert = "INSERT INTO touched VALUES ('x')"
    async with engine_at(database.url, pool_size=1) as engine:
        await _run(engine, insert)
        await database.run("ALTER TABLE touched ALTER COLUMN reason TYPE varchar(200)")

        first = await asyncio.gather(_run(engine, insert), return_exceptions=True)
        await _run(engine, insert)

    [failure] = first
    assert isinstance(failure, DatabaseUnavailable)


async def test_an_unforeseen_error_is_retried(database: Database, engine: AsyncEngine) -> None:
    await database.run(
        "CREATE FUNCTION odd() RETURNS int LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'odd' USING ERRCODE = 'XX000'; END $$"
    )

    failure = await _failure(_run(engine, "SELECT odd()"))

    _assert_outage(failure)


# The request is malformed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("SELECT CAST(:value AS text)", f"{_SECRET}\0"),
        ("SELECT CAST(:value AS text)", f"{_SECRET}\ud800"),
        ("SELECT CAST(:value AS integer)", 4111111111111111),
        ("SELECT CAST(:value AS bigint)", 2**63),
        ("SELECT CAST(CAST(:value AS text) AS integer)", _SECRET),
        ("SELECT CAST(CAST(:value AS text) AS jsonb)", _SECRET),
    ],
    ids=["NUL", "half a surrogate", "above integer", "above bigint", "no number", "no JSON"],
)
async def test_a_value_that_postgres_cannot_store_is_invalid_input(
    engine: AsyncEngine, statement: str, value: object
) -> None:
    failure = await _failure(_run(engine, statement, value=value))

    assert type(failure) is InvalidInput
    assert failure.non_retryable
    _assert_discreet(failure)
    assert str(value) not in failure.message


# A person is needed -------------------------------------------------------------------------------------


def _assert_refused(failure: SagaError, sqlstate: str) -> None:
    assert type(failure) is DatabaseRefusedStatement
    assert failure.type == "DatabaseRefusedStatement"
    assert not failure.non_retryable  # the policies decide; see below
    assert sqlstate in failure.message
    _assert_discreet(failure)


def _assert_misconfigured(failure: SagaError, sqlstate: str) -> None:
    assert type(failure) is DatabaseMisconfigured
    assert failure.type == "DatabaseMisconfigured"
    assert not failure.non_retryable
    assert sqlstate in failure.message
    _assert_discreet(failure)


def test_nothing_is_given_up_at_once_where_postgres_refuses_the_service_itself() -> None:
    every = [policy for policy in vars(policies).values() if isinstance(policy, ActivityPolicy)]

    assert len(every) >= 7
    for policy in every:
        assert DatabaseMisconfigured.__name__ not in (policy.retry.non_retryable_error_types or ())


def test_only_forward_steps_give_up_at_once_when_a_person_is_needed() -> None:
    name = DatabaseRefusedStatement.__name__

    for policy in (policies.RESERVE, policies.PAY, policies.SHIP):
        assert name in (policy.retry.non_retryable_error_types or ())
    for policy in (policies.UNDO, policies.RECORD):
        assert name not in (policy.retry.non_retryable_error_types or ())
    for policy in (
        policies.RECORD,
        policies.ENVIRONMENT,
    ):  # an outcome is recorded, an outage outlasted
        assert policy.schedule_to_close is None
        assert policy.retry.maximum_attempts == 0
    assert not policies.RECORD.retry.non_retryable_error_types


async def test_an_undo_gives_its_round_up_after_a_few_attempts_when_a_person_is_needed(
    shop: Shop, database: Database
) -> None:
    await database.run(
        "ALTER TABLE step_fence ADD CONSTRAINT somebodys CHECK (phase <> 'undone')"  # as a foreign trigger would
    )
    undo = UndoInput(shop.order(), Ending.REJECTED, "a reason")

    kept: list[int] = []  # what Temporal keeps of the heartbeats for the next attempt
    given_up = []
    for attempt in range(100, 100 + UNDO_ATTEMPTS_WHEN_REFUSED):  # after a long outage
        environment = ActivityEnvironment()
        environment.info = dataclasses.replace(environment.info, attempt=attempt, heartbeat_details=list(kept))
        environment.on_heartbeat = lambda *details: kept.__setitem__(slice(None), details)
        failure = await _failure(environment.run(Inventory(shop.engine).release_inventory, undo))
        given_up.append(failure.non_retryable)

    assert given_up == [False] * (UNDO_ATTEMPTS_WHEN_REFUSED - 1) + [True]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ('ALTER DATABASE "{name}" CONNECTION LIMIT 0', DatabaseUnavailable),
        ("REVOKE INSERT ON step_fence FROM checkout", DatabaseMisconfigured),
    ],
)
async def test_an_undo_never_gives_up_because_of_an_outage(shop: Shop, damage: str, kind: type[SagaError]) -> None:
    await shop.database.run(damage.format(name=shop.database.name))
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, attempt=1000)
    undo = UndoInput(shop.order(), Ending.REJECTED, "a reason")

    failure = await _failure(environment.run(Inventory(shop.engine).release_inventory, undo))

    assert type(failure) is kind
    assert not failure.non_retryable


@pytest.mark.parametrize(
    ("damage", "sqlstate"),
    [
        ("REVOKE INSERT ON step_fence FROM checkout", "42501"),
        ("REVOKE SELECT ON inventory FROM checkout", "42501"),
        ("ALTER TABLE step_fence RENAME TO fence", "42P01"),
        ("ALTER TABLE orders RENAME COLUMN fingerprint TO print", "42703"),
    ],
)
async def test_a_broken_schema_is_an_outage(shop: Shop, database: Database, damage: str, sqlstate: str) -> None:
    await database.run(damage)

    failure = await _failure(Inventory(shop.engine).reserve_inventory(shop.order()))

    _assert_misconfigured(failure, sqlstate)
    assert await database.value("SELECT sum(reserved) FROM inventory") == 0


async def test_a_violated_constraint_is_named_without_its_row(engine: AsyncEngine) -> None:
    insert = "INSERT INTO orders (order_id, customer) VALUES (:secret, :secret), (:secret, :secret)"

    failure = await _failure(_run(engine, insert, secret=_SECRET))

    _assert_refused(failure, "23505")
    assert "orders_pkey" in failure.message


async def test_a_trigger_that_is_not_ours_needs_a_person(shop: Shop, database: Database) -> None:
    await database.run(
        "CREATE FUNCTION veto() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not today'; END $$;"
        "CREATE TRIGGER veto BEFORE INSERT ON reservations FOR EACH ROW EXECUTE FUNCTION veto()"
    )

    failure = await _failure(Inventory(shop.engine).reserve_inventory(shop.order()))

    _assert_refused(failure, "P0001")
    assert "not today" in failure.message


async def test_the_snapshot_may_not_write(database: Database, engine: AsyncEngine) -> None:
    async def write() -> None:
        async with snapshot(engine) as connection:
            await connection.execute(text("UPDATE inventory SET reserved = 1"))

    await _failure(write())

    assert await database.value("SELECT sum(reserved) FROM inventory") == 0


async def test_the_snapshot_sees_one_state_for_the_whole_block(database: Database, engine: AsyncEngine) -> None:
    on_hand = text("SELECT on_hand FROM inventory WHERE sku = 'lamp'")

    async with snapshot(engine) as connection:
        first = await connection.scalar(on_hand)
        await database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'lamp'")
        second = await connection.scalar(on_hand)

    assert first == second == await database.value("SELECT on_hand + 1 FROM inventory WHERE sku = 'lamp'")


# The rest -----------------------------------------------------------------------------------------------


async def test_a_refusal_inside_a_transaction_leaves_as_it_is_and_rolls_back(
    database: Database, engine: AsyncEngine
) -> None:
    refusal = InvalidInput("of our own")

    async def refuse() -> None:
        async with transaction(engine) as connection:
            await connection.execute(text("UPDATE inventory SET reserved = 1 WHERE sku = 'lamp'"))
            raise refusal

    failure = await _failure(refuse())

    assert failure is refusal
    assert await database.value("SELECT sum(reserved) FROM inventory") == 0


_ACTS = {
    DatabaseUnavailable: (
        *("08000", "08006", "0A000", "25P03", "25P04", "40001", "40P01", "42P05", "53100", "53200", "53300"),
        *("55P03", "57014", "57P01", "57P02", "57P03", "58030", "XX000", "XX001", "99999"),
    ),
    DatabaseMisconfigured: ("23502", "25006", "28000", "28P01", "3D000", "3F000", "42501", "42703", "42P01"),
    DatabaseRefusedStatement: ("23503", "23505", "44000", "P0001"),
    InvalidInput: ("22001", "22021", "22P02", "22P05"),
}


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in _ACTS.items() for code in codes])
def test_the_sqlstate_alone_decides_who_must_act(kind: type[SagaError], code: str) -> None:
    error = asyncpg.PostgresError("in words")
    error.sqlstate = code

    failure = classify(error)

    assert type(failure) is kind
    assert code in failure.message


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ('relation "hotels" does not exist', "Is it migrated, and does the role's search_path find the table?"),
        (
            'relation "step_fence" does not exist',
            "Run what makes its tables, as the owner of the database: a migration of your own",
        ),
    ],
)
def test_what_the_database_lacks_is_said_with_the_mend(words: str, says: str) -> None:
    error = asyncpg.PostgresError(words)
    error.sqlstate = "42P01"

    async def take_room() -> SagaError:
        return classify(error)

    assert classify(error).message.startswith(f"the database lacks something: {words} (42P01). {says}")
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, activity_type="take_room")
    assert "lacks something, which take_room uses: " in asyncio.run(environment.run(take_room)).message


@pytest.mark.parametrize("code", ["53100", "53200", "53300"])
def test_statements_that_an_overloaded_server_refuses_do_not_all_come_back_at_once(code: str) -> None:
    error = asyncpg.PostgresError("in words")
    error.sqlstate = code

    delays = {getattr(classify(error), "next_retry_delay", None) for _ in range(3)}

    assert None not in delays
    assert len(delays) == 3


@pytest.mark.parametrize(
    "error", [RuntimeError(_SECRET * 1000), OSError(), TimeoutError(), asyncpg.InterfaceError("closed")]
)
def test_an_error_without_a_sqlstate_is_an_outage_in_a_few_words(error: Exception) -> None:
    failure = classify(error)

    assert type(failure) is DatabaseUnavailable
    assert not failure.non_retryable
    assert 0 < len(failure.message) < 500
