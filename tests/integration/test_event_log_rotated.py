"""saga.log that is moved away, removed or emptied, that others wait for, or that is standard output: nothing twice."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import event_log
from adapters.log_target import StandardOutput
from tests.conftest import Database
from tests.integration.test_event_log import following, insert, logged, until

LAST_NAME = "saga.log.1"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(event_log, "_RETRY_SECONDS", 0.02)


def logged_in(folder: Path) -> list[tuple[str, int]]:
    return [event for file in folder.glob("saga.log*") for event in logged(file)]


def moved(log: Path) -> None:
    log.rename(log.with_name(LAST_NAME))


def removed(log: Path) -> None:
    log.unlink()


def replaced(log: Path) -> None:
    moved(log)
    log.touch()


def emptied(log: Path) -> None:
    log.with_name(LAST_NAME).write_text(log.read_text())
    os.truncate(log, 0)


@pytest.mark.parametrize("rotate", [moved, removed, replaced, emptied])
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_new_file_goes_on_where_the_one_before_ended(
    rotate: Callable[[Path], None], is_restarted: bool, engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    async with following(engine, log):
        await insert(database, "one", "two")
        await until(lambda: len(logged(log)) == 2)
        rotate(log)
        await until(lambda: log.exists() and log.read_text().startswith("# goes on after "))
        if not is_restarted:
            await insert(database, "three")
            await until(lambda: ("three", 1) in logged(log))
    async with following(engine, log):
        await insert(database, "four")
        await until(lambda: ("four", 1) in logged(log))

    assert logged(log) == [*([] if is_restarted else [("three", 1)]), ("four", 1)]
    if rotate is not removed:
        assert sorted(logged(log.with_name(LAST_NAME))) == [("one", 1), ("two", 1)]
    assert len(log.read_text().splitlines()) == 1 + len(logged(log))
    assert "# another database" not in log.read_text()


async def test_files_that_are_rotated_one_after_the_other_have_every_event_once(
    engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    names = [f"o-{number}" for number in range(60)]

    async def rotate() -> None:
        for number in range(8):
            await until(lambda: bool(logged(log)))
            log.rename(folder / f"saga.log.{number}")
            event_log.reopen()

    async with following(engine, log):
        rotating = asyncio.create_task(rotate())
        for name in names:
            await insert(database, name)
        while not rotating.done():
            names.append(f"o-{len(names)}")
            await insert(database, names[-1])
        await rotating
        await until(lambda: len(logged_in(folder)) >= len(names))

    assert sorted(logged_in(folder)) == sorted((name, 1) for name in names)


async def test_a_rotation_wakes_a_follower_that_waits(
    engine: AsyncEngine, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = folder / "saga.log"
    monkeypatch.setattr(event_log, "_POLL_SECONDS", 600)
    await insert(database, "one")
    async with following(engine, log):
        await until(lambda: bool(logged(log)))
        moved(log)

        event_log.reopen()

        await until(log.exists)


async def test_a_worker_that_comes_while_the_file_is_away_stands_by_and_says_so(
    engine: AsyncEngine, database: Database, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "checkout.event_log")
    log = folder / "saga.log"
    async with following(engine, log):
        await insert(database, "one")
        await until(lambda: bool(logged(log)))
        async with contextlib.AsyncExitStack() as second:
            moved(log)
            await second.enter_async_context(following(engine, log))
            await insert(database, "two")
            await until(lambda: "stands by" in caplog.text and ("two", 1) in logged(log))
    async with following(engine, log):
        await insert(database, "three")
        await until(lambda: ("three", 1) in logged(log))

    assert logged(log) == [("two", 1), ("three", 1)]
    standing_by = [found for found in caplog.records if "stands by" in found.message]
    assert [found.levelname for found in standing_by] == ["INFO"]


async def test_a_worker_that_stood_by_says_when_it_takes_over(
    engine: AsyncEngine, database: Database, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "checkout.event_log")
    log = folder / "saga.log"
    async with contextlib.AsyncExitStack() as second:
        async with following(engine, log):
            await until(log.exists)
            task = asyncio.create_task(event_log.follow(engine, log, must_tell=True))
            second.callback(task.cancel)
            await until(lambda: "stands by" in caplog.text)
        await insert(database, "one")
        await until(lambda: bool(logged(log)))
        await until(lambda: "from now on" in caplog.text)

    assert [found.levelname for found in caplog.records if "stands by" in found.message] == ["ERROR"]


# Standard output -------------------------------------------------------------------------------------------------


class Pipe:
    """What stands for standard output."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.text = ""

    def read(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reader, 65_536):
                self.text += data.decode()
        return self.text

    def close(self) -> None:
        for descriptor in (self.reader, self.writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    made = Pipe()
    monkeypatch.setattr(event_log, "StandardOutput", partial(StandardOutput, made.writer))
    yield made
    made.close()


@contextlib.asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(event_log.follow_to_stdout(engine))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BrokenPipeError):
            await task


async def test_standard_output_gets_what_happens_from_now_on_and_says_from_where(
    engine: AsyncEngine, database: Database, pipe: Pipe
) -> None:
    await insert(database, "before")

    async with writing(engine):
        await until(lambda: "# begins with transaction " in pipe.read())
        await insert(database, "one")
        await database.run("UPDATE orders SET status = 'rejected', reason = E'a\\nb\\x1b[2J' WHERE order_id = 'one'")
        await until(lambda: "one #2" in pipe.read())

    note, first, second = pipe.text.splitlines()
    assert note.startswith("# begins with transaction ")
    assert " one #1 pending by accept workflow=checkout-one pos=" in first
    assert r": a b\x1b[2J workflow=" in second


async def test_what_is_due_when_a_worker_ends_is_written_before(
    engine: AsyncEngine, database: Database, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_POLL_SECONDS", 600)

    async with writing(engine):
        await until(lambda: "# begins with transaction " in pipe.read())
        await insert(database, "one")

    assert " one #1 pending " in pipe.read()


async def test_a_reader_who_does_not_read_does_not_hold_up_the_worker(
    engine: AsyncEngine, database: Database, pipe: Pipe
) -> None:
    async with writing(engine):
        await until(lambda: "# begins" in pipe.read())
        await database.run(
            "INSERT INTO orders (order_id, customer, reason)"
            " SELECT 'o-' || number, 'alice', repeat('x', 900) FROM generate_series(1, 300) number"
        )
        longest, last = 0.0, time.monotonic()
        for _ in range(100):
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        await until(lambda: pipe.read().count(" pending by accept") == 300)

    assert longest < 5
    assert all(line.startswith(("20", "# ")) for line in pipe.text.splitlines())


async def test_a_reader_who_is_gone_ends_the_follower(engine: AsyncEngine, database: Database, pipe: Pipe) -> None:
    async with writing(engine) as task:
        await until(lambda: "# begins" in pipe.read())
        os.close(pipe.reader)
        await insert(database, "one")
        async with asyncio.timeout(20):
            with pytest.raises(BrokenPipeError):
                await task
