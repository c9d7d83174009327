"""One Postgres and one Temporal for the whole session; a database and a task queue of its own for each test."""

import asyncio
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

from activities.audit import Audit
from adapters import schema
from adapters.config import WorkerSettings
from adapters.database import create_audit_engine, create_engine
from adapters.temporal import DATA_CONVERTER
from devstack.stack import DATABASE, ROLE, DevStack, psql
from domain.audit import AuditInput, AuditReport
from domain.model import CheckoutInput, CheckoutStatus, ExecutionMode, OrderLine
from domain.policies import checkout_workflow_id
from domain.sweep import SweepInput, SweepReport
from sagafence.devservers.ports import free_port
from sagafence.devservers.postgres import PostgresServer
from tests.memory import folder_in_memory
from tests.shares import COLLECTED, share_out
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the files by how long they take, and mark which of the commands run them."""
    are_whole_files = not config.getoption("lf", False) and not any("::" in argument for argument in config.args)
    config.stash[COLLECTED] = frozenset(item.nodeid for item in items if are_whole_files)
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
    """Leave as the commands do: on Python 3.11 the teardown may abort (see adapters/process_exit.py)."""
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


_BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND usename = 'checkout' AND wait_event_type = 'Lock'"
)


@dataclass
class Database:
    """A database of one test, cloned from the one that setup.sql made."""

    name: str
    url: str
    """As the service's role."""
    admin_url: str
    """As the superuser, for asyncpg: to look at everything, and to break things."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        connection = await asyncpg.connect(self.admin_url)
        try:
            yield connection
        finally:
            await connection.close()

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self.connected() as connection:
            return list(await connection.fetch(query, *arguments))

    async def value(self, query: str, *arguments: Any) -> Any:
        [row] = await self.fetch(query, *arguments)
        return row[0]

    async def run(self, statements: str) -> None:
        async with self.connected() as connection:
            await connection.execute(statements)

    async def every_row(self, columns: str = "t::text") -> dict[str, list[str]]:
        """Give all that is in it, by table."""
        async with self.connected() as connection:
            return {
                table: [row[0] for row in await connection.fetch(f"SELECT {columns} FROM {table} t ORDER BY 1")]
                for table in sorted(schema.tables())
            }

    async def blocked(self) -> int:
        """Count the service's sessions that wait for a lock."""
        count: int = await self.value(_BLOCKED)
        return count

    async def until_blocked(self, sessions: int = 1) -> None:
        """Return once so many of the service's sessions wait for a lock, which they do for 1.5 s by default."""
        async with self.connected() as connection, asyncio.timeout(20):
            while await connection.fetchval(_BLOCKED) < sessions:
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def locked(self, statement: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """Hold what a statement locks in a foreign transaction, which is committed at the end of the block."""
        async with self.connected() as connection, connection.transaction():
            await connection.execute(statement)
            yield connection


@asynccontextmanager
async def engine_at(url: str, kind: str = "step", **settings: Any) -> AsyncIterator[AsyncEngine]:
    """Make one of a worker's engines: for steps, for the sweep or for the audit."""
    if kind == "audit":
        made = create_audit_engine(url, **settings)
    else:
        made = create_engine(url, has_long_statements=kind == "sweep", **({"pool_size": 3} | settings))
    try:
        yield made
    finally:
        await made.dispose()


async def lacks(url: str) -> list[str]:
    """Give what a worker misses on a database, asked as it asks when it starts."""
    engines = create_engine(url), create_engine(url, has_long_statements=True), create_audit_engine(url)
    try:
        return await schema.problems(*engines)
    finally:
        for engine in engines:
            await engine.dispose()


@contextmanager
def postgres_of_its_own(folder: Path, **settings: Any) -> Iterator[PostgresServer]:
    """Run a server on which nothing was ever run, for tests that change what belongs to a whole server."""
    with folder_in_memory(folder) as place:
        server = PostgresServer(place / "pg", port=free_port(), log=place / "log", fsync=False, **settings)
        server.start()
        yield server
        server.remove()


@contextmanager
def cloned_database(stack: DevStack) -> Iterator[Database]:
    """Make a database with the demo catalogue, and drop it after the block."""
    with database_on(stack.postgres) as database:
        yield database


@contextmanager
def database_on(server: PostgresServer) -> Iterator[Database]:
    """Make it on a server on which setup.sql has run."""
    made = new_database(server)
    yield made
    psql(server, "postgres", "-c", DROP.format(made.name))


CLONE = f'CREATE DATABASE "{{}}" TEMPLATE "{DATABASE}" STRATEGY FILE_COPY'
DROP = 'DROP DATABASE "{}" WITH (FORCE)'


def new_database(server: PostgresServer) -> Database:
    """Clone the database that setup.sql made."""
    made = named_database(server)
    psql(server, "postgres", "-c", CLONE.format(made.name))
    return made


def named_database(server: PostgresServer) -> Database:
    """Name a database that is not there yet."""
    name = f"test_{next(_numbers)}_{uuid.uuid4().hex[:8]}"
    return Database(name, server.url(name, ROLE), server.url(name, "postgres", driver="postgresql"))


@pytest.fixture(scope="session")
async def administrator(stack: DevStack) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A session of the superuser's. A psql for every database would take as long as many a test."""
    connection = await asyncpg.connect(stack.postgres.url("postgres", driver="postgresql"))
    yield connection
    await connection.close()


@pytest.fixture
async def database(stack: DevStack, administrator: "asyncpg.Connection[asyncpg.Record]") -> AsyncIterator[Database]:
    """A fresh database with the demo catalogue."""
    made = named_database(stack.postgres)
    await administrator.execute(CLONE.format(made.name))
    yield made
    await administrator.execute(DROP.format(made.name))


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
    execution_mode: ExecutionMode = ExecutionMode.ACTIVITY
    """What its orders ask for: another only where they are to be those of an earlier build."""

    def order(self, customer: str = "alice", *lines: tuple[str, int], order_id: str = "") -> CheckoutInput:
        """Make an order with an id of its own; one tea-mug unless lines are given."""
        wanted = lines or (("tea-mug", 1),)
        made = tuple(OrderLine(*line) for line in wanted)
        return CheckoutInput(
            order_id or f"t-{uuid.uuid4().hex[:12]}", customer, made, execution_mode=self.execution_mode
        )

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
        self, *, sweep_id: str = "", idle_seconds: float = 0
    ) -> WorkflowHandle[SweepWorkflow, SweepReport]:
        """Start a sweep that takes every order which has stood still for so long."""
        return await self.client.start_workflow(
            SweepWorkflow.run,
            SweepInput(idle_seconds),
            id=sweep_id or f"sweep-{uuid.uuid4()}",
            task_queue=self.task_queue,
        )

    async def sweep(self, *, idle_seconds: float = 0) -> SweepReport:
        """Sweep once, and give the report."""
        return await (await self.start_sweep(idle_seconds=idle_seconds)).result()

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
        return await Audit(self.engine).run_audit(AuditInput(0.0 if at_rest else 3600.0))

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
