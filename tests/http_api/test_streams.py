"""Streams of events: each once and in sequence, resumed where they broke off, closed when the order has ended."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from http_api import events
from http_api.keys import Scope
from http_api.reads import MOST_EVENTS
from sagafence import DatabaseUnavailable
from tests.conftest import Shop
from tests.http_api.conftest import TEA, Api, stream
from tests.workflow.gates import Gates
from tests.workflow.sagas import until, until_status

SHIPPED = [("status", "1"), ("status", "2"), ("status", "3"), ("end", "")]


@pytest.mark.usefixtures("worker")
async def test_a_stream_has_every_event_and_then_ends(api: Api) -> None:
    order_id = await api.completed()

    sent = await stream(api, order_id)

    assert [(each.event, each.id) for each in sent] == SHIPPED
    assert [each.data.get("status") for each in sent] == ["reserved", "paid", "completed", None]
    assert [each.data for each in sent[:-1]] == (await api.get(f"/v1/orders/{order_id}/events"))["events"]


@pytest.mark.usefixtures("worker")
async def test_a_stream_is_resumed_after_the_last_event_and_a_finished_one_is_not_begun_again(api: Api) -> None:
    order_id = await api.completed()

    rest = await stream(api, order_id, last=2)
    again = await api.call("GET", f"/v1/orders/{order_id}/stream", headers={"Last-Event-ID": "3"})

    assert [(each.event, each.id) for each in rest] == [("status", "3"), ("end", "")]
    assert again.status_code == 204


async def test_a_stream_that_was_opened_before_anything_happened_has_it_all(api: Api, shop: Shop) -> None:
    order_id = (await api.place(TEA)).json()["order_id"]
    streams = [asyncio.create_task(stream(api, order_id)) for _ in range(5)]
    await until_open(api, 5)

    async with shop.working():
        sent = await asyncio.gather(*streams)

    assert [[(each.event, each.id) for each in one] for one in sent] == [SHIPPED] * 5
    await until_open(api, 0)


async def test_a_stream_is_woken_and_waits_for_no_ping(api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PING_SECONDS", 3600)
    gates, order = Gates(), shop.order()
    gate = gates.hold(order, "charge_payment", "before")
    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        await gate.reached()
        reading = asyncio.create_task(stream(api, order.order_id))
        await until_open(api, 1)
        gate.open()

        sent = await reading

    assert [(each.event, each.id) for each in sent] == SHIPPED


async def test_a_stream_of_a_completed_order_stays_open_while_it_may_be_taken_back(api: Api, shop: Shop) -> None:
    gates, order = Gates(), shop.order("carol")  # her parcel is a label at first
    gate = gates.hold(order, "ship_order", "after")
    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        await gate.reached()
        reading = asyncio.create_task(stream(api, order.order_id))
        await until_open(api, 1)
        answer = await api.call("POST", f"/v1/orders/{order.order_id}/cancel", json={"reason": "too late?"})
        gate.open()
        sent = await reading

    assert answer.status_code == 202
    assert [each.data.get("status") for each in sent][-2:] == ["cancelled", None]
    numbers = [int(each.id) for each in sent[:-1]]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("last", [None, 1])
async def test_a_stream_of_an_order_that_stands_still_asks_nobody(
    api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch, last: int | None
) -> None:
    monkeypatch.setattr(events, "_CLOSE_SECONDS", 0.01)
    gates, order, asked = Gates(), shop.order(), 0
    gate = gates.hold(order, "charge_payment", "before")
    read = api.services.reads.events

    async def counted(order_id: str, after: int, limit: int = MOST_EVENTS) -> Any:
        nonlocal asked
        asked += 1
        return await read(order_id, after, limit)

    monkeypatch.setattr(api.services.reads, "events", counted)
    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        await gate.reached()
        reading = asyncio.create_task(stream(api, order.order_id, last=last))
        await until_open(api, 1)
        newest, polls = api.services.reads.newest_events, 0

        async def polled(order_ids: Sequence[str]) -> dict[str, int]:
            nonlocal polls
            polls += 1
            return await newest(order_ids)

        monkeypatch.setattr(api.services.reads, "newest_events", polled)

        async def is_polled() -> bool:
            return polls >= 3

        await until(is_polled)
        gate.open()
        asked_meanwhile = asked
        await reading

    assert asked_meanwhile <= 2


async def test_a_stream_outlives_an_outage_of_the_database(
    api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.05)
    order_id = (await api.place(TEA)).json()["order_id"]
    reading = asyncio.create_task(stream(api, order_id))
    await until_open(api, 1)
    reads = api.services.reads
    healthy, failures = reads.events, 0

    async def away(*_arguments: object, **_more: object) -> list[object]:
        nonlocal failures
        failures += 1
        raise DatabaseUnavailable("injected")

    monkeypatch.setattr(reads, "events", away)
    async with shop.working():
        await until_status(shop, shop.order(order_id=order_id), "completed")

        async def has_failed() -> bool:
            return failures > 1

        await until(has_failed)
        monkeypatch.setattr(reads, "events", healthy)
        sent = await reading

    assert [(each.event, each.id) for each in sent] == SHIPPED


async def test_a_stream_does_not_outlive_its_key_for_long(
    api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST_SECONDS", 0.3)
    monkeypatch.setattr(events, "_PING_SECONDS", 0.1)
    order = shop.order()
    await shop.accept_by_hand(order)

    sent = await stream(api, order.order_id)
    assert api.keys.revoke(api.key.split("_")[1])
    again = await api.call("GET", f"/v1/orders/{order.order_id}/stream", headers={"Last-Event-ID": sent[-1].id})

    assert [each.event for each in sent] == ["status"]  # no end is claimed: it can be resumed
    assert again.status_code == 401


async def test_a_process_has_only_so_many_streams(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_STREAMS", 1)
    order_id = (await api.place(TEA)).json()["order_id"]
    reading = asyncio.create_task(stream(api, order_id))
    await until_open(api, 1)

    refused = await api.call("GET", f"/v1/orders/{order_id}/stream")

    assert (refused.status_code, refused.json()["type"]) == (503, "about:blank#too-many-streams")
    assert refused.headers["retry-after"]
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until_open(api, 0)


async def test_a_stream_with_a_request_behind_it_ends_with_its_connection(api: Api, shop: Shop) -> None:
    order = shop.order()
    await shop.accept_by_hand(order)
    request = f"GET /v1/orders/{order.order_id}/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    writer.write(request.encode() + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await until_open(api, 1)

    writer.close()
    await writer.wait_closed()

    await until_open(api, 0)


async def test_a_caller_has_only_a_part_of_the_streams(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_OF_ONE_CALLER", 1)
    order_id, other = (await api.place(TEA)).json()["order_id"], api.key_for(Scope.READ)
    reading = asyncio.create_task(stream(api, order_id))
    await until_open(api, 1)

    refused = await api.call("GET", f"/v1/orders/{order_id}/stream")
    async with api.http.stream(
        "GET", f"/v1/orders/{order_id}/stream", headers={"Authorization": f"Bearer {other}"}
    ) as taken:
        assert taken.status_code == 200

    assert (refused.status_code, refused.json()["type"]) == (429, "about:blank#too-many-requests")
    assert refused.headers["retry-after"]
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until_open(api, 0)


async def test_streams_that_are_opened_at_once_are_no_more_than_there_may_be(
    api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_OF_ONE_CALLER", 5)
    order, is_over = shop.order(), asyncio.Event()
    await shop.accept_by_hand(order)
    path, headers = f"/v1/orders/{order.order_id}/stream", {"Authorization": f"Bearer {api.key}"}
    answers: list[int] = []

    async def come_back() -> None:
        async with api.http.stream("GET", path, headers=headers) as answer:
            answers.append(answer.status_code)
            await is_over.wait()

    coming = [asyncio.create_task(come_back()) for _ in range(30)]

    async def are_answered() -> bool:
        return len(answers) == len(coming)

    await until(are_answered)
    is_over.set()
    await asyncio.gather(*coming)

    assert (answers.count(200), answers.count(429)) == (5, 25)
    await until_open(api, 0)


async def test_callers_who_were_turned_away_or_cut_off_together_do_not_come_back_together(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = (await api.place(TEA)).json()["order_id"]
    path, headers = f"/v1/orders/{order_id}/stream", {"Authorization": f"Bearer {api.key}"}

    async def told() -> int:
        async with api.http.stream("GET", path, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("retry: "):
                    return int(line.removeprefix("retry: "))
        raise AssertionError("the stream does not say when to come back")

    milliseconds = await asyncio.gather(*(told() for _ in range(40)))
    monkeypatch.setattr(events, "MOST_STREAMS", 0)
    refused = await asyncio.gather(*(api.call("GET", path) for _ in range(40)))

    assert len(set(milliseconds)) > 20
    assert all(2000 <= each <= 6000 for each in milliseconds)
    assert {each.status_code for each in refused} == {503}
    assert len({each.headers["retry-after"] for each in refused}) > 2


async def test_fifty_open_streams_do_not_hold_up_the_end(api: Api) -> None:
    order_id = (await api.place(TEA)).json()["order_id"]
    reading = [asyncio.create_task(stream(api, order_id)) for _ in range(50)]
    await until_open(api, 50)

    api.server.should_exit = True
    async with asyncio.timeout(3):
        sent = await asyncio.gather(*reading)

    assert sent == [[]] * 50  # nothing has happened, and no end is claimed


async def until_open(api: Api, count: int) -> None:
    async def is_open() -> bool:
        return api.services.tail.count == count

    await until(is_open)
