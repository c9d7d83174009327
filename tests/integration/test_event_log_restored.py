"""saga.log behind a database that goes back while it is followed: seen at the next look, and nothing is lost."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters import event_log
from adapters.database import create_engine
from devstack.ports import free_port
from devstack.postgres import PostgresServer
from devstack.stack import DATABASE, ROLE, make_database
from tests.conftest import Database
from tests.integration.test_event_log import Looks, following, insert, told, until
from tests.memory import folder_in_memory

NOTE = "# another database from here on"
AUDITED = "INSERT INTO audit_events (check_id, subject, event, detail) VALUES ('A2', 'lamp', 'violated', 'x');"
_EVENTS = "order_events (event_id, txid, order_id, seq, event, status, changed_by, at) OVERRIDING SYSTEM VALUE "


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    monkeypatch.setattr(event_log, "_RETRY_SECONDS", 0.05)
    return Looks(monkeypatch)


def after_the_note(log: Path) -> list[tuple[str, int]]:
    """Give what was told of the newest database, and require that just one other came before it."""
    before, after = log.read_text().split(f"{NOTE}\n")
    assert before
    return [(name, int(number)) for name, number in re.findall(r"^\S+Z (\S+) #(\d+) ", after, re.MULTILINE)]


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
@pytest.mark.parametrize("is_followed", [True, False], ids=["between two looks", "between two workers"])
async def test_all_that_a_restored_database_has_is_told_after_a_note(
    restored: str,
    left: list[tuple[str, int]],
    is_followed: bool,
    engine: AsyncEngine,
    database: Database,
    folder: Path,
    looks: Looks,
) -> None:
    log = folder / "saga.log"
    async with following(engine, log):
        await insert(database, "a-1")
        await insert(database, "b-1")
        await until(lambda: len(told(log)) == 2)
        if is_followed:
            await go_back(database, restored)
            await looks.happen()
    if not is_followed:
        await go_back(database, restored)

    async with following(engine, log):
        await insert(database, "d-1")
        await until(lambda: ("d-1", 1) in told(log))

    assert after_the_note(log) == [*left, ("d-1", 1)]


async def test_a_restore_to_after_the_newest_line_goes_on_without_a_note(
    engine: AsyncEngine, database: Database, folder: Path, looks: Looks
) -> None:
    log = folder / "saga.log"
    async with following(engine, log):
        await insert(database, "a-1")
        await until(lambda: len(told(log)) == 1)
        await go_back(
            database,
            "CREATE TABLE backup AS TABLE order_events; DELETE FROM order_events;"
            "INSERT INTO order_events OVERRIDING SYSTEM VALUE TABLE backup",
        )
        await looks.happen()
        await insert(database, "b-1")
        await until(lambda: len(told(log)) == 2)

    assert NOTE not in log.read_text()


@pytest.mark.parametrize("change", ["DELETE FROM audit_events", "UPDATE audit_events SET check_id = 'A3'"])
async def test_a_finding_that_a_restored_database_has_not_is_missed_as_an_event_is(
    change: str, engine: AsyncEngine, database: Database, folder: Path, looks: Looks
) -> None:
    log = folder / "saga.log"
    async with following(engine, log):
        await insert(database, "a-1")
        await database.run(AUDITED)
        await until(lambda: "audit A2 violated" in (log.read_text() if log.exists() else ""))
        await looks.happen()
        assert NOTE not in log.read_text()
        await go_back(database, change)
        await insert(database, "b-1")
        await until(lambda: ("b-1", 1) in told(log))

    assert after_the_note(log) == [("a-1", 1), ("b-1", 1)]


async def test_the_log_goes_back_as_often_as_the_database_does(
    engine: AsyncEngine, database: Database, folder: Path, looks: Looks
) -> None:
    log = folder / "saga.log"
    async with following(engine, log):
        await insert(database, "a-1")
        for _ in range(2):
            await insert(database, "b-1")
            await until(lambda: told(log)[-1:] == [("b-1", 1)])
            await go_back(database, FEWER)
            await looks.happen()
        await insert(database, "c-1")
        await until(lambda: ("c-1", 1) in told(log))

    assert log.read_text().count(NOTE) == 2
    assert told(log) == [("a-1", 1), ("b-1", 1), ("a-1", 1), ("b-1", 1), ("a-1", 1), ("c-1", 1)]


async def test_a_dump_of_a_server_that_is_ahead_is_told_whole_once_its_events_are_given_to_the_past(
    engine: AsyncEngine, database: Database, folder: Path, looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    """New events have lower transaction ids than those of the dump, and the bookmark is still there."""
    log = folder / "saga.log"
    async with following(engine, log):
        await insert(database, "a-1")
        await until(lambda: len(told(log)) == 1)
        [newest] = log.read_text().splitlines()
        ahead = newest.replace(newest.rsplit("pos=", 1)[1].split(".")[0], "4000000000")
    log.write_text(f"{ahead}\n")
    await go_back(database, "UPDATE order_events SET txid = '4000000000'")

    async with following(engine, log):
        await insert(database, "b-1")
        await until(lambda: "another server's dump" in caplog.text)
        await looks.happen()
        assert told(log) == [("a-1", 1)]
        await go_back(database, "UPDATE order_events SET txid = '0'")
        await until(lambda: ("b-1", 1) in told(log))

    assert after_the_note(log) == [("a-1", 1), ("b-1", 1)]


async def test_a_dump_that_its_server_catches_up_with_is_told_whole_too(
    engine: AsyncEngine, database: Database, folder: Path, looks: Looks
) -> None:
    log = folder / "saga.log"
    async with following(engine, log):
        await insert(database, "a-1")
        await until(lambda: len(told(log)) == 1)
        ours = await database.value("SELECT txid::text FROM order_events")
        await go_back(database, "UPDATE order_events SET txid = '4000000000'")
        await looks.happen()
        await insert(database, "b-1")
    async with following(engine, log):
        await go_back(database, f"UPDATE order_events SET txid = '{ours}' WHERE order_id = 'a-1'")
        await until(lambda: ("b-1", 1) in told(log))

    assert after_the_note(log) == [("a-1", 1), ("b-1", 1)]


async def test_a_standby_that_has_not_come_as_far_is_waited_for(database: Database, folder: Path, looks: Looks) -> None:
    """A connection that was made before a failover may lead to one."""
    log = folder / "saga.log"
    await database.run(
        "CREATE FUNCTION pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS"
        " $$ SELECT EXISTS (SELECT FROM pg_tables WHERE tablename = 'follows') $$;"
        f'ALTER ROLE checkout IN DATABASE "{database.name}" SET search_path = public, pg_catalog'
    )
    engine = create_engine(database.url)
    async with following(engine, log):
        await insert(database, "a-1")
        await insert(database, "b-1")
        await until(lambda: len(told(log)) == 2)
        await go_back(database, f"CREATE TABLE kept AS TABLE order_events; CREATE TABLE follows (); {FEWER}")
        await looks.happen()
        await go_back(
            database,
            "INSERT INTO orders (order_id, customer) VALUES ('b-1', 'alice');"
            "INSERT INTO order_events OVERRIDING SYSTEM VALUE SELECT * FROM kept WHERE order_id = 'b-1'",
        )
        await insert(database, "c-1")
        await until(lambda: ("c-1", 1) in told(log))
    await engine.dispose()

    assert NOTE not in log.read_text()
    assert told(log) == [("a-1", 1), ("b-1", 1), ("c-1", 1)]


def copy(source: Path, target: Path) -> None:
    """Copy a data folder with its owner, which Postgres insists on."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


