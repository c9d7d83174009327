"""Rounds in turns: all contenders do the same orders, one contender after the other, in one session.

Whatever else the machine does strikes all of them, so ratios within a round mean more than figures.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.consumption import Meter
from benchmarks.contenders.contender import Contender
from benchmarks.endings import WentWrong
from domain.model import CheckoutInput
from terminal.load.made_up import MIXES

_batches = itertools.count(1)


@dataclass(frozen=True)
class Round:
    """What one turn of one contender measured."""

    per_second: float
    latencies_ms: list[float]
    """From the caller's request to the order's end, each."""
    cpu_ms: dict[str, float]
    """Processor time per order, by role."""

    @property
    def p50_ms(self) -> float:
        """The median latency."""
        return statistics.median(self.latencies_ms)

    @property
    def p99_ms(self) -> float:
        """The latency below or at which 99 % stayed (nearest rank)."""
        ordered = sorted(self.latencies_ms)
        return ordered[-(-len(ordered) * 99 // 100) - 1]


@dataclass
class Results:
    """All rounds of one contender: so many orders at once, and each order alone."""

    loaded: list[Round] = field(default_factory=list)
    alone: list[Round] = field(default_factory=list)


def batch(count: int, seed: int, mix: str = "happy") -> list[CheckoutInput]:
    """Draw so many orders of a mix of `terminal.load.made_up`: the same for each seed, under ids never used before."""
    draw, number = random.Random(seed), next(_batches)
    _, recipe = MIXES[mix]
    return [CheckoutInput(f"bench-{number}-{place}", *recipe(draw)) for place in range(count)]


async def run_round(contender: Contender, orders: Sequence[CheckoutInput], at_once: int, postgres: int) -> Round:
    """Have the orders carried to their ends, never more than so many at once.

    Raises:
        WentWrong: one of them did not end as completed.
    """
    waiting = iter(orders)
    latencies: list[float] = []

    async def one_after_the_other() -> None:
        for order in waiting:
            begun = time.perf_counter()
            status = await contender.carry(order)
            latencies.append((time.perf_counter() - begun) * 1000)
            if status != "completed":
                raise WentWrong(f"{contender.name}: order {order.order_id} ended as {status}")

    meter = Meter(contender.processes, postgres)
    before, begun = meter.read(), time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(min(at_once, len(orders)))))
    seconds = time.perf_counter() - begun
    used = meter.since(before)
    cpu_ms = {role: 1000 * each / len(orders) for role, each in used.items()}
    return Round(len(orders) / seconds, latencies, cpu_ms)


async def take_turns(  # noqa: PLR0913 - what is measured, said by name
    contenders: Sequence[Contender],
    *,
    orders: int,
    at_once: int,
    alone: int,
    rounds: int,
    postgres: int,
    tell: Callable[[str], None],
) -> dict[str, Results]:
    """Warm each contender up, then take turns; every second round goes the other way around.

    Args:
        contenders: who takes part.
        orders: in a round with `at_once` orders at once.
        at_once: how many are open under load.
        alone: orders of a round that come one after the other.
        rounds: of each contender, of each kind.
        postgres: the postmaster's process id.
        tell: is told of each round.
    """
    results = {contender.name: Results() for contender in contenders}
    for contender in contenders:
        await run_round(contender, batch(2 * at_once, 0), at_once, postgres)  # caches, connections, plans
        tell(f"warmed up: {contender.name}")
    for number in range(1, rounds + 1):
        for contender in contenders if number % 2 else reversed(contenders):
            found = results[contender.name]
            found.loaded.append(await run_round(contender, batch(orders, number), at_once, postgres))
            found.alone.append(await run_round(contender, batch(alone, -number), 1, postgres))
            last = found.loaded[-1]
            tell(
                f"round {number} {contender.name}: {last.per_second:.1f}/s, p50 {last.p50_ms:.0f} ms, "
                f"alone {found.alone[-1].p50_ms:.1f} ms"
            )
    return results


def ratios(of: Sequence[Round], to: Sequence[Round]) -> list[float]:
    """Give the ratio of the throughputs of each round."""
    return [one.per_second / other.per_second for one, other in zip(of, to, strict=True)]
