"""With Temporal or Postgres away the API does what can be done, and says of the rest that it is not known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from devstack.stack import DevStack
from sagafence.devservers.ports import free_port
from tests.conftest import Shop
from tests.http_api.conftest import TEA, Api, reader_url, serving, without_postgres
from tests.workflow.sagas import until

NO_DATABASE = "postgresql+asyncpg://checkout_reader@127.0.0.1:{port}/checkout"


@asynccontextmanager
async def temporal_that(answers: str) -> AsyncIterator[Client]:
    """Give a client of a server that refuses connections, or takes them and never says anything."""
    taken: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _reader, writer: taken.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1] if answers == "never" else free_port()
    try:
        yield await Client.connect(f"127.0.0.1:{port}", data_converter=DATA_CONVERTER, lazy=True)
    finally:
        silent.close()
        for writer in taken:
            writer.close()


TOGETHER = pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])


@TOGETHER
@pytest.mark.parametrize("answers", ["never", "refuses"])
async def test_without_temporal_orders_are_shown_and_none_is_placed(
    shop: Shop, stack: DevStack, tmp_path: Path, answers: str, together: bool
) -> None:
    await shop.accept_by_hand(shop.order(order_id="by-hand"))
    async with (
        temporal_that(answers) as client,
        serving(client, shop.task_queue, reader_url(stack, shop), tmp_path, together=together) as api,
    ):
        began = asyncio.get_running_loop().time()
        placed = await api.place(TEA, wait=20)
        took = asyncio.get_running_loop().time() - began
        cancelled = await api.call("POST", "/v1/orders/by-hand/cancel", json={"reason": "why not"})
        asked_at = asyncio.get_running_loop().time()
        audit = await api.call("POST", "/v1/audits?wait=20")
        audit_took = asyncio.get_running_loop().time() - asked_at
        shown = await api.get("/v1/orders/by-hand")
        listed = await api.get("/v1/orders")
        ready = await api.call("GET", "/readyz")

    assert (placed.status_code, placed.json()["type"]) == (503, "about:blank#not-known")
    assert "same Idempotency-Key" in placed.json()["detail"]
    assert took < 6
    assert placed.headers["retry-after"]
    assert [cancelled.status_code, audit.status_code] == [503, 503]
    assert audit_took < 7
    assert (shown["status"], shown["links"]["history"], len(listed["orders"])) == ("pending", None, 1)
    assert (ready.status_code, ready.json()) == (200, {"postgres": "ok", "temporal": "away"})


async def test_without_postgres_orders_are_placed_shown_by_their_sagas_and_fixed(shop: Shop, tmp_path: Path) -> None:
    url = NO_DATABASE.format(port=free_port())
    async with serving(shop.client, shop.task_queue, url, tmp_path) as api, shop.working():
        placed = await api.place(TEA, idempotency_key="once", wait=20)
        again = await api.place(TEA, idempotency_key="once", wait=20)
        other = await api.place({**TEA, "customer": "nemo"}, idempotency_key="once")
        shown = await api.get(placed.json()["links"]["self"])
        cancelled = await api.call("POST", f"{placed.json()['links']['self']}/cancel", json={"reason": "why not"})
        not_read = [await api.call("GET", path) for path in ("/v1/orders", "/v1/audit", "/v1/orders/nobody")]
        ready = await api.call("GET", "/readyz")

    assert (placed.status_code, placed.json()["status"], placed.json()["total_minor"]) == (201, "completed", 1200)
    assert (again.status_code, other.status_code, cancelled.status_code) == (200, 422, 409)
    assert (shown["status"], shown["customer"], shown["lines"]) == ("completed", "alice", TEA["lines"])
    for answer in not_read:
        assert (answer.status_code, answer.json()["type"]) == (503, "about:blank#database-away")
    assert (ready.status_code, ready.json()) == (200, {"postgres": "away", "temporal": "ok"})


async def test_without_postgres_an_order_is_not_said_to_run_when_its_saga_gives_no_answer_in_time(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_order_id: str) -> None:
        raise TimeoutError

    without_postgres(api, monkeypatch)
    placed = await api.place(TEA, idempotency_key="once")
    monkeypatch.setattr(api.services.temporal.checkouts, "status", silent)

    again = await api.place(TEA, idempotency_key="once")
    shown = await api.call("GET", placed.json()["links"]["self"])

    assert (placed.status_code, again.status_code, again.json()["status"]) == (201, 200, "running")
    assert (shown.status_code, shown.json()["type"]) == (503, "about:blank#database-away")


async def test_without_either_it_is_not_ready_and_alive(tmp_path: Path) -> None:
    async with (
        temporal_that("refuses") as client,
        serving(client, "none", NO_DATABASE.format(port=free_port()), tmp_path) as api,
    ):
        ready, alive = await api.call("GET", "/readyz"), await api.call("GET", "/healthz")

    assert (ready.status_code, ready.json()) == (503, {"postgres": "away", "temporal": "away"})
    assert alive.status_code == 200


@TOGETHER
async def test_a_frozen_server_that_goes_on_has_the_order_once(
    shop: Shop, stack: DevStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """The start gets through, and its answer is lost: the caller repeats it."""
    begin: Any = shop.client.start_workflow
    losses = 2 if together else 1  # the batch's start, and then that of the order's own workflow

    async def lost(*arguments: Any, **more: Any) -> Any:
        nonlocal losses
        started = await begin(*arguments, **more)
        losses -= 1
        if losses >= 0:
            await asyncio.sleep(30)
        return started

    monkeypatch.setattr(shop.client, "start_workflow", lost)
    async with serving(shop.client, shop.task_queue, reader_url(stack, shop), tmp_path) as api, shop.working():
        first = await api.place(TEA, idempotency_key="once")
        repeat = await api.place(TEA, idempotency_key="once", wait=20)

    assert (first.status_code, repeat.status_code, repeat.json()["status"]) == (503, 200, "completed")
    assert await shop.database.value("SELECT count(*) FROM orders") == 1


async def test_an_order_whose_wait_meets_an_outage_was_accepted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_arguments: object, **_more: object) -> None:
        raise RuntimeError("connection lost")

    monkeypatch.setattr(api.services.temporal.checkouts, "outcome", broken)
    monkeypatch.setattr(api.services.temporal.checkouts, "status", broken)

    answer = await api.place(TEA, wait=5)

    assert (answer.status_code, answer.json()["status"]) == (201, "running")


async def test_an_order_that_is_waited_for_when_the_process_ends_is_answered(api: Api) -> None:
    placing = asyncio.create_task(api.place(TEA, wait=20))  # there is no worker

    async def is_waited_for() -> bool:
        return bool(api.services._limits)

    await until(is_waited_for)
    api.server.should_exit = True
    answer = await placing

    assert (answer.status_code, answer.json()["status"]) == (201, "running")


async def test_a_request_that_the_end_of_the_process_cuts_off_is_said_to_be_not_known(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def frozen(*_arguments: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(api.services.temporal.checkouts, "start", frozen)
    monkeypatch.setattr(api.server.config, "timeout_graceful_shutdown", 0.1)
    placing = asyncio.create_task(api.place(TEA))
    await begun.wait()
    api.server.should_exit = True
    answer = await placing

    assert (answer.status_code, answer.json()["type"]) == (503, "about:blank#not-known")
    assert answer.headers["retry-after"]
