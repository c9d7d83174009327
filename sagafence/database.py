"""Postgres: transactions, and the translation of its errors into named failures."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
from sqlalchemy import ExceptionContext, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from sagafence.errors import (
    CannotConnect,
    DatabaseMisconfigured,
    DatabaseRefusedStatement,
    DatabaseUnavailable,
    InvalidInput,
    SagaError,
)
from sagafence.tables import FIX, tables

_log = logging.getLogger("sagafence.database")

# Older servers end no transaction for its age: there we do, a second before its undo's attempt times out (10 s). Where
# that does not reach Postgres, the role's other timeouts end it.
_AGE_IS_LIMITED_SINCE = (17,)
_TRANSACTION_SECONDS = 9.0
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
# Exhausted: retries at once make it worse.
_OVERLOAD_CLASSES = frozenset({"53", "58"})
_MALFORMED_CLASS = "22"
# Postgres refuses the service, whatever the request: a login, a database, a schema, a right, a missing table or column,
# a session that may only read. 23502: a column that we leave empty and that takes no null, of another release or made
# so by hand; no value of ours is ever null.
_MISCONFIGURED_CLASSES = frozenset({"28", "3D", "3F", "42"})
_MISCONFIGURED_CODES = frozenset({"23502", "25006"})
# A table or a column that is not there, or that the search_path does not find.
_LACKING_CODES = frozenset({"42P01", "42703"})
_ITS_OWN = "Is it migrated, and does the role's search_path find the table?"
# Postgres refuses this statement: a constraint, or a trigger that is not ours.
_REFUSING_CLASSES = frozenset({"23", "44", "P0"})


@asynccontextmanager
async def single_statement(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection on which every statement is its own transaction: one round trip each."""
    async with translated_errors(), engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a connection inside one READ COMMITTED transaction; rolled back unless the block ends well.

    For undos and records: a value that Postgres cannot store is no invalid input here. The saga has run already, and
    must neither be lost nor end without its undo.
    """
    async with translated_errors(malformed=DatabaseRefusedStatement), engine.connect() as connection:
        version = connection.dialect.server_version_info
        limit = None if version is None or version >= _AGE_IS_LIMITED_SINCE else _TRANSACTION_SECONDS
        async with asyncio.timeout(limit), connection.begin():
            yield connection


def drop_useless_sessions(engine: AsyncEngine) -> None:
    """Have an engine drop the connections that would fail as long as they live; call it once, on a new engine.

    Those that planned before a schema change: the driver forgets its own plans, and those inside PL/pgSQL triggers
    live as long as the session. And those to a server that is read-only: after a failover the next ones go to the
    primary.
    """

    @event.listens_for(engine.sync_engine, "handle_error")
    def drop(context: ExceptionContext) -> None:
        code = sqlstate(context.original_exception)
        if code in _STALE_PLAN_CODES or code == _READ_ONLY_CODE:
            context.is_disconnect = True


@asynccontextmanager
async def translated_errors(malformed: type[SagaError] = InvalidInput) -> AsyncIterator[None]:
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


def classify(error: BaseException, malformed: type[SagaError] = InvalidInput) -> SagaError:
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
        return DatabaseMisconfigured(_what_is_wrong(message, code))
    if code[:2] in _REFUSING_CLASSES:
        return DatabaseRefusedStatement(f"Postgres refused: {message} ({code})")
    passes = code[:2] in _TRANSIENT_CLASSES or code in _TRANSIENT_CODES | _STALE_PLAN_CODES
    return DatabaseUnavailable(f"Postgres {'asked to try again' if passes else 'failed'}: {message} ({code})")


def _what_is_wrong(message: str, code: str) -> str:
    """Say what is refused; of what the database lacks also who wanted it, and how it comes there."""
    if code not in _LACKING_CODES:
        return f"Postgres refuses the service: {message} ({code})"
    who = f", which {activity.info().activity_type} uses" if activity.in_activity() else ""
    of_ours = any(f'"{table}"' in message for table in tables())
    return f"the database lacks something{who}: {message} ({code}). {FIX if of_ours else _ITS_OWN}"


def _is_misconfigured(code: str) -> bool:
    if code in _TRANSIENT_CODES | _STALE_PLAN_CODES:
        return False
    return code in _MISCONFIGURED_CODES or code[:2] in _MISCONFIGURED_CLASSES


def _no_session(failure: CannotConnect, code: str | None) -> SagaError:
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
