"""saga.log: nothing missing, nothing twice, each order's events in sequence, whatever becomes of file and database."""

import asyncio
import contextlib
import errno
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import event_log, event_query, log_file, log_target
from adapters.database import create_engine
from adapters.log_file import Bookmark
from adapters.log_target import StandardOutput
from devstack.stack import DATABASE, ROLE, make_database
from sagafence.devservers.ports import free_port
from sagafence.devservers.postgres import PostgresServer
from tests.conftest import Database
from tests.memory import folder_in_memory

DEADLINE_SECONDS = 20
NOTE = "# another database from here on"


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not holds():
            await asyncio.sleep(0.02)


def events_in(text: str) -> list[tuple[str, int]]:
    """Give order and number of each line."""
    return [(name, int(number)) for name, number in re.findall(r"^\S+Z (\S+) #(\d+) ", text, re.MULTILINE)]


@dataclass
class FollowedLog:
    """saga.log of one database, and whoever writes it."""

    engine: AsyncEngine
    database: Database
    path: Path

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Write the log inside the block."""
        task = asyncio.create_task(event_log.follow(self.engine, self.path))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def insert(self, *ids: str) -> None:
        await self.database.fetch("INSERT INTO orders (order_id, customer) SELECT unnest($1::text[]), 'alice'", [*ids])

    async def insert_until_told(self, order_id: str) -> None:
        await self.insert(order_id)
        await until(lambda: (order_id, 1) in self.told())

    def text(self) -> str:
        return self.path.read_text() if self.path.exists() else ""

    def told(self, order_id: str = "") -> list[tuple[str, int]]:
        return [one for one in events_in(self.text()) if not order_id or one[0] == order_id]


@pytest.fixture
def log(engine: AsyncEngine, database: Database, tmp_path: Path) -> FollowedLog:
    return FollowedLog(engine, database, tmp_path / "saga.log")


class Polls:
    """Counts how often followers have polled the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ended = 0
        self._read = event_query.read_next
        monkeypatch.setattr(event_query, "read_next", self._poll)

    async def happen(self) -> None:
        """Wait for several polls, so that what the first of them found is written by now."""
        enough = self._ended + 8
        await until(lambda: self._ended >= enough)

    async def _poll(self, engine: AsyncEngine, bookmark: Bookmark, limit: int) -> event_query.Found:
        found = await self._read(engine, bookmark, limit)
        self._ended += 1
        return found


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(event_log, "_RETRY_SECONDS", 0.02)


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> Polls:
    return Polls(monkeypatch)


async def test_each_change_is_one_line_that_leads_to_the_history(log: FollowedLog, database: Database) -> None:
    async with log.followed():
        await log.insert("one")
        await database.run(
            "UPDATE orders SET status = 'rejected', changed_by = 'a person', reason = E'too\\nlate'"
            " WHERE order_id = 'one'"
        )
        await until(lambda: len(log.told()) == 2)

    first, second = log.text().splitlines()
    assert re.match(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z one #1 pending by accept workflow=checkout-one pos=", first
    )
    assert "one #2 pending -> rejected by a person: too late workflow=checkout-one" in second


async def test_an_event_of_a_batch_leads_to_the_batch_until_the_orders_own_saga_has_it(
    log: FollowedLog, database: Database
) -> None:
    moves = [("reserved", "reserve"), ("unwinding", "undo pay"), ("stuck", "park"), ("unwinding", "undo pay")]

    async with log.followed():
        (_, _), *later = moves
        await database.run(
            "INSERT INTO orders (order_id, customer, status, changed_by, batch_workflow_id, total_minor, currency)"
            " VALUES ('one', 'alice', 'reserved', 'reserve', 'bulk-4711', 100, 'EUR')"
        )
        for status, by in later:
            await database.run(f"UPDATE orders SET status = '{status}', changed_by = '{by}'")
        await until(lambda: len(log.told()) == len(moves))

    assert re.findall(r" workflow=(\S+)", log.text()) == ["bulk-4711"] * 2 + ["checkout-one"] * 2


