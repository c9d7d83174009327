"""A worker that starts while its servers come and go waits for them, and says what only a person can mend."""

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from typing import Any

import psutil
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import PollerBehaviorAutoscaling

from adapters import readiness
from adapters.config import WorkerSettings
from adapters.database import create_audit_engine, create_engine
from devstack.stack import ROOT, DevStack
from sagafence.devservers import temporal
from sagafence.devservers.ports import free_port
from tests.conftest import Database, Shop
from tests.integration.commands import DEADLINE_SECONDS, Commands

Engines = tuple[AsyncEngine, AsyncEngine, AsyncEngine]


@pytest.fixture
async def engines(database: Database) -> AsyncIterator[Engines]:
    """The three that a worker has."""
    made = (
        create_engine(database.url),
        create_engine(database.url, has_long_statements=True),
        create_audit_engine(database.url),
    )
    yield made
    for engine in made:
        await engine.dispose()


class Flaky:
    """A client whose first calls for the search attributes find nobody."""

    def __init__(self, client: Client, failures: int) -> None:
        self._client = client
        self.failures = failures
        self.namespace = client.namespace

    @property
    def operator_service(self) -> "Flaky":
        return self

    async def list_search_attributes(self, request: Any) -> Any:
        if self.failures:
            self.failures -= 1
            raise RPCError("transport error", RPCStatusCode.UNAVAILABLE, b"")
        return await self._client.operator_service.list_search_attributes(request)


async def test_a_worker_waits_for_a_temporal_that_goes_away_again_while_it_starts(
    engines: Engines, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky(client, failures=3)

    async def connect(**_: Any) -> Flaky:
        return flaky

    monkeypatch.setattr(readiness, "connect", connect)

    usable: object = await readiness.wait_until_usable(
        WorkerSettings(startup_timeout_seconds=30), readiness.Engines(*engines)
    )

    assert usable is flaky
    assert flaky.failures == 0


async def test_a_temporal_that_stays_away_is_reported_at_the_deadline(
    engines: Engines, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(**_: Any) -> Flaky:
        return Flaky(client, failures=1_000)

    monkeypatch.setattr(readiness, "connect", connect)

    with pytest.raises(readiness.CannotStart, match="did not answer in time: transport error"):
        await readiness.wait_until_usable(WorkerSettings(startup_timeout_seconds=1), readiness.Engines(*engines))


@pytest.mark.parametrize(("connections", "tasks"), [(1, 10), (20, 20), (500, 500)])
async def test_no_more_orders_are_done_at_once_than_have_connections_and_idle_polls_leave_them_their_slots(
    shop: Shop, connections: int, tasks: int
) -> None:
    async with shop.working(database_pool_size=connections) as working:
        made = working.config()

    polls = made["workflow_task_poller_behavior"]
    assert isinstance(polls, PollerBehaviorAutoscaling)
    assert made["max_concurrent_workflow_tasks"] == tasks
    # As many again may wait for tasks of cached workflows, which the local-first mode has none of.
    assert polls.minimum <= polls.initial <= polls.maximum <= tasks / 4


# What only a person can put right ----------------------------------------------------------------------


def temporal_cli(stack: DevStack, *arguments: str) -> None:
    command = [str(temporal._binary()), *arguments, "--address", stack.temporal.address, "--disable-config-file"]
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, stdin=subprocess.DEVNULL)


def refusal_of(commands: Commands, **environment: str) -> str:
    """Start a worker that must refuse to, with all the time for waiting that it has by default; give what it said."""
    started = commands.worker(**environment)

    status = started.wait(DEADLINE_SECONDS)

    reported = started.tail(50)
    assert status == 1, reported
    assert "Traceback" not in reported
    assert "ready" not in reported
    return reported


def test_a_worker_refuses_a_namespace_that_is_not_there(commands: Commands) -> None:
    reported = refusal_of(commands, TEMPORAL_NAMESPACE="nowhere")

    assert "Temporal has no namespace nowhere." in reported
    assert "temporal operator namespace create --namespace nowhere" in reported


def namespace_with(stack: DevStack, attributes: dict[str, str]) -> str:
    """Make a namespace with these search attributes, by name and type, and give its name."""
    namespace = f"bare-{uuid.uuid4().hex[:8]}"
    temporal_cli(stack, "operator", "namespace", "create", "--namespace", namespace)
    for name, kind in attributes.items():
        temporal_cli(
            stack,
            *("operator", "search-attribute", "create", "--namespace", namespace, "--name", name, "--type", kind),
        )
    return namespace


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        ({}, ["OrderStatus", "FailedStep"]),
        ({"OrderStatus": "Keyword"}, ["FailedStep"]),
    ],
    ids=["none", "one of two"],
)
def test_a_worker_refuses_a_namespace_without_its_search_attributes(
    known: dict[str, str], missing: list[str], commands: Commands, stack: DevStack
) -> None:
    namespace = namespace_with(stack, known)

    reported = refusal_of(commands, TEMPORAL_NAMESPACE=namespace)

    assert f"Temporal's namespace {namespace} lacks search attributes: {', '.join(missing)}." in reported
    arguments = " ".join(f"--name {name} --type Keyword" for name in missing)
    assert f"temporal operator search-attribute create --namespace {namespace} {arguments}" in reported


