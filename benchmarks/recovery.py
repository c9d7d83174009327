"""How soon orders make progress again once a fault has ended.

    .venv/bin/python -m benchmarks.recovery [--rounds 20] [--at-once 30] [--fault workers --fault postgres ...]

Orders arrive all the time, so many open at once. Each round injects a fault, repairs it, and measures from the instant
of the repair: workers, all killed: a new process is started; postgres, stopped as by a crash: it accepts connections;
temporal, killed, with its histories on a file: it accepts connections.

    first progress   the first event of any order after that instant
    all progressed   every order that was open during the fault has an event after it, or has ended

The instants are the database's and ours, of one machine. Percentiles are by nearest rank: with 20 rounds, p99 is the
slowest.
"""

import asyncio
import functools
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import asyncpg
from temporalio.client import Client
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError

from adapters.process_exit import leave
from adapters.temporal import DATA_CONVERTER
from benchmarks import harness
from benchmarks.measure import percentile
from benchmarks.report import table
from client.checkouts import Checkouts
from devstack.stack import DATABASE, DevStack
from domain.model import CheckoutInput
from domain.policies import CHECKOUT_TASK_QUEUE
from sagafence.devservers.ports import port_answers
from terminal.load.made_up import MIXES

_T = TypeVar("_T")
LIMITS_SECONDS = {"workers": 10.0, "postgres": 5.0, "temporal": 15.0}
"""First progress, p99."""
_GIVE_UP_SECONDS = 180.0
_POLL_SECONDS = 0.02
_STUCK_POLL_SECONDS = 60.0


@dataclass(frozen=True)
class Round:
    """What one fault measured, in seconds from the instant of the repair."""

    first: float
    progressed: list[float]
    """Each order that was open during the fault."""


