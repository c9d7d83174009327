"""A world for each test. The servers come from the library's plugin."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client

import sagafence
from examples.workspace.provider.process import ProviderProcess
from examples.workspace.tests.world import World
from sagafence.testing import provider_proxy

SCHEMA = Path(__file__).parents[1] / "schema.sql"


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[ProviderProcess]:
    with ProviderProcess(tmp_path / "provider") as process:
        yield process


@pytest.fixture
async def world(
    saga_client: Client, saga_engine: AsyncEngine, saga_task_queue: str, provider: ProviderProcess
) -> AsyncIterator[World]:
    await sagafence.install(saga_engine)
    async with saga_engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute(SCHEMA.read_text())
    async with provider_proxy(provider.url) as proxy, AsyncClient(base_url=proxy.url, timeout=3) as http:
        yield World(saga_client, saga_engine, saga_task_queue, provider, proxy, http)
