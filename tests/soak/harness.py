"""Where a soak plays: both servers on disk, several worker.py, and the way into each of them."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import psutil
from temporalio.client import Client
from temporalio.service import RetryConfig

from adapters.temporal import DATA_CONVERTER
from client.checkouts import Checkouts
from devstack.stack import DATABASE, ROLE, DevStack, psql
from domain.policies import CHECKOUT_TASK_QUEUE
from http_api.keys import KeyFile, Scope
from tests.faults.lab.proxy import Proxy
from tests.soak.catalogue import Catalogue, seeding
from tests.soak.worker import REFUSED
from tests.workers import Workers, behind

AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What a question to Postgres may raise while it restarts."""
_ADMIN = "soak"
_T = TypeVar("_T")


class SoakFailed(Exception):
    """What must not happen has happened. The message says what."""


class Harness:
    """Both servers, with Postgres as durable as it comes and Temporal on a file, and the workers.

    The last worker reaches both servers through a link each.
    """

    def __init__(self, folder: Path, *, workers: int) -> None:
        self.folder = folder
        self._stack = DevStack(folder, keep=True)
        self.postgres = self._stack.postgres
        self.temporal = self._stack.temporal
        self.workers = Workers(self._stack, folder)
        self.links: dict[str, Proxy] = {}
        self.password_file = folder / "password"
        self.refused = folder / "refused"
        """Where the workers read what Postgres refuses; see tests/soak/worker.py."""
        self.api_url = f"http://127.0.0.1:{self._stack.ports.api}"
        self.api_key = KeyFile(self._stack.api_keys_file).create("soak", tuple(Scope), None)
        self._wanted = workers
        # Threads that live as long as what they start (see `ChildProcess`).
        self._hands = ThreadPoolExecutor(max_workers=workers + 4, thread_name_prefix="hands")

    def start(self) -> None:
        self._stack.start()
        self.refused.mkdir(exist_ok=True)
        self.password_file.write_text("password-0\n", encoding="utf-8")
        psql(self.postgres, DATABASE, "-c", f"ALTER ROLE {ROLE} PASSWORD 'password-0'")
        self.postgres.ask_for_password(DATABASE, ROLE)
        for number in range(self._wanted):
            if number == self._wanted - 1 > 0:
                self._link_up()
            database_url = f"postgresql://{ROLE}@127.0.0.1:{self.postgres.port}/{DATABASE}"
            self.workers.start(
                *("-m", "tests.soak.worker"),
                **behind(self._stack, database_url, **self.links),
                **{REFUSED: str(self.refused)},
                CHECKOUT_LOG_LEVEL="WARNING",
                CHECKOUT_SWEEP_EVERY_SECONDS="10",
                CHECKOUT_DATABASE_PASSWORD_FILE=str(self.password_file),
            )
        self.api = self._stack.start_api(CHECKOUT_API_REQUESTS_PER_SECOND="10000", CHECKOUT_LOG_LEVEL="WARNING")

    async def by_hand(self, act: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._hands, lambda: act(*arguments, **named))

    def stop(self) -> None:
        """Stop everything, also in the middle of a fault. The data stay until `remove`."""
        self.workers.kill()
        self._hands.shutdown(cancel_futures=True)
        self.workers.kill()
        for link in self.links.values():
            link.stop()
        self._stack.stop()

    def remove(self) -> None:
        self.postgres.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def admin_url(self) -> str:
        return self.postgres.url(DATABASE, driver="postgresql")

    @property
    def saga_log(self) -> Path:
        return Path(self._stack.environment()["CHECKOUT_LOG_FILE"])

    async def admin(self, **settings: str) -> asyncpg.Connection:
        """Open a superuser's connection with timeouts of its own; it never counts as one of the service's.

        It can write whatever the database's setting is.
        """
        own = {"application_name": _ADMIN, "default_transaction_read_only": "off", **settings}
        return await asyncpg.connect(self.admin_url, timeout=10, command_timeout=120, server_settings=own)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[asyncpg.Connection]:
        async with AsyncExitStack() as closing:
            connection = await self.admin()
            closing.push_async_callback(_hang_up, connection)
            yield connection

    async def seed(self, shop: Catalogue, broken: list[tuple[str, str]]) -> None:
        async with self.asking() as connection:
            await connection.execute(seeding(shop))
            await connection.copy_records_to_table(
                "broken", schema_name="soak", records=broken, columns=["order_id", "step"]
            )

    async def client(self) -> Client:
        long_query = RetryConfig(max_interval_millis=1_000, max_elapsed_time_millis=5_000, max_retries=20)
        return await Client.connect(self.temporal.address, data_converter=DATA_CONVERTER, retry_config=long_query)

    def checkouts(self, client: Client) -> Checkouts:
        return Checkouts(client, CHECKOUT_TASK_QUEUE, f"http://127.0.0.1:{self._stack.ports.ui}")

    def sizes(self) -> dict[str, int]:
        database = self.folder / "temporal.db"
        files = {"temporal.db": database, "temporal.db-wal": database.with_name("temporal.db-wal")}
        return {name: file.stat().st_size if file.exists() else 0 for name, file in files.items()}

    def cpu_seconds(self) -> dict[str, float]:
        """Measure what each part has taken of the processors since its process was started."""
        pids = {"the soak itself": os.getpid(), "postgres": self.postgres.pid, "temporal": self.temporal.pid}
        pids["api"] = self.api.pid
        pids |= {f"worker {number}": worker.pid for number, worker in enumerate(self.workers)}
        return {name: round(_cpu_seconds(pid, with_children=name == "postgres"), 1) for name, pid in pids.items()}

    def _link_up(self) -> None:
        ports = {"postgres": self.postgres.port, "temporal": self.temporal.port}
        for number, (name, port) in enumerate(ports.items()):
            self.links[name] = Proxy(port, seed=number)
            self.links[name].start()


def _cpu_seconds(pid: int, *, with_children: bool) -> float:
    spent = 0.0
    process = psutil.Process(pid)
    for one in [process, *(process.children(recursive=True) if with_children else [])]:
        with contextlib.suppress(psutil.NoSuchProcess):  # a session may end while it is looked at
            times = one.cpu_times()
            spent += times.user + times.system + (times.children_user + times.children_system if with_children else 0)
    return float(spent)


async def _hang_up(connection: Any) -> None:
    try:
        await connection.close(timeout=5)
    except AWAY:
        connection.terminate()
