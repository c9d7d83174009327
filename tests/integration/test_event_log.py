"""saga.log: nothing missing, nothing twice, each order's events in their own sequence."""

import asyncio
import contextlib
import errno
import re
from collections.abc import AsyncIterator, Callable
from io import FileIO
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import event_log, event_query, log_file, log_target
from adapters.log_file import Bookmark
from tests.conftest import Database

DEADLINE_SECONDS = 20


@contextlib.asynccontextmanager
async def following(engine: AsyncEngine, path: Path) -> AsyncIterator[None]:
    task = asyncio.create_task(event_log.follow(engine, path))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():
            await asyncio.sleep(0.02)


def logged(path: Path, order_id: str = "") -> list[tuple[str, int]]:
    """Give what the log says: order and number of each line."""
    text = path.read_text() if path.exists() else ""
    found = [(name, int(number)) for name, number in re.findall(r"^\S+Z (\S+) #(\d+) ", text, re.MULTILINE)]
    return [one for one in found if not order_id or one[0] == order_id]


class Polls:
    """Counts how often followers have polled the database, and has them poll often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ended = 0
        self._read = event_query.read_next
        monkeypatch.setattr(event_query, "read_next", self._poll)
        monkeypatch.setattr(event_log, "_POLL_SECONDS", 0.01)

    async def happen(self) -> None:
        """Wait for several polls, so that what the first of them found is written by now."""
        enough = self._ended + 8
        await until(lambda: self._ended >= enough)

    async def _poll(self, engine: AsyncEngine, bookmark: Bookmark, limit: int) -> event_query.Found:
        found = await self._read(engine, bookmark, limit)
        self._ended += 1
        return found


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> Polls:
    return Polls(monkeypatch)


async def insert(database: Database, *order_ids: str) -> None:
    values = ", ".join(f"('{order_id}', 'alice')" for order_id in order_ids)
    await database.run(f"INSERT INTO orders (order_id, customer) VALUES {values}")


async def test_each_change_is_one_line_that_leads_to_the_history(
    engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"

    async with following(engine, log):
        await insert(database, "one")
        await database.run(
            "UPDATE orders SET status = 'rejected', changed_by = 'a person', reason = E'too\\nlate'"
            " WHERE order_id = 'one'"
        )
        await until(lambda: len(logged(log)) == 2)

    first, second = log.read_text().splitlines()
    assert re.match(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z one #1 pending by accept workflow=checkout-one pos=", first
    )
    assert "one #2 pending -> rejected by a person: too late workflow=checkout-one" in second


async def test_an_event_of_a_batch_leads_to_the_batch_until_the_orders_own_saga_has_it(
    engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    moves = [("reserved", "reserve"), ("unwinding", "undo pay"), ("stuck", "park"), ("unwinding", "undo pay")]

    async with following(engine, log):
        (_, _), *later = moves
        await database.run(
            "INSERT INTO orders (order_id, customer, status, changed_by, carrier, total_minor, currency)"
            " VALUES ('one', 'alice', 'reserved', 'reserve', 'bulk-4711', 100, 'EUR')"
        )
        for status, by in later:
            await database.run(f"UPDATE orders SET status = '{status}', changed_by = '{by}'")
        await until(lambda: len(logged(log)) == len(moves))

    assert re.findall(r" workflow=(\S+)", log.read_text()) == ["bulk-4711"] * 2 + ["checkout-one"] * 2


async def test_a_restart_goes_on_where_the_last_whole_line_ends(
    engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    await insert(database, "one", "two", "three")
    async with following(engine, log):
        await until(lambda: len(logged(log)) == 3)
    torn = log.read_text()[:-10]
    log.write_text(torn)
    await insert(database, "four")

    async with following(engine, log):
        await until(lambda: len(logged(log)) == 4)

    assert sorted(logged(log)) == [("four", 1), ("one", 1), ("three", 1), ("two", 1)]
    whole = re.compile(r"20\S+Z \S+ #1 pending by accept workflow=checkout-\w+ pos=\d+\.\d+")
    assert all(whole.fullmatch(line) for line in log.read_text().splitlines())


async def test_an_event_is_held_back_while_an_earlier_transaction_may_still_commit(
    engine: AsyncEngine, database: Database, folder: Path, polls: Polls
) -> None:
    log = folder / "saga.log"
    slow = await asyncpg.connect(database.admin_url)
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("INSERT INTO orders (order_id, customer) VALUES ('slow', 'alice')")

    async with following(engine, log):
        await insert(database, "fast")
        await polls.happen()
        assert logged(log) == []
        await transaction.commit()
        await slow.close()
        await until(lambda: len(logged(log)) == 2)

    assert logged(log) == [("slow", 1), ("fast", 1)]


async def test_a_finding_is_held_back_while_an_earlier_transaction_may_still_commit(
    engine: AsyncEngine, database: Database, folder: Path, polls: Polls
) -> None:
    log = folder / "saga.log"
    slow = await asyncpg.connect(database.admin_url)
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("INSERT INTO orders (order_id, customer) VALUES ('slow', 'alice')")

    async with following(engine, log):
        await database.run(
            "INSERT INTO audit_events (check_id, subject, event, detail) VALUES ('A2', 'lamp', 'violated', 'x')"
        )
        await polls.happen()
        assert log.read_text() == ""
        await transaction.commit()
        await slow.close()
        await until(lambda: len(log.read_text().splitlines()) == 2)

    order, finding = log.read_text().splitlines()
    assert " slow #1 pending " in order
    assert " audit A2 violated on lamp: x " in finding


@pytest.mark.parametrize("begins_while_following", [True, False])
async def test_an_orders_events_keep_their_sequence_when_its_transactions_began_in_another(
    begins_while_following: bool, engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    await insert(database, "one")
    early = await asyncpg.connect(database.admin_url)
    transaction = early.transaction()
    await transaction.start()
    await early.fetchval("SELECT pg_current_xact_id()")
    await database.run("UPDATE orders SET status = 'unwinding' WHERE order_id = 'one'")

    async def finish() -> None:
        await early.execute("UPDATE orders SET status = 'cancelled' WHERE order_id = 'one'")
        await transaction.commit()
        await early.close()

    if not begins_while_following:
        await finish()
    async with following(engine, log):
        if begins_while_following:
            await until(lambda: len(logged(log)) == 1)
            await finish()
        await insert(database, "two")
        await until(lambda: len(logged(log)) == 4)

    assert logged(log, "one") == [("one", 1), ("one", 2), ("one", 3)]
    async with following(engine, log):
        await insert(database, "three")
        await until(lambda: ("three", 1) in logged(log))
    assert len(logged(log)) == len(set(logged(log))) == 5


@pytest.mark.parametrize("is_first", [False, True])
async def test_a_crash_among_lines_that_belong_together_loses_none_of_them_and_repeats_none(
    engine: AsyncEngine, database: Database, folder: Path, is_first: bool
) -> None:
    """The second line is logged ahead of its own transaction, because of the third: both, or neither."""
    log = folder / "saga.log"
    if not is_first:
        await insert(database, "zero")
    early = await asyncpg.connect(database.admin_url)
    async with early.transaction():
        await early.fetchval("SELECT pg_current_xact_id()")
        await insert(database, "one")
        await early.execute("UPDATE orders SET status = 'unwinding' WHERE order_id = 'one'")
    await early.close()
    whole = ([] if is_first else [("zero", 1)]) + [("one", 1), ("one", 2)]
    async with following(engine, log):
        await until(lambda: logged(log) == whole)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))

    async with following(engine, log):
        await insert(database, "two")
        await until(lambda: ("two", 1) in logged(log))

    assert logged(log) == [*whole, ("two", 1)]


async def test_a_crash_among_the_first_lines_of_another_database_keeps_those_of_the_one_before(
    engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    before = ["earlier #1 pending pos=0.0\n", "earlier #2 completed pos=99999999.7\n"]
    log.write_text("".join([*before, "# another database from here on\n", "one #1 pending pos=0.0\n"]))

    async with following(engine, log):
        await insert(database, "one")
        await until(lambda: ("one", 1) in logged(log))

    assert log.read_text().splitlines(keepends=True)[:3] == [*before, "# another database from here on\n"]
    assert [line for line in log.read_text().splitlines()[3:] if " one #1 " not in line] == []


@pytest.mark.parametrize("found", ["", "2026-01-01T00:00:00.000Z old #1 pending by accept pos=999999999.42\n"])
async def test_a_full_disk_does_not_end_the_follower_and_leaves_no_half_line(
    engine: AsyncEngine, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Whether it is full when events are logged, or when it is noted that another database begins."""
    log = folder / "saga.log"
    log.write_text(found)
    append = log_file.append
    monkeypatch.setattr(event_log, "_RETRY_SECONDS", 0.05)
    full = asyncio.Event()

    def half(file: FileIO, text: str) -> None:
        if full.is_set():
            append(file, text)
            return
        full.set()
        append(file, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_target, "append", half)

    async with following(engine, log):
        await insert(database, "one", "two")
        await until(lambda: ("two", 1) in logged(log))

    assert full.is_set()
    assert sorted(logged(log)) == [*([("old", 1)] if found else []), ("one", 1), ("two", 1)]
    noted = "# another database from here on\n" if found else ""
    lines = log.read_text().removeprefix(found + noted).splitlines()
    assert len(lines) == 2
    assert all(re.search(r" pos=\d+\.\d+$", line) for line in lines)


