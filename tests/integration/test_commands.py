"""worker.py and starter.py as processes: what they say, how they end, and that they end as they mean to."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from devstack.stack import ROOT, DevStack
from sagafence.devservers.ports import free_port
from tests.conftest import Database, Shop
from tests.integration.commands import DEADLINE_SECONDS, Commands, Ran, run_each, unique, until


def test_an_order_is_started_shown_listed_and_audited(commands: Commands) -> None:
    commands.ready_worker()
    order_id = unique("order")

    started = commands.starter("start", "--order-id", order_id, "--customer", "alice", "--line", "tea-mug:2", "--json")

    assert started.code == 0, started.err
    assert set(started.document) == {
        "order_id", "workflow_id", "status", "reason", "total_minor", "currency", "tracking_number", "steps", "ui_url",
    }  # fmt: skip
    assert started.document["status"] == "completed"
    assert started.document["total_minor"] == 2400
    assert started.document["ui_url"].endswith(f"/workflows/checkout-{order_id}")
    assert commands.here("status", order_id, "--json").document == started.document
    assert commands.here("audit", "--at-rest").code == 0
    until(lambda: order_id in commands.here("list", "--status", "completed").out)


def test_the_same_order_again_joins_and_other_content_is_refused(commands: Commands) -> None:
    commands.ready_worker()
    order_id = unique("order")
    same = ("start", "--order-id", order_id, "--customer", "alice", "--line", "poster:1", "--json")

    first, again = commands.here(*same), commands.here(*same)
    merged = commands.here(*same[:-2], "poster:1", "--json")
    other = commands.here("start", "--order-id", order_id, "--customer", "alice", "--line", "poster:2")

    assert (first.code, again.code, merged.code) == (0, 0, 0)
    assert first.document == again.document == merged.document
    assert other.code == 2
    assert "choose another id" in other.err


WRONG_USAGE = {
    "no line": ("start", "--customer", "alice"),
    "no quantity": ("start", "--customer", "alice", "--line", "tea-mug"),
    "quantity in words": ("start", "--customer", "alice", "--line", "tea-mug:two"),
    "zero": ("start", "--customer", "alice", "--line", "tea-mug:0"),
    "negative": ("start", "--customer", "alice", "--line", "tea-mug:-1"),
    "two minuses": ("start", "--customer", "alice", "--line", "tea-mug:--1"),
    "huge": ("start", "--customer", "alice", "--line", "tea-mug:99999999999999999999"),
    "a quantity of 5000 digits": ("start", "--customer", "alice", "--line", "tea-mug:" + "9" * 5000),
    "arabic digits": ("start", "--customer", "alice", "--line", "tea-mug:٣"),
    "unprintable SKU": ("start", "--customer", "alice", "--line", "tea\x07mug:1"),
    "unprintable customer": ("start", "--customer", "al\x1bice", "--line", "tea-mug:1"),
    "empty customer": ("start", "--customer", "", "--line", "tea-mug:1"),
    "empty id": ("start", "--customer", "alice", "--line", "tea-mug:1", "--order-id", ""),
    "id of 300 characters": ("start", "--customer", "alice", "--line", "tea-mug:1", "--order-id", "x" * 300),
    "too many after merging": ("start", "--customer", "alice", "--line", "tea-mug:600", "--line", "tea-mug:600"),
    "10 000 lines": ("start", "--customer", "alice", *(part for n in range(10_000) for part in ("--line", f"s{n}:1"))),
    "unknown status": ("list", "--status", "lost"),
    "unknown mix": ("load", "--orders", "1", "--concurrency", "1", "--mix", "sour"),
    "no orders": ("load", "--orders", "0", "--concurrency", "1"),
    "cancel without a reason": ("cancel", "order-1"),
    "cancel with an empty reason": ("cancel", "order-1", "--reason", " "),
    "cancel with an unprintable reason": ("cancel", "order-1", "--reason", "a\x00b".replace("\x00", "\x07")),
    "unknown command": ("strat",),
    "unknown option": ("start", "--costumer", "alice"),
}


@pytest.fixture(scope="module")
def refused(stack: DevStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """What each of them was answered."""
    environment = stack.environment(CHECKOUT_TASK_QUEUE=unique("nobody"))
    answers = run_each(list(WRONG_USAGE.values()), environment, tmp_path_factory.mktemp("refused"))
    return dict(zip(WRONG_USAGE, answers, strict=True))


@pytest.mark.parametrize("case", sorted(WRONG_USAGE))
def test_wrong_usage_is_reported_in_words_and_ends_with_2(case: str, refused: dict[str, Ran]) -> None:
    ran = refused[case]

    assert ran.code == 2, (ran.out, ran.err)
    ran.assert_readable()


def test_a_process_of_its_own_refuses_wrong_usage_with_the_same_words(
    commands: Commands, refused: dict[str, Ran]
) -> None:
    for case in ("no quantity", "unknown status", "unknown option"):
        assert commands.starter(*WRONG_USAGE[case]) == refused[case]


@pytest.mark.parametrize("address", ["127.0.0.1:99999", ":7233"])
def test_an_address_that_is_none_is_reported_as_a_wrong_setting(commands: Commands, address: str) -> None:
    ran = commands.here("list", TEMPORAL_ADDRESS=address)
    worker = commands.worker(TEMPORAL_ADDRESS=address)

    assert (ran.code, worker.wait(DEADLINE_SECONDS)) == (2, 2)
    for output in ran.err, worker.tail(50):
        assert f"TEMPORAL_ADDRESS: '{address}' is not as 127.0.0.1:7233" in output
        assert "Traceback" not in output


@pytest.mark.parametrize(
    "arguments",
    [
        ("start", "--customer", "alice", "--line", "tea-mug:1"),
        ("status", "order-1"),
        ("list",),
        ("cancel", "order-1", "--reason", "late"),
    ],
    ids=" ".join,
)
def test_a_namespace_that_is_not_there_is_reported_as_that(commands: Commands, arguments: tuple[str, ...]) -> None:
    ran = commands.here(*arguments, TEMPORAL_NAMESPACE="nowhere")

    assert ran.code == 1
    ran.assert_readable()
    assert "refuses: Namespace nowhere is not found" in ran.err
    assert "TEMPORAL_NAMESPACE" in ran.err
    assert "not known" not in ran.err, "what is refused for certain is told as unknown"


def test_a_worker_that_is_asked_for_help_gives_it_and_does_not_start(commands: Commands) -> None:
    asked, mistaken = (commands.python(str(ROOT / "worker.py"), word) for word in ("--help", "start"))

    assert (asked.code, mistaken.code) == (0, 2)
    assert "It takes no other arguments." in asked.out
    assert "It takes no other arguments." in mistaken.err


def test_an_unreachable_temporal_is_reported_in_words_and_ends_with_1(commands: Commands) -> None:
    nobody = f"127.0.0.1:{free_port()}"

    ran = commands.starter("list", TEMPORAL_ADDRESS=nobody)

    assert ran.code == 1
    ran.assert_readable()
    assert nobody in ran.err
    assert "TEMPORAL_ADDRESS" in ran.err


def test_the_status_of_an_order_without_a_worker_is_reported_without_its_steps(commands: Commands) -> None:
    order_id = unique("waiting")
    commands.here("start", "--order-id", order_id, "--customer", "alice", "--line", "pen:1", "--no-wait")

    ran = commands.here("status", order_id, "--json")

    assert ran.code == 0
    assert ran.document["status"] == "running"
    assert "no worker" in ran.document["reason"]


def test_every_command_has_help_with_an_example(stack: DevStack, tmp_path: Path) -> None:
    names = ("start", "status", "list", "cancel", "retry", "resolve", "audit", "sweep", "load")

    answers = run_each([(name, "--help") for name in names], stack.environment(), tmp_path)

    for command, ran in zip(names, answers, strict=True):
        assert ran.code == 0
        assert "Example:" in ran.out
        assert f"starter.py {command}" in " ".join(ran.out.split())


PRINTED = [("api.py", "--openapi"), ("api.py", "--help"), ("worker.py", "--version"), ("starter.py", "list", "--help")]


@pytest.mark.parametrize("line", PRINTED, ids=" ".join)
@pytest.mark.parametrize("is_closed", [False, True], ids=["its reader has gone", "it was closed"])
def test_output_that_nobody_can_read_leaves_no_traceback(line: Sequence[str], *, is_closed: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    shell = ["sh", "-c", 'exec "$@" >&-' if is_closed else 'exec "$@"', "sh", sys.executable, *line]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # what is kept in a buffer would meet nobody before the end

    done = subprocess.run(
        shell, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )

    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == (1 if line[0] == "starter.py" and not is_closed else 0)


def test_a_worker_whose_log_would_go_to_a_closed_output_is_refused(stack: DevStack, shop: Shop) -> None:
    environment = stack.environment(CHECKOUT_DATABASE_URL=shop.database.url, CHECKOUT_LOG_FILE="-")
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "worker.py"]

    done = subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert "The log cannot be written: standard output is closed." in done.stderr


def test_a_worker_reports_all_that_is_wrong_with_its_configuration_at_once(commands: Commands) -> None:
    worker = commands.worker(
        CHECKOUT_DATABASE_URL="mysql://u:geheim@host/db",
        CHECKOUT_DATABASE_POOL_SIZE="many",
        CHECKOUT_LOG_LEVEL="loud",
        CHECKOUT_TASKQUEUE="typo",
    )

    assert worker.wait(DEADLINE_SECONDS) == 2
    output = worker.tail(50)
    for problem in ("DATABASE_URL", "DATABASE_POOL_SIZE", "LOG_LEVEL", "CHECKOUT_TASKQUEUE"):
        assert problem in output
    assert "geheim" not in output
    assert "Traceback" not in output


def test_a_worker_waits_for_a_postgres_that_comes_later(commands: Commands, tmp_path: Path) -> None:
    late = DevStack(tmp_path / "late")
    worker = commands.worker(
        CHECKOUT_DATABASE_URL=late.database_url, TEMPORAL_ADDRESS=late.temporal.address, CHECKOUT_LOG_LEVEL="INFO"
    )
    until(lambda: "waiting for Postgres" in worker.tail(50))

    with late:
        worker.until(lambda: "ready: task queue" in worker.tail(50), timeout=DEADLINE_SECONDS)
        assert worker.stop() == 0


@pytest.mark.exhaustive
def test_commands_leave_with_the_status_that_they_mean(commands: Commands) -> None:
    worker = commands.ready_worker()
    order_id = unique("order")
    commands.here("start", "--order-id", order_id, "--customer", "bob", "--line", "lamp:1")

    codes = [commands.starter("status", order_id).code for _ in range(10)]

    assert codes == [3] * 10
    assert worker.stop() == 0


def test_the_log_reports_every_change_once_across_restarts_and_workers(commands: Commands, database: Database) -> None:
    first = commands.ready_worker()
    second = commands.ready_worker()
    commands.here("load", "--orders", "10", "--concurrency", "5")
    first.kill()
    commands.here("load", "--orders", "10", "--concurrency", "5")
    second.stop()
    third = commands.ready_worker()
    log = commands.folder / "saga.log"
    [[events]] = asyncio.run(database.fetch("SELECT count(*) FROM order_events"))

    until(lambda: len(log.read_text().splitlines()) >= events)

    positions = [line.rsplit("pos=", 1)[1] for line in log.read_text().splitlines()]
    assert len(positions) == len(set(positions)) == events
    assert third.stop() == 0
