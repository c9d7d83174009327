"""A whole site to strike: servers, workers as processes of their own, orders streaming in, and what must hold after."""

import asyncio
import random
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from temporalio.client import Client

from activities.maintenance import Maintenance
from adapters.database import create_engine
from adapters.temporal import DATA_CONVERTER
from client.checkouts import Checkouts
from devstack.process import ChildProcess
from devstack.stack import DATABASE, ROLE, ROOT, DevStack, psql
from domain.maintenance import AuditInput
from domain.model import CheckoutInput, CheckoutStatus
from terminal.load.made_up import MIXES
from tests.conftest import Database
from tests.faults.lab.link import Link
from tests.lanes import in_both_lanes

# Waiting costs nothing where nothing is wrong; a machine five times slower must not look like a bug.
PATIENCE_SECONDS = 180.0
_POLL_SECONDS = 0.05
# Whether an order is stuck need not be asked often: nothing here is allowed to be.
_LOOK_SECONDS = 15.0
# The mix "mixed" of terminal/load/made_up.py: who cannot pay, who cannot be delivered to, and what cannot be had.
_REFUSED_CUSTOMERS = ("bob", "nemo")
_SCARCE = "last-one"


async def until(condition: Callable[[], Awaitable[bool]], what: str, patience: float = PATIENCE_SECONDS) -> None:
    """Wait for something that only polling can see."""
    deadline = time.monotonic() + patience
    while not await condition():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        await asyncio.sleep(_POLL_SECONDS)


def must_end(order: CheckoutInput) -> str:
    """Say how an order ends when no fault costs it anything: a fault may delay it, and nothing else."""
    refused = order.customer in _REFUSED_CUSTOMERS or any(line.sku == _SCARCE for line in order.lines)
    return "rejected" if refused else "completed"


def orders_of(mix: str, count: int) -> list[CheckoutInput]:
    """Draw orders with ids of their own, for both lanes."""
    prefix = f"load-{uuid.uuid4().hex[:8]}"
    draw = random.Random(prefix)
    _, recipe = MIXES[mix]
    return in_both_lanes(CheckoutInput(f"{prefix}-{number:04d}", *recipe(draw)) for number in range(count))


