"""One run for each group of cells, on one pair of servers for all of them."""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from devstack.stack import DATABASE, ROLE, DevStack, psql
from tests.conftest import Database
from tests.faults.lab.aftermath import Aftermath, BatchAftermath, Inspection, inspect, look, look_at_batch
from tests.faults.lab.batch_cells import BatchCell, BatchOperation, recognise_batch
from tests.faults.lab.cells import Cell, Fault, Group, Operation, recognise
from tests.faults.lab.crew import Crew
from tests.faults.lab.desk import Desk
from tests.faults.lab.scene import Scene
from tests.faults.lab.strikes import STRIKES
from tests.faults.lab.wire import Proxy


@dataclass(frozen=True)
class Patience:
    """How many seconds the parts give one another. None may run out while the sagas are brought to their places."""

    attempt: float = 60.0
    """Start-to-close of the operations that are struck."""
    workflow_task: float = 10.0
    transaction: int = 60
    """Timeouts of the service's role, for a transaction and for an idle one."""


# Where nothing else tells Temporal that a worker is lost, time does. What a stopped worker holds open is ended by
# the role's own timeout; under another fault that would be a second one.
_HURRIED = {
    Fault.WORKER_KILLED: Patience(attempt=5.0, workflow_task=3.0),
    Fault.WORKER_STOPPED: Patience(attempt=5.0, workflow_task=3.0, transaction=7),
    Fault.TEMPORAL_KILLED: Patience(attempt=10.0),
}


@dataclass(frozen=True)
class Run:
    """What came of one group."""

    cells: dict[Operation, Aftermath]
    batches: dict[BatchOperation, BatchAftermath]
    inspection: Inspection

    def others_than(self, name: str) -> set[str]:
        """Name all that was struck beside one saga or batch."""
        names = {saga.name for saga in self.cells.values()} | {batch.name for batch in self.batches.values()}
        return names - {name}


class Laboratory:
    """Runs each group once, however many of its cells ask for it."""

    def __init__(self, stack: DevStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._runs: dict[Group, asyncio.Task[Run]] = {}

    async def run_of(self, cell: Cell | BatchCell) -> Run:
        """Give the run that a cell is part of; its failure is the failure of each of its cells."""
        if cell.group not in self._runs:
            self._runs[cell.group] = asyncio.create_task(self._run(cell.group))
        return await asyncio.shield(self._runs[cell.group])

    async def close(self) -> None:
        """End what nobody waits for any more."""
        for run in self._runs.values():
            run.cancel()
        await asyncio.gather(*self._runs.values(), return_exceptions=True)

    async def _run(self, group: Group) -> Run:
        # A run that failed may have left a server down.
        self._stack.postgres.start()
        self._stack.temporal.start()
        patience = _HURRIED.get(group.fault, Patience())
        if group.is_fast:
            # What comes meanwhile is heard when half of the task's time is over. Of a termination nothing is heard.
            patience = replace(patience, workflow_task=60.0 if group.fault is Fault.TERMINATED else 3.0)
        with self._database(patience.transaction) as database:
            async with Proxy(self._stack.ports.postgres, _recognise) as proxy, Desk() as desk:
                crew = Crew(
                    self._stack,
                    self._folder / str(group),
                    database_url=f"postgresql://{ROLE}@127.0.0.1:{proxy.port}/{database.name}",
                    desk_port=desk.port,
                    attempt_seconds=patience.attempt,
                )
                with crew:
                    client = await Client.connect(self._stack.temporal.address, data_converter=DATA_CONVERTER)
                    task_timeout = timedelta(seconds=patience.workflow_task)
                    return await self._drive(
                        Scene(group, self._stack, client, database, proxy, desk, crew, task_timeout=task_timeout)
                    )

    async def _drive(self, scene: Scene) -> Run:
        victim = scene.crew.hire()
        try:
            await scene.stage()
            proofs = await STRIKES[scene.group.fault](scene, victim)
            await scene.ended()
            told = await scene.load_again()
            await scene.crew.dismiss()
        except Exception as error:
            error.add_note(scene.crew.log())
            raise
        database, desk = scene.database, scene.desk
        cells = {
            saga.cell.operation: await look(saga, database, desk, proofs.get(saga.operation)) for saga in scene.sagas
        }
        batches = {
            load.cell.operation: await look_at_batch(
                load, database, desk, proofs.get(load.operation), told[load.operation]
            )
            for load in scene.loads
        }
        return Run(cells, batches, await inspect(database))

    @contextmanager
    def _database(self, limit: int) -> Iterator[Database]:
        postgres = self._stack.postgres
        name = f"cells_{uuid.uuid4().hex[:12]}"
        psql(postgres, "postgres", "-c", f'CREATE DATABASE "{name}" TEMPLATE "{DATABASE}"')
        for setting in ("transaction_timeout", "idle_in_transaction_session_timeout"):
            psql(postgres, "postgres", "-c", f"ALTER ROLE {ROLE} IN DATABASE \"{name}\" SET {setting} = '{limit}s'")
        try:
            yield Database(name, postgres.url(name, ROLE), postgres.url(name, "postgres", driver="postgresql"))
        finally:
            if postgres.running:
                psql(postgres, "postgres", "-c", f'DROP DATABASE "{name}" WITH (FORCE)')


def _recognise(sql: str, values: Sequence[bytes | None]) -> tuple[str, str] | None:
    return recognise(sql, values) or recognise_batch(sql, values)
