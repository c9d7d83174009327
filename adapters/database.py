"""The door to Postgres: the engine, and the translation of its errors into failures with a name."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import ExceptionContext, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from adapters.connector import CONNECT_SECONDS, CONNECTOR, Admission, CannotConnect, Connector, reports_read_only
from adapters.database_url import DRIVER
from domain.errors import (
    CheckoutError,
    DatabaseMisconfigured,
    DatabaseRefusedStatement,
    DatabaseUnavailable,
    InvalidInput,
)

_log = logging.getLogger("checkout.database")

_COMMAND_TIMEOUT_SECONDS = 4.5
# Below the start-to-close of the sweep (60 s) and of the audit (30 min).
_PATIENT_SECONDS = 55
_AUDIT_SECONDS = 29 * 60
# Older servers end no transaction for its age: there we do, a second before its undo's attempt is given up (10 s). What
# is left of it then ends by the role's other timeouts, should the network keep Postgres from hearing of it.
_AGE_IS_LIMITED_SINCE = (17,)
_TRANSACTION_SECONDS = 9.0
# The audit goes over whole tables, whose sorts and hashes go to disk with the server's 4 MB. And they are read in
# sequence: by index, in the hope that all of them is cached, a million orders take it three times as long.
_AUDIT_SETTINGS = {"work_mem": "64MB", "effective_cache_size": "64MB"}

# SQLSTATE classes and codes that pass by themselves.
# https://www.postgresql.org/docs/18/errcodes-appendix.html
_TRANSIENT_CLASSES = frozenset({"08", "40", "55", "57"})
# 42P05: a prepared statement that a connection pooler has mixed up; the next connection makes them anew.
_TRANSIENT_CODES = frozenset({"25P03", "25P04", "42P05"})
# The schema has changed since this session planned: "cached plan must not change result type", "type of parameter
# does not match that when preparing the plan", "cache lookup failed".
_STALE_PLAN_CODES = frozenset({"0A000", "42804", "XX000"})
# "Cannot execute in a read-only transaction": the session went to a server that is not, or no longer, the writer.
_READ_ONLY_CODE = "25006"
_REPORTED_AT_FIRST = "reported read-only at first"
# Exhausted: everybody who comes back at once makes it worse.
_OVERLOAD_CLASSES = frozenset({"53", "58"})
_MALFORMED_CLASS = "22"
# Postgres refuses the service, whatever the order: a login, a database, a schema, a right, a missing table or column, a
# session that may only read. 23502: a column that we leave empty and that takes no null, of another release or made so
# by hand; nothing that an order says is ever null.
_MISCONFIGURED_CLASSES = frozenset({"28", "3D", "3F", "42"})
_MISCONFIGURED_CODES = frozenset({"23502", "25006"})
# Postgres has understood, and says no to this one: a constraint, somebody's trigger.
_REFUSING_CLASSES = frozenset({"23", "44", "P0"})


def create_engine(  # noqa: PLR0913 - what differs between the engines is said by name
    url: str,
    *,
    pool_size: int = 20,
    is_patient: bool = False,
    url_file: Path | None = None,
    password_file: Path | None = None,
    admission: Admission | None = None,
) -> AsyncEngine:
    """Make the engine. Nothing is connected yet.

    A patient one is for reading much: its statements may take most of a minute, where the role's own timeouts
    (see setup.sql) end a step's after 3 s.

    No pre-ping: it costs round trips on every checkout, and a connection that has died costs one attempt
    of one step, which is retried after 100 ms with the pool already emptied.

    Args:
        url: where the database is (see adapters/database_url.py).
        pool_size: connections at most.
        is_patient: whether statements may take long.
        url_file: where the URL is, read again for each connection; it wins over `url`.
        password_file: where the password is, read again for each connection; it wins over the URL's.
        admission: where to note whether Postgres lets us in; may be shared with other engines.
    """
    seconds = _PATIENT_SECONDS + 2 if is_patient else _COMMAND_TIMEOUT_SECONDS
    connector = Connector(
        url,
        answer_seconds=seconds,
        settings=_limits(_PATIENT_SECONDS) if is_patient else {},
        url_file=url_file,
        password_file=password_file,
        admission=admission,
    )
    return _engine(connector, pool_size=pool_size, max_overflow=0, pool_timeout=CONNECT_SECONDS)


def create_audit_engine(
    url: str,
    *,
    url_file: Path | None = None,
    password_file: Path | None = None,
    admission: Admission | None = None,
) -> AsyncEngine:
    """Make the engine of the audit, whose statements read everything: they may take half an hour.

    Apart from the patient one: where the network swallows an answer, the audit waits that long for it, and the sweep
    must not. A connection is made for each audit and closed after it.
    """
    connector = Connector(
        url,
        answer_seconds=_AUDIT_SECONDS + 2,
        settings={**_limits(_AUDIT_SECONDS), **_AUDIT_SETTINGS},
        url_file=url_file,
        password_file=password_file,
        admission=admission,
    )
    return _engine(connector, poolclass=NullPool)


def _limits(seconds: int) -> dict[str, str]:
    # The role reads by index alone (see setup.sql), which is not for those who read everything.
    return {"statement_timeout": f"{seconds}s", "transaction_timeout": f"{seconds + 1}s", "enable_seqscan": "on"}


def _engine(connector: Connector, **pool: Any) -> AsyncEngine:
    engine = create_async_engine(
        f"{DRIVER}://", async_creator=connector, hide_parameters=True, execution_options={CONNECTOR: connector}, **pool
    )
    event.listen(engine.sync_engine, "handle_error", _leave_useless_session)
    event.listen(engine.sync_engine, "connect", _note_reports)
    event.listen(engine.sync_engine, "checkout", _leave_read_only_session)

    @event.listens_for(engine.sync_engine, "checkin")
    def note_that_it_works(session: DBAPIConnection | None, _record: object) -> None:
        if session is not None:  # one that broke is gone by now
            connector.admission.admit()

    return engine


def _leave_useless_session(context: ExceptionContext) -> None:
    """Give up the connections that would fail for as long as they live.

    Those that planned before a schema change: the driver forgets its own plans, and those inside PL/pgSQL triggers
    live as long as the session. And those to a server that does not write any more, or does not yet: after a failover
    the next ones go to the one that does.
    """
    code = sqlstate(context.original_exception)
    if code in _STALE_PLAN_CODES or code == _READ_ONLY_CODE:
        context.is_disconnect = True


def _note_reports(session: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info[_REPORTED_AT_FIRST] = reports_read_only(session.driver_connection)


def _leave_read_only_session(session: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Replace a session that became read-only since it was last used, where the server has reported it.

    What was reported at first counts for nothing: the session could write, and a pooler repeats what it once heard.
    """
    if reports_read_only(session.driver_connection) and not record.info[_REPORTED_AT_FIRST]:
        raise DisconnectionError("the session has become read-only")


