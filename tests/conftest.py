"""One Postgres and one Temporal for the whole session; a database and a task queue of its own for each test."""

import itertools
import os
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy
from temporalio.worker import Interceptor, Worker

from activities.maintenance import Maintenance
from adapters.config import WorkerSettings
from adapters.database import create_engine
from adapters.temporal import DATA_CONVERTER
from devstack.postgres import PostgresServer
from devstack.stack import DATABASE, ROLE, DevStack, psql
from domain.maintenance import AuditInput, AuditReport, SweepInput, SweepReport
from domain.model import CheckoutInput, CheckoutStatus, Lane, OrderLine
from domain.policies import checkout_workflow_id
from tests.memory import folder_in_memory
from tests.shares import share_out
from worker import build_worker
from workflows.checkout import CheckoutWorkflow
from workflows.maintenance import SweepWorkflow

_exit_status = 0
_numbers = itertools.count(1)


# A file is one worker's. Those that take minutes, whole or in their share, come first and unit tests last, so that
# no worker is left alone with a long one. A wrong guess here costs time and nothing else.
_LONGEST_FIRST = (
    "test_link_faults",
    "test_broken_undos",
    "test_cells",
    "test_cancel_at_every_event",
    "test_interleavings",
    "test_postgres_faults",
    "test_commands",
    "test_upgrade",
    "test_soak",
    "test_demo",
    "test_worker_settings",
    "test_worker_start",
    "test_make_up",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files by how long they take, and mark which of the commands run them."""
    share_out(items)

    def place(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.stem
        rank = _LONGEST_FIRST.index(name) if name in _LONGEST_FIRST else len(_LONGEST_FIRST)
        return item.path.parent.name == "unit", rank

    items.sort(key=place)


def pytest_sessionfinish(exitstatus: int) -> None:
    global _exit_status  # noqa: PLW0603 - the two hooks have nothing else in common
    _exit_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave as the commands do: on Python 3.11 the teardown may abort (see adapters/telemetry.py)."""
    if hasattr(config, "workerinput"):
        return  # one of several: the process that collects their results decides the status
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_exit_status)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """Both servers, the schema applied, no worker.

    Nobody ill-treats them: a module that kills servers, or fills their disk, brings its own, which write to a disk.
    """
    with (
        folder_in_memory(tmp_path_factory.mktemp("stack")) as folder,
        DevStack(folder, fsync=False) as running,
    ):
        yield running


