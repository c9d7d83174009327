"""Both servers start, survive what may happen to them, and never outlive their owner."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from sagafence.devservers import placement, ports
from sagafence.devservers.placement import installed
from sagafence.devservers.ports import free_port, port_is_free
from sagafence.devservers.postgres import PostgresServer
from sagafence.devservers.process import ChildProcess, ServerFailed, wait_gone
from sagafence.devservers.temporal import TemporalServer

ROOT = Path(__file__).parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]

NewPostgres = Callable[..., PostgresServer]
NewTemporal = Callable[..., TemporalServer]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give every test a temporary folder that everybody may enter, and leave none behind."""
    assert tmp_path.exists()  # pytest's own, made before its parent is replaced
    with tempfile.TemporaryDirectory(prefix="embedded-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield folder


@pytest.fixture
def new_postgres(tmp_path: Path) -> Iterator[NewPostgres]:
    made: list[PostgresServer] = []

    def make(name: str = "pg", *, port: int | None = None, fsync: bool = False) -> PostgresServer:
        log = tmp_path / f"{name}.log"
        server = PostgresServer(tmp_path / name, port=port or free_port(), log=log, fsync=fsync)
        made.append(server)
        return server

    yield make
    for server in made:
        server.remove()


@pytest.fixture
def new_temporal(tmp_path: Path) -> Iterator[NewTemporal]:
    made: list[TemporalServer] = []

    def make(
        name: str = "temporal", *, port: int | None = None, file: bool = False, **attributes: str
    ) -> TemporalServer:
        server = TemporalServer(
            port=port or free_port(),
            ui_port=None,
            log=tmp_path / f"{name}.log",
            db_file=tmp_path / f"{name}.db" if file else None,
            search_attributes=attributes,
        )
        made.append(server)
        return server

    yield make
    for server in made:
        server.kill()


async def ask(server: PostgresServer, sql: str) -> object:
    connection = await asyncpg.connect(server.url(driver="postgresql"))
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def keep_42(server: PostgresServer) -> None:
    await ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")


async def test_postgres_starts_and_answers(new_postgres: NewPostgres) -> None:
    server = new_postgres(fsync=True)

    server.start()

    assert server.running
    assert await ask(server, "SELECT 1") == 1
    assert str(await ask(server, "SHOW server_version")).startswith("18.")
    assert await ask(server, "SHOW fsync") == "on"


def stop_twice(server: PostgresServer) -> None:
    server.stop()
    server.stop()
    assert not server.running


def kill_from_outside(server: PostgresServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    wait_gone([psutil.Process(server.pid)], timeout=5)


@pytest.mark.parametrize(
    "end",
    [
        stop_twice,
        PostgresServer.kill,
        pytest.param(lambda server: server.stop(immediate=True), marks=pytest.mark.exhaustive),
        pytest.param(kill_from_outside, marks=pytest.mark.exhaustive),
    ],
    ids=["stop", "kill", "immediate stop", "kill from outside"],
)
async def test_data_survive_however_postgres_ends_though_a_session_is_busy(
    new_postgres: NewPostgres, end: Callable[[PostgresServer], None]
) -> None:
    server = new_postgres()
    server.start()
    await keep_42(server)
    busy = await asyncpg.connect(server.url(driver="postgresql"))

    end(server)
    server.start()

    assert await ask(server, "SELECT answer FROM kept") == 42
    busy.terminate()


async def test_a_lock_file_with_a_reused_process_id_does_not_stop_postgres(
    new_postgres: NewPostgres, tmp_path: Path
) -> None:
    server = new_postgres()
    server.start()
    await keep_42(server)
    place = server._place
    assert place is not None
    lock = place.data / "postmaster.pid"
    text = lock.read_text()
    server.stop()
    other = ChildProcess("other", ["/bin/sleep", "60"], log=tmp_path / "log", user=place.user, group=place.group)
    other.start()
    try:
        lock.write_text("\n".join([str(other.pid), *text.splitlines()[1:], ""]))
        place.give(lock)

        server.start()

        assert await ask(server, "SELECT answer FROM kept") == 42
        assert other.running
    finally:
        other.kill()


OWNER = """
import json, sys, time
from pathlib import Path
from sagafence.devservers.postgres import PostgresServer
from sagafence.devservers.temporal import TemporalServer
folder, pg_port, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
pg = PostgresServer(folder / "pg", port=pg_port, log=folder / "pg.log", fsync=False)
temporal = TemporalServer(
    port=port, ui_port=None, log=folder / "temporal.log", db_file=folder / "temporal.db"
)
pg.start()
temporal.start()
print(json.dumps([pg.pid, temporal.pid]), flush=True)
time.sleep(60)
"""


def kill_owner(script: str, temporary: Path, *arguments: str) -> list[psutil.Process]:
    """Run `script` until it prints the ids of its children, SIGKILL it, and return those."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as owner:
        assert owner.stdout is not None
        children = [psutil.Process(pid) for pid in json.loads(owner.stdout.readline())]
        assert all(child.is_running() for child in children)
        owner.kill()
    return children


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends them")
async def test_no_server_outlives_a_killed_owner_and_the_next_start_at_once_on_what_it_left(
    new_postgres: NewPostgres, new_temporal: NewTemporal, tmp_path: Path, temporary: Path
) -> None:
    ports = free_port(), free_port()
    servers = kill_owner(OWNER, temporary, str(tmp_path), *map(str, ports))
    database, cluster = new_postgres(port=ports[0]), new_temporal(port=ports[1], file=True)

    assert wait_gone(servers, timeout=30) == []
    database.start()
    cluster.start()

    assert await ask(database, "SELECT 1") == 1
    client = await Client.connect(cluster.address)
    await client.start_workflow("Any", id="w", task_queue="nobody")


ORPHANING_OWNER = """
import json, sys, time
from pathlib import Path
from sagafence.devservers import process
process.sys.platform = "other"  # as on systems without PR_SET_PDEATHSIG
folder = Path(sys.argv[1])
child = process.ChildProcess("s", sys.argv[2:], log=folder / "log", pid_file=folder / "s.pid")
child.start()
print(json.dumps([child.pid]), flush=True)
time.sleep(60)
"""


def test_the_next_start_ends_an_orphan_by_its_pid_file(tmp_path: Path, temporary: Path) -> None:
    orphans = kill_owner(ORPHANING_OWNER, temporary, str(tmp_path), *SLEEP)
    assert wait_gone(orphans, timeout=0.2) == orphans
    child = ChildProcess("s", SLEEP, log=tmp_path / "log", pid_file=tmp_path / "s.pid")

    child.start()

    assert wait_gone(orphans, timeout=0) == []
    assert child.stop() == -signal.SIGTERM
    assert not (tmp_path / "s.pid").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_ignores_no_signal_that_its_owners_python_ignores(tmp_path: Path) -> None:
    child = ChildProcess("s", ["sleep", "60"], log=tmp_path / "log")
    child.start()

    [ignored] = re.findall(r"^SigIgn:\s+(\w+)$", Path(f"/proc/{child.pid}/status").read_text(), re.MULTILINE)

    assert int(ignored, 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0

    child.kill()


def test_ctrl_c_in_the_terminal_does_not_reach_a_child(tmp_path: Path) -> None:
    child = ChildProcess("s", SLEEP, log=tmp_path / "log")
    child.start()

    assert os.getsid(child.pid) != os.getsid(0)

    child.kill()


def test_a_pid_file_whose_process_id_was_reused_ends_no_process(tmp_path: Path) -> None:
    bystander = ChildProcess("bystander", SLEEP, log=tmp_path / "log")
    bystander.start()
    record = {"pid": bystander.pid, "owner": 1, "argv": ["some", "server"]}
    (tmp_path / "s.pid").write_text(json.dumps(record))

    ChildProcess("s", SLEEP, log=tmp_path / "log", pid_file=tmp_path / "s.pid").end_orphan()

    assert bystander.running
    bystander.kill()


def test_data_in_use_by_a_living_owner_are_refused(new_postgres: NewPostgres) -> None:
    new_postgres().start()

    with pytest.raises(ServerFailed, match=f"runs it already, for process {os.getpid()}"):
        new_postgres().start()


async def test_a_started_workflow_survives_a_kill_of_temporal(new_temporal: NewTemporal) -> None:
    server = new_temporal(file=True)
    server.start()
    client = await Client.connect(server.address)
    await client.start_workflow("Any", id="kept", task_queue="nobody")

    server.kill()
    server.start()

    client = await Client.connect(server.address)
    assert (await client.get_workflow_handle("kept").describe()).status == WorkflowExecutionStatus.RUNNING


async def test_search_attributes_are_added_to_an_existing_file(new_temporal: NewTemporal) -> None:
    old = new_temporal(file=True, Stuck="Bool")
    old.start()
    old.stop()
    server = new_temporal(file=True, Stuck="Bool", SagaStep="Keyword", Cause="Keyword", Tags="KeywordList")

    server.start()

    client = await Client.connect(server.address)
    step = SearchAttributeKey.for_keyword("SagaStep")
    given = TypedSearchAttributes([SearchAttributePair(step, "charge")])
    started = await client.start_workflow("Any", id="w", task_queue="nobody", search_attributes=given)
    assert (await started.describe()).typed_search_attributes[step] == "charge"
    # An unknown name would be refused; the count itself may lag.
    await client.count_workflows("SagaStep = 'charge' AND Cause IS NULL AND Stuck IS NULL AND Tags IS NULL")


def test_a_search_attribute_of_another_type_is_refused(new_temporal: NewTemporal) -> None:
    old = new_temporal(file=True, Stuck="Bool")
    old.start()
    old.kill()
    server = new_temporal(file=True, Stuck="Int")

    with pytest.raises(ServerFailed, match=r"search attribute Stuck is bool in .*, not Int"):
        server.start()

    assert not server.running


@pytest.mark.parametrize("kind", ["postgres", "temporal", "ui"])
def test_a_taken_port_is_named(kind: str, new_postgres: NewPostgres, new_temporal: NewTemporal, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        makers: dict[str, Callable[[], PostgresServer | TemporalServer]] = {
            "postgres": lambda: new_postgres(port=port),
            "temporal": lambda: new_temporal(port=port),
            "ui": lambda: TemporalServer(port=free_port(), ui_port=port, log=tmp_path / "log"),
        }
        server = makers[kind]()

        with pytest.raises(ServerFailed, match=rf"port {port} on 127.0.0.1 is taken.*free ports"):
            server.start()


def test_a_server_listens_on_loopback_alone_and_ignores_a_users_own_settings(
    new_postgres: NewPostgres,
    new_temporal: NewTemporal,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    temporary: Path,
) -> None:
    monkeypatch.setenv("TEMPORAL_TLS", "true")
    servers: list[PostgresServer | TemporalServer] = [new_postgres(), new_temporal()]

    for server in servers:
        server.start()
        listening = [
            each.laddr.ip
            for each in psutil.Process(server.pid).net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}
    # Root's Postgres may live below the temporary folder.
    assert [file for folder in (tmp_path, temporary) for file in folder.rglob("*.new-password")] == []


def test_a_child_that_does_not_end_when_it_is_asked_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    child = ChildProcess("s", [sys.executable, "-c", deaf], log=tmp_path / "log")
    child.start()
    child.until(lambda: child.tail() == "1", timeout=30)

    assert child.stop(timeout=0.1) == -signal.SIGKILL
    assert not child.running


def test_a_server_that_ends_at_once_shows_the_end_of_its_log(new_postgres: NewPostgres) -> None:
    server = new_postgres()
    server.start()
    server.stop()
    assert server._place is not None
    (server._place.data / "postgresql.conf").write_text("no_such_setting = 1\n")

    with pytest.raises(ServerFailed, match=r"status 1 while starting(.|\n)*no_such_setting"):
        server.start()


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that only we may enter, with the server's programs in it."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    binaries = installed(18)
    site = binaries.parents[2]
    for part in (binaries.parents[1], site / f"{binaries.parents[1].name}.libs"):
        if part.exists():
            shutil.copytree(part, folder / "venv" / part.name, symlinks=True)
    programs = folder / "venv" / binaries.relative_to(site)
    monkeypatch.setattr(placement, "installed", lambda _version: programs)
    return folder


@pytest.mark.exhaustive
async def test_a_checkout_closed_to_others_runs_and_can_be_reset(new_postgres: NewPostgres, closed: Path) -> None:
    """As root the programs and the data are out of the server's reach; otherwise they are not."""
    server = new_postgres("closed/pg")

    server.start()
    await keep_42(server)
    server.stop()
    server.start()

    assert await ask(server, "SELECT answer FROM kept") == 42
    assert psutil.Process(server.pid).uids().effective != 0
    server.stop()
    shutil.rmtree(closed / "pg")
    server.start()
    assert await ask(server, "SELECT to_regclass('kept')") is None


CHOOSER = """
import sys, time
from sagafence.devservers import ports
ports._RANGE = range(int(sys.argv[1]), int(sys.argv[2]))
print(ports.free_port(), flush=True)
time.sleep(60)
"""


def test_processes_that_choose_a_port_at_once_choose_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens on either yet.
    first = next(port for port in range(20_000, 30_000) if port_is_free(port) and port_is_free(port + 1))
    argv = [sys.executable, "-c", CHOOSER, str(first), str(first + 2)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        monkeypatch.setattr(ports, "_RANGE", range(first, first + 2))
        ours = free_port()
        with pytest.raises(OSError, match="no free loopback port"):
            free_port()
        other.kill()

    assert {theirs, ours} == {first, first + 1}


# Passwords ----------------------------------------------------------------------------------------------


async def _is_let_in(server: PostgresServer, role: str, password: str | None) -> bool:
    try:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=server.port, user=role, password=password, database="postgres"
        )
    except (asyncpg.InvalidPasswordError, asyncpg.InterfaceError, asyncpg.InvalidAuthorizationSpecificationError):
        return False
    await connection.close()
    return True


@pytest.mark.parametrize("guarded", [False, True])
async def test_the_superuser_needs_the_password_and_a_guarded_server_asks_everybody(
    tmp_path: Path, guarded: bool
) -> None:
    server = PostgresServer(tmp_path / "pg", port=free_port(), log=tmp_path / "log", fsync=False, guarded=guarded)
    server.start()
    try:
        connection = await asyncpg.connect(server.url(driver="postgresql"))
        await connection.execute("CREATE ROLE somebody LOGIN")
        await connection.close()
        file = tmp_path / "pg.password"

        assert file.stat().st_mode & 0o777 == 0o600
        assert await _is_let_in(server, "postgres", file.read_text(encoding="utf-8").strip())
        assert not await _is_let_in(server, "postgres", "postgres")
        assert not await _is_let_in(server, "postgres", None)
        assert await _is_let_in(server, "somebody", None) is not guarded
        assert server.passwords.of("checkout") not in {server.passwords.of("postgres"), server.passwords.of("other")}
    finally:
        server.remove()
    assert not file.exists()


async def test_a_server_from_before_there_were_passwords_gets_one_and_keeps_its_data(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "pg", port=free_port(), log=tmp_path / "log", fsync=False, guarded=True)
    server.start()
    connection = await asyncpg.connect(server.url(driver="postgresql"))
    await connection.execute("CREATE TABLE kept (); ALTER ROLE postgres PASSWORD NULL")
    await connection.close()
    server.stop()
    server.passwords.forget()

    try:
        for _ in range(2):
            server.start()
            connection = await asyncpg.connect(server.url(driver="postgresql"))
            assert await connection.fetchval("SELECT count(*) FROM kept") == 0
            await connection.close()
            async with asyncio.timeout(10):  # the server reads its rules again by itself, soon
                while await _is_let_in(server, "postgres", None):
                    await asyncio.sleep(0.02)
            server.stop()
    finally:
        server.remove()
