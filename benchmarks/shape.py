"""The shape of the curve: throughput and latency against concurrency, worker processes, growth, and a backlog.

    .venv/bin/python -m benchmarks.shape [--orders 300] [--at-once 1 --at-once 50 ...] [--rounds 2] [--backlog 10000]

Concurrency: so many orders open at once, by turns. Workers: one, two and four processes with 50 orders at once.
Growth: what the orders of the first part left on disk, extrapolated to 100 000. Backlog: so many sagas are started
while no worker runs, then one comes up: how long it drains, what went wrong, and its memory. 0 leaves a part out.
"""

import argparse
import statistics
from dataclasses import dataclass, field

import asyncpg

from adapters.telemetry import leave
from benchmarks import crowd, machine
from benchmarks.backlog import MOST_MEMORY, Backlog, drain, shown
from benchmarks.contenders.contender import Contender
from benchmarks.contenders.temporal import Checkout
from benchmarks.endings import require_order
from benchmarks.ground import on_ground
from benchmarks.measure import Round, batch, run_round
from benchmarks.report import spread, table, tell, verdict
from devstack.process import ChildProcess
from devstack.stack import DATABASE, DevStack
from domain.model import Lane

CONCURRENCIES = (1, 5, 20, 50, 100, 200, 500)
WORKERS = (1, 2, 4)
_WITH_WORKERS = 50
_PER_ORDERS = 100_000
LEAST_PAST_THE_KNEE = 0.8
"""The target: the share of the best throughput that the highest concurrency still has."""
_SAMPLE = 200
"""Orders whose histories are counted."""


@dataclass(frozen=True)
class Disk:
    """How much there is, in bytes."""

    database: int
    wal: int
    histories: int


@dataclass
class Findings:
    """What was measured, by concurrency or by number of workers."""

    rounds: dict[int, list[Round]] = field(default_factory=dict)
    events: dict[int, list[float]] = field(default_factory=dict)
    workers: dict[int, list[Round]] = field(default_factory=dict)
    grown: Disk | None = None
    history_bytes: float = 0.0
    orders: int = 0
    backlog: Backlog | None = None


async def measure(stack: DevStack, chosen: argparse.Namespace) -> Findings:
    """Measure part by part.

    Raises:
        WentWrong: an order did not end as completed, or the audit found something.
    """
    found = Findings()
    crowd.open_shop(stack)
    worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
    product, postgres = Checkout(Lane.FAST, worker, stack), stack.postgres.pid
    await run_round(product, batch(100, 0), _WITH_WORKERS, postgres)
    before = await _disk(stack)
    for turn in range(chosen.rounds):
        for at_once in chosen.at_once if turn % 2 == 0 else reversed(chosen.at_once):
            # Alone, an order takes as long as any number of others: fewer say as much.
            orders = batch(max(min(chosen.orders, 60 * at_once), 2 * at_once), turn)
            found.rounds.setdefault(at_once, []).append(await run_round(product, orders, at_once, postgres))
            kept = await product.footprint(orders[-_SAMPLE:])
            found.events.setdefault(at_once, []).append(kept.events or 0.0)
            found.history_bytes, found.orders = kept.bytes or 0.0, found.orders + len(orders)
            last = found.rounds[at_once][-1]
            tell(f"round {turn + 1}, {at_once} at once: {last.per_second:.1f}/s, p99 {last.p99_ms:.0f} ms")
    after = await _disk(stack)
    found.grown = Disk(
        after.database - before.database, after.wal - before.wal, max(0, after.histories - before.histories)
    )
    found.workers = await _with_workers(stack, product, chosen)
    worker.stop()
    if chosen.backlog:
        found.backlog = await drain(stack, chosen.backlog)
    await require_order(stack)
    return found


