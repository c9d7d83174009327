"""How the service gets its sessions: from a server that writes, with today's credentials, through what is between."""

import asyncio
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from activities.inventory import Inventory
from adapters import readiness
from adapters.connector import CONNECT_SECONDS, Admission, Connector
from adapters.database_url import parse
from adapters.pooling import Pooling, pooling_of
from devstack.stack import DATABASE, ROLE, DevStack
from sagafence import CannotConnect, DatabaseMisconfigured, SagaError, single_statement
from sagafence.devservers.ports import free_port
from tests.conftest import Database, Shop, engine_at
from tests.faults.lab.pooler import Mode, Pooler

KINDS = ("step", "sweep", "audit")


async def ask(engine: AsyncEngine, question: str = "SELECT 1") -> Any:
    async with single_statement(engine) as connection:
        return (await connection.execute(text(question))).scalar_one()


async def failure_of(engine: AsyncEngine, question: str = "SELECT 1") -> SagaError:
    with pytest.raises(SagaError) as raised:
        await ask(engine, question)
    return raised.value


async def set_read_only(database: Database, value: str) -> None:
    """As a server does for its new sessions while it is a standby, or while its disk is full."""
    await database.run(f'ALTER ROLE checkout IN DATABASE "{database.name}" SET default_transaction_read_only = {value}')


# A server that does not write -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_no_engine_takes_a_session_that_only_reads_and_each_finds_the_writer_by_itself(
    database: Database, kind: str
) -> None:
    await set_read_only(database, "on")
    async with engine_at(database.url, kind) as engine:
        failure = await failure_of(engine)
        await set_read_only(database, "off")
        answer = await ask(engine)

    assert type(failure) is DatabaseMisconfigured
    assert "read-only" in failure.message
    assert answer == 1


async def test_a_pool_of_sessions_that_became_read_only_costs_one_attempt(shop: Shop, database: Database) -> None:
    # Through a pooler the driver is not reported: the first statement that writes comes upon it.
    async with Pooler(_port_of(database)) as pooler, engine_at(_through(database, pooler.port)) as engine:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(_become_read_only(engine))

        answers = [await _reserve(engine, shop) for _ in range(4)]

    [failure, *others] = answers
    assert type(failure) is DatabaseMisconfigured
    assert "25006" in failure.message
    assert others == [None, None, None]


async def test_a_session_that_reports_to_be_read_only_is_left_before_it_fails(shop: Shop, database: Database) -> None:
    async with engine_at(database.url) as engine:
        await _become_read_only(engine)

        assert await _reserve(engine, shop) is None


async def _become_read_only(engine: AsyncEngine) -> None:
    async with single_statement(engine) as connection:
        await connection.execute(text("SET default_transaction_read_only = on"))
        await connection.execute(text("SELECT pg_sleep(0.2)"))  # so that each takes a session of its own


async def _reserve(engine: AsyncEngine, shop: Shop) -> SagaError | None:
    try:
        await Inventory(engine).reserve_inventory(shop.order())
    except SagaError as error:
        return error
    return None


def _port_of(database: Database) -> int:
    return parse(database.url).hosts[0].port


def _through(database: Database, port: int) -> str:
    return database.url.replace(f":{_port_of(database)}/", f":{port}/")


# Several hosts ----------------------------------------------------------------------------------------------


def _hosts(database: Database, *ports: int) -> str:
    return f"postgresql://{ROLE}@{','.join(f'127.0.0.1:{port}' for port in ports)}/{database.name}"


