"""Orders per second of a bulk load, as a person runs it: a file, starter.py, one worker, both servers of `make up`.

    .venv/bin/python -m benchmarks.bulk [--orders 20000] [--rounds 3] [--refused]

With --refused a quarter of the orders is refused, for want of money, of stock or of a carrier. Each round loads a file
of new orders; the audit has to be clean after the last. The time is that of the load alone, as starter.py tells it;
processor time is that of a whole round.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.consumption import Meter, Seconds
from benchmarks.measure import batch
from devstack.process import ChildProcess
from devstack.stack import ROOT, DevStack
from domain.model import CheckoutInput
from terminal.load.order_rows import COLUMNS


def write_orders(file: Path, orders: Iterable[CheckoutInput]) -> None:
    """Write orders as the load reads them."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for order in orders:
            writer.writerows((order.order_id, order.customer, line.sku, line.quantity) for line in order.lines)


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


def measure(stack: DevStack, worker: ChildProcess, orders: int, rounds: int, mix: str) -> None:
    """Load one file after another and print what each took."""
    # What the starter uses itself is not told: it has ended when we look.
    meter = Meter({"worker": worker.pid, "Temporal": stack.temporal.pid}, stack.postgres.pid)
    rates: list[float] = []
    outcomes: dict[str, int] = {}
    spent: list[Seconds] = []
    for seed in range(rounds + 1):
        count = orders if seed else 1_000  # the first one warms up
        file = stack.folder / f"orders-{seed}.csv"
        write_orders(file, batch(count, seed, mix))
        before = meter.read()
        report = starter(stack, "load", "--from", str(file))
        used = meter.since(before)
        if seed:
            rates.append(report["per_second"])
            outcomes = report["outcomes"]
            spent.append({role: used[role] / count * 1000 for role in ("worker", "Temporal", "Postgres")})
            sys.stderr.write(f"round {seed}: {report['per_second']} orders/s\n")
    starter(stack, "audit", "--at-rest", "--timeout", "300")
    told = ", ".join(f"{rate:.0f}" for rate in rates)
    each = ", ".join(f"{role} {statistics.median(one[role] for one in spent):.2f} ms" for role in spent[0])
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
        measure(stack, worker, chosen.orders, chosen.rounds, "mixed" if chosen.refused else "happy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
