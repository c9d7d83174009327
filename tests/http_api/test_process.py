"""api.py as a process: what it says when it cannot run, how it ends, and that no accepted order is lost with it."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from devstack.stack import ROOT, DevStack
from http_api.keys import KeyFile
from sagafence.devservers.ports import free_port
from sagafence.devservers.process import ChildProcess
from tests.conftest import Shop
from tests.http_api.conftest import ALL, TEA, reader_url
from tests.workflow.auth_proxy import AuthProxy
from tests.workflow.sagas import until

API = [sys.executable, str(ROOT / "api.py")]


class Process:
    """An api.py on a test's database, and its address."""

    def __init__(self, stack: DevStack, shop: Shop, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = KeyFile(folder / "keys.json").create(uuid.uuid4().hex, ALL, None)
        self.environment = stack.environment(
            CHECKOUT_DATABASE_URL=reader_url(stack, shop),
            CHECKOUT_TASK_QUEUE=shop.task_queue,
            CHECKOUT_API_PORT=str(self.port),
            CHECKOUT_API_KEYS_FILE=str(folder / "keys.json"),
        )
        self._number = 0

    async def start(self, *, command: Sequence[str] = API, **settings: str) -> ChildProcess:
        self._number += 1
        child = ChildProcess(
            "api", command, log=self.folder / f"api-{self._number}.log", env={**self.environment, **settings}, cwd=ROOT
        )
        child.start()

        async def is_ready() -> bool:
            assert child.running, child.tail(20)
            return "ready: http" in child.tail(20)

        await until(is_ready)
        return child

    def caller(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30)


@pytest.fixture
def process(stack: DevStack, shop: Shop, tmp_path: Path) -> Process:
    return Process(stack, shop, tmp_path)


def run(environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [*API, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


async def test_sigterm_ends_it_within_three_seconds_with_fifty_streams_open(process: Process) -> None:
    child = await process.start()
    async with process.caller() as http:
        placed = await http.post("/v1/orders", json=TEA, headers={"Idempotency-Key": "once"})
        path = placed.json()["links"]["stream"]

        async def read() -> None:
            async with http.stream("GET", path) as answer:
                opened.release()
                async for _ in answer.aiter_lines():
                    pass

        opened = asyncio.Semaphore(0)
        reading = [asyncio.create_task(read()) for _ in range(50)]
        for _ in reading:
            await opened.acquire()
        os.kill(child.pid, signal.SIGTERM)

        async with asyncio.timeout(3):
            await asyncio.gather(*reading)

            async def is_gone() -> bool:
                return not child.running

            await until(is_gone)

    assert child.returncode == 0
    assert "stopped" in child.tail(5)


async def test_a_shell_that_allows_few_open_files_costs_no_connection(process: Process, shop: Shop) -> None:
    order = shop.order()
    await shop.accept_by_hand(order)
    child = await process.start(command=["sh", "-c", 'ulimit -S -n 60; exec "$@"', "sh", *API])
    async with process.caller() as http, contextlib.AsyncExitStack() as streams:
        for _ in range(80):
            stream = await streams.enter_async_context(http.stream("GET", f"/v1/orders/{order.order_id}/stream"))
            assert stream.status_code == 200
        assert (await http.get("/readyz")).json() == {"postgres": "ok", "temporal": "ok"}
    child.stop()


@pytest.mark.parametrize("moment", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_0_whatever_is_away(process: Process, moment: signal.Signals) -> None:
    away = f"127.0.0.1:{free_port()}"
    child = await process.start(TEMPORAL_ADDRESS=away, CHECKOUT_DATABASE_URL=f"postgresql://r@{away}/checkout")
    async with process.caller() as http:
        assert (await http.get("/readyz")).json() == {"postgres": "away", "temporal": "away"}

    os.kill(child.pid, moment)

    async def is_gone() -> bool:
        return not child.running

    await until(is_gone)
    assert child.returncode == 0


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1800)])])
async def test_every_acknowledged_order_ends_once_however_often_the_api_is_killed(
    process: Process, shop: Shop, kills: int
) -> None:
    acknowledged: dict[str, str] = {}
    is_over = asyncio.Event()

    async def buy(caller: int) -> None:
        """Place one order after another, and repeat each until it is acknowledged."""
        async with process.caller() as http:
            for number in itertools.count():
                key = f"{caller}-{number}"
                while key not in acknowledged:
                    with contextlib.suppress(httpx.TransportError):
                        answer = await http.post("/v1/orders", json=TEA, headers={"Idempotency-Key": key})
                        assert answer.status_code in {200, 201, 503}, answer.text
                        if answer.status_code != 503:
                            acknowledged[key] = answer.json()["order_id"]
                    await asyncio.sleep(0.05)
                if is_over.is_set():
                    return

    child = await process.start()
    async with shop.working():
        buying = asyncio.gather(*(buy(caller) for caller in range(4)))
        for _ in range(kills):
            await asyncio.sleep(random.uniform(0.05, 0.4))
            child.kill()
            child = await process.start()
        is_over.set()
        await buying

        async def have_ended() -> bool:
            return await shop.database.value("SELECT count(*) FROM orders") == len(acknowledged) and not bool(
                await shop.database.value("SELECT count(*) FROM orders WHERE status NOT IN ('completed', 'rejected')")
            )

        await until(have_ended)
    child.stop()

    rows = await shop.database.fetch("SELECT order_id FROM orders")
    assert sorted(acknowledged.values()) == sorted(row[0] for row in rows)
    assert (await shop.audit()).is_clean


