"""Placing orders: one order for one key, whatever is repeated; the current state in every answer."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from client.failures import NoSuchOrder
from devstack.stack import DevStack
from http_api.keys import Scope
from http_api.placing import order_id_for
from tests.conftest import Shop
from tests.http_api.conftest import TEA, Api, reader_url, serving
from tests.workflow.sagas import forget


@pytest.fixture(params=[False, True], ids=["alone", "together"])
async def api(request: pytest.FixtureRequest, shop: Shop, stack: DevStack, tmp_path: Path) -> AsyncIterator[Api]:
    """The API, which gives each order a workflow of its own, or puts them into batches."""
    url = reader_url(stack, shop)
    async with serving(shop.client, shop.task_queue, url, tmp_path, together=request.param) as running:
        yield running


@pytest.mark.usefixtures("worker")
async def test_an_order_is_placed_and_its_end_waited_for(api: Api) -> None:
    answer = await api.place(TEA, wait=20)

    placed = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/orders/{placed['order_id']}" == placed["links"]["self"]
    assert placed["status"] == "completed"
    assert (placed["customer"], placed["total_minor"], placed["currency"]) == ("alice", 1200, "EUR")
    assert placed["lines"] == [{"sku": "tea-mug", "quantity": 1}]
    assert [(step["step"], step["state"]) for step in placed["steps"]] == [
        ("reserve", "done"),
        ("pay", "done"),
        ("ship", "done"),
    ]
    assert await api.get(answer.headers["location"]) == placed


async def test_an_order_that_nobody_waits_for_is_answered_before_it_has_begun(api: Api, shop: Shop) -> None:
    answer = await api.place(TEA, idempotency_key="once")  # there is no worker

    assert (answer.status_code, answer.json()["status"], answer.json()["created_at"]) == (201, "running", None)
    async with shop.working():
        assert (await api.place(TEA, idempotency_key="once", wait=20)).json()["status"] == "completed"


@pytest.mark.usefixtures("worker")
async def test_a_refused_order_is_an_order_that_says_why(api: Api) -> None:
    answer = await api.place({"customer": "bob", "lines": [{"sku": "tea-mug", "quantity": 2}]}, wait=20)

    assert (answer.status_code, answer.json()["status"]) == (201, "rejected")
    assert answer.json()["reason"].startswith("InsufficientFunds: ")


@pytest.mark.usefixtures("worker")
async def test_twenty_at_once_with_one_key_make_one_saga(api: Api, shop: Shop) -> None:
    answers = await asyncio.gather(*(api.place(TEA, idempotency_key="once", wait=20) for _ in range(20)))

    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert {answer.headers.get("idempotency-replayed") for answer in answers if answer.status_code == 200} == {"true"}
    assert len({answer.json()["order_id"] for answer in answers}) == 1
    assert {answer.json()["status"] for answer in answers} == {"completed"}
    assert await shop.database.value("SELECT count(*) FROM orders") == 1
    assert (await shop.audit()).is_clean


async def test_a_repeat_is_answered_with_the_current_state(api: Api, shop: Shop) -> None:
    await api.place(TEA, idempotency_key="once")
    async with shop.working():
        await api.place(TEA, idempotency_key="once", wait=20)

    again = await api.place(TEA, idempotency_key="once")

    assert (again.status_code, again.json()["status"]) == (200, "completed")
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.usefixtures("worker")
async def test_a_repeat_after_temporal_has_forgotten_the_saga_starts_nothing(api: Api, shop: Shop) -> None:
    placed = (await api.place(TEA, idempotency_key="once", wait=20)).json()
    await forget(shop, shop.order(), placed["links"]["history"].rpartition("/")[2])
    await shop.database.run("UPDATE orders SET updated_at = now() - interval '3 days'")

    again = await api.place(TEA, idempotency_key="once", wait=5)

    assert (again.status_code, again.json()["status"], again.json()["links"]["history"]) == (200, "completed", None)
    other = await api.place({**TEA, "customer": "nemo"}, idempotency_key="once")
    assert (other.status_code, other.json()["type"]) == (422, "about:blank#idempotency-key-reused")


@pytest.mark.parametrize("has_ended", [True, False])
async def test_a_key_with_another_order_is_refused(api: Api, shop: Shop, has_ended: bool) -> None:
    if has_ended:
        async with shop.working():
            await api.place(TEA, idempotency_key="once", wait=20)
    else:
        await api.place(TEA, idempotency_key="once")

    answer = await api.place({**TEA, "lines": [{"sku": "tea-mug", "quantity": 2}]}, idempotency_key="once")

    assert (answer.status_code, answer.json()["type"]) == (422, "about:blank#idempotency-key-reused")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.usefixtures("worker")
async def test_a_chosen_id_that_another_order_has_is_a_conflict(api: Api) -> None:
    chosen = f"web 4711/{uuid.uuid4().hex}"
    first = await api.place({**TEA, "order_id": chosen}, wait=20)
    repeat = await api.place({**TEA, "order_id": chosen})
    other = await api.place({**TEA, "customer": "nemo", "order_id": chosen})

    assert (first.status_code, repeat.status_code, other.status_code) == (201, 200, 409)
    assert other.json()["type"] == "about:blank#order-id-conflict"
    assert (await api.get(first.headers["location"]))["order_id"] == chosen
    assert (await api.get(f"{first.headers['location']}/events"))["events"]


@pytest.mark.usefixtures("worker")
async def test_an_order_of_a_batch_is_replayed_and_no_second_saga_begun(api: Api, shop: Shop) -> None:
    order = shop.order()
    await api.services.temporal.checkouts.process([order])

    again = await api.place({**TEA, "order_id": order.order_id}, wait=5)

    assert (again.status_code, again.json()["status"]) == (200, "completed")
    assert "bulk-" in again.json()["links"]["history"]
    with pytest.raises(NoSuchOrder):
        await api.services.temporal.checkouts.status(order.order_id)


async def test_an_order_by_hand_is_started_by_its_own_content_alone(api: Api, shop: Shop) -> None:
    order = shop.order()
    await shop.accept_by_hand(order)
    others = [{**TEA, "customer": "nemo"}, {**TEA, "lines": [{"sku": "tea-mug", "quantity": 2}]}]

    refused = [await api.place({**other, "order_id": order.order_id}) for other in others]
    async with shop.working():
        own = await api.place({**TEA, "order_id": order.order_id}, wait=20)

    assert [answer.status_code for answer in refused] == [409, 409]
    assert [answer.json()["type"] for answer in refused] == ["about:blank#order-id-conflict"] * 2
    assert (own.status_code, own.json()["status"]) == (200, "completed")


@pytest.mark.usefixtures("worker")
async def test_an_order_that_a_batch_writes_meanwhile_is_not_shown_as_the_callers(
    api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, reads = shop.order(), api.services.reads
    read = reads.order

    async def not_there_yet(order_id: str) -> None:
        assert await read(order_id) is None
        monkeypatch.setattr(reads, "order", read)
        await api.services.temporal.checkouts.process([order])

    monkeypatch.setattr(reads, "order", not_there_yet)
    answer = await api.place({**TEA, "customer": "nemo", "order_id": order.order_id}, wait=20, alone=True)

    assert (answer.status_code, answer.json()["type"]) == (409, "about:blank#order-id-conflict")


async def test_callers_have_keys_of_their_own_and_a_rotated_key_is_the_same_caller(shared: Api) -> None:
    name = uuid.uuid4().hex
    old, new = (shared.key_for(Scope.BUY, name=name) for _ in range(2))
    other = shared.key_for(Scope.BUY)

    ids = [(await shared.place(TEA, idempotency_key="once", key=key)).json()["order_id"] for key in (old, new, other)]

    assert ids[0] == ids[1] != ids[2]
    assert ids[0] == order_id_for(f"key:{name}", "once")


async def test_the_id_of_anothers_key_cannot_be_chosen(api: Api) -> None:
    name = uuid.uuid4().hex
    key, taken = api.key_for(Scope.BUY, name=name), order_id_for(f"key:{name}", "once")

    chosen = await api.place({**TEA, "customer": "bob", "order_id": taken})
    placed = await api.place(TEA, idempotency_key="once", key=key)
    again = await api.place({**TEA, "order_id": taken}, idempotency_key="once", key=key)

    assert (chosen.status_code, chosen.json()["errors"][0]["pointer"]) == (422, "/order_id")
    assert (placed.status_code, placed.json()["order_id"], again.status_code) == (201, taken, 200)


async def test_a_key_for_some_customers_buys_for_no_other(shared: Api) -> None:
    key = shared.key_for(Scope.BUY, customers=("alice",))

    allowed = await shared.place(TEA, key=key)
    refused = await shared.place({**TEA, "customer": "nemo"}, key=key)

    assert (allowed.status_code, refused.status_code) == (201, 403)
    assert refused.json()["type"] == "about:blank#customer"


_FAULTS: list[tuple[Any, str]] = [
    ({"lines": [{"sku": "tea-mug", "quantity": 1}]}, "/customer"),
    ({**TEA, "customer": ""}, "/customer"),
    ({**TEA, "customer": "a\u200bb"}, "/customer"),
    ({**TEA, "customer": 7}, "/customer"),
    ({**TEA, "order_id": " x"}, "/order_id"),
    ({**TEA, "lines": []}, "/lines"),
    ({**TEA, "lines": [{"sku": "tea-mug", "quantity": 0}]}, "/lines/0/quantity"),
    ({**TEA, "lines": [{"sku": "tea-mug", "quantity": 1.0}]}, "/lines/0/quantity"),
    ({**TEA, "lines": [{"sku": "tea-mug", "quantity": True}]}, "/lines/0/quantity"),
    ({**TEA, "lines": [{"sku": "poster", "quantity": 1}, {"sku": "a\u0301", "quantity": 1}]}, "/lines/1/sku"),
    ({**TEA, "lines": [{"sku": "poster", "quantity": 600}] * 2}, "/lines"),
    ({**TEA, "price": 1}, "/price"),
    ([], ""),
    ("text", ""),
    (None, ""),
]


@pytest.mark.parametrize(("order", "pointer"), _FAULTS, ids=str)
async def test_what_is_wrong_with_an_order_is_said_with_its_place(shared: Api, order: Any, pointer: str) -> None:
    answer = await shared.place(order)

    assert (answer.status_code, answer.json()["type"]) == (422, "about:blank#invalid")
    assert pointer in [fault["pointer"] for fault in answer.json()["errors"]]


async def test_half_a_character_is_no_part_of_a_name(shared: Api) -> None:
    headers = {"Idempotency-Key": "x", "Content-Type": "application/json"}

    answer = await shared.call("POST", "/v1/orders", headers=headers, content=json.dumps({**TEA, "customer": "\ud800"}))

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/customer")


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"a": 1e999999}x', b"[" * 60_000])
async def test_what_is_no_json_is_malformed(shared: Api, body: bytes) -> None:
    headers = {"Idempotency-Key": "x", "Content-Type": "application/json"}

    answer = await shared.call("POST", "/v1/orders", headers=headers, content=body)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("key", [None, "", "x" * 256, "a\tb"])
async def test_an_order_needs_an_idempotency_key(shared: Api, key: str | None) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}

    answer = await shared.call("POST", "/v1/orders", headers=headers, json=TEA)

    assert (answer.status_code, answer.json()["type"]) == (400, "about:blank#idempotency-key")
