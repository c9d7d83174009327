"""An order whose workflow was ended from outside can be started again; one that has ended by itself cannot."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.client import WorkflowHandle

from client.batches import delegated_outcome
from client.checkouts import Checkouts
from client.failures import OrderIdConflict
from domain import policies
from domain.bulk import UNKNOWN
from domain.model import CheckoutInput, CheckoutStatus, Ending, OrderLine
from domain.policies import checkout_workflow_id
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.bulk_scenes import gates_of, start_batch
from tests.workflow.gates import PATIENCE_SECONDS, Gates
from tests.workflow.sagas import DOES, goods_and_money, hasty, until, violations
from workflows.checkout import CheckoutWorkflow


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=500))


@pytest.fixture
def checkouts(shop: Shop) -> Checkouts:
    return Checkouts(shop.client, shop.task_queue, "http://ui")


async def timed_out(shop: Shop, order: CheckoutInput) -> None:
    handle = await shop.client.start_workflow(
        CheckoutWorkflow.run,
        order,
        id=checkout_workflow_id(order.order_id),
        task_queue=shop.task_queue,
        run_timeout=timedelta(milliseconds=200),
    )

    async def is_over() -> bool:
        return (await handle.describe()).close_time is not None

    await until(is_over)


@pytest.mark.parametrize("how", ["terminated", "timed out"])
async def test_an_order_that_was_ended_before_it_had_a_row_is_begun_anew(
    shop: Shop, checkouts: Checkouts, how: str
) -> None:
    order = shop.order("alice")
    if how == "terminated":
        await checkouts.start(order)
        await shop.newest_run(order).terminate()
    else:
        await timed_out(shop, order)
    output = await checkouts.status(order.order_id)

    async with shop.working():
        swept = await shop.sweep()
        is_new = await checkouts.start(order)
        outcome = await checkouts.outcome(order.order_id)

    assert output.status == "terminated"
    assert "before a worker had seen it" in (output.reason or "")
    assert "starter.py start with the same order begins it anew" in (output.reason or "")
    assert (swept.repaired, swept.started) == ([], [])
    assert is_new
    assert outcome.status == "completed"
    assert await violations(shop) == []


@pytest.mark.parametrize("name", DOES)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_order_that_was_ended_at_work_goes_on_from_what_it_has_done(
    shop: Shop, checkouts: Checkouts, name: str, moment: str
) -> None:
    gates, order = Gates(), shop.order("carol")
    gate = gates.hold(order, name, "before" if moment == "before" else "after")

    async with shop.working(interceptors=(gates,)):
        await checkouts.start(order)
        await gate.reached()
        await shop.newest_run(order).terminate()
        output = await checkouts.status(order.order_id)
        is_new = await checkouts.start(order)
        gate.open()
        outcome = await checkouts.outcome(order.order_id)
        await gate.passed()

    assert "starter.py sweep undoes what it has done" in (output.reason or "")
    assert "starter.py start with the same order goes on" in (output.reason or "")
    assert is_new
    assert (outcome.status, await shop.order_status(order)) == ("completed", "completed")
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE order_id = $1", order.order_id) == 1
    assert await violations(shop) == []


async def test_an_order_that_was_refused_and_ended_before_it_had_a_row_is_rejected_with_one(
    shop: Shop, checkouts: Checkouts
) -> None:
    gates, order = Gates(), shop.order("alice", ("lamp", 999))
    gate = gates.hold(order, "close_order", "before")

    async with shop.working(interceptors=(gates,)):
        await checkouts.start(order)
        await gate.reached()
        await shop.newest_run(order).terminate()
        before = await shop.order_status(order)
        is_new = await checkouts.start(order)
        gate.open()
        outcome = await checkouts.outcome(order.order_id)

    assert (before, is_new) == (None, True)
    assert (outcome.status, await shop.order_status(order)) == ("rejected", "rejected")
    assert await violations(shop) == []


async def test_other_content_is_refused_although_the_run_that_has_the_id_is_gone(
    shop: Shop, checkouts: Checkouts
) -> None:
    order = shop.order("alice")
    await checkouts.start(order)
    await shop.newest_run(order).terminate()

    for other in (replace(order, customer="bob"), replace(order, lines=(OrderLine("tea-mug", 2),))):
        with pytest.raises(OrderIdConflict, match="choose another id"):
            await checkouts.start(other)

    assert await checkouts.is_gone(order.order_id)


@pytest.mark.parametrize("ending", ["completed", "rejected", "cancelled by update", "cancelled by Temporal"])
async def test_an_order_that_has_ended_by_itself_is_joined_and_never_repeated(
    shop: Shop, checkouts: Checkouts, ending: str
) -> None:
    gates, order = Gates(), shop.order("nemo" if ending == "rejected" else "carol")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        await checkouts.start(order)
        await gate.reached()
        if ending == "cancelled by update":
            await checkouts.cancel(order.order_id, "changed my mind")
        elif ending == "cancelled by Temporal":
            await shop.newest_run(order).cancel(reason="changed my mind")
        gate.open()
        outcome = await checkouts.outcome(order.order_id)
        first = await shop.newest_run(order).describe()
        is_new = await checkouts.start(order)
        newest = await shop.newest_run(order).describe()

    assert outcome.status == ending.split(maxsplit=1)[0]
    assert not is_new
    assert newest.run_id == first.run_id


async def test_beside_a_sweep_that_repairs_it_an_order_has_one_run_and_the_start_joins_it(
    shop: Shop, checkouts: Checkouts
) -> None:
    gates, order = Gates(), shop.order("carol")
    before = await goods_and_money(shop.database)
    pay, release = gates.hold(order, "charge_payment", "before"), gates.hold(order, "release_inventory", "before")

    async with shop.working(interceptors=(gates,)):
        await checkouts.start(order)
        await pay.reached()
        await shop.newest_run(order).terminate()
        report = await shop.sweep()
        await release.reached()
        is_new = await checkouts.start(order)
        release.open()
        outcome = await checkouts.outcome(order.order_id)
        pay.open()

    assert report.repaired == [order.order_id]
    assert not is_new
    assert outcome.status == "cancelled"
    assert await goods_and_money(shop.database) == before


async def test_a_repair_that_was_ended_is_gone_on_with_as_a_repair(shop: Shop, checkouts: Checkouts) -> None:
    gates, order = Gates(), shop.order("carol")
    before = await goods_and_money(shop.database)
    pay, cancel = gates.hold(order, "charge_payment", "before"), gates.hold(order, "cancel_shipment", "before")

    async with shop.working(interceptors=(gates,)):
        await checkouts.start(order)
        await pay.reached()
        await shop.newest_run(order).terminate()
        await shop.sweep()
        await cancel.reached()
        await shop.newest_run(order).terminate()
        is_new = await checkouts.start(order)
        cancel.open()
        pay.open()
        outcome = await checkouts.outcome(order.order_id)

    assert is_new
    assert (outcome.status, await shop.order_status(order)) == ("cancelled", "cancelled")
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_repair_that_was_ended_is_gone_on_with_for_its_own_reason(shop: Shop, checkouts: Checkouts) -> None:
    order = shop.order("carol")
    await shop.start(replace(order, repair=True, reason="nobody delivers there", ending=Ending.REJECTED))
    await shop.newest_run(order).terminate()

    async with shop.working():
        is_new = await checkouts.start(order)
        outcome = await checkouts.outcome(order.order_id)

    assert is_new
    assert (outcome.status, outcome.reason) == ("rejected", "nobody delivers there")
    assert await shop.order_status(order) == "rejected"


async def test_many_starts_of_an_order_that_is_gone_begin_one_run(shop: Shop, checkouts: Checkouts) -> None:
    order = shop.order("alice")
    await checkouts.start(order)
    await shop.newest_run(order).terminate()

    begun = await asyncio.gather(*(checkouts.start(order) for _ in range(20)))
    async with shop.working():
        outcome = await checkouts.outcome(order.order_id)

    assert begun.count(True) == 1
    assert outcome.status == "completed"


# Loads --------------------------------------------------------------------------------------------------


async def handed_over_and_held(
    shop: Shop, gates: Gates, order: CheckoutInput
) -> WorkflowHandle[CheckoutWorkflow, CheckoutStatus]:
    """Have a batch hand an order over to a saga of its own, which cannot reserve."""
    gates.fail(gates_of(shop, [order]), "check_out_orders", error=lambda: DatabaseRefusedStatement("injected"))
    gate = gates.hold(order, "reserve_inventory", "before")
    await (await start_batch(shop, [order])).result()
    await gate.reached()
    return shop.newest_run(order)


async def test_a_load_begins_an_order_anew_whose_own_saga_was_ended_before_it_came(
    shop: Shop, checkouts: Checkouts
) -> None:
    gates, order = Gates(), shop.order("alice")
    async with shop.working(interceptors=(gates,)):
        own = await handed_over_and_held(shop, gates, order)
        await own.terminate()
        following = asyncio.create_task(delegated_outcome(checkouts, order))
        gates.hold(order, "reserve_inventory", "before").open()
        outcome = await asyncio.wait_for(following, PATIENCE_SECONDS)

    assert outcome.status == "completed"
    assert await shop.order_status(order) == "completed"
    assert await violations(shop) == []


async def test_a_load_does_not_argue_with_who_ends_a_saga_while_it_waits_and_begins_it_the_next_time(
    shop: Shop, checkouts: Checkouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates, order, is_followed = Gates(), shop.order("alice"), asyncio.Event()
    outcome = checkouts.outcome

    async def followed(order_id: str, *, poll_every: float) -> CheckoutStatus:
        is_followed.set()
        return await outcome(order_id, poll_every=poll_every)

    monkeypatch.setattr(checkouts, "outcome", followed)
    async with shop.working(interceptors=(gates,)):
        own = await handed_over_and_held(shop, gates, order)
        following = asyncio.create_task(delegated_outcome(checkouts, order))
        await is_followed.wait()
        await own.terminate()
        first = await asyncio.wait_for(following, PATIENCE_SECONDS)
        gates.hold(order, "reserve_inventory", "before").open()
        again = await asyncio.wait_for(delegated_outcome(checkouts, order), PATIENCE_SECONDS)

    assert (first.status, again.status) == (UNKNOWN, "completed")
    assert "ended from outside" in (first.reason or "")


async def test_a_load_leaves_a_strangers_saga_that_is_gone_alone(shop: Shop, checkouts: Checkouts) -> None:
    order = shop.order("alice")
    stranger = replace(order, lines=(OrderLine("poster", 3),))
    await checkouts.start(stranger)
    its_run = (await shop.newest_run(stranger).describe()).run_id
    await shop.newest_run(stranger).terminate()

    async with shop.working():
        outcome = await delegated_outcome(checkouts, order)

    assert outcome.status == "completed"
    assert (await shop.newest_run(stranger).describe()).run_id == its_run
