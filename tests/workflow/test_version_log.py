"""What a worker says of its version: that it is not current, and how to make it so; that nobody needs it any more."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from adapters import deployment
from adapters.config import WorkerSettings
from adapters.temporal import DATA_CONVERTER
from devstack.stack import ROOT, DevStack
from domain.policies import SEARCH_ATTRIBUTES
from sagafence.devservers.ports import free_port
from sagafence.devservers.process import ChildProcess
from sagafence.devservers.temporal import TemporalServer
from tests.conftest import Database, Shop
from tests.workflow.deployments import Build, is_known, make_current, temporal_cli
from tests.workflow.sagas import how_it_ended, until


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Give what the log says of versions, as it grows."""
    monkeypatch.setattr(deployment, "POLL_SECONDS", 0.2)
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "action", "") == "worker_version":
                lines.append(f"{record.levelname} {record.getMessage()}")

    listener, log = Listener(), logging.getLogger("checkout.worker")
    log.addHandler(listener)
    with caplog.at_level(logging.INFO, logger="checkout.worker"):
        yield lines
    log.removeHandler(listener)


async def until_logged(logged: list[str], part: str) -> str:
    async def is_logged() -> bool:
        return any(part in line for line in logged)

    try:
        await until(is_logged)
    except TimeoutError:
        pytest.fail(f"{part!r} is not among {logged}")
    return next(line for line in logged if part in line)


def settings_of(shop: Shop, build_id: str) -> WorkerSettings:
    return WorkerSettings(task_queue=shop.task_queue, deployment_name=shop.task_queue, build_id=build_id)


async def test_a_worker_whose_version_is_not_current_says_the_command_that_makes_it_so(
    shop: Shop, logged: list[str]
) -> None:
    async with Build(shop, build_id="v1").working():
        following = asyncio.create_task(deployment.follow(lambda: shop.client, settings_of(shop, "v1")))
        line = await until_logged(logged, "is not current")
        command = line.partition("runs: ")[2].split()
        await until(lambda: is_known(shop, "v1"))
        ran = await temporal_cli(shop, *command[1:])
        await until_logged(logged, f"version v1 of {shop.task_queue} is current")
        following.cancel()

    assert line.startswith("WARNING ")
    assert command[0] == "temporal"
    assert ran.returncode == 0, ran.stderr
    assert len(logged) == 2


async def test_worker_py_logs_how_to_make_its_version_current_and_then_that_it_is(
    shop: Shop, stack: DevStack, tmp_path: Path
) -> None:
    settings = {
        "CHECKOUT_DATABASE_URL": shop.database.url,
        "CHECKOUT_TASK_QUEUE": shop.task_queue,
        "CHECKOUT_DEPLOYMENT_NAME": shop.task_queue,
        "CHECKOUT_BUILD_ID": "v1",
        "CHECKOUT_LOG_FILE": str(tmp_path / "saga.log"),
    }
    worker = ChildProcess(
        "worker",
        [sys.executable, str(ROOT / "worker.py")],
        log=tmp_path / "worker.log",
        env=stack.environment(**settings),
        cwd=ROOT,
    )
    handle = await shop.start(shop.order())

    worker.start()
    try:
        await asyncio.to_thread(worker.until, lambda: "is not current, none is" in worker.tail(50), timeout=60)
        [command] = [line.partition("runs: ")[2] for line in worker.tail(50).splitlines() if "runs: " in line]
        await until(lambda: is_known(shop, "v1"))
        ran = await temporal_cli(shop, *command.split()[1:])
        ended = await how_it_ended(handle)
        status = await asyncio.to_thread(worker.stop)
    finally:
        worker.kill()

    assert ran.returncode == 0, ran.stderr
    assert ended == "completed"
    assert status == 0
    assert "Traceback" not in worker.tail(50)


async def test_an_unversioned_worker_says_when_its_task_queue_belongs_to_a_version(
    shop: Shop, logged: list[str]
) -> None:
    following = asyncio.create_task(deployment.follow(lambda: shop.client, settings_of(shop, "")))
    async with Build(shop, build_id="v1").working():
        await make_current(shop, "v1")
        line = await until_logged(logged, "has no CHECKOUT_BUILD_ID")
        ran = await temporal_cli(shop, *line.partition("runs: ")[2].split()[1:])
        await until_logged(logged, "it gets new orders")
        following.cancel()

    assert line.startswith("WARNING ")
    assert ran.returncode == 0, ran.stderr
    assert len(logged) == 2


class Refusing:
    """A client that may not look."""

    namespace = "default"

    def __init__(self, status: RPCStatusCode) -> None:
        self._status = status
        self.workflow_service = self
        self.looks = 0

    async def describe_worker_deployment(self, _request: object) -> object:
        self.looks += 1
        raise RPCError("no", self._status, b"")

    describe_task_queue = describe_worker_deployment


@pytest.mark.parametrize("status", [RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED])
@pytest.mark.parametrize(("build_id", "lines"), [("v1", 1), ("", 0)])
async def test_a_worker_that_may_not_read_deployments_logs_it_once_and_polls_again(
    shop: Shop, logged: list[str], monkeypatch: pytest.MonkeyPatch, status: RPCStatusCode, build_id: str, lines: int
) -> None:
    monkeypatch.setattr(deployment, "POLL_SECONDS", 0.01)
    refusing = Refusing(status)
    following = asyncio.create_task(
        deployment.follow(lambda: refusing, settings_of(shop, build_id))  # type: ignore[arg-type, return-value]
    )

    async def has_looked_again() -> bool:
        return refusing.looks >= 3

    await until(has_looked_again)
    following.cancel()

    assert len(logged) == lines
    assert all("cannot see" in line and "--build-id v1" in line for line in logged)


@pytest.fixture
def quick_server(tmp_path: Path) -> Iterator[TemporalServer]:
    """A Temporal that looks every second whether a version is drained. The usual one takes minutes."""
    looks = ("VersionDrainageStatusVisibilityGracePeriod", "VersionDrainageStatusRefreshInterval")
    server = TemporalServer(
        port=free_port(),
        ui_port=None,
        log=tmp_path / "temporal.log",
        search_attributes=SEARCH_ATTRIBUTES,
        dynamic_config={f"matching.wv.{name}": "1s" for name in looks},
    )
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def quick_shop(quick_server: TemporalServer, engine: AsyncEngine, database: Database) -> Shop:
    client = await Client.connect(quick_server.address, data_converter=DATA_CONVERTER)
    return Shop(client, engine, database)


async def test_the_workers_of_an_old_build_say_when_no_order_needs_them_any_more(
    quick_shop: Shop, logged: list[str]
) -> None:
    shop = quick_shop
    v1, v2 = Build(shop, build_id="v1"), Build(shop, build_id="v2")
    order = shop.order("alice")
    gate = v1.gates.hold(order, "charge_payment", "before")

    async with v1.working(), v2.working():
        await make_current(shop, "v1")
        handle = await shop.start(order)
        await gate.reached()
        following = asyncio.create_task(deployment.follow(lambda: shop.client, settings_of(shop, "v1")))
        await until_logged(logged, "is current")
        await make_current(shop, "v2")
        await until_logged(logged, "is not current any more, v2 is")
        drained_too_early = [line for line in logged if "drained" in line]
        described = await handle.describe()
        gate.open()
        ended = await how_it_ended(handle)
        await until_logged(logged, "is drained")
        following.cancel()

    assert described.status is WorkflowExecutionStatus.RUNNING
    assert drained_too_early == []
    assert ended == "completed"
    assert [line.split()[0] for line in logged] == ["INFO"] * 3
