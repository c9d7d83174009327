"""Orders per second of a bulk load: a CSV file, starter.py, one worker and both servers.

    .venv/bin/python -m benchmarks.bulk [--orders 20000] [--rounds 3] [--refused]

With --refused a quarter of the orders is refused, for want of money, of stock or of a carrier. Each round loads a file
of new orders; the audit has to be clean after the last. The time is that of the load alone, as starter.py reports it;
processor time is that of a whole round, without the starter's.
"""

import csv
import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks import harness
from benchmarks.measure import Meter, batch
from devstack.stack import ROOT, DevStack
from terminal.load.order_rows import COLUMNS

_WARM_UP = 1_000


def starter(stack: DevStack, *arguments: str) -> Any:
    """Run a command of starter.py and return the document that it prints."""
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


def measure(stack: DevStack, orders: int, rounds: int, mix: str) -> None:
    """Load one file after another and print what each took."""
    worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
    meter = Meter({"worker": worker.pid, "Temporal": stack.temporal.pid}, stack.postgres.pid)
    rates: list[float] = []
    cpu_ms: list[dict[str, float]] = []
    outcomes: dict[str, int] = {}
    for number in range(rounds + 1):
        count = orders if number else _WARM_UP
        file = stack.folder / f"orders-{number}.csv"
        with file.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(COLUMNS)
            for order in batch(count, number, mix):
                writer.writerows((order.order_id, order.customer, line.sku, line.quantity) for line in order.lines)
        before = meter.read()
        report = starter(stack, "load", "--from", str(file))
        if number:
            cpu_ms.append(meter.since(before, count))
            rates.append(report["per_second"])
            outcomes = report["outcomes"]
            harness.log(f"round {number}: {report['per_second']} orders/s")
    starter(stack, "audit", "--at-rest", "--timeout", "300")
    each = ", ".join(f"{rate:.0f}" for rate in rates)
    roles = ("worker", "Temporal", "Postgres")
    used = ", ".join(f"{role} {statistics.median(one[role] for one in cpu_ms):.2f} ms" for role in roles)
    print(f"{orders} orders of the {mix} mix, {rounds} rounds: median {statistics.median(rates):.0f} orders/s ({each})")
    print(f"processor time per order: {used}")
    print(f"last round: {outcomes}; the audit is clean")


def main() -> int:
    """Measure on a stack of its own, whose Temporal keeps its histories in memory."""
    parser = harness.arguments(__doc__, orders=20_000, rounds=3)
    parser.add_argument("--refused", action="store_true", help="have a quarter of the orders refused")
    chosen = parser.parse_args()
    with harness.running_stack(in_memory=True) as stack:
        measure(stack, chosen.orders, chosen.rounds, "mixed" if chosen.refused else "happy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
