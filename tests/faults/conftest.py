"""What every module of faults needs: a shop on servers, and the counts of what struck."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from devstack.ports import free_port
from devstack.stack import DevStack
from devstack.temporal import TemporalServer
from domain.policies import SEARCH_ATTRIBUTES
from tests.conftest import Database, Shop
from tests.faults.evidence import Evidence
from tests.faults.sites import Site, open_site


@pytest.fixture
def servers(stack: DevStack) -> DevStack:
    """The session's servers; a module that ill-treats them brings its own."""
    return stack


@pytest.fixture
def shop(client: Client, engine: AsyncEngine, database: Database) -> Shop:
    """The checkout with the product's own worker: whether its workflows keep to the sandbox, tests/workflow asks."""
    return Shop(client, engine, database, is_strict=False)


@pytest.fixture
async def site(servers: DevStack, tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(servers, tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence()


@pytest.fixture
def fired(request: pytest.FixtureRequest, evidence: Evidence) -> Counter[str]:
    """Count here what the test's fault was seen to do."""
    return evidence.of(request)


@pytest.fixture(scope="module")
async def other_client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """Another Temporal, which knows nothing of what the first one runs."""
    log = tmp_path_factory.mktemp("elsewhere") / "temporal.log"
    server = TemporalServer(port=free_port(), ui_port=None, log=log, search_attributes=SEARCH_ATTRIBUTES)
    server.start()
    try:
        yield await Client.connect(server.address, data_converter=DATA_CONVERTER)
    finally:
        server.kill()


@pytest.fixture
def elsewhere(other_client: Client, engine: AsyncEngine, database: Database) -> Shop:
    """The same shop by another Temporal: the only way to two sagas of one order id at once."""
    return Shop(other_client, engine, database, is_strict=False)
