"""Orders per second of a bulk load, as a person runs it: a file, starter.py, one worker, both servers of `make up`.

    .venv/bin/python -m benchmarks.bulk [--orders 20000] [--rounds 3] [--refused]

With --refused a quarter of the orders is refused, for want of money, of stock or of a carrier. Each round loads a file
of new orders; the audit has to be clean after the last. The time is that of the load alone, as starter.py tells it;
processor time is that of a whole round.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from client.load import MIXES
from client.orders_file import COLUMNS
from embedded.process import ChildProcess
from embedded.stack import ROOT, DevStack


def write_orders(file: Path, count: int, mix: str, seed: int) -> None:
    """Write a file of random orders of the demo catalogue."""
    draw = random.Random(seed)
    _, recipe = MIXES[mix]
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for number in range(count):
            customer, lines = recipe(draw)
            writer.writerows((f"bulk-{seed}-{number:06d}", customer, line.sku, line.quantity) for line in lines)


def starter(stack: DevStack, *arguments: str) -> Any:
    """Run a command of starter.py and give the document that it prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "starter.py"), *arguments, "--json"],
        env=dict(stack.environment()),
        cwd=stack.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"starter.py {' '.join(arguments)} ended with {done.returncode}: {done.stderr or done.stdout}")
    return json.loads(done.stdout)


def processor_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Add up what each process and its children have used of the processor."""
    used = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        used[name] = sum(time.user + time.system for time in times)
    return used


def measure(stack: DevStack, worker: ChildProcess, orders: int, rounds: int, mix: str) -> None:
    """Load one file after another and print what each took."""
    pids = {"worker": worker.pid, "temporal": stack.temporal.pid, "postgres": stack.postgres.pid}
    rates: list[float] = []
    outcomes: dict[str, int] = {}
    spent: Sequence[Mapping[str, float]] = []
    for seed in range(rounds + 1):
        count = orders if seed else 1_000  # the first one warms up
        file = stack.folder / f"orders-{seed}.csv"
        write_orders(file, count, mix, seed)
        before = processor_seconds(pids)
        report = starter(stack, "load", "--from", str(file))
        after = processor_seconds(pids)
        if seed:
            rates.append(report["per_second"])
            outcomes = report["outcomes"]
            spent = [*spent, {name: (after[name] - before[name]) / count * 1000 for name in pids}]
            sys.stderr.write(f"round {seed}: {report['per_second']} orders/s\n")
    starter(stack, "audit", "--at-rest", "--timeout", "300")
    told = ", ".join(f"{rate:.0f}" for rate in rates)
    each = ", ".join(f"{name} {statistics.median(one[name] for one in spent):.2f} ms" for name in pids)
    print(f"{orders} orders of the {mix} mix, {rounds} rounds: median {statistics.median(rates):.0f} orders/s ({told})")
    print(f"processor time per order: {each}")
    print(f"last round: {outcomes}; the audit is clean")


def main() -> int:
    """Measure on a stack of our own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--refused", action="store_true", help="have a quarter of the orders refused")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkout-bulk-") as folder, DevStack(Path(folder)) as stack:
        worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
        worker.until(lambda: (Path(folder) / "worker-1.log").exists() and worker.running, timeout=30)
        measure(stack, worker, chosen.orders, chosen.rounds, "mixed" if chosen.refused else "happy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
