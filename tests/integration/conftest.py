"""What tests of the commands need."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.stack import DevStack
from tests.conftest import Database, Shop
from tests.integration.commands import Commands, Desk


@pytest.fixture
def commands(stack: DevStack, database: Database, tmp_path: Path) -> Iterator[Commands]:
    environment = stack.environment(
        CHECKOUT_DATABASE_URL=database.url,
        CHECKOUT_TASK_QUEUE=f"test-{uuid.uuid4().hex[:12]}",
        CHECKOUT_LOG_FILE=str(tmp_path / "saga.log"),
    )
    made = Commands(dict(environment), tmp_path)
    yield made
    for worker in made.workers:
        if worker.running:
            worker.kill()


@pytest.fixture
def own_shop(shop: Shop, commands: Commands) -> Shop:
    """The shop of the worker processes."""
    shop.task_queue = commands.environment["CHECKOUT_TASK_QUEUE"]
    return shop


@pytest.fixture
def run_starter(shop: Shop, stack: DevStack, tmp_path: Path) -> Desk:
    """starter.py on the task queue of the shop."""
    shop.is_strict = False  # whether workflows keep to the sandbox is asked in tests/workflow
    environment = stack.environment(CHECKOUT_TASK_QUEUE=shop.task_queue)
    environment = {name: value for name, value in environment.items() if name != "CHECKOUT_DATABASE_URL"}
    return Desk(shop, environment, tmp_path)