async def test_a_new_api_key_for_temporal_is_taken_without_a_restart(
    process: Process, stack: DevStack, tmp_path: Path
) -> None:
    key_file = tmp_path / "temporal-key"
    key_file.write_text("test1\n")
    async with AuthProxy(stack.temporal.address, api_key="test1") as proxy:
        child = await process.start(
            TEMPORAL_ADDRESS=proxy.address, TEMPORAL_TLS="false", CHECKOUT_TEMPORAL_API_KEY_FILE=str(key_file)
        )
        async with process.caller() as http:

            async def place(key: str) -> int:
                return (await http.post("/v1/orders", json=TEA, headers={"Idempotency-Key": key})).status_code

            before = await place("before")
            await proxy.ask_for(api_key="test2")
            refused = await place("after")
            key_file.write_text("test2\n")

            async def is_let_in() -> bool:
                return await place("after") == 201

            await until(is_let_in)
        child.stop()

    assert (before, refused) == (201, 503)


async def test_a_role_that_may_write_is_refused(process: Process, shop: Shop) -> None:
    code, said = run({**process.environment, "CHECKOUT_DATABASE_URL": shop.database.url})

    assert code == 1
    assert "The API logs into Postgres as checkout, which may write." in said
    assert "Set CHECKOUT_DATABASE_URL to one with the role checkout_reader." in said


async def test_a_port_that_is_taken_is_named_with_what_to_set(process: Process) -> None:
    child = await process.start()

    code, said = run(dict(process.environment))

    child.stop()
    assert (code, "Traceback" in said) == (1, False)
    assert f"The API cannot listen on 127.0.0.1:{process.port}: Address already in use." in said


async def test_an_address_that_is_not_known_is_named_with_why(process: Process) -> None:
    code, said = run({**process.environment, "CHECKOUT_API_HOST": "no-such-host.invalid"})

    assert (code, "Traceback" in said) == (1, False)
    assert "The API cannot listen on no-such-host.invalid:" in said
    assert "Unknown error" not in said


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("CHECKOUT_API_PORT", "80000", "CHECKOUT_API_PORT: "),
        ("CHECKOUT_API_REQUESTS_PER_SECOND", "0", "CHECKOUT_API_REQUESTS_PER_SECOND: "),
        ("CHECKOUT_API_OIDC_ISSUER", "https://id.test", "set both, or neither"),
        ("CHECKOUT_API_KEYS_FILE", str(ROOT), "CHECKOUT_API_KEYS_FILE: the API keys in"),
        ("CHECKOUT_API_PROT", "1", "CHECKOUT_API_PROT: there is no such setting"),
        ("TEMPORAL_ADDRESS", "no port", "TEMPORAL_ADDRESS: "),
    ],
)
async def test_a_wrong_setting_is_named(process: Process, setting: str, value: str, said: str) -> None:
    code, output = run({**process.environment, setting: value})

    assert (code, "Traceback" in output) == (2, False)
    assert said in output


def test_wrong_usage_is_answered_with_the_usage() -> None:
    environment = dict(os.environ)

    assert run(environment, "--nonsense")[0] == 2
    assert run(environment, "--help")[0] == 0
    assert "python api.py" in run(environment, "--help")[1]
    code, release = run(environment, "--version")
    assert (code, bool(re.match(r"checkout-saga \d", release))) == (0, True)
    code, description = run(environment, "--openapi")
    assert (code, '"/v1/orders"' in description) == (0, True)


def keys(environment: Mapping[str, str], *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "http_api.keys", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def unread_list(environment: Mapping[str, str]) -> tuple[int, bytes]:
    """List the keys to a reader who has gone, as in `| head`; return the status and what was said of it."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        command = [sys.executable, "-m", "http_api.keys", "list"]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False
        )
    return done.returncode, done.stderr


def test_the_command_makes_lists_and_revokes_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    environment = {**os.environ, "CHECKOUT_API_KEYS_FILE": str(file)}

    code, secret, _ = keys(environment, "create", "shop", "--scope", "buy", "--customer", "alice")
    found = KeyFile(file).find(secret.strip())
    assert (code, found is not None) == (0, True)
    key_id = secret.split("_")[1]
    assert f"{key_id}  shop  buy  alice  made " in keys(environment, "list")[1]
    assert secret.split("_", 2)[2].strip() not in keys(environment, "list")[1]
    assert keys(environment, "revoke", key_id)[0] == 0
    assert "revoked" in keys(environment, "list")[1]
    assert KeyFile(file).find(secret.strip()) is None
    assert unread_list(environment) == (0, b"")

    for wrong in (
        ("create", "shop"),
        ("create", " ", "--scope", "buy"),
        ("create", "x", "--scope", "own"),
        ("revoke", "x"),
    ):
        code, _, said = keys(environment, *wrong)
        assert (code, "Traceback" in said) == (2, False), wrong
    code, _, said = keys(
        {**environment, "CHECKOUT_API_KEYS_FILE": str(tmp_path / "no" / "keys")}, "create", "x", "--scope", "buy"
    )
    assert (code, "cannot be written" in said) == (1, True)