@pytest.mark.parametrize(
    ("known", "others", "missing"),
    [
        ({"OrderStatus": "Keyword", "FailedStep": "Text"}, {"FailedStep": "Text"}, []),
        ({"OrderStatus": "KeywordList"}, {"OrderStatus": "KeywordList"}, ["FailedStep"]),
    ],
    ids=["one of two", "and one missing"],
)
def test_a_search_attribute_of_another_type_is_reported_and_the_commands_fix_it(
    known: dict[str, str], others: dict[str, str], missing: list[str], commands: Commands, stack: DevStack
) -> None:
    namespace = namespace_with(stack, known)

    reported = refusal_of(commands, TEMPORAL_NAMESPACE=namespace)
    for command in re.findall(r"^Run: temporal (operator search-attribute .*)$", reported, re.MULTILINE):
        temporal_cli(stack, *command.split())
    commands.ready_worker(TEMPORAL_NAMESPACE=namespace)

    for name, kind in others.items():
        assert f"namespace {namespace} has search attribute {name} as {kind}; it has to be Keyword." in reported
    assert [f"lacks search attributes: {name}." in reported for name in missing] == [True] * len(missing)
    assert ("lacks" in reported) == bool(missing)


@pytest.mark.parametrize("where", ["no-such-folder/saga.log", ""], ids=["no folder", "a folder"])
def test_a_worker_refuses_a_log_that_it_cannot_write(where: str, commands: Commands, tmp_path: Path) -> None:
    reported = refusal_of(commands, CHECKOUT_LOG_FILE=str(tmp_path / where))

    assert "The log cannot be written" in reported
    assert "CHECKOUT_LOG_FILE" in reported


@pytest.mark.parametrize("name", ["CHECKOUT_DATABASE_PASSWORD_FILE", "CHECKOUT_DATABASE_URL_FILE"])
def test_a_worker_refuses_a_secrets_file_that_is_not_there(name: str, commands: Commands, tmp_path: Path) -> None:
    output = refusal_of(commands, **{name: str(tmp_path / "missing")})

    assert f"{name} cannot be read: No such file or directory" in output


async def test_a_worker_that_refuses_to_start_makes_no_schedule_and_takes_no_order(
    commands: Commands, own_shop: Shop, tmp_path: Path
) -> None:
    order = own_shop.order("alice")
    await own_shop.start(order)

    await asyncio.to_thread(refusal_of, commands, CHECKOUT_LOG_FILE=str(tmp_path))

    assert await own_shop.order_status(order) is None
    with pytest.raises(RPCError, match="not found"):
        await own_shop.client.get_schedule_handle(f"sweep-{own_shop.task_queue}").describe()


