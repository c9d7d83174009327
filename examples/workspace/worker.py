"""The worker: `python -m examples.workspace.worker`."""

import asyncio
import os

from httpx import AsyncClient
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from temporalio.client import Client
from temporalio.worker import Worker

import sagafence
from examples.workspace.steps import Steps
from examples.workspace.workflow import OpenWorkspace

TASK_QUEUE = "workspaces"


def build_worker(client: Client, engine: AsyncEngine, http: AsyncClient, task_queue: str = TASK_QUEUE) -> Worker:
    activities = sagafence.PostgresFence(engine).activities_of(Steps(http))
    return Worker(client, task_queue=task_queue, workflows=[OpenWorkspace], activities=activities)


async def main() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    await sagafence.check(engine)
    client = await Client.connect(os.environ.get("TEMPORAL_ADDRESS", "localhost:7233"))
    async with AsyncClient(base_url=os.environ["PROVIDER_URL"], timeout=3) as http:
        await build_worker(client, engine, http).run()


if __name__ == "__main__":
    asyncio.run(main())
