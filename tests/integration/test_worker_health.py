"""The health check of a worker that runs: true while it works, and not when it is stuck."""

from pathlib import Path

from adapters import heartbeat
from tests.integration.commands import DEADLINE_SECONDS, Commands

# The loop is blocked, as by a step that waits without `await`, once the file says so.
BLOCKED = """
import asyncio, os, time
from adapters.process_exit import leave
import worker

follow = worker.schedule_watch.follow
async def blocking(*arguments):
    while not os.path.exists(os.environ["BLOCK"]):
        await asyncio.sleep(0.05)
    time.sleep(600)
worker.schedule_watch.follow = blocking
leave(worker.main())
"""
FRESH_SECONDS = 3 * heartbeat.EVERY_SECONDS


def test_a_worker_at_work_is_healthy_until_its_loop_is_blocked_or_it_ends(commands: Commands, tmp_path: Path) -> None:
    file, block = tmp_path / "heartbeat", tmp_path / "block"
    heartbeat.write(file)  # of an earlier worker
    started = commands.worker(script=BLOCKED, CHECKOUT_HEARTBEAT_FILE=str(file), BLOCK=str(block))
    started.until(lambda: not file.exists(), timeout=DEADLINE_SECONDS)
    assert "ready" not in started.tail(50), "a worker that is starting would count as one at work"

    started.until(lambda: not heartbeat.problem(file, FRESH_SECONDS), timeout=DEADLINE_SECONDS)
    assert "ready: task queue" in started.tail(50)

    block.touch()
    started.until(lambda: heartbeat.problem(file, FRESH_SECONDS) != "", timeout=DEADLINE_SECONDS)
    assert started.running
    assert "the last heartbeat was" in heartbeat.problem(file, FRESH_SECONDS)


def test_a_worker_says_at_start_that_it_cannot_say_that_it_is_at_work(commands: Commands, tmp_path: Path) -> None:
    started = commands.worker(CHECKOUT_HEARTBEAT_FILE=str(tmp_path / "none" / "heartbeat"))

    assert started.wait(DEADLINE_SECONDS) == 1
    assert "The heartbeat cannot be written" in started.tail(50)
    assert "Traceback" not in started.tail(50)
