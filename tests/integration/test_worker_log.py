"""A worker whose saga.log is not written any more ends, and says so."""

import signal
from pathlib import Path

import pytest

from tests.integration.commands import DEADLINE_SECONDS, Commands

# A worker whose follower of the event log ends as it is told to, once saga.log shows that it was started.
_WORKER = """
import asyncio
import worker
from adapters import event_log
from adapters.telemetry import leave

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
def test_a_worker_whose_log_follower_ends_drains_and_leaves_with_1(
    commands: Commands, tmp_path: Path, how: str
) -> None:
    worker = commands.ready_worker(script=_WORKER.replace("FAILS", str(how == "raises")))

    (tmp_path / "end").touch()

    assert worker.wait(DEADLINE_SECONDS) == 1
    told = worker.tail(100)
    assert "draining" in told
    assert "saga.log is not written any more" in told.splitlines()[-2]
    assert ("KeyError" in told) == (how == "raises")


@pytest.mark.parametrize(("how", "status"), [("raises", 1), ("returns", 0)])
def test_a_follower_that_fails_while_the_worker_drains_is_told_too(commands: Commands, how: str, status: int) -> None:
    worker = commands.ready_worker(script=_WORKER.replace("FAILS", str(how == "raises")))

    worker.signal(signal.SIGTERM)

    assert worker.wait(DEADLINE_SECONDS) == status
    assert ("saga.log is not written any more: KeyError" in worker.tail(100)) == bool(status)