async def test_a_restart_goes_on_where_the_last_whole_line_ends(log: FollowedLog) -> None:
    await log.insert("one", "two", "three")
    async with log.followed():
        await until(lambda: len(log.told()) == 3)
    torn = log.text()[:-10]
    log.path.write_text(torn)
    await log.insert("four")

    async with log.followed():
        await until(lambda: len(log.told()) == 4)

    assert sorted(log.told()) == [("four", 1), ("one", 1), ("three", 1), ("two", 1)]
    whole = re.compile(r"20\S+Z \S+ #1 pending by accept workflow=checkout-\w+ pos=\d+\.\d+")
    assert all(whole.fullmatch(line) for line in log.text().splitlines())


FAST_ORDER = "INSERT INTO orders (order_id, customer) VALUES ('fast', 'alice')"
FINDING = "INSERT INTO audit_events (check_id, subject, event, detail) VALUES ('A2', 'lamp', 'violated', 'x')"


@pytest.mark.parametrize(
    ("later", "line"),
    [(FAST_ORDER, " fast #1 pending "), (FINDING, " audit A2 violated on lamp: x ")],
    ids=["event", "finding"],
)
async def test_what_happened_is_held_back_while_an_earlier_transaction_may_still_commit(
    log: FollowedLog, database: Database, polls: Polls, later: str, line: str
) -> None:
    async with log.followed():
        async with database.locked("INSERT INTO orders (order_id, customer) VALUES ('slow', 'alice')"):
            await database.run(later)
            await polls.happen()
            assert log.text() == ""
        await until(lambda: len(log.text().splitlines()) == 2)

    first, second = log.text().splitlines()
    assert " slow #1 pending " in first
    assert line in second


@pytest.mark.parametrize("begins_while_following", [True, False])
async def test_an_orders_events_keep_their_sequence_when_its_transactions_began_in_another(
    begins_while_following: bool, log: FollowedLog, database: Database
) -> None:
    await log.insert("one")
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
    async with log.followed():
        if begins_while_following:
            await until(lambda: len(log.told()) == 1)
            await finish()
        await log.insert("two")
        await until(lambda: len(log.told()) == 4)

    assert log.told("one") == [("one", 1), ("one", 2), ("one", 3)]
    async with log.followed():
        await log.insert_until_told("three")
    assert len(log.told()) == len(set(log.told())) == 5


@pytest.mark.parametrize("is_first", [False, True])
async def test_a_crash_among_lines_that_belong_together_loses_none_of_them_and_repeats_none(
    log: FollowedLog, database: Database, is_first: bool
) -> None:
    """The second line is told ahead of its own transaction, because of the third: both, or neither."""
    if not is_first:
        await log.insert("zero")
    async with database.locked("SELECT pg_current_xact_id()") as early:
        await log.insert("one")
        await early.execute("UPDATE orders SET status = 'unwinding' WHERE order_id = 'one'")
    whole = ([] if is_first else [("zero", 1)]) + [("one", 1), ("one", 2)]
    async with log.followed():
        await until(lambda: log.told() == whole)
    lines = log.text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:-1]))

    async with log.followed():
        await log.insert_until_told("two")

    assert log.told() == [*whole, ("two", 1)]


async def test_a_crash_among_the_first_lines_of_another_database_keeps_those_of_the_one_before(
    log: FollowedLog,
) -> None:
    before = ["earlier #1 pending pos=0.0\n", "earlier #2 completed pos=99999999.7\n"]
    log.path.write_text("".join([*before, f"{NOTE}\n", "one #1 pending pos=0.0\n"]))

    async with log.followed():
        await log.insert_until_told("one")

    assert log.text().splitlines(keepends=True)[:3] == [*before, f"{NOTE}\n"]
    assert [line for line in log.text().splitlines()[3:] if " one #1 " not in line] == []


