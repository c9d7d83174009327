"""Postgres: engines, transactions, and the translation of its errors into named failures."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict, Unpack

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
_LONG_STATEMENT_SECONDS = 55
_AUDIT_SECONDS = 29 * 60
# Older servers end no transaction for its age: there we do, a second before its undo's attempt times out (10 s). Where
# that does not reach Postgres, the role's other timeouts end it.
_AGE_IS_LIMITED_SINCE = (17,)
_TRANSACTION_SECONDS = 9.0
# The audit reads whole tables, whose sorts and hashes go to disk with the server's 4 MB. They are read in sequence: by
# index, as if all of them were cached, a million orders take three times as long.
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
# Exhausted: retries at once make it worse.
_OVERLOAD_CLASSES = frozenset({"53", "58"})
_MALFORMED_CLASS = "22"
# Postgres refuses the service, whatever the order: a login, a database, a schema, a right, a missing table or column, a
# session that may only read. 23502: a column that we leave empty and that takes no null, of another release or made so
# by hand; no value of an order is ever null.
_MISCONFIGURED_CLASSES = frozenset({"28", "3D", "3F", "42"})
_MISCONFIGURED_CODES = frozenset({"23502", "25006"})
# Postgres refuses this statement: a constraint, or a trigger that is not ours.
_REFUSING_CLASSES = frozenset({"23", "44", "P0"})


class Access(TypedDict, total=False):
    """How an engine gets its sessions, beside the URL (see adapters/database_url.py)."""

    url_file: Path | None
    """Has the URL, read again for each connection; it wins over the URL given."""
    password_file: Path | None
    """Has the password, read again for each connection; it wins over the URL's."""
    admission: Admission | None
    """Notes whether Postgres accepts sessions; may be shared with other engines."""


def create_engine(
    url: str, *, pool_size: int = 20, has_long_statements: bool = False, **access: Unpack[Access]
) -> AsyncEngine:
    """Make an engine. Nothing is connected yet.

    No pre-ping: it costs round trips on every checkout, and a connection that has died costs one attempt
    of one step, which is retried after 100 ms with the pool already emptied.

    Args:
        url: where the database is.
        pool_size: connections at most.
        has_long_statements: statements may take 55 s, where the role's own timeout (setup.sql) is 3 s.
        access: how it gets its sessions.
    """
    seconds = _LONG_STATEMENT_SECONDS + 2 if has_long_statements else _COMMAND_TIMEOUT_SECONDS
    settings = _limits(_LONG_STATEMENT_SECONDS) if has_long_statements else {}
    connector = Connector(url, answer_seconds=seconds, settings=settings, **access)
    return _engine(connector, pool_size=pool_size, max_overflow=0, pool_timeout=CONNECT_SECONDS)


def create_audit_engine(url: str, **access: Unpack[Access]) -> AsyncEngine:
    """Make the engine of the audit, whose statements may take half an hour. Each audit has a connection of its own.

    Apart from the sweep's: where the network loses an answer, the audit waits that long for it, and the sweep must not.
    """
    settings = {**_limits(_AUDIT_SECONDS), **_AUDIT_SETTINGS}
    return _engine(Connector(url, answer_seconds=_AUDIT_SECONDS + 2, settings=settings, **access), poolclass=NullPool)


def _limits(seconds: int) -> dict[str, str]:
    # The role reads by index alone (setup.sql), which is not for queries over whole tables.
    return {"statement_timeout": f"{seconds}s", "transaction_timeout": f"{seconds + 1}s", "enable_seqscan": "on"}


def _engine(connector: Connector, **pool: Any) -> AsyncEngine:
    engine = create_async_engine(
        f"{DRIVER}://", async_creator=connector, hide_parameters=True, execution_options={CONNECTOR: connector}, **pool
    )
    event.listen(engine.sync_engine, "handle_error", _drop_useless_session)
    event.listen(engine.sync_engine, "connect", _note_read_only)
    event.listen(engine.sync_engine, "checkout", _drop_read_only_session)

    @event.listens_for(engine.sync_engine, "checkin")
    def note_that_it_works(session: DBAPIConnection | None, _record: object) -> None:
        if session is not None:  # one that broke is gone by now
            connector.admission.admit()

    return engine


def _drop_useless_session(context: ExceptionContext) -> None:
    """Drop the connections that would fail as long as they live.

    Those that planned before a schema change: the driver forgets its own plans, and those inside PL/pgSQL triggers
    live as long as the session. And those to a server that is read-only: after a failover the next ones go to the
    primary.
    """
    code = sqlstate(context.original_exception)
    if code in _STALE_PLAN_CODES or code == _READ_ONLY_CODE:
        context.is_disconnect = True


def _note_read_only(session: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info[_REPORTED_AT_FIRST] = reports_read_only(session.driver_connection)


def _drop_read_only_session(session: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Replace a session that became read-only since it was last used, where the server has reported it.

    A session that was reported as read-only at first is kept: it could write, and a pooler repeats what it once heard.
    """
    if reports_read_only(session.driver_connection) and not record.info[_REPORTED_AT_FIRST]:
        raise DisconnectionError("the session has become read-only")


@asynccontextmanager
async def single_statement(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection on which every statement is its own transaction: one round trip each."""
    async with translated_errors(), engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection inside one READ COMMITTED transaction; rolled back unless the block ends well.

    For undos and records: a value that Postgres cannot store is no invalid input here. The order has run already, and
    must neither be lost nor end without its undo.
    """
    async with translated_errors(malformed=DatabaseRefusedStatement), engine.connect() as connection:
        version = connection.dialect.server_version_info
        limit = None if version is None or version >= _AGE_IS_LIMITED_SINCE else _TRANSACTION_SECONDS
        async with asyncio.timeout(limit), connection.begin():
            yield connection


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a read-only connection that sees one committed state for the whole block."""
    async with translated_errors(), engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with connection.begin():
            yield connection


@asynccontextmanager
async def translated_errors(malformed: type[CheckoutError] = InvalidInput) -> AsyncIterator[None]:
    """Raise every database error of the block as the failure that `classify` returns."""
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
    """Return the name of the constraint that a statement violated, or None when it failed for another reason."""
    for cause in _causes(error):
        name = getattr(cause, "constraint_name", None)
        if isinstance(name, str):
            return name
    return None


def classify(error: BaseException, malformed: type[CheckoutError] = InvalidInput) -> CheckoutError:
    """Return what a database error means for the saga; `malformed` is for a value that cannot be stored.

    A lost connection after COMMIT was sent is *unknown*, never "failed": it is retried, and the fence has the answer.
    An unforeseen error counts as an outage, since retries are bounded going forward and an undo must never give up.
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
    """Classify a failed connect: the same statement may succeed with the next credentials, or at the next host."""
    text = f"no connection to Postgres: {str(failure)[:300]} ({code or 'no answer'})"
    if failure.is_refusal or (code and _is_misconfigured(code)):
        return DatabaseMisconfigured(text, next_retry_delay=_spread())
    return DatabaseUnavailable(text, next_retry_delay=_spread() if (code or "")[:2] in _OVERLOAD_CLASSES else None)


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
    """Draw a delay of 0.5 to 3 s, so that a thousand sagas do not retry in one instant."""
    return timedelta(seconds=random.uniform(0.5, 3.0))  # noqa: S311 - spreads load, guards nothing
