"""Records a history of every ending and of every way there, for test_replay.py.

    python -m tests.workflow.record                    those scenes that have no recording yet
    python -m tests.workflow.record --again NAME ...   these anew, in place of what they had

A recording is the promise to the orders that are open. Replace one only when its commands were never deployed,
or when no order of its kind can be open any more: see docs/upgrades.md.
"""

import asyncio
import logging
import tempfile
from pathlib import Path

from temporalio.client import Client, WorkflowExecutionStatus

from adapters.database import create_engine
from adapters.process_exit import leave
from adapters.temporal import DATA_CONVERTER
from devstack.stack import DATABASE, ROLE, DevStack, psql
from domain import policies
from sagafence.devservers.temporal import TemporalServer
from tests.conftest import Database, Shop
from tests.recordings import asked_for, save
from tests.workflow.gates import Gates
from tests.workflow.sagas import hasty, until
from tests.workflow.scenes import MANY_UPDATES, SCENES, Handle, Scene

FOLDER = Path(__file__).parent / "histories"


async def _ended(handle: Handle) -> None:
    async def is_closed() -> bool:
        return (await handle.describe()).status is not WorkflowExecutionStatus.RUNNING

    await until(is_closed)


async def _record(stack: DevStack, client: Client, name: str, scene: Scene) -> None:
    database = "record_" + name.replace("-", "_")
    psql(stack.postgres, "postgres", "-c", f'CREATE DATABASE "{database}" TEMPLATE "{DATABASE}"')
    url = stack.postgres.url(database, ROLE)
    engine = create_engine(url)
    admin_url = stack.postgres.url(database, "postgres", driver="postgresql")
    gates, shop = Gates(), Shop(client, engine, Database(database, url, admin_url))
    async with shop.working(interceptors=(gates,)):
        handle = await scene(shop, gates)
        await _ended(handle)
    await engine.dispose()
    await save(handle, FOLDER, name)


async def record(stack: DevStack, names: list[str]) -> None:
    policies.UNDO = hasty(policies.UNDO, give_up_ms=800)
    policies.PAY = hasty(policies.PAY, give_up_ms=500)
    policies.SHIP = hasty(policies.SHIP, give_up_ms=500)
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER)
    for name in names:
        await _record(stack, client, name, SCENES[name])


def main() -> int:
    if (names := asked_for(SCENES, FOLDER, __doc__ or "")) is None:
        return 2
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)  # the scenes fail on purpose
    with tempfile.TemporaryDirectory() as folder:
        stack = DevStack(Path(folder))
        # In place of its own one, a server that suggests another run early.
        stack.temporal = TemporalServer(
            port=stack.ports.temporal,
            ui_port=None,
            log=stack.folder / "temporal.log",
            search_attributes=policies.SEARCH_ATTRIBUTES,
            dynamic_config={
                "history.maxTotalUpdates": 2 * MANY_UPDATES,
                "history.maxTotalUpdates.suggestContinueAsNewThreshold": 0.5,
            },
        )
        with stack:
            asyncio.run(record(stack, names))
    return 0


if __name__ == "__main__":
    leave(main())
