"""The checkout as a DBOS application, in two forms of its documentation. Run as a process.

python -m benchmarks.workers.dbos_app PORT SHOP_DATABASE_URL SYSTEM_DATABASE_URL

*steps*: each step is a `DBOS.step`; our fence makes its repeat harmless. One commit for the effect, one for the
checkpoint in the system database.

*transactions*: each step is a transaction of a datasource, which keeps its checkpoint in the shop's database and
commits it together with the effect. It would be exactly-once without our fence.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, cast

from dbos import DBOS, AsyncSQLAlchemyDatasource, SetWorkflowID
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.database import create_engine
from benchmarks.workers.server import Run, serve
from benchmarks.workers.steps import CONNECTIONS, Operation, Refused, ShopSteps, Wire, saga


def workflow(name: str, shop: ShopSteps, durable: Callable[[str, Operation], Operation]) -> Run:
    """Register the checkout under a name, its operations made durable by `durable`."""

    def made_durable(what: str, operation: Operation) -> Operation:
        async def called(*arguments: Any) -> Any:  # neither decorator takes a method
            return await operation(*arguments)

        return durable(f"{name} {what}", called)

    do, undo = made_durable("do", shop.do), made_durable("undo", shop.undo)
    close = made_durable("close", shop.close)

    async def checkout(wire: Wire) -> str:
        return await saga(wire, do, undo, close)

    registered = DBOS.workflow(name=name)(checkout)

    async def run(wire: Wire) -> str:
        with SetWorkflowID(wire["order_id"]):  # the order's one workflow: a second call joins it
            return str(await registered(wire))

    return run


def as_step(name: str, operation: Operation) -> Operation:
    """Checkpoint in the system database; a failure that may pass is retried with the product's backoff."""
    step = DBOS.step(
        name=name,
        retries_allowed=True,
        interval_seconds=0.1,
        max_attempts=20,
        should_retry=lambda error: not isinstance(error, Refused),
    )
    return cast("Operation", step(operation))


class SessionAsEngine:
    """Gives our steps the connection of the datasource's transaction where they ask an engine for one."""

    def __init__(self, datasource: AsyncSQLAlchemyDatasource) -> None:
        self._datasource = datasource

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Yield the connection: its statements commit with the checkpoint instead of by themselves."""
        yield _InTransaction(await self._datasource.sql_session().connection())


class _InTransaction:
    """A connection that stays in its transaction when autocommit or another transaction is asked for."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execution_options(self, **_: Any) -> Any:
        return self._connection

    def begin(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


async def main(port: int, shop_url: str, system_url: str) -> None:
    """Serve until SIGTERM."""
    engine = create_engine(shop_url, pool_size=CONNECTIONS)
    DBOS(
        config={
            "name": "checkout-bench",
            "system_database_url": system_url,
            "sys_db_pool_size": CONNECTIONS,
            # As in the product's own pool: a ping before each use would be a round trip more.
            "db_engine_kwargs": {"pool_pre_ping": False},
            "application_version": "bench",
            "log_level": "WARNING",
        }
    )
    # Its tables were created by the superuser; the shop's role may not create any.
    datasource = await AsyncSQLAlchemyDatasource.create(shop_url, engine=engine, run_migrations=False)

    turns = asyncio.Semaphore(CONNECTIONS)

    def as_transaction(name: str, operation: Operation) -> Operation:
        # The product's own isolation level. The datasource's default, SERIALIZABLE, would need retries.
        transaction = datasource.transaction(operation, name=name, isolation_level="READ COMMITTED")

        async def in_turn(*arguments: Any) -> Any:  # it takes its connection before the step
            async with turns:
                return await transaction(*arguments)

        return in_turn

    in_session = ShopSteps(cast("AsyncEngine", SessionAsEngine(datasource)))
    paths = {
        "steps": workflow("steps", ShopSteps(engine), as_step),
        "transactions": workflow("transactions", in_session, as_transaction),
    }
    DBOS.launch()
    await serve(port, paths)
    DBOS.destroy()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
