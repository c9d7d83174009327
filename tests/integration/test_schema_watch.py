"""A guard that somebody drops under running workers: no statement fails, so a worker says it."""

import asyncio
import logging

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import schema, schema_watch
from adapters.schema_watch import follow
from tests.conftest import Database
from tests.integration.commands import Commands
from tests.workflow.sagas import until

_TRIGGER = "orders_move"
_DROP = f"ALTER TABLE orders DISABLE TRIGGER {_TRIGGER}"
_PUT_BACK = f"ALTER TABLE orders ENABLE TRIGGER {_TRIGGER}"
_TOLD = f"the database lacks trigger orders.{_TRIGGER} enabled"
# worker.py, which looks more often.
_HASTY_WORKER = """
import sys
from adapters import schema_watch
schema_watch.LOOK_EVERY_SECONDS = 0.2
import worker
sys.argv[:] = ["worker.py"]
sys.exit(worker.main())
"""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_watch, "LOOK_EVERY_SECONDS", 0.02)


async def test_what_goes_missing_is_told_again_and_again_and_once_when_it_is_back(
    engine: AsyncEngine, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_watch, "_TELL_AGAIN_AFTER_LOOKS", 2)
    caplog.set_level(logging.INFO, "checkout.schema")

    def told(level: int) -> list[str]:
        return [r.getMessage() for r in caplog.records if (r.name, r.levelno) == ("checkout.schema", level)]

    async def is_told_twice() -> bool:
        return len(told(logging.ERROR)) >= 2

    async def is_told_to_be_back() -> bool:
        return len(told(logging.INFO)) >= 1

    watch = asyncio.create_task(follow(engine))
    await database.run(_DROP)
    await until(is_told_twice)
    await database.run(_PUT_BACK)
    await until(is_told_to_be_back)
    watch.cancel()

    assert {message.partition(";")[0] for message in told(logging.ERROR)} == {_TOLD}
    assert told(logging.INFO) == ["the database has all that the code relies on again"]


async def test_a_database_that_is_away_for_a_look_is_looked_at_again(
    engine: AsyncEngine, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = 0, schema.problems_of

    async def away_at_first(engine: AsyncEngine, of: str) -> list[str]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise TimeoutError
        return await look(engine, of)

    monkeypatch.setattr(schema, "problems_of", away_at_first)
    await database.run(_DROP)

    async def is_told() -> bool:
        return any(_TOLD in record.getMessage() for record in caplog.records)

    watch = asyncio.create_task(follow(engine))
    await until(is_told)
    watch.cancel()


async def test_a_worker_looks_while_it_works(commands: Commands, database: Database) -> None:
    worker = commands.ready_worker(script=_HASTY_WORKER)
    assert "the database lacks" not in worker.tail(100)

    await database.run(_DROP)
    worker.until(lambda: _TOLD in worker.tail(100), timeout=15)

    assert worker.stop() == 0
