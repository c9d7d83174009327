"""The API on a test's own database and task queue, served by the real server in this process."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from adapters.database import create_reader_engine
from client.batcher import Batcher
from devstack.stack import DevStack
from http_api.app import build_door
from http_api.keys import KeyFile, Scope
from http_api.rates import Rates
from http_api.reads import Reads
from http_api.server import Server
from http_api.services import Services
from http_api.tail import Tail
from http_api.temporal import Temporal
from sagafence import DatabaseUnavailable
from sagafence.devservers.ports import free_port
from tests.conftest import Shop, cloned_database

UI = "http://ui.test"
ALL = (Scope.BUY, Scope.READ, Scope.OPERATE)
TEA = {"customer": "alice", "lines": [{"sku": "tea-mug", "quantity": 1}]}


@dataclass
class Api:
    """A server, and calls of it."""

    url: str
    services: Services
    server: Server
    http: httpx.AsyncClient
    keys: KeyFile
    key: str
    """One that may do everything, of a caller whom no other test has: orders of all tests are in one Temporal."""

    def key_for(self, *scopes: Scope, name: str = "", customers: tuple[str, ...] | None = None) -> str:
        """Make a key."""
        return self.keys.create(name or uuid.uuid4().hex, scopes, customers)

    async def call(self, method: str, path: str, *, key: str | None = None, **more: Any) -> httpx.Response:
        """Make a request with a key; with all rights by default."""
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"} | more.pop("headers", {})
        return await self.http.request(method, path, headers=headers, **more)

    async def get(self, path: str, **more: Any) -> Any:
        """Read something that is there."""
        answer = await self.call("GET", path, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def place(
        self, order: dict[str, Any] = TEA, *, idempotency_key: str = "", wait: int = 0, alone: bool = False, **more: Any
    ) -> httpx.Response:
        """Place an order, under a new key unless one is given."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        path = f"/v1/orders?wait={wait}{'&own_workflow=true' if alone else ''}"
        return await self.call("POST", path, headers=headers, json=order, **more)

    async def completed(self, order: dict[str, Any] = TEA) -> str:
        """Place an order and wait for its end; return its id."""
        answer = await self.place(order, wait=20)
        assert (answer.status_code, answer.json()["status"]) == (201, "completed"), answer.text
        return str(answer.json()["order_id"])


@asynccontextmanager
async def serving(
    client: Client, task_queue: str, database_url: str, folder: Path, *, together: bool = False
) -> AsyncIterator[Api]:
    """Serve inside the block."""
    engine = create_reader_engine(database_url)
    reads, keys = Reads(engine), KeyFile(folder / "keys.json")
    temporal = Temporal(client, task_queue, UI)
    batcher = Batcher(lambda: temporal.checkouts) if together else None
    services = Services(reads, Tail(reads), temporal, keys, None, Rates(10_000), batcher)
    port = free_port()
    server = Server(build_door(services), services, host="127.0.0.1", port=port)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            yield Api(url, services, server, http, keys, keys.create(f"tester {uuid.uuid4()}", ALL, None))
    finally:
        server.should_exit = True
        await task
        await engine.dispose()


def reader_url(stack: DevStack, shop: Shop) -> str:
    """Return the address of a test's database for the API's role."""
    return stack.postgres.url(shop.database.name, "checkout_reader")


@pytest.fixture
async def api(shop: Shop, stack: DevStack, tmp_path: Path) -> AsyncIterator[Api]:
    """The API, with no worker running yet."""
    async with serving(shop.client, shop.task_queue, reader_url(stack, shop), tmp_path) as running:
        yield running


@pytest.fixture
async def grouping(shop: Shop, stack: DevStack, tmp_path: Path) -> AsyncIterator[Api]:
    """The API that puts orders into batches, with no worker running yet."""
    async with serving(shop.client, shop.task_queue, reader_url(stack, shop), tmp_path, together=True) as running:
        yield running


@pytest.fixture(scope="session")
async def shared(stack: DevStack, client: Client, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """One API for all tests that ask of it what needs no worker and no database of their own."""
    with cloned_database(stack) as database:
        url = stack.postgres.url(database.name, "checkout_reader")
        async with serving(client, f"test-{uuid.uuid4().hex}", url, tmp_path_factory.mktemp("shared")) as running:
            yield running


@pytest.fixture
async def worker(shop: Shop) -> AsyncIterator[Worker]:
    """A worker for the API's orders."""
    async with shop.working() as running:
        yield running


def without_postgres(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the API read no order any more."""

    async def away(_order_id: str) -> None:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(api.services.reads, "order", away)


@dataclass(frozen=True)
class Sent:
    """One event of a stream."""

    event: str
    id: str
    data: Any


async def stream(api: Api, order_id: str, *, last: int | None = None, until: str = "") -> list[Sent]:
    """Read a stream to its end, or to the event of a status."""
    headers = {"Authorization": f"Bearer {api.key}"} | ({} if last is None else {"Last-Event-ID": str(last)})
    sent: list[Sent] = []
    async with asyncio.timeout(30), api.http.stream("GET", f"/v1/orders/{order_id}/stream", headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                sent.append(Sent(fields["event"], fields.get("id", ""), json.loads(fields["data"])))
                if until and sent[-1].data.get("status") == until:
                    break
                fields = {}
            else:
                fields = {}
    return sent
