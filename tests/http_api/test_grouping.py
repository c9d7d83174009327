"""Orders that come at once share a workflow; each caller sees what it would have seen with one of its own."""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.service import RPCError

from client import batch_runs
from client.batcher import Batcher, BatchPolicy, Seat
from client.failures import Full, NoSuchOrder
from devstack.stack import DevStack
from http_api import recent, seats
from tests.conftest import Shop
from tests.http_api.conftest import TEA, Api, reader_url, serving, without_postgres
from tests.workflow.sagas import forget, until


def buys(customer: str, *lines: tuple[str, int]) -> dict[str, Any]:
    return {"customer": customer, "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines]}


async def batches_of(shop: Shop) -> list[tuple[str | None, int]]:
    """Return the workflows of batches, and how many orders each has checked out."""
    rows = await shop.database.fetch("SELECT batch_workflow_id, count(*) FROM orders GROUP BY 1 ORDER BY 2")
    return [(row[0], row[1]) for row in rows]


def refuse_seats(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no order come into a batch any more."""

    def full(_order: object) -> None:
        raise Full("no seat is left")

    monkeypatch.setattr(api.services.batcher, "seat", full)


def answer_late(monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
    """Let every batch be known to have ended so much later than it has."""
    usual = batch_runs.outcomes

    async def late(*given: Any) -> Any:
        found = await usual(*given)
        await asyncio.sleep(seconds)
        return found

    monkeypatch.setattr(batch_runs, "outcomes", late)


def begin_late(monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
    """Let every batch begin so much later than Temporal says it has."""
    usual_begin, usual_outcomes, begun = batch_runs.begin, batch_runs.outcomes, list[asyncio.Task[None]]()

    async def later(*given: Any) -> None:
        await asyncio.sleep(seconds)
        await usual_begin(*given)

    async def begin(*given: Any) -> None:
        begun.append(asyncio.create_task(later(*given)))

    async def outcomes(*given: Any) -> Any:
        await begun[-1]
        return await usual_outcomes(*given)

    monkeypatch.setattr(batch_runs, "begin", begin)
    monkeypatch.setattr(batch_runs, "outcomes", outcomes)


async def placed_at_once(api: Api, orders: Sequence[dict[str, Any]], **more: Any) -> list[httpx.Response]:
    return await asyncio.gather(*(api.place(order, **more) for order in orders))


@pytest.mark.usefixtures("worker")
async def test_orders_that_come_at_once_share_a_workflow(grouping: Api, shop: Shop) -> None:
    answers = await placed_at_once(grouping, [TEA] * 30, wait=20)

    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(201, "completed")}
    assert len({answer.json()["order_id"] for answer in answers}) == 30
    batches = await batches_of(shop)
    assert 1 <= len(batches) <= 10
    assert all(str(batch).startswith("bulk-") for batch, _ in batches)
    histories = {answer.json()["links"]["history"].rpartition("/")[2] for answer in answers}
    assert histories == {batch for batch, _ in batches}
    for answer in answers:
        assert await grouping.get(answer.headers["location"]) == answer.json()
    assert (await shop.audit()).is_clean


@pytest.mark.usefixtures("worker")
async def test_each_order_of_a_crowd_is_decided_by_itself(grouping: Api, shop: Shop) -> None:
    orders = [buys("erin", ("last-one", 1)) for _ in range(6)]
    orders += [TEA, buys("bob", ("tea-mug", 2)), buys("alice", ("no-such", 1)), buys("nemo", ("poster", 1))]

    answers = await placed_at_once(grouping, orders, wait=20)

    outcomes = [(answer.json()["status"], (answer.json()["reason"] or "").split(":")[0]) for answer in answers]
    assert sorted(outcomes[:6]) == [("completed", "")] + [("rejected", "OutOfStock")] * 5
    assert outcomes[6:] == [
        ("completed", ""),
        ("rejected", "InsufficientFunds"),
        ("rejected", "UnknownSku"),
        ("rejected", "UndeliverableAddress"),
    ]
    assert {answer.status_code for answer in answers} == {201}
    assert (await shop.audit()).is_clean


@pytest.mark.usefixtures("worker")
async def test_an_order_has_a_workflow_of_its_own_for_those_who_ask(grouping: Api, shop: Shop) -> None:
    answers = await placed_at_once(grouping, [TEA] * 5, wait=20, alone=True)

    assert {answer.json()["status"] for answer in answers} == {"completed"}
    assert await batches_of(shop) == [(None, 5)]
    assert all("/checkout-" in answer.json()["links"]["history"] for answer in answers)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("wait", [0, 20])
async def test_of_two_orders_with_one_chosen_id_at_once_one_is_a_conflict(grouping: Api, shop: Shop, wait: int) -> None:
    chosen = f"web {uuid.uuid4().hex}"

    answers = await placed_at_once(
        grouping, [{**TEA, "order_id": chosen}, {**buys("erin", ("poster", 1)), "order_id": chosen}], wait=wait
    )

    assert sorted(answer.status_code for answer in answers) == [201, 409]
    assert await shop.database.value("SELECT count(*) FROM orders") == 1
    assert (await shop.audit()).is_clean


@pytest.mark.usefixtures("worker")
async def test_a_locked_row_makes_its_own_order_wait_and_not_the_others(grouping: Api, shop: Shop) -> None:
    loop, order = asyncio.get_running_loop(), shop.order("erin", ("poster", 1))

    async def has_a_saga() -> bool:
        with suppress(RPCError):
            return await grouping.services.temporal.checkouts.has_saga_of(order)
        return False

    async with shop.database.locked("SELECT FROM accounts WHERE account_id = 'erin' FOR UPDATE"):
        slow = asyncio.create_task(grouping.place({**buys("erin", ("poster", 1)), "order_id": order.order_id}, wait=20))
        began = loop.time()
        others = await placed_at_once(grouping, [TEA] * 10, wait=20)
        took = loop.time() - began
        assert not slow.done()
        await until(has_a_saga)
    answer = await slow

    assert {other.json()["status"] for other in others} == {"completed"}
    assert took < 15, "they have waited for the lock"
    assert (answer.status_code, answer.json()["status"]) == (201, "completed")
    assert "/checkout-" in answer.json()["links"]["history"]
    assert (await shop.audit()).is_clean


async def test_an_order_whose_batch_takes_too_long_has_a_workflow_by_which_it_is_found(
    grouping: Api, shop: Shop
) -> None:
    placed = await placed_at_once(grouping, [TEA] * 5)  # there is no worker
    shown = [await grouping.get(answer.headers["location"]) for answer in placed]

    async def have_ended() -> bool:
        return all([(await grouping.get(answer.headers["location"]))["status"] == "completed" for answer in placed])

    async with shop.working():
        await until(have_ended)

    assert {(answer.status_code, answer.json()["status"]) for answer in placed} == {(201, "running")}
    assert [order["order_id"] for order in shown] == [answer.json()["order_id"] for answer in placed]
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'capture'") == 5
    assert (await shop.audit()).is_clean


async def test_a_crowd_without_room_is_told_to_come_again(grouping: Api) -> None:
    grouping.services.batcher = Batcher(lambda: grouping.services.temporal.checkouts, BatchPolicy(room=2))

    answers = await placed_at_once(grouping, [TEA] * 10)  # there is no worker, and the first is under way

    full = [answer for answer in answers if answer.status_code == 503]
    assert {answer.json()["type"] for answer in full} == {"about:blank#full"}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in full)
    assert len(full) >= 5
    assert {answer.status_code for answer in answers} == {201, 503}


@pytest.mark.usefixtures("worker")
async def test_with_postgres_away_for_the_api_the_answer_is_what_the_batch_says(
    grouping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_postgres(grouping, monkeypatch)

    answers = await placed_at_once(grouping, [TEA, buys("bob", ("tea-mug", 2))], wait=20)

    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [
        (201, "completed"),
        (201, "rejected"),
    ]
    assert (answers[0].json()["total_minor"], answers[0].json()["tracking_number"][:2]) == (1200, "PX")
    assert "/bulk-" in answers[0].json()["links"]["history"]


async def test_of_two_orders_with_one_id_none_is_refused_while_it_is_not_known_which_is_first(
    grouping: Api, shop: Shop, stack: DevStack, tmp_path: Path
) -> None:
    """Two processes, and no worker yet: the database decides later, and it may decide against who was first here."""
    chosen, other = f"web {uuid.uuid4().hex}", buys("erin", ("poster", 1))
    url = reader_url(stack, shop)
    async with serving(shop.client, shop.task_queue, url, tmp_path, together=True) as second:
        answers = await asyncio.gather(
            grouping.place({**TEA, "order_id": chosen}), second.place({**other, "order_id": chosen})
        )

    assert sorted(answer.status_code for answer in answers) == [201, 503]
    assert {answer.json()["type"] for answer in answers if answer.status_code == 503} == {"about:blank#not-known"}


@pytest.mark.usefixtures("worker")
async def test_a_repeat_past_temporals_retention_is_a_repeat(grouping: Api, shop: Shop) -> None:
    first = await grouping.place(TEA, idempotency_key="once", wait=20)
    [(batch, _)] = await batches_of(shop)
    await forget(shop, shop.order(), str(batch))

    again = await grouping.place(TEA, idempotency_key="once", wait=20)

    assert (first.status_code, again.status_code, again.json()["status"]) == (201, 200, "completed")


@pytest.mark.usefixtures("worker")
async def test_an_order_whose_batch_ends_too_late_for_its_caller_is_new_all_the_same(
    grouping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_late(monkeypatch, seconds=2)
    placed = await grouping.place(TEA, idempotency_key="once")
    again = await grouping.place(TEA, idempotency_key="once")

    assert (placed.status_code, placed.json()["status"], again.status_code) == (201, "completed", 200)


@pytest.mark.usefixtures("worker")
async def test_those_in_a_long_line_wait_as_long_as_it_moves_and_are_then_told_that_it_is_full(
    grouping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouping.services.batcher = Batcher(lambda: grouping.services.temporal.checkouts, BatchPolicy(most=2, at_once=1))
    answer_late(monkeypatch, seconds=0.5)
    answers = await placed_at_once(grouping, [TEA] * 40)

    assert {answer.status_code for answer in answers} == {201, 503}
    placed = [answer for answer in answers if answer.status_code == 201]
    assert len(placed) > 6, "these have waited for more than a second"
    assert all("/bulk-" in answer.json()["links"]["history"] for answer in placed)
    assert {answer.json()["type"] for answer in answers if answer.status_code == 503} == {"about:blank#full"}


@pytest.mark.usefixtures("worker")
async def test_an_order_that_is_picked_at_the_end_of_its_time_in_line_waits_for_its_start_all_the_same(
    grouping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, usual_begin, was_looked_at = grouping.services.batcher, batch_runs.begin, asyncio.Event()
    assert batcher
    usual_look = batcher.is_waiting

    def is_waiting(seat: Seat) -> bool:
        was_looked_at.set()
        return usual_look(seat)

    async def begin(*given: Any) -> None:
        await was_looked_at.wait()
        await usual_begin(*given)

    monkeypatch.setattr(seats, "_LONGEST_IN_LINE_SECONDS", 0)
    monkeypatch.setattr(batcher, "is_waiting", is_waiting)
    monkeypatch.setattr(batch_runs, "begin", begin)

    answer = await grouping.place(TEA, wait=20)

    assert (answer.status_code, answer.json()["status"]) == (201, "completed")


@pytest.mark.usefixtures("worker")
async def test_with_postgres_away_for_the_api_anothers_id_is_a_conflict_all_the_same(
    grouping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_postgres(grouping, monkeypatch)
    chosen = f"web {uuid.uuid4().hex}"

    first = await grouping.place({**TEA, "order_id": chosen}, wait=20)
    grouping.services.recent = recent.RecentOrders()  # another process has accepted it
    other = await grouping.place({**buys("erin", ("poster", 1)), "order_id": chosen}, wait=20)

    assert (first.status_code, other.status_code) == (201, 409)


async def test_of_two_orders_with_one_id_the_second_is_not_accepted_while_the_firsts_batch_is_open(
    grouping: Api,
) -> None:
    chosen = f"web {uuid.uuid4().hex}"
    first = asyncio.create_task(grouping.place({**TEA, "order_id": chosen}, wait=20))  # there is no worker

    async def is_under_way() -> bool:
        return bool(grouping.services.batcher and grouping.services.batcher._under_way)

    await until(is_under_way)

    other = await grouping.place({**buys("erin", ("poster", 1)), "order_id": chosen})
    first.cancel()

    assert (other.status_code, other.json()["type"]) == (503, "about:blank#not-known")


async def test_an_order_that_was_accepted_is_not_overtaken_by_another_of_its_id(
    grouping: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = shop.order().order_id
    first = await grouping.place({**TEA, "order_id": chosen}, alone=True)  # no worker has seen it yet
    refuse_seats(grouping, monkeypatch)

    other = await grouping.place({**buys("erin", ("poster", 1)), "order_id": chosen})

    assert (first.status_code, other.status_code) == (201, 409)


@pytest.mark.usefixtures("worker")
async def test_with_postgres_away_an_id_that_another_order_has_is_not_given_away(
    grouping: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = f"web {uuid.uuid4().hex}"
    first = await grouping.place({**TEA, "order_id": chosen}, wait=20)
    refuse_seats(grouping, monkeypatch)
    without_postgres(grouping, monkeypatch)

    other = await grouping.place({**buys("erin", ("poster", 1)), "order_id": chosen})

    assert (first.status_code, other.status_code, other.json()["type"]) == (201, 503, "about:blank#not-known")


@pytest.mark.usefixtures("worker")
async def test_an_id_is_its_orders_in_the_database_whatever_was_accepted_since(grouping: Api) -> None:
    chosen = f"web {uuid.uuid4().hex}"
    first = await grouping.place({**TEA, "order_id": chosen}, wait=20)
    grouping.services.recent.add(chosen, "of another order, accepted while Postgres was away")

    again = await grouping.place({**TEA, "order_id": chosen})

    assert (first.status_code, again.status_code) == (201, 200)


def test_only_the_latest_orders_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST", 2)
    orders = recent.RecentOrders()

    for order_id in "abcc":
        orders.add(order_id, f"of {order_id}")

    assert [orders.of(each) for each in "abc"] == [None, "of b", "of c"]


@pytest.mark.usefixtures("worker")
async def test_a_batch_that_is_slow_among_others_is_waited_for(
    grouping: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_id = shop.order().order_id
    await grouping.place(TEA, wait=20)
    begin_late(monkeypatch, seconds=2)
    answer = await grouping.place({**TEA, "order_id": slow_id})

    assert (answer.status_code, answer.json()["status"]) == (201, "completed")
    with pytest.raises(NoSuchOrder):
        await grouping.services.temporal.checkouts.status(slow_id)
