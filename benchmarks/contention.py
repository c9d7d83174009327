"""What it costs that all orders want the same: one hot SKU, ten, or a thousand; and an order of a hundred lines.

    .venv/bin/python -m benchmarks.contention [--orders 300] [--at-once 50] [--steps 3000] [--alone 40] [--rounds 3]

By turns on throw-away servers, so that ratios within a round mean more than figures: through the product in its fast
lane, and the three steps against Postgres alone, where Temporal does not bound the whole. At the end more orders than
there are items rush for what is scarce, and the audit goes over everything.
"""

import argparse
import asyncio
import statistics
from collections import Counter
from dataclasses import dataclass, field

from adapters.telemetry import leave
from benchmarks import bare_steps, crowd, machine
from benchmarks.contenders.temporal import Checkout
from benchmarks.counts import Ledger
from benchmarks.endings import WentWrong, require_order
from benchmarks.ground import on_ground
from benchmarks.measure import Round, ratios, run_round
from benchmarks.report import spread, table, tell, verdict
from devstack.stack import DevStack
from domain.model import Lane

SPREADS = (1, 10, crowd.SIZE)
"""Among how many SKUs the orders are spread; the last is what the others are compared with."""
LENGTHS = (1, 100)
"""How many lines an order has."""
_CONNECTIONS = 20
"""Those of one worker."""
LEAST_SHARE, MOST_LATENCY = 0.90, 1.5
"""The targets: throughput of a hot SKU against a thousand; latency of a hundred lines against one."""


@dataclass
class Findings:
    """What the rounds measured, by the number of SKUs or of lines."""

    product: dict[int, list[Round]] = field(default_factory=lambda: {skus: [] for skus in SPREADS})
    steps: dict[int, list[float]] = field(default_factory=lambda: {skus: [] for skus in SPREADS})
    alone: dict[int, list[Round]] = field(default_factory=lambda: {lines: [] for lines in LENGTHS})
    statements: dict[int, float] = field(default_factory=dict)
    rush: Counter[str] = field(default_factory=Counter)


async def measure(stack: DevStack, chosen: argparse.Namespace) -> Findings:
    """Take turns; every second round goes the other way around.

    Raises:
        WentWrong: an order did not end as it should, or the audit found something.
    """
    worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
    crowd.open_shop(stack)
    product, postgres = Checkout(Lane.FAST, worker, stack), stack.postgres.pid
    found, number = Findings(), 0
    await run_round(product, crowd.orders(2 * chosen.at_once, 0, skus=crowd.SIZE), chosen.at_once, postgres)
    for turn in range(chosen.rounds):
        for skus in SPREADS if turn % 2 else reversed(SPREADS):
            orders = crowd.orders(chosen.orders, turn, skus=skus)
            found.product[skus].append(await run_round(product, orders, chosen.at_once, postgres))
            number += 1
            rate = await asyncio.to_thread(
                bare_steps.run, stack, number=number, skus=skus, connections=_CONNECTIONS, orders=chosen.steps
            )
            found.steps[skus].append(rate)
            tell(f"round {turn + 1}, {skus} SKUs: {found.product[skus][-1].per_second:.1f}/s, steps {rate:.0f}/s")
        for lines in LENGTHS if turn % 2 else reversed(LENGTHS):
            orders = crowd.orders(chosen.alone, turn, skus=crowd.SIZE, lines=lines)
            found.alone[lines].append(await run_round(product, orders, 1, postgres))
            tell(f"round {turn + 1}, {lines} lines: {found.alone[lines][-1].p50_ms:.1f} ms alone")
    ledger = Ledger(stack.postgres)
    with ledger.listing():
        for lines in LENGTHS:
            orders = crowd.orders(chosen.alone, 0, skus=crowd.SIZE, lines=lines)
            found.statements[lines] = (await ledger.count(product, orders)).statements
    carried = await asyncio.gather(*(product.carry(order) for order in crowd.rush(3 * crowd.LAST_ITEMS)))
    found.rush = Counter(carried)
    if found.rush["completed"] != crowd.LAST_ITEMS:
        raise WentWrong(f"of {crowd.LAST_ITEMS} items {found.rush['completed']} were sold")
    await require_order(stack)
    return found


def report(found: Findings) -> str:
    """Give the tables, and whether the targets are met."""
    most = SPREADS[-1]
    shares = {skus: ratios(found.product[skus], found.product[most]) for skus in SPREADS}
    of_steps = {
        skus: [one / other for one, other in zip(found.steps[skus], found.steps[most], strict=True)] for skus in SPREADS
    }
    contended = table(
        ["SKUs", "orders/s", f"against {most}", "p50, ms", "p99, ms", "steps alone, orders/s", f"against {most}"],
        [
            [
                str(skus),
                spread([one.per_second for one in found.product[skus]], ".1f"),
                spread(shares[skus], ".2f"),
                f"{statistics.median(one.p50_ms for one in found.product[skus]):.0f}",
                f"{statistics.median(one.p99_ms for one in found.product[skus]):.0f}",
                spread(found.steps[skus], ".0f"),
                spread(of_steps[skus], ".2f"),
            ]
            for skus in SPREADS
        ],
    )
    few, many = LENGTHS
    longer = [a.p50_ms / b.p50_ms for a, b in zip(found.alone[many], found.alone[few], strict=True)]
    lengths = table(
        ["lines", "alone, p50 in ms", f"against {few}", "statements per order"],
        [
            [
                str(lines),
                spread([one.p50_ms for one in found.alone[lines]], ".1f"),
                spread(longer if lines == many else [1.0], ".2f"),
                f"{abs(found.statements[lines]):.1f}",
            ]
            for lines in LENGTHS
        ],
    )
    verdicts = [
        *(
            verdict(f"{skus} SKUs at {LEAST_SHARE:.0%} of {most}", statistics.median(shares[skus]) >= LEAST_SHARE)
            for skus in SPREADS[:-1]
        ),
        verdict(f"{many} lines at {MOST_LATENCY} times one", statistics.median(longer) <= MOST_LATENCY),
        verdict("as many round trips", round(found.statements[many]) == round(found.statements[few])),
    ]
    rush = f"{found.rush.total()} orders rushed for {crowd.LAST_ITEMS} items: {dict(found.rush)}; the audit is clean."
    return f"{contended}\n\n{lengths}\n\n{rush}\nTargets: {'; '.join(verdicts)}."


def main() -> int:
    """Measure on a stack of our own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=300, help="of a round, through the product")
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3_000, help="orders of a round, against Postgres alone")
    parser.add_argument("--alone", type=int, default=40, help="orders of a round that come one after the other")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    before = machine.load()
    if (found := on_ground("contention", lambda stack: measure(stack, chosen))) is None:
        return 1
    print(
        f"{machine.described([])}\n{chosen.orders} orders with {chosen.at_once} at once, {chosen.steps} by steps alone "
        f"over {_CONNECTIONS} connections, {chosen.alone} orders alone; medians of {chosen.rounds} rounds (least to "
        f"greatest). The machine's load was {before:.1f} before.\n\n{report(found)}"
    )
    return 0


if __name__ == "__main__":
    leave(main())
