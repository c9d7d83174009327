"""Rounds by turns: all contenders process the same orders, one contender after the other, in one session.

Whatever else the machine does affects all of them, so ratios within a round mean more than figures.
"""

import argparse
import asyncio
import itertools
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from benchmarks.contenders.contender import Contender
from benchmarks.harness import WentWrong, log
from domain.model import CheckoutInput
from terminal.load.made_up import MIXES

_batches = itertools.count(1)


class Meter:
    """Reads the processor time, user and system, of a contender's processes, of Postgres and of this process."""

    def __init__(self, processes: Mapping[str, int], postgres: int) -> None:
        self._processes = {"caller": os.getpid(), **processes, "Postgres": postgres}

    def read(self) -> dict[str, float]:
        """Return the seconds that each role has used since it started."""
        # The children of this process are the contenders.
        return {role: _used(pid, with_children=role != "caller") for role, pid in self._processes.items()}

    def since(self, before: Mapping[str, float], orders: int) -> dict[str, float]:
        """Return the milliseconds per order that each role has used since a reading."""
        return {role: 1000 * (now - before[role]) / orders for role, now in self.read().items()}


def _used(pid: int, *, with_children: bool) -> float:
    process = psutil.Process(pid)
    times = process.cpu_times()
    used = float(times.user + times.system)
    if not with_children:
        return used
    # Sessions of Postgres are its children; the time of those that have ended is added to its own.
    used += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    for child in process.children():
        try:
            of_child = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used += of_child.user + of_child.system
    return used


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below or at which this share lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


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
        """The latency that 99 % of the orders did not exceed."""
        return percentile(self.latencies_ms, 99)


@dataclass
class Results:
    """All rounds of one contender: so many orders at once, and each order alone."""

    loaded: list[Round] = field(default_factory=list)
    alone: list[Round] = field(default_factory=list)
    orders: Sequence[CheckoutInput] = ()
    """Those of the last round under load."""


def batch(count: int, seed: int, mix: str = "happy") -> list[CheckoutInput]:
    """Draw orders of a mix of `terminal.load.made_up`: the same ones for each seed, under ids never used before."""
    draw, number = random.Random(seed), next(_batches)
    _, recipe = MIXES[mix]
    return [CheckoutInput(f"bench-{number}-{place}", *recipe(draw)) for place in range(count)]


async def run_round(contender: Contender, orders: Sequence[CheckoutInput], at_once: int, postgres: int) -> Round:
    """Process the orders, at most `at_once` of them at a time.

    Raises:
        WentWrong: an order did not end as completed.
    """
    waiting = iter(orders)
    latencies: list[float] = []

    async def one_after_the_other() -> None:
        for order in waiting:
            begun = time.perf_counter()
            status = await contender.process(order)
            latencies.append((time.perf_counter() - begun) * 1000)
            if status != "completed":
                raise WentWrong(f"{contender.name}: order {order.order_id} ended as {status}")

    meter = Meter(contender.processes, postgres)
    before, begun = meter.read(), time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(min(at_once, len(orders)))))
    seconds = time.perf_counter() - begun
    return Round(len(orders) / seconds, latencies, meter.since(before, len(orders)))


async def take_turns(
    contenders: Sequence[Contender], chosen: argparse.Namespace, postgres: int
) -> dict[int, dict[str, Results]]:
    """Warm each contender up, then take turns; every second round goes the other way around.

    Args:
        contenders: to be compared.
        chosen: `orders` of a round, each of `at_once` at a time; orders `alone`, of which `mix`, and how many `rounds`.
        postgres: the postmaster's process id.

    Returns:
        The results by how many orders there were at once, and by contender.
    """
    alone: dict[str, list[Round]] = {contender.name: [] for contender in contenders}
    results = {each: {name: Results(alone=rounds) for name, rounds in alone.items()} for each in chosen.at_once}
    most = max(chosen.at_once)
    for contender in contenders:
        await run_round(contender, batch(2 * most, 0, chosen.mix), most, postgres)
        log(f"warmed up: {contender.name}")
    for number in range(1, chosen.rounds + 1):
        turns = contenders if number % 2 else contenders[::-1]
        for at_once, found in results.items():
            for contender in turns:
                orders = batch(chosen.orders, number, chosen.mix)
                loaded = await run_round(contender, orders, at_once, postgres)
                found[contender.name].loaded.append(loaded)
                found[contender.name].orders = orders
                log(
                    f"round {number} {contender.name}, {at_once} at once: {loaded.per_second:.1f}/s, "
                    f"p50 {loaded.p50_ms:.0f} ms, p99 {loaded.p99_ms:.0f} ms"
                )
        for contender in turns:
            alone[contender.name].append(
                await run_round(contender, batch(chosen.alone, -number, chosen.mix), 1, postgres)
            )
            log(f"round {number} {contender.name}, alone: {alone[contender.name][-1].p50_ms:.1f} ms")
    return results


def ratios(of: Sequence[Round], to: Sequence[Round]) -> list[float]:
    """Return the ratio of the throughputs of each round."""
    return [one.per_second / other.per_second for one, other in zip(of, to, strict=True)]
