"""How soon orders move again once a fault has ended, and how long the slowest of those it struck stands still.

    .venv/bin/python -m benchmarks.recovery [--rounds 20] [--at-once 30] [--fault workers --fault postgres ...]

Orders stream in, so many open at once. Each round strikes and mends, and measures from the instant of mending:
workers, all killed: a new process is started; postgres, stopped as by a crash: it accepts; temporal, killed, on a
file: it accepts.

    first progress   the first event of any order after that instant
    all moved on     every order that was open when the fault struck has an event after it, or its end

The instants are the database's and ours, of one machine. Percentiles are by nearest rank: with 20 rounds, p99 is the
slowest. Beside them: what the struck orders had to wait for, by their histories, and a verdict on the limits.
"""

import argparse
import asyncio
import functools
import itertools
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import asyncpg
from temporalio.api.enums.v1 import EventType, TimeoutType
from temporalio.client import Client
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError

from adapters.telemetry import leave
from adapters.temporal import DATA_CONVERTER
from benchmarks.ground import ground
from client.checkouts import Checkouts
from devstack.ports import port_answers
from devstack.process import ChildProcess
from devstack.stack import DATABASE, DevStack
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import CHECKOUT_TASK_QUEUE, checkout_workflow_id
from terminal.load.made_up import MIXES

_T = TypeVar("_T")
LIMITS_SECONDS = {"workers": 10.0, "postgres": 5.0, "temporal": 15.0}
"""First progress, p99."""
_PATIENCE_SECONDS = 180.0
_POLL_SECONDS = 0.02
_LOOK_SECONDS = 60.0


@dataclass
class Round:
    """What one strike measured, in seconds from the instant of mending."""

    struck: set[str]
    first: float = 0.0
    moved: dict[str, float] = field(default_factory=dict)

    @property
    def all_moved(self) -> float:
        """When the slowest of the orders that were struck went on."""
        return max(self.moved.values())


class Stream:
    """Orders that come in for as long as it runs, so many open at once."""

    def __init__(self, checkouts: Checkouts, at_once: int) -> None:
        self.open: set[str] = set()
        self.ended_at: dict[str, float] = {}
        self.outcomes: Counter[str] = Counter()
        self._checkouts = checkouts
        self._numbers = itertools.count(1)
        self._is_running = True
        self._lanes = [asyncio.create_task(self._follow(random.Random(lane))) for lane in range(at_once)]

    async def _follow(self, draw: random.Random) -> None:
        _, recipe = MIXES["happy"]
        while self._is_running:
            order = CheckoutInput(f"recovery-{next(self._numbers):06d}", *recipe(draw))
            await _insist(functools.partial(self._checkouts.start, order))
            self.open.add(order.order_id)
            end = await _insist(functools.partial(self._end_of, order))
            self.ended_at[order.order_id] = time.time()
            self.open.discard(order.order_id)
            self.outcomes[end.status] += 1

    async def _end_of(self, order: CheckoutInput) -> CheckoutStatus:
        return await self._checkouts.outcome(order.order_id, look_every=_LOOK_SECONDS)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, as long as every lane lives."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            for lane in self._lanes:
                if lane.done():
                    lane.result()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {_PATIENCE_SECONDS:g} s: {what}")
            await asyncio.sleep(_POLL_SECONDS)

    async def flow(self) -> None:
        """Wait until every lane has ended two more orders on average: the last fault is forgotten."""
        enough = self.outcomes.total() + 2 * len(self._lanes)
        await self.until(lambda: self.outcomes.total() >= enough, "orders end")

    async def end(self) -> None:
        """Take no more orders in and follow the rest."""
        self._is_running = False
        await asyncio.wait_for(asyncio.gather(*self._lanes), _PATIENCE_SECONDS)


