"""A batch that is checked out in one transaction: every order has an outcome, whatever becomes of the batch."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio import workflow

from activities.inventory import Inventory
from client.checkouts import Checkouts
from domain import policies
from domain.bulk import DELEGATED, OWNED, CancelOrder
from domain.model import Ending
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.bulk_scenes import gates_of, mixed, start_batch
from tests.workflow.gates import PATIENCE_SECONDS, Gates, Moment, lost_report, outage
from tests.workflow.replays import replayer
from tests.workflow.sagas import goods_and_money, hasty, how_it_ended, reason_of, until_tried, violations
from tests.workflow.test_bulk import ENDINGS, activities_of, cancel_the_attempt, outcomes_of, statuses
from workflows.bulk import BulkCheckoutWorkflow

NAME = "check_out_orders"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=2_000))


async def test_each_order_has_its_outcome_and_no_activity_is_a_task_of_its_own(shop: Shop) -> None:
    orders = mixed(shop)
    async with shop.working():
        handle = await start_batch(shop, orders, together=True)
        outcomes = await outcomes_of(handle)

    assert [outcome.order_id for outcome in outcomes] == [order.order_id for order in orders]
    assert statuses(outcomes) == ENDINGS
    assert await activities_of(handle) == []
    rows = await shop.database.fetch(
        "SELECT DISTINCT carrier, shipped_by IS NOT NULL FROM orders WHERE status = 'completed'"
    )
    assert [tuple(row) for row in rows] == [(handle.id, True)]
    assert await violations(shop) == []


@pytest.mark.parametrize(("moment", "error"), [("before", outage), ("after", outage), ("after", lost_report)])
async def test_a_checkout_together_that_may_pass_is_tried_again(
    shop: Shop, moment: Moment, error: Callable[[], Exception]
) -> None:
    orders, gates = mixed(shop), Gates()
    gates.fail(gates_of(shop, orders), NAME, moment, times=2, error=error)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders, together=True)
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ENDINGS
    assert await activities_of(handle) == [NAME]
    assert await violations(shop) == []
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'capture'") == 2


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_where_it_keeps_failing_the_orders_go_on_in_sagas_of_their_own(shop: Shop, moment: Moment) -> None:
    orders, gates = mixed(shop), Gates()
    gates.fail(gates_of(shop, orders), NAME, moment, error=lambda: DatabaseRefusedStatement("no right: injected"))
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(interceptors=(gates,)):
        outcomes = await outcomes_of(await start_batch(shop, orders, together=True))
        ends = [(await checkouts.outcome(order.order_id)).status for order in orders]

    assert {(outcome.status, outcome.reason) for outcome in outcomes} == {
        (DELEGATED, "DatabaseRefusedStatement: no right: injected")
    }
    assert ends == ENDINGS
    assert await violations(shop) == []


async def test_more_orders_than_are_delegated_at_once_all_have_sagas_of_their_own(shop: Shop) -> None:
    orders = [shop.order("alice", ("no-such", 1)) for _ in range(101)]
    gates = Gates()
    gates.fail(gates_of(shop, orders), NAME, error=lambda: DatabaseRefusedStatement("no right: injected"))
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders, together=True)
        outcomes = await asyncio.wait_for(outcomes_of(handle), PATIENCE_SECONDS)
        ended = await asyncio.gather(*(how_it_ended(shop.newest_run(order)) for order in orders))

    assert set(statuses(outcomes)) == {DELEGATED}
    assert await activities_of(handle) == ["start_sagas", "start_sagas"]
    assert set(ended) == {"OrderRejected"}


async def test_each_order_that_is_left_to_a_saga_says_why_and_has_one(shop: Shop) -> None:
    orders = [shop.order("alice"), shop.order("erin"), shop.order("carol", ("poster", 1))]
    await Inventory(shop.engine).reserve_inventory(orders[0])
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(), shop.database.locked("SELECT FROM accounts WHERE account_id = 'erin' FOR UPDATE"):
        outcomes = await outcomes_of(await start_batch(shop, orders, together=True))
        first = await checkouts.outcome(orders[0].order_id)
        begun = await checkouts.has_saga_of(orders[1])

    assert [(outcome.status, outcome.reason) for outcome in outcomes[:2]] == [
        (DELEGATED, OWNED),
        (DELEGATED, "locked by another transaction: account erin"),
    ]
    assert (outcomes[2].status, first.status, begun) == ("completed", "completed", True)


# Cancelled ------------------------------------------------------------------------------------------------


async def test_a_batch_that_is_cancelled_before_it_begins_leaves_every_order_cancelled(shop: Shop) -> None:
    orders = mixed(shop)
    handle = await start_batch(shop, orders, together=True)
    await handle.cancel(reason="too early")
    async with shop.working():
        outcomes = await outcomes_of(handle)

    assert statuses(outcomes) == ["cancelled"] * 5
    assert await violations(shop) == []


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_cancel_during_the_checkout_undoes_what_was_not_done(
    shop: Shop, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", timedelta(milliseconds=300))
    orders, gates = mixed(shop), Gates()
    key = gates_of(shop, orders)
    gate = gates.hold(key, NAME, moment)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders, together=True)
        await until_tried(gates, key, NAME, times=2)
        await cancel_the_attempt(handle)
        gate.open()
        outcomes = await outcomes_of(handle)

    rows = {row[0]: row[1] for row in await shop.database.fetch("SELECT order_id, status FROM orders")}
    assert {outcome.order_id: outcome.status for outcome in outcomes} == rows
    assert set(statuses(outcomes)) <= {"completed", "rejected", "cancelled"}
    if moment == "after":
        assert statuses(outcomes) == ENDINGS
    assert await violations(shop) == []


async def test_a_cancel_between_two_attempts_undoes_the_batch(shop: Shop) -> None:
    orders, gates = mixed(shop), Gates()
    before = await goods_and_money(shop.database)
    key = gates_of(shop, orders)
    fault = gates.fail(key, NAME)
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders, together=True)
        await until_tried(gates, key, NAME, times=2)
        await handle.cancel(reason="the supplier is gone")
        outcomes = await outcomes_of(handle)
        fault.mend()

    assert statuses(outcomes) == ["cancelled"] * 5
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_an_order_that_is_cancelled_while_its_batch_keeps_failing_is_undone_by_its_own_saga(shop: Shop) -> None:
    orders, gates = mixed(shop), Gates()
    key = gates_of(shop, orders)
    gates.fail(key, NAME)
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, orders, together=True)
        await until_tried(gates, key, NAME, times=2)
        await handle.execute_update(
            BulkCheckoutWorkflow.cancel_order, CancelOrder(orders[0].order_id, "found it cheaper", "anna@desk")
        )
        outcomes = await outcomes_of(handle)
        ends = [(await checkouts.outcome(order.order_id)).status for order in orders]

    assert set(statuses(outcomes)) == {DELEGATED}
    assert ends == ["cancelled", *ENDINGS[1:]]
    assert await violations(shop) == []


async def test_a_batch_that_a_worker_of_before_began_step_by_step_goes_on_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = mixed(shop)
    with monkeypatch.context() as before:
        before.setattr(workflow, "patched", lambda _: False)
        async with shop.working():
            handle = await start_batch(shop, orders, together=True)
            outcomes = (await handle.result()).unpacked()

    assert statuses(outcomes) == ENDINGS
    assert await activities_of(handle) == ["unwind_orders"]
    await replayer(BulkCheckoutWorkflow).replay_workflow(await handle.fetch_history())


async def test_a_repair_that_was_terminated_stays_one_where_a_batch_delegates_its_order(shop: Shop) -> None:
    order = shop.order("carol")
    await Inventory(shop.engine).reserve_inventory(order)
    await shop.start(replace(order, repair=True, reason="cancelled: found it cheaper", ending=Ending.CANCELLED))
    await shop.newest_run(order).terminate()

    async with shop.working():
        [outcome] = await outcomes_of(await start_batch(shop, [order], together=True))
        ended = await how_it_ended(shop.newest_run(order))

    assert outcome.status == DELEGATED
    assert ended == "OrderCancelled"
    assert await reason_of(shop, order) == "cancelled: found it cheaper"
    assert await violations(shop) == []
