"""Postgres: the engines of the checkout."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from adapters.connector import CONNECT_SECONDS, CONNECTOR, Admission, Connector, reports_read_only
from adapters.database_url import DRIVER
from sagafence import drop_useless_sessions, translated_errors

_COMMAND_TIMEOUT_SECONDS = 4.5
# Below the start-to-close of the sweep (60 s) and of the audit (30 min).
_LONG_STATEMENT_SECONDS = 55
_AUDIT_SECONDS = 29 * 60
_READER_SESSIONS = 10
_REPORTED_AT_FIRST = "reported read-only at first"
# The audit reads whole tables, whose sorts and hashes go to disk with the server's 4 MB. They are read in sequence: by
# index, as if all of them were cached, a million orders take three times as long.
_AUDIT_SETTINGS = {"work_mem": "64MB", "effective_cache_size": "64MB"}


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


def create_reader_engine(url: str, **access: Unpack[Access]) -> AsyncEngine:
    """Make the engine of the API, which reads by index alone, as a step does: a standby will do."""
    settings = {"statement_timeout": "3s", "enable_seqscan": "off"}
    connector = Connector(url, answer_seconds=_COMMAND_TIMEOUT_SECONDS, settings=settings, is_reader=True, **access)
    return _engine(connector, pool_size=_READER_SESSIONS, max_overflow=0, pool_timeout=CONNECT_SECONDS)


def _limits(seconds: int) -> dict[str, str]:
    # The role reads by index alone (setup.sql), which is not for queries over whole tables.
    return {"statement_timeout": f"{seconds}s", "transaction_timeout": f"{seconds + 1}s", "enable_seqscan": "on"}


def _engine(connector: Connector, **pool: Any) -> AsyncEngine:
    engine = create_async_engine(
        f"{DRIVER}://", async_creator=connector, hide_parameters=True, execution_options={CONNECTOR: connector}, **pool
    )
    drop_useless_sessions(engine)
    event.listen(engine.sync_engine, "connect", _note_read_only)
    event.listen(engine.sync_engine, "checkout", _drop_read_only_session)

    @event.listens_for(engine.sync_engine, "checkin")
    def note_that_it_works(session: DBAPIConnection | None, _record: object) -> None:
        if session is not None:  # one that broke is gone by now
            connector.admission.admit()

    return engine


def _note_read_only(session: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    record.info[_REPORTED_AT_FIRST] = reports_read_only(session.driver_connection)


def _drop_read_only_session(session: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Replace a session that became read-only since it was last used, where the server has reported it.

    A session that was reported as read-only at first is kept: it could write, and a pooler repeats what it once heard.
    """
    if reports_read_only(session.driver_connection) and not record.info[_REPORTED_AT_FIRST]:
        raise DisconnectionError("the session has become read-only")


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yield a read-only connection that sees one committed state for the whole block."""
    async with translated_errors(), engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with connection.begin():
            yield connection
