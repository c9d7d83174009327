"""Starts that race cancels, sweeps, repairs and strangers under the same id."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError

from activities.inventory import Inventory
from activities.payments import Payments
from client.failures import NoSuchOrder, NoWorker, Refused
from domain.model import CheckoutInput, OrderLine
from domain.policies import checkout_workflow_id
from domain.sweep import SweepReport
from tests.conftest import Shop
from tests.faults.callers import COMPLETED_ONCE, PATIENCE_SECONDS, ask, checkouts_of, traces
from tests.workflow.sagas import goods_and_money, violations

ROUNDS = [pytest.param(4, id="some"), pytest.param(20, id="many", marks=pytest.mark.exhaustive)]


def orders_of(shop: Shop, count: int, customer: str = "carol") -> list[CheckoutInput]:
    return [shop.order(customer, ("item-001", 1), ("item-002", 2)) for _ in range(count)]


async def sweep(shop: Shop) -> SweepReport:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await shop.sweep()


async def cancelled(shop: Shop, order: CheckoutInput) -> str:
    try:
        await checkouts_of(shop).cancel(order.order_id, "found it cheaper")
    except NoSuchOrder:
        return "no such order"
    except Refused:
        return "refused"
    except NoWorker:
        return "unanswered"  # it may still be taken
    return "accepted"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", ROUNDS)
async def test_a_start_that_races_a_cancel_is_honoured_or_cancelled_and_all_are_reported_the_same(
    shop: Shop, count: int
) -> None:
    orders = orders_of(shop, count)
    before = await goods_and_money(shop.database)

    at_once = asyncio.Semaphore(20)

    async def race(order: CheckoutInput) -> tuple[list[str], set[str]]:
        async with at_once:
            starts = [asyncio.create_task(ask(checkouts_of(shop), order)) for _ in range(3)]
            early = asyncio.create_task(cancelled(shop, order))  # looks for an order by hand where there is no saga yet
            await checkouts_of(shop).start(order)
            asked = [await cancelled(shop, order), await early]
            return asked, {(await start).outcome.status for start in starts}

    async with shop.working():
        races = await asyncio.gather(*(race(order) for order in orders))

    output = Counter(ask for asked, _ in races for ask in asked)
    assert output["accepted"] > 0
    for asked, outcomes in races:
        assert len(outcomes) == 1
        # No courier takes a label away before it is cancelled, so a cancel that was accepted is carried out.
        if "accepted" in asked:
            assert outcomes == {"cancelled"}
        elif "unanswered" not in asked:
            assert outcomes == {"completed"}
    kept = [order for order, (_, outcomes) in zip(orders, races, strict=True) if outcomes == {"completed"}]
    assert await traces(shop.database, *kept) == [COMPLETED_ONCE] * len(kept)
    if not kept:
        assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", ROUNDS)
async def test_an_order_by_hand_that_starters_and_two_sweeps_find_at_once_is_carried_out_once(
    shop: Shop, count: int
) -> None:
    orders = orders_of(shop, count)
    await shop.accept_by_hand(*orders)

    async with shop.working():
        sweeps = [asyncio.create_task(sweep(shop)) for _ in range(2)]
        answers = await asyncio.gather(*(ask(checkouts_of(shop), order) for order in orders for _ in range(2)))
        reports = await asyncio.gather(*sweeps)
        # A sweep that read an order as pending may have begun a second run of it since; it has to end too.
        await asyncio.gather(*(ask(checkouts_of(shop), order) for order in orders))

    assert {answer.outcome.status for answer in answers} == {"completed"}
    assert all(len(set(report.started)) == report.started_count for report in reports)
    by_hand = ("completed", ["pending", "reserved", "paid", "completed"], 1, 0, 1, 3)
    assert await traces(shop.database, *orders) == [by_hand] * count
    assert await violations(shop) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", ROUNDS)
async def test_two_sweeps_at_once_give_each_order_one_run_that_does_its_work(shop: Shop, count: int) -> None:
    pending, lost = orders_of(shop, count), orders_of(shop, count)
    for number, order in enumerate(lost):
        await Inventory(shop.engine).reserve_inventory(order)
        if number % 2:
            await Payments(shop.engine).charge_payment(order)
    await shop.accept_by_hand(*pending)

    async with shop.working():
        reports = await asyncio.gather(*(sweep(shop) for _ in range(2)))
        ends = await asyncio.gather(
            *(checkouts_of(shop).outcome(order.order_id, poll_every=PATIENCE_SECONDS) for order in [*pending, *lost])
        )

    assert Counter(end.status for end in ends) == {"completed": count, "cancelled": count}
    assert {order_id for report in reports for order_id in report.started} == {order.order_id for order in pending}
    assert {order_id for report in reports for order_id in report.repaired} == {order.order_id for order in lost}
    assert [trace[2:4] for trace in await traces(shop.database, *lost)].count((1, 1)) == count // 2
    assert await shop.database.value("SELECT sum(reserved) FROM inventory") == 0
    assert await shop.database.value("SELECT sum(initial - on_hand) FROM inventory") == 3 * count
    assert await violations(shop) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", ROUNDS)
async def test_a_start_that_races_the_repair_of_its_lost_saga_joins_it_or_goes_on_itself(
    shop: Shop, count: int
) -> None:
    orders = orders_of(shop, count)
    for order in orders:
        await checkouts_of(shop).start(order)
        await shop.client.get_workflow_handle(checkout_workflow_id(order.order_id)).terminate()
        await Inventory(shop.engine).reserve_inventory(order)

    async with shop.working():
        sweeps = [asyncio.create_task(sweep(shop)) for _ in range(2)]
        answers = await asyncio.gather(*(checkouts_of(shop).start(order) for order in orders))
        await asyncio.gather(*sweeps)
        ends = await asyncio.gather(*(ask(checkouts_of(shop), order) for order in orders))

    # One that read the lost run's status before a repair and started after its end finds the tombstones.
    found = {(is_new, end.outcome.status) for is_new, end in zip(answers, ends, strict=True)}
    assert found <= {(False, "cancelled"), (True, "completed"), (True, "cancelled")}
    completed = [order.order_id for order, end in zip(orders, ends, strict=True) if end.outcome.status == "completed"]
    shipped = await shop.database.fetch("SELECT order_id FROM shipments WHERE state <> 'cancelled'")
    assert sorted(row[0] for row in shipped) == sorted(completed)
    assert await shop.database.value("SELECT sum(reserved) FROM inventory") == 0
    assert await violations(shop) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", ROUNDS)
async def test_of_two_orders_that_come_under_one_id_at_once_one_is_carried_out(
    shop: Shop, elsewhere: Shop, count: int
) -> None:
    """Past everything that Temporal checks: each comes by a Temporal of its own."""
    orders = orders_of(shop, count)
    others = [replace(order, customer="dave", lines=(OrderLine("item-003", 1),)) for order in orders]

    async with shop.working(), elsewhere.working():
        ends = await asyncio.gather(
            *(_end_of_its_saga(shop, order) for order in orders),
            *(_end_of_its_saga(elsewhere, order) for order in others),
        )

    pairs = list(zip(ends[:count], ends[count:], strict=True))
    assert all(sorted(pair) == ["OrderIdConflict", "completed"] for pair in pairs), pairs
    assert await traces(shop.database, *orders) == [COMPLETED_ONCE] * count
    assert await violations(shop) == []


async def _end_of_its_saga(shop: Shop, order: CheckoutInput) -> str:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await (await shop.start(order)).result()
    except WorkflowFailureError as failure:
        cause: Any = failure
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return str(cause.type)
    return "completed"