# A refusal must not be waited for like an outage, and says something else.
@pytest.mark.parametrize(
    ("case", "advice"),
    [
        ("no such database", "Check CHECKOUT_DATABASE_URL."),
        ("no such role", "Check CHECKOUT_DATABASE_URL."),
        ("no schema", "setup.sql"),
    ],
)
def test_a_worker_that_cannot_start_says_why_and_what_to_do(
    case: str, advice: str, commands: Commands, stack: DevStack, database: Database
) -> None:
    url = {
        "no such database": database.url.replace(database.name, "nowhere"),
        "no such role": database.url.replace("checkout@", "stranger@"),
        "no schema": stack.postgres.url("template1", "postgres"),
    }[case]

    assert advice in refusal_of(commands, CHECKOUT_DATABASE_URL=url)


# A server that does not answer ----------------------------------------------------------------------------


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """Listen on a port, let everybody in, and never say a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


def away(server: str, port: int) -> dict[str, str]:
    """Give the settings that look for a server where nobody is."""
    if server == "Postgres":
        return {"CHECKOUT_DATABASE_URL": f"postgresql://checkout@127.0.0.1:{port}/checkout"}
    return {"TEMPORAL_ADDRESS": f"127.0.0.1:{port}"}


@pytest.mark.parametrize("server", ["Postgres", "Temporal"])
def test_a_server_that_does_not_answer_is_given_up_when_the_settings_say(server: str, commands: Commands) -> None:
    began = time.monotonic()

    reported = refusal_of(commands, CHECKOUT_STARTUP_TIMEOUT_SECONDS="3", **away(server, free_port()))

    assert f"waiting for {server}" in reported
    assert "did not answer in time" in reported
    assert f"{server} did not" in reported or f"{server} at 127.0.0.1" in reported
    assert 2 < time.monotonic() - began < 30


@pytest.mark.parametrize("number", [SIGTERM, SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("server", ["Postgres", "Temporal"])
def test_a_worker_that_is_stopped_while_it_waits_ends_at_once_and_well(
    server: str, number: Signals, commands: Commands
) -> None:
    started = commands.worker(**away(server, free_port()))
    started.until(lambda: f"waiting for {server}" in started.tail(50), timeout=DEADLINE_SECONDS)

    started.signal(number)

    assert started.wait(10) == 0
    assert "Traceback" not in started.tail(50)
    assert "ready" not in started.tail(50)


@pytest.mark.parametrize("server", ["Postgres", "Temporal"])
def test_a_worker_that_is_stopped_while_a_server_keeps_it_waiting_ends_at_once_and_well(
    server: str, commands: Commands
) -> None:
    with black_hole() as port:
        started = commands.worker(**away(server, port))
        started.until(lambda: connected_to(started.pid, port), timeout=DEADLINE_SECONDS)

        started.signal(SIGTERM)

        assert started.wait(10) == 0
    assert "Traceback" not in started.tail(50)


_CATCHES_SIGTERM = 1 << (SIGTERM - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("arguments", "status"), [((), 0), (("--check",), 1)], ids=["works", "checks"])
def test_a_worker_takes_sigterm_before_it_has_imported_anything(
    arguments: tuple[str, ...], status: int, commands: Commands
) -> None:
    # Of a signal that PID 1 of a container has no handler for the kernel tells it nothing.
    with subprocess.Popen([sys.executable, ROOT / "worker.py", *arguments], env=commands.environment) as starting:
        process = Path("/proc") / str(starting.pid)
        try:
            while not int(re.findall(r"SigCgt:\s(\w+)", (process / "status").read_text())[0], 16) & _CATCHES_SIGTERM:
                assert starting.poll() is None
            assert "temporal_sdk_bridge" not in (process / "maps").read_text()
            starting.terminate()
            assert starting.wait(DEADLINE_SECONDS) == status
        finally:
            starting.kill()


def connected_to(pid: int, port: int) -> bool:
    # An address that is not connected is an empty tuple.
    return any(found.raddr[1:] == (port,) for found in psutil.Process(pid).net_connections("tcp"))
