import asyncio
import os
from collections.abc import Sequence

from httpx import AsyncClient
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from temporalio.client import Client
from temporalio.worker import Interceptor, Worker

import sagafence
from trip_steps import Steps
from trip_story import BookTrip


def trip_worker(
    client: Client, engine: AsyncEngine, airline: AsyncClient, queue: str, interceptors: Sequence[Interceptor] = ()
) -> Worker:
    activities = sagafence.PostgresFence(engine).activities_of(Steps(airline))
    return Worker(client, task_queue=queue, workflows=[BookTrip], activities=activities, interceptors=interceptors)


async def main() -> None:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    await sagafence.check(engine)
    client = await Client.connect(os.environ.get("TEMPORAL_ADDRESS", "localhost:7233"))
    async with AsyncClient(base_url=os.environ["AIRLINE_URL"], timeout=3) as airline:
        await trip_worker(client, engine, airline, "trips").run()


if __name__ == "__main__":
    asyncio.run(main())
