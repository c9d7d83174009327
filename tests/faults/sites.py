"""A whole site: servers, workers as processes of their own, orders streaming in, and what must hold after."""

import asyncio
import itertools
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from temporalio.client import Client

from activities.audit import Audit
from adapters.database import create_engine
from adapters.temporal import DATA_CONVERTER
from client.checkouts import Checkouts
from devstack.stack import ROLE, DevStack
from domain.audit import AuditInput
from domain.model import CheckoutInput, CheckoutStatus
from sagafence.devservers.process import ChildProcess
from terminal.load.made_up import MIXES
from tests.conftest import Database, new_database
from tests.faults.callers import Door
from tests.faults.lab.proxy import Proxy
from tests.workers import Workers, behind

# Waiting costs nothing where nothing is wrong; a machine five times slower must not look like a bug.
PATIENCE_SECONDS = 180.0
_POLL_SECONDS = 0.05
# Whether an order is stuck need not be asked often: nothing here is allowed to be.
_STUCK_POLL_SECONDS = 15.0
# The mix "mixed" of terminal/load/made_up.py: who cannot pay, who cannot be delivered to, and what cannot be had.
_REFUSED_CUSTOMERS = ("bob", "nemo")
_SCARCE = "last-one"

Placing = Callable[[CheckoutInput], Awaitable[CheckoutStatus]]


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for something that only polling can see."""
    deadline = time.monotonic() + timeout_seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds:g} s: {what}"
        await asyncio.sleep(_POLL_SECONDS)


def must_end(order: CheckoutInput) -> str:
    """Say how an order ends when no fault costs it anything: a fault may delay it, and nothing else."""
    refused = order.customer in _REFUSED_CUSTOMERS or any(line.sku == _SCARCE for line in order.lines)
    return "rejected" if refused else "completed"


def orders_of(mix: str, count: int) -> list[CheckoutInput]:
    prefix = f"load-{uuid.uuid4().hex[:8]}"
    draw = random.Random(prefix)
    _, recipe = MIXES[mix]
    return [CheckoutInput(f"{prefix}-{number:04d}", *recipe(draw)) for number in range(count)]


class Load:
    """Orders that stream in, `at_once` of them open at a time, each followed to its end.

    Every other one comes through the door, unless all are to be sagas of their own.
    """

    def __init__(
        self, checkouts: Checkouts, orders: Sequence[CheckoutInput], at_once: int, *, all_by_themselves: bool = False
    ) -> None:
        self.orders = orders
        self.ends: dict[str, CheckoutStatus] = {}
        self.open: set[str] = set()
        self._checkouts = checkouts
        self._door = Door(checkouts)
        ways = itertools.cycle([self._by_itself] if all_by_themselves else [self._by_itself, self._door.outcome])
        waiting = zip(orders, ways, strict=False)
        self._followers = [asyncio.create_task(self._follow(waiting)) for _ in range(at_once)]

    async def _follow(self, waiting: Iterator[tuple[CheckoutInput, Placing]]) -> None:
        for order, outcome in waiting:
            self.open.add(order.order_id)
            self.ends[order.order_id] = await outcome(order)
            self.open.discard(order.order_id)

    async def _by_itself(self, order: CheckoutInput) -> CheckoutStatus:
        await self._checkouts.start(order)
        return await self._checkouts.outcome(order.order_id, poll_every=_STUCK_POLL_SECONDS)

    async def ended(self, count: int, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until so many orders have ended; what breaks while they are followed is raised here."""

        async def enough() -> bool:
            self.raise_what_broke()
            return len(self.ends) >= count

        await until(enough, f"{count} of {len(self.orders)} orders have ended", timeout_seconds)

    @property
    def is_over(self) -> bool:
        """Whether every order has ended; what breaks while they are followed is raised here."""
        self.raise_what_broke()
        return len(self.ends) == len(self.orders)

    def raise_what_broke(self) -> None:
        for follower in self._followers:
            if follower.done():
                follower.result()

    async def all_ended(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        await self.ended(len(self.orders), timeout_seconds)
        await asyncio.gather(*self._followers)

    def surprises(self) -> list[str]:
        return [
            f"{order.order_id}: {end.status} ({end.reason}) instead of {must_end(order)}"
            for order in self.orders
            if (end := self.ends[order.order_id]).status != must_end(order)
        ]

    def stop(self) -> None:
        for follower in self._followers:
            follower.cancel()


@dataclass
class Site:
    """Servers that may be shared, a database and a task queue of one test, and its workers."""

    stack: DevStack
    database: Database
    client: Client
    folder: Path
    task_queue: str = field(default_factory=lambda: f"faults-{uuid.uuid4().hex[:12]}")
    loads: list[Load] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workers = Workers(self.stack, self.folder)

    @property
    def checkouts(self) -> Checkouts:
        return Checkouts(self.client, self.task_queue, "")

    async def ready_worker(
        self, *program: str, postgres: Proxy | None = None, temporal: Proxy | None = None, **settings: object
    ) -> ChildProcess:
        """Start worker.py or another program, perhaps behind a proxy, and wait until it takes orders."""
        defaults = {"CHECKOUT_TASK_QUEUE": self.task_queue, "CHECKOUT_LOG_FILE": str(self.folder / "saga.log")}
        servers = behind(self.stack, self.database.url, postgres=postgres, temporal=temporal)
        given = {name: str(value) for name, value in settings.items()}
        worker = self.workers.start(*program, **(defaults | servers | given))
        await self.logged(worker, "ready: task queue")
        return worker

    async def logged(self, worker: ChildProcess, text: str, times: int = 1) -> None:
        async def found() -> bool:
            assert worker.running, worker.tail()
            return said(worker, text) >= times

        await until(found, f"{worker.name} logs {text!r} {times} times")

    def load(
        self,
        orders: int | Sequence[CheckoutInput],
        *,
        at_once: int = 20,
        mix: str = "mixed",
        all_by_themselves: bool = False,
    ) -> Load:
        made = orders_of(mix, orders) if isinstance(orders, int) else orders
        load = Load(self.checkouts, made, at_once, all_by_themselves=all_by_themselves)
        self.loads.append(load)
        return load

    @asynccontextmanager
    async def under_load(
        self,
        orders: int = 60,
        *,
        begun: int = 10,
        at_once: int = 20,
        mix: str = "mixed",
        timeout_seconds: float = 180.0,
    ) -> AsyncIterator[Load]:
        """Let orders stream in; begin the block when so many have ended. It may delay orders and harm none."""
        load = self.load(orders, at_once=at_once, mix=mix)
        await load.ended(begun)
        yield load
        await self.require_unharmed(timeout_seconds)

    async def require_unharmed(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until all orders have ended; require that they ended as without a fault, and left nothing behind."""
        for load in self.loads:
            await load.all_ended(timeout_seconds)
        assert [surprise for load in self.loads for surprise in load.surprises()] == []
        await self.require_clean()

    async def end_sessions(self) -> int:
        ended: int = await self.database.value(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = $1 AND usename = $2",
            self.database.name,
            ROLE,
        )
        return ended

    def failed_attempts(self, sqlstate: str) -> int:
        refused = re.compile(rf"^\S+ WARNING sagafence\.database: .*\({sqlstate}\)$", re.MULTILINE)
        return sum(len(refused.findall(worker.log.read_text(errors="replace"))) for worker in self.workers)

    def holding(self, sku: str) -> AbstractAsyncContextManager[asyncpg.Connection]:
        return self.database.locked(f"SELECT FROM inventory WHERE sku = '{sku}' FOR UPDATE")

    async def is_waiting(self) -> bool:
        waiting: int = await self.database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename = $2 AND wait_event_type = 'Lock'",
            self.database.name,
            ROLE,
        )
        return waiting > 0

    async def require_clean(self) -> None:
        """Check what must hold when everything has ended: every invariant, and nothing left open or behind."""
        engine = create_engine(self.database.url, pool_size=1, has_long_statements=True)
        try:
            report = await Audit(engine).run_audit(AuditInput(0.0))
        finally:
            await engine.dispose()
        assert report.violations == []
        known = dict(await self.database.fetch("SELECT order_id, status FROM orders"))
        output = {order_id: end.status for load in self.loads for order_id, end in load.ends.items()}
        # The database, Temporal and the callers say the same, of the same orders.
        assert known == output
        assert set(output.values()) <= {"completed", "rejected"}
        await until(self._nothing_held, "no transaction and no lock of the service is left behind")
        await until(self._log_is_complete, "saga.log tells every event")

    async def _nothing_held(self) -> bool:
        return not await self.database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND datname = $2 AND state LIKE 'idle in%'",
            ROLE,
            self.database.name,
        )

    async def _log_is_complete(self) -> bool:
        output = Counter(re.findall(r"^\S+ (\S+ #\d+) ", (self.folder / "saga.log").read_text(), re.MULTILINE))
        rows = await self.database.fetch("SELECT order_id || ' #' || seq FROM order_events")
        return output == Counter(row[0] for row in rows)


def said(worker: ChildProcess, text: str) -> int:
    return worker.log.read_text(errors="replace").count(text)


@asynccontextmanager
async def open_site(stack: DevStack, folder: Path) -> AsyncIterator[Site]:
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER)
    site = Site(stack, new_database(stack.postgres), client, folder)
    try:
        yield site
    finally:
        for load in site.loads:
            load.stop()
        site.workers.kill()