@pytest.mark.parametrize("first", ["refuses", "silent"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_dead_first_host_leaves_time_for_the_second(database: Database, first: str, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = silent.getsockname()[1] if first == "silent" else free_port()
        async with engine_at(_hosts(database, dead, _port_of(database)), kind) as engine:
            began = time.monotonic()
            assert await ask(engine) == 1
            took = time.monotonic() - began

    assert took < CONNECT_SECONDS


async def test_the_host_that_answered_last_comes_first(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = _hosts(database, silent.getsockname()[1], _port_of(database))
        connector = Connector(url, answer_seconds=5, settings={})
        await (await connector()).close()
        began = time.monotonic()
        await (await connector()).close()

    assert time.monotonic() - began < CONNECT_SECONDS / 4


async def test_when_no_host_gives_a_session_each_is_named(database: Database) -> None:
    await set_read_only(database, "on")
    dead = free_port()
    async with engine_at(_hosts(database, dead, _port_of(database))) as engine:
        failure = await failure_of(engine)

    assert type(failure) is DatabaseMisconfigured
    assert f"127.0.0.1:{dead}: " in failure.message
    assert f"127.0.0.1:{_port_of(database)}: it is read-only" in failure.message


# Credentials ------------------------------------------------------------------------------------------------


def _write(secret: Path, content: str | None) -> None:
    if content is None:
        secret.unlink()
    else:
        secret.write_text(content)


@pytest.fixture
async def guarded(stack: DevStack, database: Database, tmp_path: Path) -> Path:
    """A database that asks for a password, and the file that has it."""
    stack.postgres.ask_for_password(database.name, ROLE)
    secret = tmp_path / "password"
    _write(secret, "first\n")
    await _rotate(database, "first")
    async with asyncio.timeout(10):  # the server reads its rules again by itself, soon
        while await _is_let_in(database, "wrong"):
            await asyncio.sleep(0.02)
    return secret


async def _is_let_in(database: Database, password: str) -> bool:
    try:
        connection = await asyncpg.connect(database.url.replace("+asyncpg", ""), password=password)
    except asyncpg.InvalidPasswordError:
        return False
    await connection.close()
    return True


async def _rotate(database: Database, password: str) -> None:
    await database.run(f"ALTER ROLE {ROLE} PASSWORD '{password}'")
    await database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE usename = '{ROLE}' AND datname = current_database()"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["password", "url"])
async def test_rotated_credentials_are_an_outage_until_their_file_has_the_new_ones(
    database: Database, guarded: Path, tmp_path: Path, what: str, kind: str
) -> None:
    stale = database.url.replace(f"{ROLE}@", f"{ROLE}:stale@")
    url_file = tmp_path / "url"
    if what == "password":
        url, files, old, new = stale, {"password_file": guarded}, "first\n", "p%40ss\r\n"
    else:  # in a URL, a percent sign is itself escaped
        url, files = f"postgresql://nobody@127.0.0.1:{free_port()}/none", {"url_file": url_file}
        old, new = (stale.replace(":stale@", f":{password}@") + "\n" for password in ("first", "p%2540ss"))
    secret = next(iter(files.values()))
    _write(secret, old)
    async with engine_at(url, kind, **files) as engine:
        assert await ask(engine) == 1
        await _rotate(database, "p%40ss")
        await asyncio.gather(ask(engine), return_exceptions=True)  # the session that was ended
        failure = await failure_of(engine)
        _write(secret, new)
        answer = await ask(engine)

    assert type(failure) is DatabaseMisconfigured
    assert "28P01" in failure.message
    assert answer == 1


async def test_the_password_of_a_file_wins_over_the_url_of_another(
    database: Database, guarded: Path, tmp_path: Path
) -> None:
    file = tmp_path / "url"
    _write(file, database.url.replace(f"{ROLE}@", f"{ROLE}:stale@"))
    async with engine_at("postgresql://h/d", url_file=file, password_file=guarded) as engine:
        assert await ask(engine) == 1


@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
async def test_a_password_file_that_is_being_replaced_is_an_outage(
    database: Database, guarded: Path, content: str | None
) -> None:
    _write(guarded, content)
    async with engine_at(database.url, password_file=guarded) as engine:
        failure = await failure_of(engine)

    assert type(failure) is DatabaseMisconfigured
    assert "CHECKOUT_DATABASE_PASSWORD_FILE" in failure.message


@pytest.mark.parametrize(
    ("user", "name", "sqlstate"),
    [(ROLE, "no_such_database", "3D000"), ("no_such_role", DATABASE, "28000")],
)
async def test_a_login_that_is_refused_is_an_outage_and_known_to_be_a_refusal(
    stack: DevStack, user: str, name: str, sqlstate: str
) -> None:
    admission = Admission()
    async with engine_at(stack.postgres.url(name, user), admission=admission) as engine:
        failure = await failure_of(engine)
        await asyncio.sleep(0.01)

        assert type(failure) is DatabaseMisconfigured
        assert sqlstate in failure.message
        assert admission.refused_seconds > 0


async def test_a_right_to_connect_that_was_taken_is_an_outage(database: Database) -> None:
    await database.run(f'REVOKE CONNECT ON DATABASE "{database.name}" FROM PUBLIC, {ROLE}')
    admission = Admission()
    async with engine_at(database.url, admission=admission) as engine:
        failure = await failure_of(engine)

    assert type(failure) is DatabaseMisconfigured
    assert "42501" in failure.message
    assert admission.refused_seconds > 0


async def test_an_old_session_that_works_shows_that_we_are_let_in(database: Database) -> None:
    admission = Admission()
    async with engine_at(database.url, admission=admission) as engine:
        await ask(engine)
        admission.refuse("a new one was refused")
        await ask(engine)

    assert admission.refused_seconds == 0


async def test_a_server_that_is_away_is_no_refusal() -> None:
    admission = Admission()
    admission.refuse("before it went away")
    async with engine_at(f"postgresql://{ROLE}@127.0.0.1:{free_port()}/{DATABASE}", admission=admission) as engine:
        await failure_of(engine)

    assert admission.refused_seconds == 0


# A pooler ---------------------------------------------------------------------------------------------------


async def test_without_a_pooler_none_is_found(database: Database) -> None:
    async with engine_at(database.url) as engine:
        assert await pooling_of(engine) is Pooling.NONE


@pytest.mark.parametrize("kind", KINDS)
async def test_every_engine_works_through_a_pooler_in_session_mode_with_its_own_limits(
    database: Database, kind: str
) -> None:
    setting = "SELECT current_setting('statement_timeout')"
    async with Pooler(_port_of(database)) as pooler:
        async with engine_at(_through(database, pooler.port), kind) as through, engine_at(database.url, kind) as direct:
            pooling = await pooling_of(through)
            limits = await ask(through, setting), await ask(direct, setting)
            whole = await ask(direct, "SELECT current_setting('transaction_timeout', true)")
        refused = pooler.refused

    assert pooling is Pooling.SESSION
    assert refused == []
    assert limits[0] == limits[1] == {"step": "3s", "sweep": "55s", "audit": "29min"}[kind]
    # Servers before 17 know no limit for a whole transaction.
    assert whole is None or whole == {"step": whole, "sweep": "56s", "audit": "1741s"}[kind]


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_worker_refuses_by_name_a_pooler_that_lends_sessions_out(database: Database, mode: Mode) -> None:
    async with Pooler(_port_of(database), mode=mode) as pooler, engine_at(_through(database, pooler.port)) as engine:
        with pytest.raises(readiness.CannotStart, match="pooler in transaction mode"):
            await readiness.check_database(readiness.Engines(engine, engine, engine))


async def test_the_stand_in_refuses_a_startup_parameter_as_pgbouncer_does(database: Database) -> None:
    async with Pooler(_port_of(database)) as pooler:
        with pytest.raises(asyncpg.ProtocolViolationError, match="unsupported startup parameter: statement_timeout"):
            await asyncpg.connect(
                _through(database, pooler.port).replace("+asyncpg", ""), server_settings={"statement_timeout": "55s"}
            )


# In other ways ----------------------------------------------------------------------------------------------


async def test_an_application_name_from_the_url_is_the_sessions(database: Database) -> None:
    async with engine_at(f"{database.url}?application_name=tills&connect_timeout=10") as engine:
        assert await ask(engine, "SELECT current_setting('application_name')") == "tills"


async def test_a_certificate_that_is_asked_for_is_not_done_without(database: Database) -> None:
    with pytest.raises(CannotConnect, match="SSL"):
        await Connector(f"{database.url}?sslmode=require", answer_seconds=5, settings={})()


async def test_start_up_options_of_the_url_are_the_sessions(database: Database) -> None:
    async with engine_at(f"{database.url}?options=-c%20work_mem%3D7MB") as engine:
        assert await ask(engine, "SELECT current_setting('work_mem')") == "7MB"


async def test_a_users_target_session_attrs_do_not_make_the_worker_connect_to_a_standby(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")

    await (await Connector(database.url, answer_seconds=5, settings={})()).close()


async def test_a_session_that_cannot_be_used_is_not_left_behind(database: Database) -> None:
    await set_read_only(database, "on")
    connector = Connector(f"{database.url}?application_name=left", answer_seconds=5, settings={})

    with pytest.raises(CannotConnect):
        await connector()

    async with asyncio.timeout(5):
        while await database.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'left'"):
            await asyncio.sleep(0.02)


async def test_a_new_session_shows_that_we_are_let_in(database: Database) -> None:
    admission = Admission()
    admission.refuse("the one before")

    await (await Connector(database.url, answer_seconds=5, settings={}, admission=admission)()).close()

    assert admission.refused_seconds == 0


async def test_a_server_that_is_silent_is_no_refusal_and_waited_for_as_long_as_the_url_says() -> None:
    admission = Admission()
    admission.refuse("before it was silent")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://{ROLE}@127.0.0.1:{silent.getsockname()[1]}/{DATABASE}?connect_timeout=1"
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await Connector(url, answer_seconds=5, settings={}, admission=admission)()

    assert time.monotonic() - began < CONNECT_SECONDS - 0.2
    assert admission.refused_seconds == 0


# What the driver is given, and says -------------------------------------------------------------------------


async def _refused(monkeypatch: pytest.MonkeyPatch, url: str, said: Exception) -> tuple[CannotConnect, dict[str, Any]]:
    """Try to connect with a driver that says this; give what came of it and what the driver was given."""
    given: dict[str, Any] = {}

    async def connect(**arguments: Any) -> None:
        given.update(arguments)
        raise said

    monkeypatch.setattr(asyncpg, "connect", connect)
    with pytest.raises(CannotConnect) as raised:
        await Connector(url, answer_seconds=7, settings={})()
    return raised.value, given


@pytest.mark.parametrize(
    ("said", "is_refusal"),
    [
        (asyncpg.ProtocolViolationError("password authentication failed"), True),
        (asyncpg.ProtocolViolationError("SASL authentication failed"), True),
        (asyncpg.ProtocolViolationError("auth failed"), True),
        (asyncpg.ProtocolViolationError("no such user: checkout"), True),
        (asyncpg.ProtocolViolationError("no such database: shop"), True),
        (asyncpg.ProtocolViolationError("unsupported startup parameter: options"), True),
        (asyncpg.ProtocolViolationError("server login has been failing, try again later"), False),
        (asyncpg.exceptions.ClientConfigurationError("the key file is everybody's"), True),
        (asyncpg.exceptions.CannotConnectNowError("the database system is starting up"), False),
        (ConnectionRefusedError("nobody listens"), False),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_poolers_refusal_and_our_own_mistakes_are_no_outage(
    said: Exception, is_refusal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure, _ = await _refused(monkeypatch, "postgresql://u@h/d", said)

    assert failure.is_refusal is is_refusal


@pytest.mark.parametrize("negotiation", ["direct", "postgres"])
async def test_the_systems_certificates_vouch_for_the_host_by_its_name(
    negotiation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://u@h:6432/d?sslmode=verify-full&sslrootcert=system&sslnegotiation={negotiation}"

    _, given = await _refused(monkeypatch, url, OSError("no"))

    assert given["ssl"].check_hostname
    assert given["ssl"].verify_mode is ssl.CERT_REQUIRED
    assert given["direct_tls"] is (negotiation == "direct")
    assert (given["host"], given["port"]) == ("h", 6432)
    assert given["command_timeout"] == 7


async def test_a_certificate_of_ours_that_cannot_be_used_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours.crt").touch()
    url = f"postgresql://u@h/d?sslmode=verify-full&sslrootcert=system&sslcert={tmp_path / 'ours.crt'}"

    failure, given = await _refused(monkeypatch, url, OSError("asked without it"))

    assert "asked without it" not in str(failure)
    assert not given