class Load:
    """Orders that stream in, `at_once` of them open at a time, each followed to its end."""

    def __init__(self, checkouts: Checkouts, orders: Sequence[CheckoutInput], at_once: int) -> None:
        self.orders = orders
        self.ends: dict[str, CheckoutStatus] = {}
        self.open: set[str] = set()
        self._checkouts = checkouts
        waiting = iter(orders)
        self._followers = [asyncio.create_task(self._follow(waiting)) for _ in range(at_once)]

    async def _follow(self, waiting: Iterator[CheckoutInput]) -> None:
        for order in waiting:
            self.open.add(order.order_id)
            await self._checkouts.start(order)
            self.ends[order.order_id] = await self._checkouts.outcome(order.order_id, look_every=_LOOK_SECONDS)
            self.open.discard(order.order_id)

    async def ended(self, count: int, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until so many orders have ended; what breaks while they are followed is raised here."""

        async def enough() -> bool:
            self.raise_what_broke()
            return len(self.ends) >= count

        await until(enough, f"{count} of {len(self.orders)} orders have ended", patience)

    @property
    def is_over(self) -> bool:
        """Tell whether every order has ended; what breaks while they are followed is raised here."""
        self.raise_what_broke()
        return len(self.ends) == len(self.orders)

    def raise_what_broke(self) -> None:
        for follower in self._followers:
            if follower.done():
                follower.result()

    async def all_ended(self, patience: float = PATIENCE_SECONDS) -> None:
        await self.ended(len(self.orders), patience)
        await asyncio.gather(*self._followers)

    def surprises(self) -> list[str]:
        """List the orders that ended in another way than they had to."""
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
    workers: list[ChildProcess] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)

    @property
    def checkouts(self) -> Checkouts:
        return Checkouts(self.client, self.task_queue, "")

    def start_worker(
        self,
        *program: str,
        postgres: Link | None = None,
        temporal: Link | None = None,
        **settings: object,
    ) -> ChildProcess:
        """Start a worker process: worker.py or another Python program, its servers perhaps behind a link."""
        url = self.database.url
        environment = {
            "CHECKOUT_DATABASE_URL": url.replace(f":{self.stack.ports.postgres}/", f":{postgres.port}/")
            if postgres
            else url,
            "TEMPORAL_ADDRESS": f"127.0.0.1:{temporal.port}" if temporal else self.stack.temporal.address,
            "CHECKOUT_TASK_QUEUE": self.task_queue,
            "CHECKOUT_LOG_FILE": str(self.folder / "saga.log"),
            **{name: str(value) for name, value in settings.items()},
        }
        number = len(self.workers) + 1
        worker = ChildProcess(
            f"worker {number}",
            [sys.executable, *(program or (str(ROOT / "worker.py"),))],
            log=self.folder / f"worker-{number}.log",
            env=self.stack.environment(**environment),
            cwd=ROOT,
        )
        worker.start()
        self.workers.append(worker)
        return worker

    async def ready_worker(
        self, *program: str, postgres: Link | None = None, temporal: Link | None = None, **settings: object
    ) -> ChildProcess:
        """Start a worker and wait until it takes orders."""
        worker = self.start_worker(*program, postgres=postgres, temporal=temporal, **settings)
        await self.logged(worker, "ready: task queue")
        return worker

    async def logged(self, worker: ChildProcess, text: str, times: int = 1) -> None:
        """Wait until a worker has logged a text so often."""

        async def found() -> bool:
            assert worker.running, worker.tail()
            return said(worker, text) >= times

        await until(found, f"{worker.name} logs {text!r} {times} times")

    def load(self, orders: int | Sequence[CheckoutInput], *, at_once: int = 20, mix: str = "mixed") -> Load:
        """Let orders stream in from now on: these, or so many of a mix."""
        load = Load(self.checkouts, orders_of(mix, orders) if isinstance(orders, int) else orders, at_once)
        self.loads.append(load)
        return load

    def failed_attempts(self, sqlstate: str) -> int:
        """Count what Postgres refused all workers with this SQLSTATE."""
        refused = re.compile(rf"^\S+ WARNING checkout\.database: .*\({sqlstate}\)$", re.MULTILINE)
        return sum(len(refused.findall(worker.log.read_text(errors="replace"))) for worker in self.workers)

    @asynccontextmanager
    async def holding(self, sku: str) -> AsyncIterator[asyncpg.Connection]:
        """Lock a stock row in a foreign transaction inside the block."""
        foreign = await asyncpg.connect(self.database.admin_url)
        try:
            async with foreign.transaction():
                await foreign.execute("SELECT FROM inventory WHERE sku = $1 FOR UPDATE", sku)
                yield foreign
        finally:
            await foreign.close()

    async def is_waiting(self) -> bool:
        """Whether a statement of the service waits for somebody's lock."""
        waiting: int = await self.database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename = $2 AND wait_event_type = 'Lock'",
            self.database.name,
            ROLE,
        )
        return waiting > 0

    async def require_clean(self) -> None:
        """Check what must hold when everything has ended: every invariant, and nothing left open or behind."""
        engine = create_engine(self.database.url, pool_size=1, is_patient=True)
        try:
            report = await Maintenance(engine).run_audit(AuditInput(0.0))
        finally:
            await engine.dispose()
        assert report.violations == []
        known = dict(await self.database.fetch("SELECT order_id, status FROM orders"))
        told = {order_id: end.status for load in self.loads for order_id, end in load.ends.items()}
        # The database, Temporal and whoever waited for the order say the same, of the same orders.
        assert known == told
        assert set(told.values()) <= {"completed", "rejected"}
        await until(self._nothing_held, "no transaction and no lock of the service is left behind")
        await until(self._log_is_complete, "saga.log tells every event")

    async def _nothing_held(self) -> bool:
        return not await self.database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND datname = $2 AND state LIKE 'idle in%'",
            ROLE,
            self.database.name,
        )

    async def _log_is_complete(self) -> bool:
        told = Counter(re.findall(r"^\S+ (\S+ #\d+) ", (self.folder / "saga.log").read_text(), re.MULTILINE))
        rows = await self.database.fetch("SELECT order_id || ' #' || seq FROM order_events")
        return told == Counter(row[0] for row in rows)


def said(worker: ChildProcess, text: str) -> int:
    """Count how often a worker has logged a text."""
    return worker.log.read_text(errors="replace").count(text)


@asynccontextmanager
async def open_site(stack: DevStack, folder: Path) -> AsyncIterator[Site]:
    """Set a site up on running servers, and take its workers away again."""
    name = f"site_{uuid.uuid4().hex[:12]}"
    psql(stack.postgres, "postgres", "-c", f'CREATE DATABASE "{name}" TEMPLATE "{DATABASE}"')
    database = Database(name, stack.postgres.url(name, ROLE), stack.postgres.url(name, "postgres", driver="postgresql"))
    client = await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER)
    site = Site(stack, database, client, folder)
    try:
        yield site
    finally:
        for load in site.loads:
            load.stop()
        for worker in site.workers:
            worker.kill()
