"""What a person sees of `start` while it runs: each line where it is of use, and none where it is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.stack import ROOT
from terminal import waiting
from tests.integration.commands import Commands, Desk
from tests.integration.test_starter_orders import start, unique


async def test_who_sees_the_end_at_once_is_given_no_advice(desk: Desk) -> None:
    async with desk.shop.working():
        ran = await desk("start", "--customer", "alice", "--line", "tea-mug:1")

    order_id = ran.out.split()[1]
    assert ran.err == f"starting {order_id}\n"


async def test_who_has_to_wait_is_told_how_to_look_later(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_TAKES_LONG_SECONDS", 0)
    order_id, quiet = unique("slow"), unique("quiet")

    async with desk.shop.working():
        told = await desk(*start(order_id, "alice"))
        document = await desk(*start(quiet, "alice"), "--json")

    later = f"{order_id} is under way; if this is interrupted: starter.py status {order_id}\n"
    assert told.err == f"started {order_id}\n{later}"
    assert document.err == ""


def test_ctrl_c_tells_where_to_look_for_the_order(commands: Commands) -> None:
    ran = commands.interrupted("start", "--customer", "alice", "--line", "tea-mug:1", when="is under way")

    order_id = ran.err.split()[1]
    assert ran.code == 130
    assert ran.err.splitlines() == [
        f"starting {order_id}",
        f"{order_id} is under way; if this is interrupted: starter.py status {order_id}",
        f"the order's status: starter.py status {order_id}",
        "interrupted; what was started goes on",
    ]


def test_ctrl_c_while_python_imports_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")

    ran = subprocess.run(
        [sys.executable, str(ROOT / "starter.py"), "list"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")