@dataclass
class Database:
    """A database of one test, cloned from the one that setup.sql made."""

    name: str
    url: str
    """As the service's role."""
    admin_url: str
    """As the superuser, for asyncpg: to look at everything, and to break things."""

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.admin_url)
        try:
            return list(await connection.fetch(query, *arguments))
        finally:
            await connection.close()

    async def value(self, query: str, *arguments: Any) -> Any:
        [row] = await self.fetch(query, *arguments)
        return row[0]

    async def run(self, statements: str) -> None:
        connection = await asyncpg.connect(self.admin_url)
        try:
            await connection.execute(statements)
        finally:
            await connection.close()

    @asynccontextmanager
    async def locked(self, statement: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """Hold what a statement locks in a foreign transaction, which is committed at the end of the block."""
        connection = await asyncpg.connect(self.admin_url)
        try:
            async with connection.transaction():
                await connection.execute(statement)
                yield connection
        finally:
            await connection.close()


@contextmanager
def cloned_database(stack: DevStack) -> Iterator[Database]:
    """Make a database with the demo catalogue, and drop it after the block."""
    with database_on(stack.postgres) as database:
        yield database


@contextmanager
def database_on(server: PostgresServer) -> Iterator[Database]:
    """Make it on a server on which setup.sql has run."""
    name = f"test_{next(_numbers)}_{uuid.uuid4().hex[:8]}"
    psql(server, "postgres", "-c", f'CREATE DATABASE "{name}" TEMPLATE "{DATABASE}" STRATEGY FILE_COPY')
    yield Database(name, server.url(name, ROLE), server.url(name, "postgres", driver="postgresql"))
    psql(server, "postgres", "-c", f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database(stack: DevStack) -> Iterator[Database]:
    """A fresh database with the demo catalogue."""
    with cloned_database(stack) as database:
        yield database


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """The service's engine on the test's database."""
    made = create_engine(database.url, pool_size=20)
    yield made
    await made.dispose()


@pytest.fixture(scope="session")
async def client(stack: DevStack) -> Client:
    return await Client.connect(stack.temporal.address, data_converter=DATA_CONVERTER)


@dataclass
class Shop:
    """The checkout under test: workers on a task queue of this test alone, and how to talk to them."""

    client: Client
    engine: AsyncEngine
    database: Database
    task_queue: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:12]}")
    is_strict: bool = True
    """Whether its workers' sandbox sees all that the workflow modules do."""
    lane: Lane = Lane.CLASSIC
    """What its orders ask for. Where a test holds a saga between its steps, only the classic lane has such places."""

    def order(self, customer: str = "alice", *lines: tuple[str, int], order_id: str = "") -> CheckoutInput:
        """Make an order with an id of its own; one tea-mug unless lines are given."""
        wanted = lines or (("tea-mug", 1),)
        made = tuple(OrderLine(*line) for line in wanted)
        return CheckoutInput(order_id or f"t-{uuid.uuid4().hex[:12]}", customer, made, lane=self.lane)

    def working(
        self, *, interceptors: tuple[Interceptor, ...] = (), **settings: Any
    ) -> AbstractAsyncContextManager[Worker]:
        """Run a worker inside the block."""

        @asynccontextmanager
        async def running() -> AsyncIterator[Worker]:
            worker = build_worker(
                self.client,
                self.engine,
                WorkerSettings(task_queue=self.task_queue, shutdown_grace_seconds=5, **settings),
                interceptors=interceptors,
                is_strict=self.is_strict,
            )
            async with worker:
                yield worker

        return running()

    async def start(self, order: CheckoutInput) -> WorkflowHandle[CheckoutWorkflow, CheckoutStatus]:
        """Start an order's saga, as the starter does."""
        return await self._run(order, WorkflowIDReusePolicy.REJECT_DUPLICATE)

    async def run_again(self, order: CheckoutInput) -> WorkflowHandle[CheckoutWorkflow, CheckoutStatus]:
        """Start another run of an order whose run has closed, as after a lost history."""
        return await self._run(order, WorkflowIDReusePolicy.ALLOW_DUPLICATE)

    async def _run(
        self, order: CheckoutInput, reuse: WorkflowIDReusePolicy
    ) -> WorkflowHandle[CheckoutWorkflow, CheckoutStatus]:
        return await self.client.start_workflow(
            CheckoutWorkflow.run,
            order,
            id=checkout_workflow_id(order.order_id),
            task_queue=self.task_queue,
            id_reuse_policy=reuse,
        )

    def newest_run(self, order: CheckoutInput) -> WorkflowHandle[CheckoutWorkflow, CheckoutStatus]:
        """Give the newest run of an order's saga, whoever started it."""
        return self.client.get_workflow_handle_for(CheckoutWorkflow.run, checkout_workflow_id(order.order_id))

    async def start_sweep(
        self, *, sweep_id: str = "", stood_still_seconds: float = 0
    ) -> WorkflowHandle[SweepWorkflow, SweepReport]:
        """Start a sweep that takes every order which has stood still for so long."""
        return await self.client.start_workflow(
            SweepWorkflow.run,
            SweepInput(stood_still_seconds),
            id=sweep_id or f"sweep-{uuid.uuid4()}",
            task_queue=self.task_queue,
        )

    async def sweep(self, *, stood_still_seconds: float = 0) -> SweepReport:
        """Sweep once, and give the report."""
        return await (await self.start_sweep(stood_still_seconds=stood_still_seconds)).result()

    async def accept_by_hand(self, *orders: CheckoutInput) -> None:
        """Write pending orders, as a person with psql would."""
        rows = [f"('{order.order_id}', '{order.customer}')" for order in orders]
        lines = [f"('{order.order_id}', '{line.sku}', {line.quantity})" for order in orders for line in order.lines]
        await self.database.run(
            f"INSERT INTO orders (order_id, customer) VALUES {', '.join(rows)};"
            f"INSERT INTO order_lines (order_id, sku, quantity) VALUES {', '.join(lines)}"
        )

    async def audit(self, *, at_rest: bool = True) -> AuditReport:
        """Check every invariant, without going through Temporal."""
        return await Maintenance(self.engine).run_audit(AuditInput(0.0 if at_rest else 3600.0))

    async def order_status(self, order: CheckoutInput) -> str | None:
        rows = await self.database.fetch("SELECT status FROM orders WHERE order_id = $1", order.order_id)
        return rows[0][0] if rows else None


@pytest.fixture
async def shop(client: Client, engine: AsyncEngine, database: Database) -> Shop:
    """The checkout, with no worker running yet."""
    return Shop(client, engine, database)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
