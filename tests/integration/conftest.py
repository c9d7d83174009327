"""What tests of the commands need."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.stack import DevStack
from tests.conftest import Database
from tests.integration.commands import Commands


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
