"""A load of made-up orders, to measure throughput and latency."""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from client.checkouts import Checkouts
from domain.model import CheckoutInput, OrderLine
from domain.text import on_one_line
from terminal import view

_CUSTOMERS = [f"buyer-{number:03d}" for number in range(1, 101)]
_ITEMS = [f"item-{number:03d}" for number in range(1, 101)]

# Rarely: polling for stuck orders would be a load of its own.
_POLL_SECONDS = 30.0

Recipe = Callable[[random.Random], tuple[str, tuple[OrderLine, ...]]]


def _happy(draw: random.Random) -> tuple[str, tuple[OrderLine, ...]]:
    lines = draw.sample(_ITEMS, draw.randint(1, 3))
    return draw.choice(_CUSTOMERS), tuple(OrderLine(sku, draw.randint(1, 3)) for sku in lines)


def _hot(draw: random.Random) -> tuple[str, tuple[OrderLine, ...]]:
    return draw.choice(_CUSTOMERS), (OrderLine("item-001", 1),)


def _mixed(draw: random.Random) -> tuple[str, tuple[OrderLine, ...]]:
    customer, lines = _happy(draw)
    kind = draw.random()
    if kind < 0.10:
        return "bob", (OrderLine("tea-mug", 1),)  # cannot pay
    if kind < 0.20:
        return "nemo", lines  # cannot be delivered to
    if kind < 0.25:
        return customer, (*lines, OrderLine("last-one", 2))  # cannot be had
    return customer, lines


MIXES: dict[str, tuple[str, Recipe]] = {
    "happy": ("every order can be completed; 1 to 3 lines of 100 SKUs", _happy),
    "mixed": ("a quarter is refused: no money, no delivery, no stock", _mixed),
    "hot": ("every order wants the same SKU", _hot),
}


@dataclass
class LoadReport:
    """The result of a load."""

    orders: int
    concurrency: int
    mix: str
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Orders that could not be started or followed, with the reason."""
    latencies_ms: list[float] = field(default_factory=list)
    """From the start request to the outcome, of every order that has one."""

    @property
    def per_second(self) -> float:
        """Orders that reached an outcome, per second."""
        return len(self.latencies_ms) / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """Return the latency in ms that this share of the orders did not exceed (nearest rank)."""
        if not self.latencies_ms:
            return 0.0
        ordered = sorted(self.latencies_ms)
        return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


async def run_load(  # noqa: PLR0913 - the knobs of the command
    checkouts: Checkouts,
    *,
    orders: int,
    concurrency: int,
    mix: str,
    prefix: str,
    on_done: Callable[[], None],
    timeout: float | None = None,
) -> LoadReport:
    """Start this many orders, at most `concurrency` at once, and follow each to its outcome."""
    report = LoadReport(orders, concurrency, mix)
    waiting = _orders(orders, mix, prefix)

    async def one_after_the_other() -> None:
        for order in waiting:
            begun = time.perf_counter()
            try:
                await checkouts.start(order)
                status = await checkouts.outcome(order.order_id, poll_every=_POLL_SECONDS)
            except Exception as error:  # noqa: BLE001 - a load counts what goes wrong and goes on
                report.failures.append(f"{order.order_id}: {type(error).__name__}: {error}")
            else:
                report.outcomes[status.status] += 1
                report.latencies_ms.append((time.perf_counter() - begun) * 1000)
            on_done()

    begun = time.perf_counter()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await asyncio.gather(*(one_after_the_other() for _ in range(min(concurrency, orders))))
    if left := orders - len(report.latencies_ms) - len(report.failures):
        text = f"{left} orders have no outcome within {timeout:g} s; what was started goes on: starter.py list shows it"
        report.failures.append(text)
    report.seconds = time.perf_counter() - begun
    return report


def _orders(count: int, mix: str, prefix: str) -> Iterator[CheckoutInput]:
    draw = random.Random(prefix)  # noqa: S311 - the same prefix is the same load
    _, recipe = MIXES[mix]
    for number in itertools.islice(itertools.count(1), count):
        customer, lines = recipe(draw)
        yield CheckoutInput(f"{prefix}-{number:06d}", customer, lines)


def print_load(report: LoadReport, *, as_json: bool) -> None:
    """Print the result of a load: throughput, latency percentiles and outcomes."""
    percentiles = {f"p{percent}_ms": round(report.percentile(percent), 1) for percent in (50, 95, 99)}
    if as_json:
        view.print_json(
            {
                "orders": report.orders,
                "concurrency": report.concurrency,
                "mix": report.mix,
                "seconds": round(report.seconds, 3),
                "per_second": round(report.per_second, 1),
                **percentiles,
                "outcomes": report.outcomes,
                "failures": report.failures,
            }
        )
        return
    text = f"{report.orders} orders ({report.mix}), {report.concurrency} at once: {report.seconds:.1f} s, "
    view.console.print(view.rate(text, report.per_second))
    view.console.print(
        "latency  " + "  ".join(f"{name.removesuffix('_ms')} {ms:.0f} ms" for name, ms in percentiles.items())
    )
    view.console.print(f"outcome  {view.counts(report.outcomes)}")
    for failure in report.failures[:10]:
        view.console.print(f"failed   {on_one_line(failure)}", style="red", soft_wrap=True)
    if report.failures:
        view.console.print(f"{len(report.failures)} orders could not be followed", style="bold red")
