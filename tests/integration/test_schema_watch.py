"""A guard that is dropped under a running worker: no statement fails, so the worker logs it."""

import asyncio
import logging

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import schema
from tests.conftest import Database
from tests.integration.commands import Commands
from tests.workflow.sagas import until

_TRIGGER = "orders_move"
_DROP = f"ALTER TABLE orders DISABLE TRIGGER {_TRIGGER}"
_PUT_BACK = f"ALTER TABLE orders ENABLE TRIGGER {_TRIGGER}"
_LOGGED = f"the database lacks trigger orders.{_TRIGGER} enabled"
# worker.py, which polls more often.
_FAST_WORKER = """
import sys
from adapters import schema
schema.POLL_SECONDS = 0.2
import worker
sys.argv[:] = ["worker.py"]
sys.exit(worker.main())
"""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "POLL_SECONDS", 0.02)


async def test_what_goes_missing_is_logged_repeatedly_and_once_when_it_is_back(
    engine: AsyncEngine, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_REPEAT_AFTER_POLLS", 2)
    caplog.set_level(logging.INFO, "checkout.schema")

    def logged(level: int) -> list[str]:
        return [r.getMessage() for r in caplog.records if (r.name, r.levelno) == ("checkout.schema", level)]

    async def is_logged_twice() -> bool:
        return len(logged(logging.ERROR)) >= 2

    async def is_logged_as_back() -> bool:
        return len(logged(logging.INFO)) >= 1

    watch = asyncio.create_task(schema.watch(engine))
    await database.run(_DROP)
    await until(is_logged_twice)
    await database.run(_PUT_BACK)
    await until(is_logged_as_back)
    watch.cancel()

    assert {message.partition(";")[0] for message in logged(logging.ERROR)} == {_LOGGED}
    assert logged(logging.INFO) == ["the database has all that the code relies on again"]


async def test_a_database_that_is_away_for_one_poll_is_polled_again(
    engine: AsyncEngine, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls, poll = 0, schema.problems_of

    async def away_at_first(engine: AsyncEngine, of: str) -> list[str]:
        nonlocal polls
        polls += 1
        if polls == 1:
            raise TimeoutError
        return await poll(engine, of)

    monkeypatch.setattr(schema, "problems_of", away_at_first)
    await database.run(_DROP)

    async def is_logged() -> bool:
        return any(_LOGGED in record.getMessage() for record in caplog.records)

    watch = asyncio.create_task(schema.watch(engine))
    await until(is_logged)
    watch.cancel()


async def test_a_worker_checks_the_schema_while_it_works(commands: Commands, database: Database) -> None:
    worker = commands.ready_worker(script=_FAST_WORKER)
    assert "the database lacks" not in worker.tail(100)

    await database.run(_DROP)
    worker.until(lambda: _LOGGED in worker.tail(100), timeout=15)

    assert worker.stop() == 0
