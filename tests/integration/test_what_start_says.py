"""What a person sees of `start` while it runs: each line where it is of use, and none where it is not."""

from pathlib import Path

import pytest

from terminal import waiting
from tests.integration.commands import Commands, Desk, unique
from tests.integration.test_starter_orders import start


async def test_who_sees_the_end_at_once_is_given_no_advice(run_starter: Desk) -> None:
    async with run_starter.shop.working():
        ran = await run_starter("start", "--customer", "alice", "--line", "tea-mug:1")

    order_id = ran.out.split()[1]
    assert ran.err == f"starting {order_id}\n"


async def test_who_has_to_wait_is_reported_how_to_look_later(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_TAKES_LONG_SECONDS", 0)
    order_id, quiet = unique("slow"), unique("quiet")

    async with run_starter.shop.working():
        output = await run_starter(*start(order_id, "alice"))
        document = await run_starter(*start(quiet, "alice"), "--json")

    later = f"{order_id} is under way; if this is interrupted: starter.py status {order_id}\n"
    assert output.err == f"started {order_id}\n{later}"
    assert document.err == ""


def test_ctrl_c_ends_the_command_and_not_the_order_and_reports_where_to_look(commands: Commands) -> None:
    buy = ("start", "--customer", "alice", "--line", "tea-mug:1")

    ran = commands.interrupted(*buy, when="is under way")

    order_id = ran.err.split()[1]
    assert ran.code == 130
    assert ran.err.splitlines() == [
        f"starting {order_id}",
        f"{order_id} is under way; if this is interrupted: starter.py status {order_id}",
        f"the order's status: starter.py status {order_id}",
        "interrupted; what was started goes on",
    ]
    assert commands.here(*buy, "--order-id", order_id, "--no-wait").code == 0


def test_ctrl_c_while_python_imports_ends_quietly(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")

    ran = commands.starter("list", PYTHONPATH=str(tmp_path))

    assert (ran.code, ran.out, ran.err) == (130, "", "")