async def test_a_data_folder_that_is_put_back_under_a_follower_loses_no_event(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restored server gives out the same transaction ids and event numbers again."""
    monkeypatch.setattr(event_log, "_RETRY_SECONDS", 0.1)
    with folder_in_memory(tmp_path_factory.mktemp("restored")) as folder:
        log, data, backup = folder / "saga.log", folder / "postgres", folder / "backup"
        server = PostgresServer(data, port=free_port(), log=folder / "postgres.log", fsync=False)
        server.start()
        try:
            make_database(server, DATABASE)
            database = Database(
                DATABASE, server.url(DATABASE, ROLE), server.url(DATABASE, "postgres", driver="postgresql")
            )
            engine = create_engine(database.url)
            async with following(engine, log):
                await insert(database, "a-1")
                await until(lambda: len(told(log)) == 1)
                server.stop()
                copy(data, backup)
                server.start()
                for number in range(10):
                    await insert(database, f"b-{number}")
                await until(lambda: len(told(log)) == 11)
                server.stop()
                shutil.rmtree(data)
                copy(backup, data)
                server.start()
                for number in range(20):
                    await insert(database, f"c-{number}")
                await until(lambda: ("c-19", 1) in told(log))
            await engine.dispose()
        finally:
            server.stop()

        assert after_the_note(log) == [("a-1", 1), *((f"c-{number}", 1) for number in range(20))]