@asynccontextmanager
async def single_statement(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Give a connection on which every statement is its own transaction: one round trip each."""
    async with translated_errors(), engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Give a connection inside one READ COMMITTED transaction; rolled back unless the block ends well.

    For undos, and for writing down what happened: where Postgres cannot store a value, it is not the order that was
    asked wrongly. It has run already, and must neither be forgotten nor end without its undo.
    """
    async with translated_errors(malformed=DatabaseRefusedStatement), engine.connect() as connection:
        version = connection.dialect.server_version_info
        limit = None if version is None or version >= _AGE_IS_LIMITED_SINCE else _TRANSACTION_SECONDS
        async with asyncio.timeout(limit), connection.begin():
            yield connection


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Give a connection that sees one committed state for the whole block, and may not write."""
    async with translated_errors(), engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with connection.begin():
            yield connection


@asynccontextmanager
async def translated_errors(malformed: type[CheckoutError] = InvalidInput) -> AsyncIterator[None]:
    """Raise every database error of the block as the failure that it means; see `classify`."""
    try:
        yield
    except (
        SQLAlchemyError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        OSError,
        TimeoutError,
    ) as error:
        failure = classify(error, malformed)
        level = logging.ERROR if isinstance(failure, DatabaseMisconfigured) else logging.WARNING
        _log.log(level, "%s: %s", type(failure).__name__, failure.message, extra={"action": "database_error"})
        raise failure from None


def violated_constraint(error: BaseException) -> str | None:
    """Name the constraint that a statement ran into, or None when it failed for another reason."""
    for cause in _causes(error):
        name = getattr(cause, "constraint_name", None)
        if isinstance(name, str):
            return name
    return None


def classify(error: BaseException, malformed: type[CheckoutError] = InvalidInput) -> CheckoutError:
    """Say what a database error means for the saga; `malformed` is what it means that a value cannot be stored.

    A lost connection after COMMIT was sent is *unknown*, never "failed": it is retried, and the fence
    knows the answer. An error nobody foresaw counts as an outage, since retrying is bounded going forward
    and going back must never stop.
    """
    code = sqlstate(error)
    message = _message(error)
    if code is None or isinstance(error, CannotConnect):
        return _no_session(error, code) if isinstance(error, CannotConnect) else _unanswered(error, message)
    if code[:2] == _MALFORMED_CLASS:
        # Postgres quotes the value here, and values have no place in a history.
        return malformed(f"Postgres cannot store one of the values ({code})")
    if code[:2] in _OVERLOAD_CLASSES:
        return DatabaseUnavailable(f"Postgres is overloaded: {message} ({code})", next_retry_delay=_spread())
    if _is_misconfigured(code):
        return DatabaseMisconfigured(f"Postgres refuses the service: {message} ({code})")
    if code[:2] in _REFUSING_CLASSES:
        return DatabaseRefusedStatement(f"Postgres refused: {message} ({code})")
    passes = code[:2] in _TRANSIENT_CLASSES or code in _TRANSIENT_CODES | _STALE_PLAN_CODES
    return DatabaseUnavailable(f"Postgres {'asked to try again' if passes else 'failed'}: {message} ({code})")


def _is_misconfigured(code: str) -> bool:
    if code in _TRANSIENT_CODES | _STALE_PLAN_CODES:
        return False
    return code in _MISCONFIGURED_CODES or code[:2] in _MISCONFIGURED_CLASSES


def _no_session(failure: CannotConnect, code: str | None) -> CheckoutError:
    """No statement was refused: the same one may succeed with the next credentials, or at the next host."""
    told = f"no connection to Postgres: {str(failure)[:300]} ({code or 'no answer'})"
    if failure.is_refusal or (code and _is_misconfigured(code)):
        return DatabaseMisconfigured(told, next_retry_delay=_spread())
    return DatabaseUnavailable(told, next_retry_delay=_spread() if (code or "")[:2] in _OVERLOAD_CLASSES else None)


def _unanswered(error: BaseException, message: str) -> DatabaseUnavailable:
    if isinstance(error, (PoolTimeoutError, asyncio.TimeoutError)):
        return DatabaseUnavailable(
            "no answer from Postgres in time; it is overloaded, stopped or unreachable", next_retry_delay=_spread()
        )
    return DatabaseUnavailable(f"no connection to Postgres: {message}")


def sqlstate(error: BaseException) -> str | None:
    """Find the SQLSTATE under the layers of SQLAlchemy and asyncpg; None means no answer came."""
    for cause in _causes(error):
        code = getattr(cause, "sqlstate", None)
        if isinstance(code, str) and len(code) == 5:
            return code
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        wrapped = error.orig if isinstance(error, DBAPIError) else None
        error = wrapped or error.__cause__
    return found


def _message(error: BaseException) -> str:
    """Take the innermost cause's first line: no SQL, no parameters, short enough for a history."""
    innermost = _causes(error)[-1]
    first_line = (str(innermost) or type(innermost).__name__).splitlines()[0]
    return first_line[:300]


def _spread() -> timedelta:
    """Draw a delay between 0.5 and 3 s, so that a thousand sagas do not come back in one instant."""
    return timedelta(seconds=random.uniform(0.5, 3.0))  # noqa: S311 - spreads load, guards nothing
