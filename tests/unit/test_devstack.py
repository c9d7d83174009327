"""`make up` with servers that are none: which signals end it, what it says of a part that dies, whom it listens to."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from devstack import up
from devstack.stack import DevStack, Ports

PARTS = ("The worker", "The API", "Temporal", "Postgres")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what belongs to the whole process; make no key, for which a process would be started."""
    monkeypatch.setattr(up, "keep_api_key", lambda _stack: None)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    umask = os.umask(0o022)
    yield
    os.umask(umask)
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Stack:
    """One whose parts run, but for the dead one; `when_ready` happens when its worker is."""

    def __init__(self, dead: str = "", when_ready: Callable[[], None] = lambda: None) -> None:
        self.temporal = SimpleNamespace(running=dead != "Temporal", ui_url="http://ui")
        self.postgres = SimpleNamespace(running=dead != "Postgres")
        self.ports = Ports.free()
        self._worker = SimpleNamespace(running=dead != "The worker", until=lambda *_, **__: when_ready())
        self._api = SimpleNamespace(running=dead != "The API", until=lambda *_, **__: None)

    def start_worker(self, **_: str) -> Any:
        return self._worker

    def start_api(self, **_: str) -> Any:
        return self._api

    def psql_command(self, _role: str) -> str:
        return "psql"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_each_way_to_end_a_terminals_command_stops_all_of_it_well(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = Stack(when_ready=lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr(up, "DevStack", lambda *_, **__: stack)
    for each in SIGNALS:
        signal.signal(each, lambda *_: pytest.fail("nobody takes this signal"))

    assert up.up(tmp_path) == 0

    assert "The data is kept" in capsys.readouterr().out


@pytest.mark.parametrize("dead", PARTS)
def test_a_part_that_has_died_is_named_and_is_no_success(
    dead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "DevStack", lambda *_, **__: Stack(dead))
    # Where the death is not noticed, the command goes on until it gets a signal.
    signalled = threading.Timer(10, os.kill, (os.getpid(), signal.SIGTERM))
    signalled.start()
    try:
        assert up.up(tmp_path) == 1
    finally:
        signalled.cancel()

    assert f"{dead} has stopped by itself." in capsys.readouterr().out


def test_what_an_earlier_release_has_left_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "postgres.log").touch(0o644)

    up.restrict_access(tmp_path)

    assert (tmp_path / "postgres.log").stat().st_mode & 0o077 == 0
    (tmp_path / "new").touch()
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_an_api_whose_owner_was_killed_makes_way_for_the_next_one(tmp_path: Path) -> None:
    stack = DevStack(tmp_path)
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(sleeps) as left_behind:
        record = {"pid": left_behind.pid, "owner": 2**22 + 1, "argv": sleeps}  # above every process id
        (tmp_path / "api.pid").write_text(json.dumps(record), encoding="utf-8")
        api = stack.start_api()
        try:
            assert left_behind.wait(20) == -signal.SIGTERM
            api.until(lambda: "ready: http" in api.tail(50), timeout=30)
        finally:
            left_behind.kill()
            api.stop()


def test_a_stacks_worker_hears_nothing_of_a_persons_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHECKOUT_BUILD_ID", "TEMPORAL_API_KEY", "TEMPORAL_NAMESPACE", "TEMPORAL_TLS"):
        monkeypatch.setenv(name, "theirs")

    made = DevStack(tmp_path, guarded=True).environment()

    assert [name for name, value in made.items() if value == "theirs"] == []
    assert "PATH" in made
