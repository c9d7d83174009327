"""What every module of faults needs: a shop on servers, and the counts of what struck."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client

from embedded.stack import DevStack
from tests.conftest import Database, Shop
from tests.faults.evidence import Evidence
from tests.faults.sites import Site, open_site

# Each how-manyth case of a test stays in `make test`, where the test itself stands word for word in a document.
_SHARE = {"test_a_trip_keeps_its_promises": 5}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that are outside the share."""
    for name, every in _SHARE.items():
        cases = [item for item in items if isinstance(item, pytest.Function) and item.originalname == name]
        for number, case in enumerate(cases):
            if number % every:
                case.add_marker(pytest.mark.exhaustive)


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
