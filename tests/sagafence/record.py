"""Records a history of every ending of a declared saga, and of every way there, for test_recorded_sagas.py.

    python -m tests.sagafence.record                    those scenes that have no recording yet
    python -m tests.sagafence.record --again NAME ...   these anew, in place of what they had

A recording is the promise to the sagas that are open when a release of the library is deployed.
"""

import asyncio
import logging
import tempfile
from pathlib import Path

from sqlalchemy.ext.asyncio import create_async_engine
from temporalio.client import Client

from adapters.process_exit import leave
from devstack.stack import DevStack, psql
from sagafence import install
from tests.conftest import Database
from tests.recordings import asked_for, save
from tests.sagafence.conftest import EFFECTS
from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.scenes import SCENES, ended
from tests.sagafence.trips import Trips

FOLDER = Path(__file__).parent / "histories"


async def record(stack: DevStack, names: list[str]) -> None:
    client = await Client.connect(stack.temporal.address)
    for name in names:
        database = "record_" + name.replace("-", "_")
        psql(stack.postgres, "postgres", "-c", f'CREATE DATABASE "{database}"')
        url = stack.postgres.url(database)
        engine = create_async_engine(url)
        await install(engine)
        rows = Database(database, url, stack.postgres.url(database, driver="postgresql"))
        await rows.run(EFFECTS)
        trips, elsewhere = Trips(client, engine, rows), Elsewhere(client, engine, rows)
        async with trips.working(), elsewhere.working():
            handle = await SCENES[name](trips, elsewhere)
            await ended(handle)
        await engine.dispose()
        await save(handle, FOLDER, name)


def main() -> int:
    if (names := asked_for(SCENES, FOLDER, __doc__ or "")) is None:
        return 2
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)  # the scenes fail on purpose
    with tempfile.TemporaryDirectory() as folder, DevStack(Path(folder)) as stack:
        asyncio.run(record(stack, names))
    return 0


if __name__ == "__main__":
    leave(main())