class Stream:
    """Orders that arrive for as long as it runs, so many open at once."""

    def __init__(self, checkouts: Checkouts, at_once: int) -> None:
        self.open: set[str] = set()
        self.ended_at: dict[str, float] = {}
        self.outcomes: Counter[str] = Counter()
        self._checkouts = checkouts
        self._numbers = itertools.count(1)
        self._is_running = True
        self._callers = [asyncio.create_task(self._call(random.Random(seed))) for seed in range(at_once)]

    async def _call(self, draw: random.Random) -> None:
        _, recipe = MIXES["happy"]
        while self._is_running:
            order_id = f"recovery-{next(self._numbers):06d}"
            await _insist(functools.partial(self._checkouts.start, CheckoutInput(order_id, *recipe(draw))))
            self.open.add(order_id)
            end = await _insist(functools.partial(self._checkouts.outcome, order_id, poll_every=_STUCK_POLL_SECONDS))
            self.ended_at[order_id] = time.time()
            self.open.discard(order_id)
            self.outcomes[end.status] += 1

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the condition, as long as no caller has failed."""
        async with asyncio.timeout(_GIVE_UP_SECONDS):
            while not condition():
                for caller in self._callers:
                    if caller.done():
                        caller.result()
                await asyncio.sleep(_POLL_SECONDS)

    async def flow(self) -> None:
        """Wait until every caller has ended two more orders on average: the last fault has no effect any more."""
        enough = self.outcomes.total() + 2 * len(self._callers)
        await self.until(lambda: self.outcomes.total() >= enough)

    async def end(self) -> None:
        """Start no more orders and wait for the rest."""
        self._is_running = False
        await asyncio.wait_for(asyncio.gather(*self._callers), _GIVE_UP_SECONDS)


async def _insist(call: Callable[[], Awaitable[_T]]) -> _T:
    """Call until Temporal answers: while it is down every call fails, and a second call is harmless."""
    async with asyncio.timeout(_GIVE_UP_SECONDS):
        while True:
            try:
                return await call()
            except RPCError:
                await asyncio.sleep(0.1)


class Faults:
    """Each fault repairs what it broke and returns the instant of the repair."""

    def __init__(self, stack: DevStack) -> None:
        self._stack = stack
        self._worker = stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")

    def workers(self) -> float:
        """Kill the worker."""
        self._worker.kill()
        repaired = time.time()
        self._worker = self._stack.start_worker(CHECKOUT_LOG_LEVEL="WARNING")
        return repaired

    def postgres(self) -> float:
        """Stop Postgres as by a crash."""
        self._stack.postgres.stop(immediate=True)
        self._stack.postgres.start()
        return time.time()

    def temporal(self) -> float:
        """Kill Temporal. It accepts connections before `start` returns."""
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


async def measure(stack: DevStack, stream: Stream, inject: Callable[[], float]) -> Round:
    """Inject a fault and wait until all orders that were open have ended."""
    await stream.flow()
    completed = await _fetch(stack, "SELECT order_id FROM orders WHERE status = 'completed'")
    hit = stream.open - {row["order_id"] for row in completed}
    # No order starts or ends during the fault: it blocks this event loop.
    repaired = inject()
    await stream.until(lambda: hit <= stream.ended_at.keys())
    events = await _fetch(
        stack,
        "SELECT order_id, extract(epoch FROM min(at))::float8 - $1 AS after FROM order_events "
        "WHERE at > to_timestamp($1) GROUP BY order_id",
        repaired,
    )
    after = {row["order_id"]: row["after"] for row in events}
    # Without an event after the fault, an order had only its end left to report.
    return Round(min(after.values()), [max(0.0, after.get(each, stream.ended_at[each] - repaired)) for each in hit])


async def _fetch(stack: DevStack, query: str, *values: object) -> Sequence[asyncpg.Record]:
    connection = await asyncpg.connect(stack.postgres.url(DATABASE, driver="postgresql"))
    try:
        return list(await connection.fetch(query, *values))
    finally:
        await connection.close()


def _row(fault: str, rounds: Sequence[Round]) -> list[str]:
    first = [each.first for each in rounds]
    last = [max(each.progressed, default=0.0) for each in rounds]
    seconds = [percentile(first, 50), percentile(first, 99), LIMITS_SECONDS[fault], percentile(last, 50), max(last)]
    return [fault, *(f"{each:.2f}" for each in seconds), str(sum(len(each.progressed) for each in rounds))]


async def run(stack: DevStack, names: Sequence[str], rounds: int, at_once: int) -> int:
    """Take turns, so that whatever else the machine does affects all faults."""
    # The SDK's core logs every call that fails while the server is down.
    quiet = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(TelemetryFilter("OFF", "OFF"))))
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER, runtime=quiet)
    faults = Faults(stack)
    stream = Stream(Checkouts(client, CHECKOUT_TASK_QUEUE, ""), at_once)
    measured: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(rounds):
        for name, found in measured.items():
            found.append(await measure(stack, stream, getattr(faults, name)))
            harness.log(f"round {number + 1} {name}: first {found[-1].first:.2f} s, {len(found[-1].progressed)} orders")
    await stream.end()
    heading = ["fault", "first progress p50, s", "p99", "limit", "all progressed p50, s", "longest", "orders hit"]
    print(f"{rounds} rounds, {at_once} orders open at once; seconds from the end of the fault\n")
    print(table(heading, [_row(name, found) for name, found in measured.items()]))
    print(f"\noutcomes: {dict(stream.outcomes)}")
    kept = [percentile([one.first for one in found], 99) <= LIMITS_SECONDS[name] for name, found in measured.items()]
    return 0 if all(kept) and set(stream.outcomes) == {"completed"} else 1


def main() -> int:
    """Measure on a stack of its own."""
    parser = harness.arguments(__doc__, rounds=20, at_once=30)
    parser.add_argument("--fault", action="append", choices=list(LIMITS_SECONDS), help="default: each of them")
    chosen = parser.parse_args()
    with harness.running_stack() as stack:
        return asyncio.run(run(stack, chosen.fault or list(LIMITS_SECONDS), chosen.rounds, chosen.at_once))


if __name__ == "__main__":
    leave(main())
