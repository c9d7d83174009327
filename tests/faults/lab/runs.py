"""One run for each group of cells, on one pair of servers for all of them."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from devstack.stack import ROLE, DevStack, psql
from tests.conftest import Database, new_database
from tests.faults.lab.batch_cells import BatchCell, recognise_batch
from tests.faults.lab.cells import Cell, Fault, Group, recognise
from tests.faults.lab.control import ControlServer
from tests.faults.lab.injections import INJECT
from tests.faults.lab.proxy import Proxy
from tests.faults.lab.scene import Scene
from tests.faults.lab.target import Aftermath, Inspection, collect, inspect
from tests.workers import Workers


@dataclass(frozen=True)
class Timeouts:
    """How many seconds the parts give one another. None may run out while the sagas are brought to their places."""

    attempt: float = 60.0
    """Start-to-close of the operations that the fault meets."""
    workflow_task: float = 10.0
    transaction: int = 60
    """Timeouts of the service's role, for a transaction and for an idle one."""


# Where only a timeout reports to Temporal that a worker is lost. What a stopped worker holds open is ended by the
# role's own timeout; under another fault that would be a second one.
_HURRIED = {
    Fault.WORKER_KILLED: Timeouts(attempt=5.0, workflow_task=3.0),
    Fault.WORKER_STOPPED: Timeouts(attempt=5.0, workflow_task=3.0, transaction=7),
    Fault.TEMPORAL_KILLED: Timeouts(attempt=10.0),
}


@dataclass(frozen=True)
class Run:
    found: dict[str, Aftermath]
    inspection: Inspection

    def violations_for(self, name: str) -> list[str]:
        return self.inspection.violations_for(name, {one.name for one in self.found.values()} - {name})


class Laboratory:
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
        for run in self._runs.values():
            run.cancel()
        await asyncio.gather(*self._runs.values(), return_exceptions=True)

    async def _run(self, group: Group) -> Run:
        # A run that failed may have left a server down.
        self._stack.postgres.start()
        self._stack.temporal.start()
        timeouts = _HURRIED.get(group.fault, Timeouts())
        if group.is_local:
            # What comes meanwhile is heard when half of the task's time is over. Of a termination nothing is heard.
            timeouts = replace(timeouts, workflow_task=60.0 if group.fault is Fault.TERMINATED else 3.0)
        server = Proxy(self._stack.ports.postgres, recognise=_recognise)
        with self._database(timeouts.transaction) as database, server as proxy:
            async with ControlServer() as control:
                client = await Client.connect(self._stack.temporal.address, data_converter=DATA_CONVERTER)
                task_timeout = timedelta(seconds=timeouts.workflow_task)
                workers = Workers(self._stack, self._folder / str(group))
                scene = Scene(
                    *(group, self._stack, client, database, proxy, control, workers),
                    attempt_seconds=timeouts.attempt,
                    task_timeout=task_timeout,
                )
                try:
                    return await self._drive(scene)
                finally:
                    workers.kill()

    async def _drive(self, scene: Scene) -> Run:
        victim = scene.start_worker()
        try:
            await scene.stage()
            proofs = await INJECT[scene.group.fault](scene, victim)
            await scene.ended()
            reported = await scene.load_again()
            await scene.workers.drain()
        except Exception as error:
            error.add_note(scene.workers.tails())
            raise
        found = {
            target.operation: await collect(
                target,
                scene.client,
                scene.database,
                scene.control,
                proofs.get(target.operation),
                reported.get(target.operation, []),
            )
            for target in scene.targets
        }
        return Run(found, await inspect(scene.database))

    @contextmanager
    def _database(self, limit: int) -> Iterator[Database]:
        postgres = self._stack.postgres
        database = new_database(postgres)
        for setting in ("transaction_timeout", "idle_in_transaction_session_timeout"):
            psql(
                postgres,
                "postgres",
                "-c",
                f"ALTER ROLE {ROLE} IN DATABASE \"{database.name}\" SET {setting} = '{limit}s'",
            )
        try:
            yield database
        finally:
            if postgres.running:
                psql(postgres, "postgres", "-c", f'DROP DATABASE "{database.name}" WITH (FORCE)')


def _recognise(sql: str, values: Sequence[bytes | None]) -> tuple[str, str] | None:
    return recognise(sql, values) or recognise_batch(sql, values)