async def test_one_follower_writes_and_another_takes_over(
    engine: AsyncEngine, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, polls: Polls
) -> None:
    monkeypatch.setattr(event_log, "_RETRY_SECONDS", 0.05)
    log = folder / "saga.log"

    async with following(engine, log):
        await until(log.exists)
        async with following(engine, log):
            await polls.happen()
            await insert(database, "one", "two")
            await until(lambda: len(logged(log)) >= 2)
            await polls.happen()
    async with following(engine, log):
        await insert(database, "three")
        await until(lambda: ("three", 1) in logged(log))

    assert sorted(logged(log)) == [("one", 1), ("three", 1), ("two", 1)]


async def test_a_log_of_another_database_is_continued_from_the_beginning_of_this_one(
    engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    log.write_text("2026-01-01T00:00:00.000Z old #1 pending by accept workflow=checkout-old pos=999999999.42\n")
    await insert(database, "one")

    async with following(engine, log):
        await until(lambda: len(logged(log)) == 2)

    assert "# another database from here on" in log.read_text()


async def test_a_restored_dump_is_noticed(
    engine: AsyncEngine, database: Database, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await insert(database, "one")
    await database.run("UPDATE order_events SET txid = '4000000000'")

    async with following(engine, folder / "saga.log"):
        await until(lambda: "another server's dump" in caplog.text)
        await database.run("UPDATE order_events SET txid = '0'")

    async with following(engine, folder / "again.log"):
        await until(lambda: logged(folder / "again.log") == [("one", 1)])


async def test_a_database_that_is_away_does_not_end_the_follower(
    engine: AsyncEngine, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_RETRY_SECONDS", 0.05)
    log = folder / "saga.log"

    async with following(engine, log):
        await insert(database, "one")
        await until(lambda: len(logged(log)) == 1)
        await database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'checkout' AND datname = current_database()"
        )
        await insert(database, "two")
        await until(lambda: len(logged(log)) == 2)


async def test_what_the_audit_found_is_logged_between_the_orders_events(
    engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    await insert(database, "one")
    await database.run(
        "INSERT INTO audit_events (check_id, subject, event, detail)"
        " VALUES ('A2', 'lamp', 'violated', E'reserved 1,\nheld 0')"
    )
    await insert(database, "two")

    async with following(engine, log):
        await until(lambda: len(logged(log)) == 2)
    async with following(engine, log):
        await insert(database, "three")
        await until(lambda: len(logged(log)) == 3)

    lines = log.read_text().splitlines()
    assert len(lines) == 4
    assert re.match(r"\S+Z audit A2 violated on lamp: reserved 1, held 0 pos=\d+\.\d+$", lines[1])


async def test_a_log_that_ends_with_a_finding_goes_on_after_it(
    engine: AsyncEngine, database: Database, folder: Path
) -> None:
    log = folder / "saga.log"
    await database.run(
        "INSERT INTO audit_events (check_id, subject, event, detail) SELECT 'A1', 'sku-' || n, 'violated', 'x'"
        " FROM generate_series(1, 3) n"
    )
    async with following(engine, log):
        await until(lambda: log.exists() and log.read_text().count("audit A1") == 3)

    async with following(engine, log):
        await insert(database, "one")
        await until(lambda: len(logged(log)) == 1)

    assert len(log.read_text().splitlines()) == 4
