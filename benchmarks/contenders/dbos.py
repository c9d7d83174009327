"""DBOS: a library in the worker, which keeps its checkpoints on the same Postgres server."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import asyncpg

from benchmarks.contenders import worker_process
from benchmarks.contenders.contender import Contender, Footprint, require_installed
from benchmarks.contenders.http import Asker
from devstack.ports import free_port
from devstack.process import ChildProcess
from devstack.stack import DATABASE, ROLE, DevStack, psql
from domain.bulk import pack
from domain.model import CheckoutInput

SYSTEM_DATABASE = "checkout_dbos"

_KEPT = """
    SELECT count(*) AS rows, coalesce(sum(bytes), 0)::float8 AS bytes FROM (
        SELECT pg_column_size(s.*) AS bytes FROM dbos.workflow_status s WHERE workflow_uuid = ANY ($1)
        UNION ALL SELECT pg_column_size(i.*) FROM dbos.workflow_input i WHERE workflow_uuid = ANY ($1)
        UNION ALL SELECT pg_column_size(r.*) FROM dbos.workflow_output r WHERE workflow_uuid = ANY ($1)
        UNION ALL SELECT pg_column_size(o.*) FROM dbos.operation_outputs o WHERE workflow_uuid = ANY ($1)) AS kept
"""


class Dbos:
    """One of the two ways in which benchmarks/workers/dbos_app.py writes the checkout."""

    sells = True

    def __init__(self, way: str, worker: ChildProcess, port: int, system_url: str) -> None:
        self.name = f"DBOS, {way}"
        self._way = way
        self._worker = worker
        self._system_url = system_url
        self._asker = Asker(f"http://127.0.0.1:{port}")

    @property
    def processes(self) -> dict[str, int]:
        """Its engine is a library of the worker, and Postgres."""
        return {"worker": self._worker.pid}

    async def carry(self, order: CheckoutInput) -> str:
        """Ask the application for the order's workflow."""
        return str(await self._asker.post(f"/{self._way}", pack(order)))

    async def footprint(self, orders: Sequence[CheckoutInput]) -> Footprint:
        """Count the rows that the system database keeps."""
        connection = await asyncpg.connect(self._system_url)
        try:
            row = await connection.fetchrow(_KEPT, [order.order_id for order in orders])
        finally:
            await connection.close()
        return Footprint(row["rows"] / len(orders), row["bytes"] / len(orders))

    async def close(self) -> None:
        """Close the connections."""
        await self._asker.close()


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Make its tables, start the worker, give the contenders, stop the worker.

    Raises:
        Absent: the package is not installed.
    """
    require_installed("DBOS", "dbos", "aiohttp")
    psql(stack.postgres, "postgres", "-c", f"CREATE DATABASE {SYSTEM_DATABASE}")
    _make_datasource_tables(stack)
    port, system_url = free_port(), stack.postgres.url(SYSTEM_DATABASE, driver="postgresql")
    worker = worker_process.start(
        "dbos_app",
        str(port),
        stack.database_url,
        system_url,
        folder=stack.folder,
        is_ready=worker_process.says_ready,
    )
    try:
        yield [Dbos(way, worker, port, system_url) for way in ("steps", "transactions")]
    finally:
        worker.stop()


def _make_datasource_tables(stack: DevStack) -> None:
    """Let the shop's role keep checkpoints in the shop's database, where it may not make tables itself."""
    from dbos import SQLAlchemyDatasource  # noqa: PLC0415 - it is there: `running` has looked

    SQLAlchemyDatasource.migrate(stack.postgres.url(DATABASE, driver="postgresql"), application_role=ROLE)