@pytest.mark.parametrize("found", ["", "2026-01-01T00:00:00.000Z old #1 pending by accept pos=999999999.42\n"])
async def test_a_full_disk_does_not_end_the_follower_and_leaves_no_half_line(
    log: FollowedLog, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Whether it is full when events are told, or when it is noted that another database begins."""
    log.path.write_text(found)
    append = log_file.append
    full = asyncio.Event()

    def half(file: FileIO, text: str) -> None:
        if full.is_set():
            append(file, text)
            return
        full.set()
        append(file, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_target, "append", half)

    async with log.followed():
        await log.insert("one", "two")
        await until(lambda: ("two", 1) in log.told())

    assert full.is_set()
    assert sorted(log.told()) == [*([("old", 1)] if found else []), ("one", 1), ("two", 1)]
    noted = f"{NOTE}\n" if found else ""
    lines = log.text().removeprefix(found + noted).splitlines()
    assert len(lines) == 2
    assert all(re.search(r" pos=\d+\.\d+$", line) for line in lines)


async def test_one_follower_writes_and_another_takes_over(log: FollowedLog, polls: Polls) -> None:

    async with log.followed():
        await until(log.path.exists)
        async with log.followed():
            await polls.happen()
            await log.insert("one", "two")
            await until(lambda: len(log.told()) >= 2)
            await polls.happen()
    async with log.followed():
        await log.insert_until_told("three")

    assert sorted(log.told()) == [("one", 1), ("three", 1), ("two", 1)]


async def test_a_restored_dump_is_noticed(log: FollowedLog, caplog: pytest.LogCaptureFixture) -> None:
    await log.insert("one")
    await log.database.run("UPDATE order_events SET txid = '4000000000'")

    async with log.followed():
        await until(lambda: "another server's dump" in caplog.text)
        await log.database.run("UPDATE order_events SET txid = '0'")
        await until(lambda: log.told() == [("one", 1)])


async def test_a_database_that_is_away_does_not_end_the_follower(log: FollowedLog, database: Database) -> None:

    async with log.followed():
        await log.insert("one")
        await until(lambda: len(log.told()) == 1)
        await database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'checkout' AND datname = current_database()"
        )
        await log.insert("two")
        await until(lambda: len(log.told()) == 2)


async def test_what_the_audit_found_is_logged_between_the_orders_events(log: FollowedLog, database: Database) -> None:
    await log.insert("one")
    await database.run(
        "INSERT INTO audit_events (check_id, subject, event, detail)"
        " VALUES ('A2', 'lamp', 'violated', E'reserved 1,\nheld 0')"
    )
    await log.insert("two")

    async with log.followed():
        await until(lambda: len(log.told()) == 2)
    async with log.followed():
        await log.insert("three")
        await until(lambda: len(log.told()) == 3)

    lines = log.text().splitlines()
    assert len(lines) == 4
    assert re.match(r"\S+Z audit A2 violated on lamp: reserved 1, held 0 pos=\d+\.\d+$", lines[1])


async def test_a_log_that_ends_with_a_finding_goes_on_after_it(log: FollowedLog, database: Database) -> None:
    await database.run(
        "INSERT INTO audit_events (check_id, subject, event, detail) SELECT 'A1', 'sku-' || n, 'violated', 'x'"
        " FROM generate_series(1, 3) n"
    )
    async with log.followed():
        await until(lambda: log.text().count("audit A1") == 3)

    async with log.followed():
        await log.insert("one")
        await until(lambda: len(log.told()) == 1)

    assert len(log.text().splitlines()) == 4


# A database that goes back while it is followed: seen at the next look, and nothing is lost -----------------------

AUDITED = "INSERT INTO audit_events (check_id, subject, event, detail) VALUES ('A2', 'lamp', 'violated', 'x');"
_EVENTS = "order_events (event_id, txid, order_id, seq, event, status, changed_by, at) OVERRIDING SYSTEM VALUE "


def after_the_note(log: FollowedLog) -> list[tuple[str, int]]:
    """Give what was told of the newest database, and require that just one other came before it."""
    before, after = log.text().split(f"{NOTE}\n")
    assert before
    return events_in(after)


async def go_back(database: Database, statements: str) -> None:
    """Change rows past triggers and constraints in one instant, as a restored data folder would."""
    await database.run(f"BEGIN; SET LOCAL session_replication_role = replica; {statements}; COMMIT")


# What a restore to before b-1 leaves behind, when it had written the newest event.
FEWER = "DELETE FROM order_events WHERE order_id = 'b-1'; DELETE FROM orders WHERE order_id = 'b-1'"
NONE = "DELETE FROM order_events; DELETE FROM orders"
OTHER_ORDER = (
    f"CREATE TABLE gone AS TABLE order_events; {FEWER}; INSERT INTO orders (order_id, customer) VALUES ('c-1', 'bob');"
    f"INSERT INTO {_EVENTS} SELECT event_id, txid, 'c-1', 1, event, status, changed_by, clock_timestamp()"
    "  FROM gone WHERE order_id = 'b-1'"
)
SAME_ORDER_LATER = "UPDATE order_events SET at = at + interval '1 ms' WHERE order_id = 'b-1'"
OTHER_NUMBER = "UPDATE order_events SET seq = 2 WHERE order_id = 'b-1'"


@pytest.mark.parametrize(
    ("restored", "left"),
    [
        (FEWER, [("a-1", 1)]),
        (NONE, []),
        (OTHER_ORDER, [("a-1", 1), ("c-1", 1)]),
        (SAME_ORDER_LATER, [("a-1", 1), ("b-1", 1)]),
        (OTHER_NUMBER, [("a-1", 1), ("b-1", 2)]),
    ],
    ids=["fewer events", "no events", "another order's event", "another instant", "another number"],
)
@pytest.mark.parametrize("is_followed", [True, False], ids=["between two polls", "between two workers"])
async def test_all_that_a_restored_database_has_is_logged_after_a_note(
    restored: str, left: list[tuple[str, int]], is_followed: bool, log: FollowedLog, database: Database, polls: Polls
) -> None:
    async with log.followed():
        await log.insert("a-1")
        await log.insert("b-1")
        await until(lambda: len(log.told()) == 2)
        if is_followed:
            await go_back(database, restored)
            await polls.happen()
    if not is_followed:
        await go_back(database, restored)

    async with log.followed():
        await log.insert_until_told("d-1")

    assert after_the_note(log) == [*left, ("d-1", 1)]


async def test_a_restore_to_after_the_newest_line_goes_on_without_a_note(log: FollowedLog, polls: Polls) -> None:
    async with log.followed():
        await log.insert("a-1")
        await until(lambda: len(log.told()) == 1)
        await go_back(
            log.database,
            "CREATE TABLE backup AS TABLE order_events; DELETE FROM order_events;"
            "INSERT INTO order_events OVERRIDING SYSTEM VALUE TABLE backup",
        )
        await polls.happen()
        await log.insert("b-1")
        await until(lambda: len(log.told()) == 2)

    assert NOTE not in log.text()


@pytest.mark.parametrize("change", ["DELETE FROM audit_events", "UPDATE audit_events SET check_id = 'A3'"])
async def test_a_finding_that_a_restored_database_has_not_is_missed_as_an_event_is(
    change: str, log: FollowedLog, database: Database, polls: Polls
) -> None:
    async with log.followed():
        await log.insert("a-1")
        await database.run(AUDITED)
        await until(lambda: "audit A2 violated" in log.text())
        await polls.happen()
        assert NOTE not in log.text()
        await go_back(database, change)
        await log.insert_until_told("b-1")

    assert after_the_note(log) == [("a-1", 1), ("b-1", 1)]


async def test_the_log_goes_back_as_often_as_the_database_does(log: FollowedLog, polls: Polls) -> None:
    async with log.followed():
        await log.insert("a-1")
        for _ in range(2):
            await log.insert("b-1")
            await until(lambda: log.told()[-1:] == [("b-1", 1)])
            await go_back(log.database, FEWER)
            await polls.happen()
        await log.insert_until_told("c-1")

    assert log.text().count(NOTE) == 2
    assert log.told() == [("a-1", 1), ("b-1", 1), ("a-1", 1), ("b-1", 1), ("a-1", 1), ("c-1", 1)]


async def test_a_dump_of_a_server_that_is_ahead_is_reported_whole_once_its_events_are_given_to_the_past(
    log: FollowedLog, database: Database, polls: Polls, caplog: pytest.LogCaptureFixture
) -> None:
    """New events have lower transaction ids than those of the dump, and the bookmark is still there."""
    async with log.followed():
        await log.insert("a-1")
        await until(lambda: len(log.told()) == 1)
        [newest] = log.text().splitlines()
        ahead = newest.replace(newest.rsplit("pos=", 1)[1].split(".")[0], "4000000000")
    log.path.write_text(f"{ahead}\n")
    await go_back(database, "UPDATE order_events SET txid = '4000000000'")

    async with log.followed():
        await log.insert("b-1")
        await until(lambda: "another server's dump" in caplog.text)
        await polls.happen()
        assert log.told() == [("a-1", 1)]
        await go_back(database, "UPDATE order_events SET txid = '0'")
        await until(lambda: ("b-1", 1) in log.told())

    assert after_the_note(log) == [("a-1", 1), ("b-1", 1)]


async def test_a_dump_that_its_server_catches_up_with_is_logged_whole_too(log: FollowedLog, polls: Polls) -> None:
    async with log.followed():
        await log.insert("a-1")
        await until(lambda: len(log.told()) == 1)
        ours = await log.database.value("SELECT txid::text FROM order_events")
        await go_back(log.database, "UPDATE order_events SET txid = '4000000000'")
        await polls.happen()
        await log.insert("b-1")
    async with log.followed():
        await go_back(log.database, f"UPDATE order_events SET txid = '{ours}' WHERE order_id = 'a-1'")
        await until(lambda: ("b-1", 1) in log.told())

    assert after_the_note(log) == [("a-1", 1), ("b-1", 1)]


async def test_a_standby_that_has_not_come_as_far_is_waited_for(database: Database, folder: Path, polls: Polls) -> None:
    """A connection that was made before a failover may lead to one."""
    await database.run(
        "CREATE FUNCTION pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS"
        " $$ SELECT EXISTS (SELECT FROM pg_tables WHERE tablename = 'follows') $$;"
        f'ALTER ROLE checkout IN DATABASE "{database.name}" SET search_path = public, pg_catalog'
    )
    log = FollowedLog(create_engine(database.url), database, folder / "saga.log")
    async with log.followed():
        await log.insert("a-1")
        await log.insert("b-1")
        await until(lambda: len(log.told()) == 2)
        await go_back(database, f"CREATE TABLE kept AS TABLE order_events; CREATE TABLE follows (); {FEWER}")
        await polls.happen()
        await go_back(
            database,
            "INSERT INTO orders (order_id, customer) VALUES ('b-1', 'alice');"
            "INSERT INTO order_events OVERRIDING SYSTEM VALUE SELECT * FROM kept WHERE order_id = 'b-1'",
        )
        await log.insert_until_told("c-1")
    await log.engine.dispose()

    assert NOTE not in log.text()
    assert log.told() == [("a-1", 1), ("b-1", 1), ("c-1", 1)]


def copy(source: Path, target: Path) -> None:
    """Copy a data folder with its owner, which Postgres insists on."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


async def test_a_data_folder_that_is_put_back_under_a_follower_loses_no_event(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The restored server gives out the same transaction ids and event numbers again."""
    with folder_in_memory(tmp_path_factory.mktemp("restored")) as folder:
        data, backup = folder / "postgres", folder / "backup"
        server = PostgresServer(data, port=free_port(), log=folder / "postgres.log", fsync=False)
        server.start()
        try:
            make_database(server, DATABASE)
            database = Database(
                DATABASE, server.url(DATABASE, ROLE), server.url(DATABASE, "postgres", driver="postgresql")
            )
            log = FollowedLog(create_engine(database.url), database, folder / "saga.log")
            async with log.followed():
                await log.insert("a-1")
                await until(lambda: len(log.told()) == 1)
                server.stop()
                copy(data, backup)
                server.start()
                for number in range(10):
                    await log.insert(f"b-{number}")
                await until(lambda: len(log.told()) == 11)
                server.stop()
                shutil.rmtree(data)
                copy(backup, data)
                server.start()
                for number in range(20):
                    await log.insert(f"c-{number}")
                await until(lambda: ("c-19", 1) in log.told())
            await log.engine.dispose()
        finally:
            server.stop()

        assert after_the_note(log) == [("a-1", 1), *((f"c-{number}", 1) for number in range(20))]


# A file that is moved away, removed or emptied, or that others wait for -------------------------------------------

LAST_NAME = "saga.log.1"


def told_in_all(folder: Path) -> list[tuple[str, int]]:
    return [event for file in folder.glob("saga.log*") for event in events_in(file.read_text())]


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
    rotate: Callable[[Path], None], is_restarted: bool, log: FollowedLog
) -> None:
    async with log.followed():
        await log.insert("one", "two")
        await until(lambda: len(log.told()) == 2)
        rotate(log.path)
        await until(lambda: log.text().startswith("# goes on after "))
        if not is_restarted:
            await log.insert_until_told("three")
    async with log.followed():
        await log.insert_until_told("four")

    assert log.told() == [*([] if is_restarted else [("three", 1)]), ("four", 1)]
    if rotate is not removed:
        assert sorted(events_in(log.path.with_name(LAST_NAME).read_text())) == [("one", 1), ("two", 1)]
    assert len(log.text().splitlines()) == 1 + len(log.told())
    assert "# another database" not in log.text()


async def test_files_that_are_rotated_one_after_the_other_have_every_event_once(log: FollowedLog, folder: Path) -> None:
    names = [f"o-{number}" for number in range(60)]

    async def rotate() -> None:
        for number in range(8):
            await until(lambda: bool(log.told()))
            log.path.rename(folder / f"saga.log.{number}")
            event_log.reopen()

    async with log.followed():
        rotating = asyncio.create_task(rotate())
        for name in names:
            await log.insert(name)
        while not rotating.done():
            names.append(f"o-{len(names)}")
            await log.insert(names[-1])
        await rotating
        await until(lambda: len(told_in_all(folder)) >= len(names))

    assert sorted(told_in_all(folder)) == sorted((name, 1) for name in names)


async def test_a_rotation_wakes_a_follower_that_waits(log: FollowedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_POLL_SECONDS", 600)
    await log.insert("one")
    async with log.followed():
        await until(lambda: bool(log.told()))
        moved(log.path)

        event_log.reopen()

        await until(log.path.exists)


async def test_a_worker_that_comes_while_the_file_is_away_stands_by_and_says_so(
    log: FollowedLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "checkout.event_log")
    async with log.followed():
        await log.insert("one")
        await until(lambda: bool(log.told()))
        async with contextlib.AsyncExitStack() as second:
            moved(log.path)
            await second.enter_async_context(log.followed())
            await log.insert("two")
            await until(lambda: "stands by" in caplog.text and ("two", 1) in log.told())
    async with log.followed():
        await log.insert_until_told("three")

    assert log.told() == [("two", 1), ("three", 1)]
    standing_by = [found for found in caplog.records if "stands by" in found.message]
    assert [found.levelname for found in standing_by] == ["INFO"]


async def test_a_worker_that_stood_by_says_when_it_takes_over(
    log: FollowedLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "checkout.event_log")
    async with contextlib.AsyncExitStack() as second:
        async with log.followed():
            await until(log.path.exists)
            task = asyncio.create_task(event_log.follow(log.engine, log.path, must_write=True))
            second.callback(task.cancel)
            await until(lambda: "stands by" in caplog.text)
        await log.insert("one")
        await until(lambda: bool(log.told()))
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
async def telling(engine: AsyncEngine) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(event_log.follow_to_stdout(engine))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BrokenPipeError):
            await task


async def test_standard_output_gets_what_happens_from_now_on_and_says_from_where(log: FollowedLog, pipe: Pipe) -> None:
    await log.insert("before")

    async with telling(log.engine):
        await until(lambda: "# begins with transaction " in pipe.read())
        await log.insert("one")
        await log.database.run(
            "UPDATE orders SET status = 'rejected', reason = E'a\\nb\\x1b[2J' WHERE order_id = 'one'"
        )
        await until(lambda: "one #2" in pipe.read())

    note, first, second = pipe.text.splitlines()
    assert note.startswith("# begins with transaction ")
    assert " one #1 pending by accept workflow=checkout-one pos=" in first
    assert r": a b\x1b[2J workflow=" in second


async def test_what_is_settled_when_a_worker_ends_is_reported_before(
    log: FollowedLog, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_POLL_SECONDS", 600)

    async with telling(log.engine):
        await until(lambda: "# begins with transaction " in pipe.read())
        await log.insert("one")

    assert " one #1 pending " in pipe.read()


async def test_a_reader_who_does_not_read_does_not_hold_up_the_worker(log: FollowedLog, pipe: Pipe) -> None:
    async with telling(log.engine):
        await until(lambda: "# begins" in pipe.read())
        await log.database.run(
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


async def test_a_reader_who_is_gone_ends_the_follower(log: FollowedLog, pipe: Pipe) -> None:
    async with telling(log.engine) as task:
        await until(lambda: "# begins" in pipe.read())
        os.close(pipe.reader)
        await log.insert("one")
        async with asyncio.timeout(20):
            with pytest.raises(BrokenPipeError):
                await task
