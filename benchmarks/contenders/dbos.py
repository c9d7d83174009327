"""DBOS: a library in the worker, which keeps its checkpoints on the same Postgres server."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import asyncpg

from benchmarks.contenders.contender import Contender, Footprint, require_installed
from benchmarks.contenders.serving import OverHttp, worker
from devstack.stack import DATABASE, ROLE, DevStack, psql
from domain.model import CheckoutInput
from sagafence.devservers.ports import free_port

_SYSTEM_DATABASE = "checkout_dbos"
_STORED = """
    SELECT count(*) AS rows, coalesce(sum(bytes), 0)::float8 AS bytes FROM (
        SELECT pg_column_size(s.*) AS bytes FROM dbos.workflow_status s WHERE workflow_uuid = ANY ($1)
        UNION ALL SELECT pg_column_size(i.*) FROM dbos.workflow_input i WHERE workflow_uuid = ANY ($1)
        UNION ALL SELECT pg_column_size(r.*) FROM dbos.workflow_output r WHERE workflow_uuid = ANY ($1)
        UNION ALL SELECT pg_column_size(o.*) FROM dbos.operation_outputs o WHERE workflow_uuid = ANY ($1)) AS stored
"""


class Dbos(OverHttp):
    """One of the two workflows of benchmarks/workers/dbos_app.py. Its engine is a library of the worker."""

    def __init__(self, workflow: str, processes: Mapping[str, int], port: int, system_url: str) -> None:
        super().__init__(f"DBOS, {workflow}", processes, port, f"/{workflow}")
        self._system_url = system_url

    async def footprint(self, orders: Sequence[CheckoutInput]) -> Footprint:
        """Count the rows of the system database."""
        connection = await asyncpg.connect(self._system_url)
        try:
            row = await connection.fetchrow(_STORED, [order.order_id for order in orders])
        finally:
            await connection.close()
        return Footprint(row["rows"] / len(orders), row["bytes"] / len(orders))


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Create its tables, run the worker inside the block and yield the contenders.

    Raises:
        Absent: a package is not installed.
    """
    require_installed("DBOS", "dbos", "aiohttp")
    from dbos import SQLAlchemyDatasource  # noqa: PLC0415 - of the layer `bench`

    psql(stack.postgres, "postgres", "-c", f"CREATE DATABASE {_SYSTEM_DATABASE}")
    # The shop's role keeps checkpoints in the shop's database, where it may not create tables itself.
    SQLAlchemyDatasource.migrate(stack.postgres.url(DATABASE, driver="postgresql"), application_role=ROLE)
    port, system_url = free_port(), stack.postgres.url(_SYSTEM_DATABASE, driver="postgresql")
    with worker("dbos_app", stack, port, stack.database_url, system_url) as processes:
        yield [Dbos(workflow, processes, port, system_url) for workflow in ("steps", "transactions")]
