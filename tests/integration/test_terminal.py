"""A terminal: whatever a row, an error or an argument holds, the commands show it as text, and a log has its lines."""

import contextlib
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import pytest

from devstack.stack import ROOT
from tests import outside
from tests.conftest import Database
from tests.integration.commands import DEADLINE_SECONDS, Commands

EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b]0;t\x07[red]![x](http://evil.test)\n\u202e\u200b\x9b31m\x85\u2028end"


def on_a_terminal(arguments: list[str], environment: Mapping[str, str], folder: Path) -> tuple[int, str]:
    """Run a command whose three standard streams are a terminal, and give what that got."""
    ours, theirs = pty.openpty()
    shown = b""

    def read() -> None:
        nonlocal shown
        with contextlib.suppress(OSError):  # what the end of the last process at the terminal looks like
            while data := os.read(ours, 65_536):
                shown += data

    reader = threading.Thread(target=read)
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "200"},
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        reader.start()
        os.close(theirs)
        status = process.wait(DEADLINE_SECONDS)
    reader.join(DEADLINE_SECONDS)
    os.close(ours)
    return status, shown.decode(errors="replace")


def lines_of(log: Path) -> list[str]:
    return log.read_text().split("\n")


def assert_only_text(shown: str) -> None:
    assert outside.raw_controls(outside.without_own_sequences(shown)) == [], ascii(shown)
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--status", EVIL],
        ["status", "o-1", EVIL],
        ["status", EVIL],
        ["status", "o-1", f"--{EVIL}"],
        [EVIL],
        ["start", "--customer", EVIL, "--line", EVIL],
        ["cancel", "o-1", "--reason", EVIL],
        ["load", "--from", EVIL],
        ["list", "--limit", EVIL],
    ],
    ids=lambda arguments: arguments[0][:6].strip("\x1b"),
)
def test_an_argument_that_is_quoted_acts_on_no_terminal(commands: Commands, arguments: list[str]) -> None:
    starter = str(ROOT / "starter.py")

    status, shown = on_a_terminal([starter, *arguments], commands.environment, commands.folder)

    assert status != 0
    assert_only_text(shown)


@pytest.mark.parametrize("name", ["CHECKOUT_UI_URL", "CHECKOUT_TASK_QUEUE", "CHECKOUT_\x1b[2J", "TEMPORAL_ADDRESS"])
@pytest.mark.parametrize("command", ["worker.py", "starter.py"])
def test_a_setting_that_is_quoted_acts_on_no_terminal(commands: Commands, command: str, name: str) -> None:
    arguments = [str(ROOT / command), *(["list"] if command == "starter.py" else ["--check"])]
    environment = {**commands.environment, name: f"http://x{EVIL}", "CHECKOUT_STARTUP_TIMEOUT_SECONDS": "1"}

    _, shown = on_a_terminal(arguments, environment, commands.folder)

    assert shown.strip()
    assert_only_text(shown)


async def test_whatever_is_stored_by_hand_is_one_line_of_each_log(commands: Commands, database: Database) -> None:
    connection = await asyncpg.connect(database.admin_url)
    await connection.execute("INSERT INTO orders (order_id, customer) VALUES ('o-1', 'alice')")
    await connection.execute("UPDATE orders SET status = 'rejected', changed_by = $1, reason = $1", EVIL)
    await connection.execute(
        "INSERT INTO audit_events (check_id, subject, event, detail) VALUES ('A1', $1, 'violated', $1)", EVIL
    )
    await connection.close()
    worker = commands.ready_worker(CHECKOUT_SWEEP_EVERY_SECONDS="0", CHECKOUT_AUDIT_EVERY_SECONDS="0")
    log = Path(commands.environment["CHECKOUT_LOG_FILE"])
    worker.until(lambda: log.read_text().count("\n") >= 3, timeout=DEADLINE_SECONDS)
    assert worker.stop() == 0

    lines = lines_of(log)
    assert len(lines) == 4
    assert [line.split()[1] for line in lines[:3]] == ["o-1", "o-1", "audit"]
    for line in (*lines, *worker.tail(1000).split("\n")):
        assert outside.raw_controls(line, "") == []
    assert all(line[:2] == "20" for line in worker.tail(1000).splitlines())
