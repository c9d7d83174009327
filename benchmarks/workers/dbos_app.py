"""The checkout as a DBOS application, in two ways that its documents offer. Run as a process.

python -m benchmarks.workers.dbos_app PORT SHOP_DATABASE_URL SYSTEM_DATABASE_URL

*steps*: each step is a `DBOS.step`; our fence makes its repeat harmless. One commit for the effect, one for the
checkpoint in the system database.

*transactions*: each step is a transaction of a datasource, which keeps its checkpoint in the shop's database and
commits it together with the effect. It would be exactly-once without our fence.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from dbos import DBOS, AsyncSQLAlchemyDatasource, SetWorkflowID
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.database import create_engine
from benchmarks.workers.door import Carry, serve
from benchmarks.workers.steps import STEPS, Refused, ShopSteps, Wire

_POOL = 20
Decorate = Callable[[str, Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]


def workflow(name: str, shop: ShopSteps, durable: Decorate) -> Carry:
    """Register the checkout under a name, its operations made durable by `durable`."""
    do = durable(f"{name} do", shop.do)
    undo = durable(f"{name} undo", shop.undo)
    close = durable(f"{name} close", shop.close)

    async def checkout(wire: Wire) -> str:
        begun: list[str] = []
        try:
            for step in STEPS:
                begun.append(step)  # before the step: it may take effect and still be reported as failed
                await do(step, wire)
        except Refused as refused:
            for step in reversed(begun):
                await undo(step, wire, str(refused))
            return str(await close(wire, str(refused)))
        return "completed"

    registered = DBOS.workflow(name=name)(checkout)

    async def carry(wire: Wire) -> str:
        with SetWorkflowID(wire["order_id"]):  # the order's one workflow: a second call joins it
            return str(await registered(wire))

    return carry


def as_step(name: str, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Checkpoint in the system database; a failure that may pass is tried again with the product's backoff."""

    async def called(*arguments: Any) -> Any:
        return await function(*arguments)

    step = DBOS.step(
        name=name,
        retries_allowed=True,
        interval_seconds=0.1,
        max_attempts=20,
        should_retry=lambda error: not isinstance(error, Refused),
    )
    return cast("Callable[..., Awaitable[Any]]", step(called))


class SessionAsEngine:
    """Gives our steps the connection of the datasource's transaction, where they ask an engine for one."""

    def __init__(self, datasource: AsyncSQLAlchemyDatasource) -> None:
        self._datasource = datasource

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Give the connection for one statement: it commits with the checkpoint instead of by itself."""
        yield _InTransaction(await self._datasource.sql_session().connection())

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        """Give the connection, whose transaction is the datasource's."""
        yield await self._datasource.sql_session().connection()


class _InTransaction:
    """A connection that stays in its transaction when autocommit is asked for."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execution_options(self, **_: Any) -> Any:
        return self._connection


async def main(port: int, shop_url: str, system_url: str) -> None:
    """Answer until SIGTERM."""
    engine = create_engine(shop_url, pool_size=_POOL)
    DBOS(
        config={
            "name": "checkout-bench",
            "system_database_url": system_url,
            "sys_db_pool_size": _POOL,
            # As in the product's own pool: a question before each use would be a round trip more.
            "db_engine_kwargs": {"pool_pre_ping": False},
            "application_version": "bench",
            "log_level": "WARNING",
        }
    )
    # Its tables were made by the superuser; the shop's role may not make any.
    datasource = await AsyncSQLAlchemyDatasource.create(shop_url, engine=engine, run_migrations=False)

    def as_transaction(name: str, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def called(*arguments: Any) -> Any:
            return await function(*arguments)

        # The product's own isolation level. The datasource's default, SERIALIZABLE, would have to try again.
        transaction = datasource.transaction(called, name=name, isolation_level="READ COMMITTED")
        return cast("Callable[..., Awaitable[Any]]", transaction)

    doors = {
        "steps": workflow("steps", ShopSteps(engine), as_step),
        "transactions": workflow(
            "transactions", ShopSteps(cast("AsyncEngine", SessionAsEngine(datasource))), as_transaction
        ),
    }
    DBOS.launch()
    await serve(port, doors)
    DBOS.destroy()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
