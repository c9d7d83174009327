"""The sweep beside batches that are closing: what it has read is old by the time that Temporal answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from activities import sweep
from activities.payments import Payments
from activities.shipping import Shipping
from activities.sweep import Sweep
from domain import policies
from domain.model import CheckoutInput
from domain.sweep import UnfinishedInput, UnfinishedPage
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.bulk_scenes import BulkHandle, between_steps, forget_orders, gates_of, start_batch
from tests.workflow.gates import Gates
from tests.workflow.sagas import (
    BREAK_UNDO,
    MEND_UNDO,
    hasty,
    how_it_ended,
    open_incidents,
    reset_to,
    until_status,
    violations,
)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=2_000))


def before_temporal_answers(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Awaitable[object]]) -> None:
    """Have something happen between the sweep's look into the database and Temporal's first answer."""
    ask, once = sweep._newest_run, asyncio.Lock()
    has_happened: list[object] = []

    async def late(workflow_id: str) -> Any:
        async with once:
            if not has_happened:
                has_happened.append(await happens())
        return await ask(workflow_id)

    monkeypatch.setattr(sweep, "_newest_run", late)


async def a_page(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> UnfinishedPage:
    """Have the sweep look for unfinished orders, without a worker."""
    monkeypatch.setattr("activities.sweep.activity.client", lambda: shop.client)
    return await Sweep(shop.engine).find_unfinished(UnfinishedInput(100, 0.0))


@pytest.mark.parametrize("are_paid", [False, True])
async def test_orders_that_their_batch_completes_while_the_sweep_looks_are_left_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, are_paid: bool
) -> None:
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=60_000))  # it waits at a gate
    gates, orders = Gates(), [shop.order("carol"), shop.order("alice")]  # a label, and a parcel that is gone
    key = gates_of(shop, orders)
    await between_steps(shop, key.order_id, orders, are_paid=are_paid)
    gate = gates.hold(key, "check_out_orders", "before")

    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, orders)
        await gate.reached()

        async def completes() -> None:
            for order in orders:
                await Payments(shop.engine).charge_payment(order)
                await Shipping(shop.engine).ship_order(order)
            gate.open()
            assert {outcome.status for outcome in (await batch.result()).unpacked()} == {"completed"}

        before_temporal_answers(monkeypatch, completes)
        report = await shop.sweep()

    assert (report.parked, report.repaired) == ([], [])
    assert [await shop.order_status(order) for order in orders] == ["completed", "completed"]
    assert [await open_incidents(shop, order) for order in orders] == [[], []]
    assert await violations(shop) == []


async def test_an_order_that_moves_while_its_batch_closes_is_left_to_the_next_sweep(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = shop.order("carol")
    workflow_id = gates_of(shop, [order]).order_id
    await between_steps(shop, workflow_id, [order])
    batch = await start_batch(shop, [order])

    async def moves_and_closes() -> None:
        await Payments(shop.engine).charge_payment(order)
        await batch.terminate()

    before_temporal_answers(monkeypatch, moves_and_closes)
    while_it_moves, afterwards = await a_page(shop, monkeypatch), await a_page(shop, monkeypatch)

    assert while_it_moves.orders == []
    assert [(found.order_id, found.repair, found.review_reason) for found in afterwards.orders] == [
        (order.order_id, True, "")
    ]


async def test_an_order_that_its_batch_rejects_while_the_sweep_looks_gets_no_other_run(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates, order = Gates(), shop.order("nemo")
    key = gates_of(shop, [order])
    await between_steps(shop, key.order_id, [order])
    gate = gates.hold(key, "check_out_orders", "before")

    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, [order])
        await gate.reached()

        async def rejects() -> None:
            gate.open()
            await batch.result()
            assert await how_it_ended(shop.newest_run(order)) == "OrderRejected"

        before_temporal_answers(monkeypatch, rejects)
        report = await shop.sweep()

    assert (report.repaired, report.parked, report.alive) == ([], [], 0)
    assert await shop.order_status(order) == "rejected"


async def handed_over(shop: Shop, gates: Gates, order: CheckoutInput) -> BulkHandle:
    key = gates_of(shop, [order])
    await between_steps(shop, key.order_id, [order])
    gates.fail(key, "check_out_orders", error=lambda: DatabaseRefusedStatement("no right: injected"))
    return await start_batch(shop, [order])


async def test_an_order_that_was_handed_over_is_alive_in_its_own_saga_and_repaired_without_one(shop: Shop) -> None:
    gates, order = Gates(), shop.order("carol")
    own = gates.hold(order, "ship_order", "before")

    async with shop.working(interceptors=(gates,)):
        await (await handed_over(shop, gates, order)).result()
        await own.reached()
        alive = await shop.sweep()
        await shop.newest_run(order).terminate()
        lost = await shop.sweep()
        ended = await how_it_ended(shop.newest_run(order))
        own.open()

    assert (alive.alive, alive.repaired, alive.parked) == (1, [], [])
    assert (lost.repaired, lost.parked) == ([order.order_id], [])
    assert ended == "OrderCancelled"
    assert await violations(shop) == []


async def cancelled_and_stuck(shop: Shop, gates: Gates, order: CheckoutInput) -> None:
    """Have a batch complete an order, and its own saga, called off before it knows of that, fail to undo it."""
    await (await start_batch(shop, [order])).result()
    await shop.database.run(BREAK_UNDO["pay"])
    reserve = gates.hold(order, "reserve_inventory", "before")
    own = await shop.start(order)
    await reserve.reached()
    await own.execute_update("cancel", "changed my mind")
    reserve.open()
    await until_status(shop, order, "stuck")
    await own.terminate()


async def test_an_order_that_left_completed_because_somebody_asked_is_no_contradiction(shop: Shop) -> None:
    gates, order = Gates(), shop.order("carol")
    async with shop.working(interceptors=(gates,)):
        await cancelled_and_stuck(shop, gates, order)
        await shop.database.run(MEND_UNDO["pay"])
        report = await shop.sweep()
        ended = await how_it_ended(shop.newest_run(order))

    assert (report.repaired, report.parked) == ([order.order_id], [])
    assert ended == "OrderCancelled"
    assert await violations(shop) == []


async def test_a_batch_that_was_reset_is_under_way_and_holds_up_no_sweep(shop: Shop) -> None:
    order = shop.order("carol")
    async with shop.working():
        batch = await start_batch(shop, [order])
        await batch.result()
    await forget_orders(shop)
    await shop.database.run("DELETE FROM transfers WHERE kind = 'capture'")
    await between_steps(shop, batch.id, [order])
    await reset_to(shop, batch.id, batch.first_execution_run_id, 4)
    gates = Gates()
    gate = gates.hold(gates_of(shop, [order]), "check_out_orders", "before")

    async with shop.working(interceptors=(gates,)):
        await gate.reached()
        report = await asyncio.wait_for(shop.sweep(), 20)
        gate.open()
        await shop.client.get_workflow_handle(batch.id).result()
        await how_it_ended(shop.newest_run(order))

    assert (report.repaired, report.parked) == ([], [])
    assert await shop.order_status(order) == "completed"


async def test_a_batch_that_is_reset_while_the_sweep_looks_is_not_waited_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = shop.order("carol")
    async with shop.working():
        batch = await start_batch(shop, [order])
        await batch.result()
    await forget_orders(shop)
    await shop.database.run("DELETE FROM transfers WHERE kind = 'capture'")
    await between_steps(shop, batch.id, [order])
    ask = sweep._newest_run

    async def then_it_is_reset(workflow_id: str) -> Any:
        answer = await ask(workflow_id)
        await reset_to(shop, batch.id, batch.first_execution_run_id, 4)
        return answer

    monkeypatch.setattr(sweep, "_newest_run", then_it_is_reset)
    page = await asyncio.wait_for(a_page(shop, monkeypatch), 20)

    [found] = page.orders
    assert "Temporal has completed order" in found.review_reason
    await shop.client.get_workflow_handle(batch.id).terminate()


@pytest.mark.parametrize("is_batch", [True, False])
async def test_a_run_that_temporal_forgets_while_the_sweep_looks_fails_no_sweep(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, is_batch: bool
) -> None:
    monkeypatch.setattr("activities.sweep.activity.client", lambda: shop.client)
    order = shop.order("carol")
    await between_steps(shop, "bulk-long-forgotten", [order])

    if is_batch:
        page = await a_page(shop, monkeypatch)
        found = [(one.order_id, one.review_reason) for one in page.orders]
    else:
        found = [(one.order_id, one.review_reason) for one in await Sweep(shop.engine).find_contradictions([order])]

    assert found == ([(order.order_id, "")] if is_batch else [])
