"""Checkouts per second beside workflows of the same shape that do nothing, on one server, in one run.

    .venv/bin/python -m benchmarks.throughput [--orders 500] [--concurrency 50] [--rounds 3]

They take turns, so that whatever else the machine does strikes both; compare their ratio, not the figures.
"""

import argparse
import asyncio
import functools
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy

from adapters.telemetry import leave
from adapters.temporal import DATA_CONVERTER
from benchmarks.empty import TASK_QUEUE
from client.checkouts import Checkouts
from client.load import MIXES, run_load
from domain.model import CheckoutInput, Lane
from domain.policies import CHECKOUT_TASK_QUEUE
from embedded.process import ChildProcess
from embedded.stack import ROOT, DevStack

_numbers = itertools.count(1)


@dataclass
class Round:
    """What one turn measured."""

    per_second: float
    p50_ms: float
    p99_ms: float


async def yardstick_round(workflow: str, client: Client, orders: int, concurrency: int) -> Round:
    """Run so many workflows whose activities do nothing, started as the starter starts a checkout."""
    draw = random.Random(workflow)
    _, recipe = MIXES["happy"]
    waiting = iter(range(orders))
    latencies: list[float] = []

    async def one_after_the_other() -> None:
        for _ in waiting:
            order = CheckoutInput(f"{workflow}-{next(_numbers)}", *recipe(draw))
            begun = time.perf_counter()
            handle = await client.start_workflow(
                workflow,
                order,
                id=order.order_id,
                task_queue=TASK_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                static_summary=f"{order.summary} for {order.customer}",
            )
            await handle.result()
            latencies.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
    return _round(latencies, time.perf_counter() - begun)


async def checkout_round(lane: Lane, client: Client, orders: int, concurrency: int) -> Round:
    """Run so many checkouts, as `starter.py load` does."""
    report = await run_load(
        Checkouts(client, CHECKOUT_TASK_QUEUE, ""),
        orders=orders,
        concurrency=concurrency,
        mix="happy",
        prefix=f"bench-{next(_numbers)}",
        lane=lane,
        on_done=lambda: None,
    )
    if report.failures or report.outcomes != {"completed": orders}:
        sys.exit(f"the load went wrong: {report.outcomes}, {report.failures[:3]}")
    return _round(report.latencies_ms, report.seconds)


def _round(latencies_ms: list[float], seconds: float) -> Round:
    percentiles = statistics.quantiles(latencies_ms, n=100)
    return Round(len(latencies_ms) / seconds, percentiles[49], percentiles[98])


async def compare(stack: DevStack, orders: int, concurrency: int, rounds: int) -> int:
    """Take turns and print medians and ratios."""
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER)
    kinds: dict[str, Callable[[Client, int, int], Awaitable[Round]]] = {
        "idle": functools.partial(yardstick_round, "Idle"),
        "bare": functools.partial(yardstick_round, "Bare"),
        "empty activities": functools.partial(yardstick_round, "Empty"),
        "classic": functools.partial(checkout_round, Lane.CLASSIC),
        "fast": functools.partial(checkout_round, Lane.FAST),
    }
    measured: dict[str, list[Round]] = {name: [] for name in kinds}
    for name, run in kinds.items():
        await run(client, 50, 10)  # warm caches and plans
        print(f"warmed up: {name}", file=sys.stderr)
    for number in range(rounds):
        for name, run in kinds.items():
            measured[name].append(await run(client, orders, concurrency))
            print(f"round {number + 1} {name}: {measured[name][-1]}", file=sys.stderr)
    print(f"{orders} orders, {concurrency} at once, {rounds} rounds; medians")
    medians = {}
    for name, found in measured.items():
        medians[name] = statistics.median(one.per_second for one in found)
        print(
            f"{name:18} {medians[name]:6.1f}/s   p50 {statistics.median(one.p50_ms for one in found):6.0f} ms"
            f"   p99 {statistics.median(one.p99_ms for one in found):6.0f} ms"
        )
    for lane, yardstick in (("classic", "bare"), ("classic", "empty activities"), ("fast", "idle")):
        ratios = [
            done.per_second / empty.per_second for empty, done in zip(measured[yardstick], measured[lane], strict=True)
        ]
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{lane:7} / {yardstick:16} {statistics.median(ratios):5.2f}   (rounds: {shown})")
    return 0


def main() -> int:
    """Measure on a stack of our own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkout-bench-") as folder, DevStack(Path(folder)) as stack:
        worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
        empty = ChildProcess(
            "the empty worker",
            [sys.executable, "-m", "benchmarks.empty", stack.temporal.address],
            log=Path(folder) / "empty.log",
            cwd=ROOT,
        )
        empty.start()
        empty.until(lambda: "ready" in empty.tail(), timeout=30)
        worker.until(lambda: worker.running, timeout=30)
        try:
            return asyncio.run(compare(stack, chosen.orders, chosen.concurrency, chosen.rounds))
        finally:
            empty.stop()


if __name__ == "__main__":
    leave(main())
