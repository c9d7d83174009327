"""Starting an order as the starter does: one saga for each id, one content for each id, no timeout of Temporal's."""

import asyncio
from dataclasses import replace

import pytest
from temporalio.client import WorkflowHistory

from activities.inventory import Inventory
from client.checkouts import Checkouts
from client.failures import OrderIdConflict
from domain.bulk import Batch, pack
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id
from tests.conftest import Shop
from tests.workflow.gates import PATIENCE_SECONDS, Gates
from tests.workflow.record import FOLDER
from tests.workflow.replays import replayer
from tests.workflow.sagas import events_of, failure_of, goods_and_money, how_it_ended, violations
from tests.workflow.test_maintenance import accept_by_hand
from workflows.bulk import BulkCheckoutWorkflow
from workflows.checkout import CheckoutWorkflow


@pytest.fixture
def checkouts(shop: Shop) -> Checkouts:
    return Checkouts(shop.client, shop.task_queue, "http://ui")


def other_contents(shop: Shop, order: CheckoutInput) -> list[CheckoutInput]:
    return [
        shop.order("bob", ("tea-mug", 1), order_id=order.order_id),
        shop.order("alice", ("tea-mug", 2), order_id=order.order_id),
        shop.order("alice", ("poster", 1), order_id=order.order_id),
    ]


async def test_a_second_start_joins_the_order_running_or_finished(shop: Shop, checkouts: Checkouts) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        first = await checkouts.start(order)
        await gate.reached()
        while_running = await checkouts.start(order)
        gate.open()
        await checkouts.outcome(order.order_id)
        when_finished = await checkouts.start(order)

    assert (first, while_running, when_finished) == (True, False, False)
    assert gates.attempts_of(order, "reserve_inventory") == 1


async def test_a_start_with_other_content_is_refused_running_or_finished(shop: Shop, checkouts: Checkouts) -> None:
    gates, order = Gates(), shop.order("alice", ("tea-mug", 1))
    gate = gates.hold(order, "charge_payment", "before")
    others = other_contents(shop, order)

    async with shop.working(interceptors=(gates,)):
        await checkouts.start(order)
        await gate.reached()
        for other in others:
            with pytest.raises(OrderIdConflict, match="choose another id"):
                await checkouts.start(other)
        gate.open()
        await checkouts.outcome(order.order_id)
        for other in others:
            with pytest.raises(OrderIdConflict, match="choose another id"):
                await checkouts.start(other)


async def test_a_second_start_joins_an_order_that_no_worker_has_seen(shop: Shop, checkouts: Checkouts) -> None:
    order = shop.order("alice", ("tea-mug", 1))

    answers = [await checkouts.start(order) for _ in range(2)]
    with pytest.raises(OrderIdConflict):
        await checkouts.start(other_contents(shop, order)[0])

    assert answers == [True, False]
    await shop.newest_run(order).terminate()


async def test_a_start_joins_an_order_that_was_started_by_other_means(shop: Shop, checkouts: Checkouts) -> None:
    order = shop.order("alice", ("tea-mug", 1))
    handle = await shop.start(order)  # as any client would

    is_new = await checkouts.start(order)
    for other in other_contents(shop, order):
        with pytest.raises(OrderIdConflict):
            await checkouts.start(other)

    assert not is_new
    await handle.terminate()


@pytest.mark.parametrize("given", [[], ["nonsense"], [{"order_id": "x"}], [1, 2]], ids=str)
async def test_a_start_at_an_id_that_holds_no_order_is_refused(
    shop: Shop, checkouts: Checkouts, given: list[object]
) -> None:
    order = shop.order()
    handle = await shop.client.start_workflow(
        "Checkout", args=given, id=checkout_workflow_id(order.order_id), task_queue=shop.task_queue
    )

    with pytest.raises(OrderIdConflict, match="choose another id"):
        await checkouts.start(order)

    await handle.terminate()


async def test_no_saga_has_a_timeout_of_temporals(shop: Shop, checkouts: Checkouts) -> None:
    started, swept = shop.order("alice"), await accept_by_hand(shop)

    async with shop.working():
        await checkouts.start(started)
        await shop.sweep()
        for order in (started, swept):
            await how_it_ended(shop.newest_run(order))

    for order in (started, swept):
        handle = shop.client.get_workflow_handle(checkout_workflow_id(order.order_id))
        [began, *_] = [event async for event in handle.fetch_history_events()]
        attributes = began.workflow_execution_started_event_attributes
        assert attributes.workflow_execution_timeout.ToSeconds() == 0
        assert attributes.workflow_run_timeout.ToSeconds() == 0


@pytest.mark.parametrize("foreign", ["checkout-", "Checkout-{}", "{}", "checkout-{}-2", "a-random-uuid"])
@pytest.mark.parametrize("is_repair", [False, True])
async def test_a_saga_under_a_foreign_workflow_id_is_refused_before_it_does_anything(
    shop: Shop, foreign: str, is_repair: bool
) -> None:
    order, gates = shop.order("alice"), Gates()
    await Inventory(shop.engine).reserve_inventory(order)  # so that a repair would find something to undo
    before = await goods_and_money(shop.database)
    async with shop.working(interceptors=(gates,)):
        handle = await shop.client.start_workflow(
            CheckoutWorkflow.run,
            replace(order, repair=is_repair),
            id=foreign.format(order.order_id),
            task_queue=shop.task_queue,
        )
        failure = await failure_of(handle)

    assert failure.type == "InvalidInput"
    assert failure.non_retryable
    assert f"checkout-{order.order_id}, not {handle.id}" in failure.message
    assert gates.attempts == {}
    assert "EVENT_TYPE_ACTIVITY_TASK_SCHEDULED" not in await events_of(handle)
    assert await goods_and_money(shop.database) == before
    assert await shop.order_status(order) == "reserved"


async def test_a_saga_that_was_open_under_a_foreign_workflow_id_at_the_deploy_goes_on() -> None:
    """Its history has no mark of the check: a recording of before stands in for it, read under another id."""
    recording = await asyncio.to_thread((FOLDER / "completed.json").read_text, encoding="utf-8")

    result = await replayer().replay_workflow(
        WorkflowHistory.from_json("anything-else", recording), raise_on_replay_failure=False
    )

    assert result.replay_failure is None


async def test_a_batch_is_carried_under_any_workflow_id(shop: Shop) -> None:
    """An order's row names its batch by the id that it has, so the sweep and a second load find it."""
    order, gates = shop.order("alice"), Gates()
    gate = gates.hold(replace(order, order_id="a-random-uuid"), "check_out_orders", "before")
    async with shop.working(interceptors=(gates,)):
        handle = await shop.client.start_workflow(
            BulkCheckoutWorkflow.run, Batch([pack(order)]), id="a-random-uuid", task_queue=shop.task_queue
        )
        await gate.reached()
        swept = await shop.sweep()
        gate.open()
        [outcome] = (await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)).unpacked()

    assert (swept.repaired, swept.parked) == ([], [])
    assert outcome.status == "completed"
    assert await violations(shop) == []
