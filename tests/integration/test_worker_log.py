"""saga.log is written where and by whom the settings say; a worker that cannot write it any more ends, and says so."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_SECONDS, Commands

# A worker whose follower of the event log ends as it is logged to, once saga.log shows that it was started.
_WORKER = """
import asyncio
import worker
from adapters import event_log
from adapters.process_exit import leave

async def follow(engine, path):
    path.write_text("followed")
    try:
        while not path.with_name("end").exists():
            await asyncio.sleep(0.02)
    finally:
        if FAILS:
            raise KeyError("place_txid")

event_log.follow = follow
leave(worker.main())
"""


@pytest.mark.parametrize("how", ["raises", "returns"])
def test_a_worker_whose_log_follower_ends_drains_and_leaves_with_1(commands: Commands, how: str) -> None:
    worker = commands.ready_worker(script=_WORKER.replace("FAILS", str(how == "raises")))

    (commands.folder / "end").touch()

    assert worker.wait(DEADLINE_SECONDS) == 1
    logged = worker.tail(100)
    assert "draining" in logged
    assert "saga.log is not written any more" in logged.splitlines()[-2]
    assert ("KeyError" in logged) == (how == "raises")


@pytest.mark.parametrize(("how", "status"), [("raises", 1), ("returns", 0)])
def test_a_follower_that_fails_during_the_drain_is_reported_too(commands: Commands, how: str, status: int) -> None:
    worker = commands.ready_worker(script=_WORKER.replace("FAILS", str(how == "raises")))

    worker.signal(signal.SIGTERM)

    assert worker.wait(DEADLINE_SECONDS) == status
    assert ("saga.log is not written any more: KeyError" in worker.tail(100)) == bool(status)


def test_standard_output_gets_the_lines_of_saga_log_and_nothing_else(commands: Commands) -> None:
    worker = commands.ready_worker(CHECKOUT_LOG_FILE="-")
    worker.until(lambda: "# begins with transaction" in worker.tail(100), timeout=DEADLINE_SECONDS)
    order = commands.here("start", "--customer", "alice", "--line", "tea-mug:1", "--json").document["order_id"]
    worker.until(lambda: worker.tail(100).count(f"{order} #3 ") >= 2, timeout=DEADLINE_SECONDS)

    assert worker.stop() == 0

    logged = [line for line in worker.tail(200).splitlines() if line.startswith("20") and f"Z {order} #" in line[:60]]
    assert [line.split()[2] for line in logged] == ["#1", "#2", "#3"]
    assert "log in standard output" in worker.tail(200)
    assert not (commands.folder / "-").exists()


def test_a_worker_goes_on_in_a_new_file_when_a_signal_says_that_its_log_was_rotated(
    commands: Commands, tmp_path: Path
) -> None:
    worker = commands.ready_worker()
    log = Path(commands.environment["CHECKOUT_LOG_FILE"])
    order = commands.here("start", "--customer", "alice", "--line", "tea-mug:1", "--json").document["order_id"]
    worker.until(lambda: f"{order} #3 " in log.read_text(), timeout=DEADLINE_SECONDS)
    log.rename(tmp_path / "rotated.log")

    worker.signal(signal.SIGHUP)

    worker.until(lambda: log.exists() and "# goes on after " in log.read_text(), timeout=DEADLINE_SECONDS)
    assert worker.stop() == 0
    assert "saga.log was moved away" in worker.tail(100)


def test_a_worker_that_never_writes_the_log_writes_none(commands: Commands) -> None:
    worker = commands.ready_worker(CHECKOUT_WRITES_LOG="never", CHECKOUT_LOG_FILE="/nowhere/saga.log")

    commands.here("start", "--customer", "alice", "--line", "tea-mug:1", "--json")

    assert worker.stop() == 0
    assert " by accept" not in worker.tail(200)
    assert "log in another worker's hands" in worker.tail(200)


def test_a_worker_that_has_to_write_the_log_and_cannot_logs_an_error(commands: Commands) -> None:
    commands.ready_worker()
    second = commands.ready_worker(CHECKOUT_WRITES_LOG="always")

    second.until(lambda: "stands by" in second.tail(100), timeout=DEADLINE_SECONDS)

    assert [line.split()[1] for line in second.tail(100).splitlines() if "stands by" in line] == ["ERROR"]


def test_a_pipe_is_no_log_file(commands: Commands, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    worker = commands.worker(CHECKOUT_LOG_FILE=str(tmp_path / "pipe"))

    assert worker.wait(DEADLINE_SECONDS) == 1
    assert "could not be read back" in worker.tail(100)
    assert "CHECKOUT_LOG_FILE" in worker.tail(100)