async def _with_workers(stack: DevStack, product: Contender, chosen: argparse.Namespace) -> dict[int, list[Round]]:
    """Add workers to the one that runs, as many as are asked for, and stop them again."""
    measured: dict[int, list[Round]] = {}
    for turn in range(chosen.rounds):
        more: list[ChildProcess] = []
        for count in chosen.workers:
            more += [stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING") for _ in range(count - 1 - len(more))]
            await run_round(product, batch(2 * _WITH_WORKERS, turn), _WITH_WORKERS, stack.postgres.pid)
            orders = batch(chosen.orders, turn)
            measured.setdefault(count, []).append(await run_round(product, orders, _WITH_WORKERS, stack.postgres.pid))
            tell(f"round {turn + 1}, {count} workers: {measured[count][-1].per_second:.1f}/s")
        for worker in more:
            worker.stop()
    return measured


async def _disk(stack: DevStack) -> Disk:
    database = await asyncpg.connect(stack.postgres.url(DATABASE, driver="postgresql"))
    try:
        row = await database.fetchrow(
            "SELECT pg_database_size(current_database()) AS database, "
            "pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS wal"
        )
    finally:
        await database.close()
    histories = sum(file.stat().st_size for file in stack.folder.glob("temporal.db*"))
    return Disk(row["database"], row["wal"], histories)


def report(found: Findings) -> str:
    """Give the tables, and whether the targets are met."""
    parts, verdicts = [_curve(found)], []
    rates = {at_once: statistics.median(one.per_second for one in rounds) for at_once, rounds in found.rounds.items()}
    share = rates[max(rates)] / max(rates.values())
    verdicts.append(verdict(f"{max(rates)} at once at {share:.2f} of the best", share >= LEAST_PAST_THE_KNEE))
    if found.workers:
        parts.append(_processes(found))
    if found.grown is not None:
        parts.append(_growth(found, found.grown))
    if (backlog := found.backlog) is not None:
        parts.append(shown(backlog))
        verdicts += [
            verdict(f"{backlog.not_completed} orders of the backlog left", not backlog.not_completed),
            verdict(f"{backlog.memory / 2**20:.0f} MB at most", backlog.memory <= MOST_MEMORY),
        ]
    return "\n\n".join([*parts, f"Targets: {'; '.join(verdicts)}."])


def _curve(found: Findings) -> str:
    return table(
        ["at once", "orders/s", "p50, ms", "p99, ms", "events per order"],
        [
            [
                str(at_once),
                spread([one.per_second for one in rounds], ".1f"),
                f"{statistics.median(one.p50_ms for one in rounds):.0f}",
                f"{statistics.median(one.p99_ms for one in rounds):.0f}",
                f"{statistics.median(found.events[at_once]):.2f}",
            ]
            for at_once, rounds in found.rounds.items()
        ],
    )


def _processes(found: Findings) -> str:
    one = min(found.workers)
    return table(
        ["worker processes", "orders/s", f"against {one}", "p99, ms"],
        [
            [
                str(count),
                spread([each.per_second for each in rounds], ".1f"),
                spread([a.per_second / b.per_second for a, b in zip(rounds, found.workers[one], strict=True)], ".2f"),
                f"{statistics.median(each.p99_ms for each in rounds):.0f}",
            ]
            for count, rounds in found.workers.items()
        ],
    )


def _growth(found: Findings, grown: Disk) -> str:
    def per(size: float) -> tuple[str, str]:
        return f"{size / found.orders / 1000:.2f} KB", f"{size / found.orders * _PER_ORDERS / 1e6:.0f} MB"

    rows = [
        ["history, as Temporal counts it", *per(found.history_bytes * found.orders)],
        ["Temporal's file, with its log and its indexes", *per(grown.histories)],
        ["the shop's database", *per(grown.database)],
        ["the shop's WAL", *per(grown.wal)],
    ]
    return table([f"of {found.orders} orders", "per order", f"per {_PER_ORDERS:,}, extrapolated"], rows)


def main() -> int:
    """Measure on a stack of our own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=300, help="of a round")
    parser.add_argument("--at-once", type=int, action="append", help=f"default: each of {CONCURRENCIES}")
    parser.add_argument("--workers", type=int, action="append", help=f"default: each of {WORKERS}")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backlog", type=int, default=10_000, help="sagas started without a worker; 0: none")
    chosen = parser.parse_args()
    chosen.at_once = sorted(chosen.at_once or CONCURRENCIES)
    chosen.workers = sorted(chosen.workers or WORKERS)
    before = machine.load()
    if (found := on_ground("shape", lambda stack: measure(stack, chosen))) is None:
        return 1
    print(
        f"{machine.described([])}\nFast lane, one worker unless it says otherwise, {chosen.orders} orders to a round, "
        f"medians of {chosen.rounds} rounds (least to greatest). The machine's load was {before:.1f} before.\n\n"
        f"{report(found)}"
    )
    return 0


if __name__ == "__main__":
    leave(main())