async def _insist(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask until there is an answer: a Temporal that is away answers nothing, and to ask twice is harmless."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await ask()
        except RPCError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


class Strikes:
    """The faults. Each mends what it broke and tells the instant of mending."""

    def __init__(self, stack: DevStack) -> None:
        self._stack = stack
        self._worker: ChildProcess = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
        self.kinds: dict[str, Callable[[], float]] = {
            "workers": self._kill_the_workers,
            "postgres": self._crash_postgres,
            "temporal": self._kill_temporal,
        }

    def _kill_the_workers(self) -> float:
        self._worker.kill()
        begun = time.time()
        self._worker = self._stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
        return begun

    def _crash_postgres(self) -> float:
        self._stack.postgres.stop(immediate=True)
        self._stack.postgres.start()
        return time.time()

    def _kill_temporal(self) -> float:
        self._stack.temporal.kill()
        accepted: list[float] = []

        def watch() -> None:
            while not port_answers(self._stack.temporal.port):
                time.sleep(_POLL_SECONDS)
            accepted.append(time.time())

        watcher = threading.Thread(target=watch)
        watcher.start()
        self._stack.temporal.start()
        watcher.join()
        return accepted[0]


async def measure(stack: DevStack, stream: Stream, strike: Callable[[], float]) -> Round:
    """Strike once and follow what was open until all of it has moved on."""
    await stream.flow()
    database = await asyncpg.connect(stack.postgres.url(DATABASE, driver="postgresql"))
    finished = {row[0] for row in await database.fetch("SELECT order_id FROM orders WHERE status = 'completed'")}
    await database.close()
    measured = Round(struck=stream.open - finished)
    # Nothing here runs on while the fault is being made and mended, so nobody leaves or joins meanwhile.
    mended = strike()
    await stream.until(lambda: measured.struck <= stream.ended_at.keys(), "the orders that were struck have ended")
    database = await asyncpg.connect(stack.postgres.url(DATABASE, driver="postgresql"))
    try:
        events = await database.fetch(
            "SELECT order_id, extract(epoch FROM min(at))::float8 - $1 AS after FROM order_events "
            "WHERE at > to_timestamp($1) GROUP BY order_id",
            mended,
        )
    finally:
        await database.close()
    moved = {row["order_id"]: row["after"] for row in events}
    measured.first = min(moved.values())
    for order_id in measured.struck:
        # Without an event after it, an order had only its end left to tell.
        after = moved.get(order_id, stream.ended_at[order_id] - mended)
        measured.moved[order_id] = max(0.0, after)
    return measured


async def waits(client: Client, orders: set[str]) -> Counter[str]:
    """Count, by the histories of orders, what Temporal gave up waiting for and which attempts failed."""
    found: Counter[str] = Counter()
    for order_id in orders:
        async for event in client.get_workflow_handle(checkout_workflow_id(order_id)).fetch_history_events():
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
                kind = TimeoutType.Name(event.workflow_task_timed_out_event_attributes.timeout_type)
                found[f"workflow task: {_words(kind)}"] += 1
            elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
                failure = event.activity_task_started_event_attributes.last_failure
                if failure.HasField("timeout_failure_info"):
                    found[f"attempt: {_words(TimeoutType.Name(failure.timeout_failure_info.timeout_type))}"] += 1
                elif failure.message:
                    found[f"attempt: {failure.application_failure_info.type or 'failed'}"] += 1
    return found


def _words(kind: str) -> str:
    return kind.removeprefix("TIMEOUT_TYPE_").replace("_", "-").lower()


def percentile(values: list[float], percent: float) -> float:
    """Give the value below or at which this share lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def report(fault: str, rounds: list[Round], waited: Counter[str]) -> bool:
    """Print one fault's figures; tell whether its limit is kept."""
    per_order = [after for each in rounds for after in each.moved.values()]
    for name, values in (
        ("first progress", [each.first for each in rounds]),
        ("each order moved on", per_order),
        ("all moved on", [each.all_moved for each in rounds]),
    ):
        shown = "  ".join(f"p{percent} {percentile(values, percent):6.2f} s" for percent in (50, 99))
        print(f"{fault:9} {name:20} {shown}  max {max(values):6.2f} s")
    struck = len(per_order)
    print(f"{fault:9} {struck} orders struck in {len(rounds)} rounds; " + ", ".join(_shares(waited, struck)))
    kept = percentile([each.first for each in rounds], 99) <= LIMITS_SECONDS[fault]
    print(f"{fault:9} limit of {LIMITS_SECONDS[fault]:g} s on the first progress: {'kept' if kept else 'BROKEN'}")
    return kept


def _shares(waited: Counter[str], struck: int) -> list[str]:
    return [f"{what} {count / struck:.2f} per order" for what, count in waited.most_common()] or ["no waits"]


async def run(stack: DevStack, faults: list[str], rounds: int, at_once: int) -> int:
    """Take turns, so that whatever else the machine does strikes all of them."""
    # The SDK's core tells of every call that meets the server while it is away.
    quiet = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(TelemetryFilter("OFF", "OFF"))))
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER, runtime=quiet)
    strikes = Strikes(stack)
    stream = Stream(Checkouts(client, CHECKOUT_TASK_QUEUE, ""), at_once)
    measured: dict[str, list[Round]] = {fault: [] for fault in faults}
    for number in range(rounds):
        for fault, found in measured.items():
            found.append(await measure(stack, stream, strikes.kinds[fault]))
            last = found[-1]
            print(
                f"round {number + 1} {fault}: {len(last.struck)} struck, first {last.first:.2f} s, "
                f"all {last.all_moved:.2f} s",
                file=sys.stderr,
            )
    await stream.end()
    print(f"{rounds} rounds, {at_once} orders open at once; seconds from the end of the fault")
    kept = []
    for fault, found in measured.items():
        waited: Counter[str] = Counter()
        for each in found:
            waited += await waits(client, each.struck)
        kept.append(report(fault, found, waited))
    print(f"outcomes: {dict(stream.outcomes)}")
    return 0 if all(kept) and set(stream.outcomes) == {"completed"} else 1


def main() -> int:
    """Measure on a stack of our own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=30)
    parser.add_argument("--fault", action="append", choices=list(LIMITS_SECONDS), help="default: each of them")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkout-recovery-") as folder, ground(Path(folder)) as stack:
        return asyncio.run(run(stack, chosen.fault or list(LIMITS_SECONDS), chosen.rounds, chosen.at_once))


if __name__ == "__main__":
    leave(main())
