"""Workers and Postgres are killed while orders stream in: every order ends properly, and nothing is lost."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from devstack.stack import DATABASE, ROOT, DevStack

# UNDER_FIRE_ORDERS=500 is what docs/performance.md reports.
ORDERS = int(os.environ.get("UNDER_FIRE_ORDERS", "60"))
CONCURRENCY = 50 if ORDERS >= 500 else 20
DEADLINE_SECONDS = 60 + ORDERS


def starter(stack: DevStack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "starter.py"), *arguments, "--json"],
        env=dict(stack.environment()),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


async def ended(stack: DevStack) -> int:
    connection = await asyncpg.connect(stack.postgres.url(DATABASE, driver="postgresql"))
    try:
        count = await connection.fetchval(
            "SELECT count(*) FROM orders WHERE status IN ('completed', 'rejected', 'cancelled')"
        )
    finally:
        await connection.close()
    return int(count)


def until_ended(stack: DevStack, share: float) -> int:
    """Wait until so much of the load has ended: the next fault strikes the middle of it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (count := asyncio.run(ended(stack))) < ORDERS * share:
        assert time.monotonic() < deadline, f"no progress: {count} of {ORDERS}"
        time.sleep(0.1)
    return count


@pytest.mark.timeout(3 * DEADLINE_SECONDS)
def test_every_order_ends_properly_though_worker_and_postgres_are_killed_twice_each(tmp_path: Path) -> None:
    struck: list[int] = []
    with DevStack(tmp_path) as stack:
        worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
        command = ["starter.py", "load", "--json", "--mix", "mixed", "--orders", str(ORDERS)]
        load = subprocess.Popen(
            [sys.executable, *command, "--concurrency", str(CONCURRENCY)],
            cwd=ROOT,
            env=dict(stack.environment()),
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in (0.1, 0.5):
            struck.append(until_ended(stack, share))
            worker.kill()
            worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
            struck.append(until_ended(stack, share + 0.2))
            stack.postgres.stop(immediate=True)
            stack.postgres.start()

        report = json.loads(load.communicate(timeout=DEADLINE_SECONDS)[0])
        audit = starter(stack, "audit", "--at-rest")

    # A fault that finds nothing running proves nothing.
    assert max(struck) < ORDERS
    assert load.returncode == 0, report["failures"][:5]
    assert sum(report["outcomes"].values()) == ORDERS
    assert set(report["outcomes"]) <= {"completed", "rejected"}
    assert audit.returncode == 0, audit.stdout
