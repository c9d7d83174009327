"""A running worker takes a new API key and new certificates for Temporal from their files, and goes on."""

import asyncio
import logging
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.worker import Worker

from adapters import temporal_credentials
from adapters.temporal import connect
from adapters.worker_run import use_client
from client import maintenance
from devstack.stack import DevStack
from tests.conftest import Shop
from tests.workflow.auth_proxy import AuthProxy
from tests.workflow.sagas import until

CERTIFICATES = Path(__file__).parent / "certificates"


def server_side(name: str) -> ssl.SSLContext:
    """A server's certificate of one CA, which asks clients for one of the same CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / f"{name}-server.pem", CERTIFICATES / f"{name}-server.key")
    context.load_verify_locations(CERTIFICATES / f"{name}-ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return context


def put(folder: Path, name: str, *kinds: str) -> None:
    """Write a CA's certificate, and the client's with its key, where the worker looks for them."""
    for kind in kinds or ("ca.pem", "client.pem", "client.key"):
        shutil.copy(CERTIFICATES / f"{name}-{kind}", folder / f"new-{kind}")
        (folder / f"new-{kind}").rename(folder / kind)


@asynccontextmanager
async def following(worker: Worker, api_key_file: Path | None = None) -> AsyncIterator[None]:
    task = asyncio.create_task(temporal_credentials.follow(worker, use_client, api_key_file, poll_seconds=0.05))
    yield
    assert not task.done()
    task.cancel()


async def test_a_worker_takes_a_new_api_key_from_its_file_and_goes_on(
    shop: Shop, stack: DevStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "checkout.temporal")
    key_file = tmp_path / "api-key"
    key_file.write_text("test1\n")
    own = shop.client
    async with AuthProxy(stack.temporal.address, api_key="test1") as proxy:
        monkeypatch.setenv("TEMPORAL_ADDRESS", proxy.address)
        monkeypatch.setenv("TEMPORAL_TLS", "false")
        monkeypatch.setenv("TEMPORAL_API_KEY", "test0")
        shop.client = await connect(api_key_file=key_file)
        async with shop.working() as worker, following(worker, key_file):
            shop.client = own
            assert (await (await shop.start(shop.order())).result()).status == "completed"
            assert proxy.refused == 0
            await proxy.ask_for(api_key="test2")
            waiting = [await shop.start(shop.order()) for _ in range(3)]

            async def is_logged_as_refused() -> bool:
                return "refuses this process" in caplog.text

            await until(is_logged_as_refused)
            key_file.unlink()

            async def is_logged_as_unusable() -> bool:
                return "cannot be used yet" in caplog.text

            await until(is_logged_as_unusable)
            key_file.write_text("test2\n")
            ended = [(await order.result()).status for order in waiting]
            audited = await maintenance.audit(own, shop.task_queue, timedelta(seconds=30), is_at_rest=True)

            async def is_logged_as_let_in() -> bool:
                return "lets this process in again" in caplog.text

            await until(is_logged_as_let_in)

    assert proxy.refused
    assert ended == ["completed"] * 3
    assert audited.is_clean
    assert "test2" not in caplog.text


async def test_a_worker_takes_new_certificates_from_their_files_and_goes_on(
    shop: Shop, stack: DevStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "checkout.temporal")
    put(tmp_path, "old")
    own = shop.client
    async with AuthProxy(stack.temporal.address, tls=server_side("old")) as proxy:
        monkeypatch.setenv("TEMPORAL_ADDRESS", proxy.address)
        monkeypatch.setenv("TEMPORAL_TLS_SERVER_CA_CERT_PATH", str(tmp_path / "ca.pem"))
        monkeypatch.setenv("TEMPORAL_TLS_CLIENT_CERT_PATH", str(tmp_path / "client.pem"))
        monkeypatch.setenv("TEMPORAL_TLS_CLIENT_KEY_PATH", str(tmp_path / "client.key"))
        shop.client = first = await connect()
        async with shop.working() as worker, following(worker):
            shop.client = own
            assert (await (await shop.start(shop.order())).result()).status == "completed"
            await proxy.ask_for(tls=server_side("new"))
            waiting = [await shop.start(shop.order()) for _ in range(3)]
            await shop.accept_by_hand(shop.order())
            sweep = await shop.start_sweep()
            put(tmp_path, "new", "ca.pem", "client.pem")

            async def is_logged_as_unusable() -> bool:
                return "cannot be used yet" in caplog.text

            await until(is_logged_as_unusable)
            put(tmp_path, "new", "client.key")
            ended = [(await order.result()).status for order in waiting]
            swept = await sweep.result()
            audited = await maintenance.audit(own, shop.task_queue, timedelta(seconds=30), is_at_rest=False)
            current = worker.client

    assert ended == ["completed"] * 3
    assert swept.started_count == 1
    assert audited.is_clean
    assert current is not first
    assert current.identity == first.identity
