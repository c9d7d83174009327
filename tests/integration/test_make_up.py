"""`make up`, as a newcomer runs it: an order goes through, Ctrl-C stops all of it, and the next start has the data.

It runs in a copy of the project, whose data are its own, on free ports in place of the default ones.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from signal import Signals

import psutil
import pytest

from devstack.stack import ROOT, DevStack, Ports
from sagafence.devservers.ports import port_is_free
from sagafence.devservers.process import ChildProcess, wait_gone
from tests.curl import Answer, paste

UP_SECONDS = 100
# `python -m devstack`, with other default ports.
_RUN = """
import runpy, sys
import devstack.stack
devstack.stack.DEFAULT_PORTS = devstack.stack.Ports(*(int(port) for port in sys.argv.pop().split(",")))
runpy.run_module("devstack", run_name="__main__", alter_sys=True)
"""
_ROOMS = ("activities", "adapters", "client", "domain", "http_api", "sagafence", "terminal", "workflows")
_PARTS = (*_ROOMS, "devstack", "web")
_FILES = ("api.py", "starter.py", "worker.py", "setup.sql", "Makefile")


@dataclass
class Project:
    """A copy of the project, and its `make up`."""

    root: Path
    ports: Ports

    def up(self, log: str = "up.log") -> ChildProcess:
        """Begin `make up`."""
        started = ChildProcess(
            "make up",
            [sys.executable, "-c", _RUN, "up", ",".join(map(str, astuple(self.ports)))],
            log=self.root / log,
            cwd=self.root,
            # Somebody's own settings must not lead it elsewhere.
            env={
                **os.environ,
                "CHECKOUT_DATABASE_URL": "postgresql://u@elsewhere/d",
                "TEMPORAL_ADDRESS": "elsewhere:1",
            },
        )
        started.start()
        return started

    def ready(self) -> ChildProcess:
        started = self.up()
        started.until(lambda: "Ctrl-C stops all of it." in started.tail(100), timeout=UP_SECONDS)
        return started

    def pasted(self, started: ChildProcess) -> Answer:
        """Run the curl line of the welcome, as it was printed."""
        [line] = re.findall(r"^ +(curl .*)$", started.tail(100), re.MULTILINE)
        return paste(line, self.root)

    def starter(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "starter.py", *arguments],
            cwd=self.root,
            env={"PATH": os.environ["PATH"], "TEMPORAL_ADDRESS": f"127.0.0.1:{self.ports.temporal}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("project")
    for part in _PARTS:
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in _FILES:
        shutil.copy(ROOT / file, root / file)
    made = Project(root, Ports.free())
    yield made
    DevStack(root / ".data", ports=made.ports).postgres.remove()


def family(started: ChildProcess) -> list[psutil.Process]:
    """Give all that a command has started, itself included."""
    itself = psutil.Process(started.pid)
    return [itself, *itself.children(recursive=True)]


def stop(started: ChildProcess, how: Signals) -> int:
    """Stop it as a terminal does, and see that it leaves nothing behind; give its exit status."""
    everybody = family(started)
    assert len(everybody) >= 5, "itself, Postgres, Temporal, a worker and the API"
    started.signal(how)
    status = started.wait(60)
    assert wait_gone(everybody, timeout=10) == []
    return status


def assert_closed_to_others(project: Project) -> None:
    """Nobody else on the machine gets at any of it."""
    closed = [project.root / "saga.log", *(file for file in (project.root / ".data").iterdir() if file.is_file())]
    assert {file.name for file in closed} >= {
        "pgpass",
        "checkout.password",
        "checkout_reader.password",
        "api.key",
        "api-keys.json",
        "api.log",
        "postgres.log",
        "temporal.db",
        "worker-1.log",
    }
    assert [file.name for file in closed if file.stat().st_mode & 0o077] == []
    assert (project.root / ".data").stat().st_mode & 0o066 == 0


def test_make_up_is_this_command() -> None:
    reported = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "--old-file=.venv/embedded.ok", "up"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert reported.stdout.splitlines()[-1] == ".venv/bin/python -m devstack up"


@pytest.mark.timeout(400)
def test_an_order_and_the_data_outlive_ctrl_c(project: Project) -> None:
    first = project.ready()
    started = project.starter("start", "--order-id", "kept", "--customer", "alice", "--line", "tea-mug:2")
    assert started.returncode == 0, started.stdout + started.stderr
    reported = first.tail(100)
    assert (project.root / ".data/checkout.password").read_text(encoding="utf-8").strip() not in reported
    assert f"Histories: http://127.0.0.1:{project.ports.ui}" in reported
    assert all(f"http://127.0.0.1:{project.ports.api}{page}" in reported for page in ("/docs", "/ui"))
    bought = project.pasted(first)
    assert (bought.status, json.loads(bought.body)["status"]) == (201, "completed"), bought
    key = (project.root / ".data/api.key").read_text(encoding="utf-8").strip()
    assert key not in reported
    [kept] = json.loads((project.root / ".data/api-keys.json").read_text(encoding="utf-8"))["keys"]
    assert kept["scopes"] == ["buy", "read", "operate"], "the page for operators needs the last two"

    # A second one in another terminal would not do any good: it says so, and hurts nobody.
    second = project.up("second.log")
    assert second.wait(UP_SECONDS) == 1
    assert f"Stop process {first.pid} first" in second.tail(20)
    assert "Traceback" not in second.tail(100)
    assert first.running
    assert project.starter("status", "kept").returncode == 0

    assert stop(first, signal.SIGINT) == 0
    assert "The data is kept in .data/" in first.tail(5)
    assert all(port_is_free(port) for port in astuple(project.ports))
    assert "kept #3 paid -> completed" in (project.root / "saga.log").read_text(encoding="utf-8")

    # Without the superuser's, every role gets another password at the next start.
    passwords = [project.root / f".data/{role}.password" for role in ("checkout", "checkout_reader")]
    before = [file.read_text(encoding="utf-8") for file in passwords]
    (project.root / ".data/postgres.password").unlink()

    again = project.ready()
    assert all(file.read_text(encoding="utf-8") != old for file, old in zip(passwords, before, strict=True))
    # Temporal has its history, and Postgres has the order, the stock and the money.
    kept = project.starter("status", "kept")
    assert (kept.returncode, "completed" in kept.stdout) == (0, True), kept.stderr
    [psql] = re.findall(r"The database: (.+)", again.tail(100))
    query = "SELECT status, on_hand - initial FROM orders, inventory"
    asked = subprocess.run(
        [*psql.split(), "-Atc", f"{query} WHERE sku = 'tea-mug' AND order_id = 'kept'"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert asked.stdout == "completed|-4\n", "the two of each of both orders"
    # The key of the first start is in effect, though every password is another one: it is the same order.
    assert (project.root / ".data/api.key").read_text(encoding="utf-8").strip() == key
    repeated_by_http = project.pasted(again)
    assert (repeated_by_http.status, repeated_by_http.body) == (200, bought.body)
    assert "idempotency-replayed: true" in repeated_by_http.headers
    assert_closed_to_others(project)
    everybody = (project.root / ".data/pgpass").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[3] for line in everybody] == [
        "checkout",
        "checkout_reader",
        "checkout_operator",
        "postgres",
    ]
    without = [part for part in psql.split() if not part.startswith("PGPASSFILE=")]
    for role in ("postgres", "checkout"):
        refused = subprocess.run(
            [*without, "-w", "-U", role], capture_output=True, text=True, check=False, timeout=60, env={"HOME": "/"}
        )
        assert refused.returncode == 2
        assert "no password supplied" in refused.stderr
    # The same order again is the same order, and a new one goes through.
    repeated = project.starter("start", "--order-id", "kept", "--customer", "alice", "--line", "tea-mug:2")
    fresh = project.starter("start", "--order-id", "fresh", "--customer", "alice", "--line", "tea-mug:1")
    assert (repeated.returncode, fresh.returncode) == (0, 0)
    assert stop(again, signal.SIGTERM) == 0


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("program", "name"), [("worker.py", "The worker"), ("api.py", "The API")])
def test_a_part_that_dies_ends_all_of_it_and_is_named(program: str, name: str, project: Project) -> None:
    running = project.ready()
    everybody = family(running)
    [part] = [process for process in everybody if program in " ".join(process.cmdline())]

    part.kill()

    assert running.wait(60) == 1
    assert f"{name} has stopped by itself." in running.tail(20)
    assert wait_gone(everybody, timeout=10) == []


@pytest.mark.timeout(200)
def test_a_port_that_somebody_has_is_named_and_how_to_find_them(project: Project) -> None:
    with socket.create_server(("127.0.0.1", project.ports.api)):
        refused = project.up("taken.log")

        assert refused.wait(UP_SECONDS) == 1

    assert f"the API: port {project.ports.api} on 127.0.0.1 is taken" in refused.tail(20)
    assert "Traceback" not in refused.tail(100)
