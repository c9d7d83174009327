"""Whether there is a pooler between the worker and Postgres, and of which kind."""

from contextlib import AsyncExitStack
from enum import Enum
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.connector import CONNECT_SECONDS, CONNECTOR, Connector
from sagafence import CannotConnect

_ROUNDS = 20
_STATEMENT_POOLING = "statement pooling mode"

LENDING_POOLER = (
    "CHECKOUT_DATABASE_URL leads to a pooler in transaction mode, which gives every transaction another "
    "session: prepared statements, session settings and advisory locks get lost.\n"
    "Set pool_mode = session for this database (PgBouncer), or connect to Postgres itself."
)


class Pooling(Enum):
    """How sessions are shared."""

    NONE = "none"
    SESSION = "session"
    """A client keeps its session until it disconnects: session state can be relied on."""
    TRANSACTION = "transaction"
    """A session goes to another client after each transaction, or after each statement."""


async def pooling_of(engine: AsyncEngine) -> Pooling:
    """Find out by connecting.

    A pooler makes up the process id that a client could cancel by, so one that differs from the server's reveals it.
    Then two clients ask in turns, the second inside an open transaction, for the id of their server process. With
    sessions of their own each always gets the same one. With a pooler in transaction mode the first gets another while
    the second is in its transaction, or the second gets the first one's.

    Raises:
        CannotConnect: no host gives a session.
        TimeoutError: no host answers in time.
    """
    connector: Connector = engine.get_execution_options()[CONNECTOR]
    async with AsyncExitStack() as stack:
        try:
            first = await _client(connector, stack)
            own = await _process_of(first)
            if own == first.get_server_pid():
                return Pooling.NONE
            second = await _client(connector, stack)
            for _ in range(_ROUNDS):
                async with second.transaction():
                    if await _ask(second) == own or await _process_of(first) != own:
                        return Pooling.TRANSACTION
        except (asyncpg.PostgresError, CannotConnect) as error:
            if _STATEMENT_POOLING in str(error):
                return Pooling.TRANSACTION
            raise
    return Pooling.SESSION


async def _client(connector: Connector, stack: AsyncExitStack) -> Any:
    connection = await connector()
    stack.push_async_callback(connection.close, timeout=CONNECT_SECONDS)
    return connection


async def _process_of(connection: Any) -> int:
    async with connection.transaction():
        return await _ask(connection)


async def _ask(connection: Any) -> int:
    # Unnamed: in transaction mode the session may have another client's statement of that name.
    statement = await connection.prepare("SELECT pg_backend_pid()", name="")
    return int(await statement.fetchval())
