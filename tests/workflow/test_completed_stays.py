"""A completed order is taken back by a cancel that was asked for, or by the run that shipped it, and by nobody else."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import asyncpg
import pytest

from activities.inventory import Inventory
from activities.orders import Orders, ParkInput
from activities.payments import Payments
from activities.shipping import Shipping
from client.checkouts import Checkouts
from domain import policies
from domain.bulk import Outcome
from domain.model import CheckoutInput, Ending, UndoInput
from sagafence import UndoOutcome
from tests.conftest import Shop
from tests.workflow.bulk_scenes import gates_of, start_batch
from tests.workflow.gates import Gates
from tests.workflow.sagas import (
    DOES,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    reset_to,
    violations,
)

LABEL = "carol"
"""Whose parcels are labels until a carrier collects them: they could be cancelled."""

Again = Callable[[Shop, CheckoutInput], Awaitable[None]]


Hurry = Callable[[], None]


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Hurry:
    """Give what makes later runs give up soon: the first one has all its time."""

    def call() -> None:
        monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))
        for name in ("RESERVE", "PAY", "SHIP", "BATCH"):
            monkeypatch.setattr(policies, name, hasty(getattr(policies, name), give_up_ms=300))

    return call


async def _run_again(shop: Shop, order: CheckoutInput) -> None:
    await shop.run_again(order)


async def _reset(shop: Shop, order: CheckoutInput) -> None:
    handle = shop.newest_run(order)
    await reset_to(shop, handle.id, (await handle.describe()).run_id, 4)


async def _repair(shop: Shop, order: CheckoutInput) -> None:
    await shop.run_again(replace(order, repair=True))


async def require_untouched(shop: Shop, order: CheckoutInput, before: object) -> None:
    assert await shop.order_status(order) == "completed"
    assert await goods_and_money(shop.database) == before
    assert await shop.database.value("SELECT count(*) FROM order_events WHERE order_id = $1", order.order_id) == 3
    assert await open_incidents(shop, order) == []
    assert await violations(shop) == []


@pytest.mark.parametrize("at", DOES)
@pytest.mark.parametrize("again", [_run_again, _reset])
async def test_a_second_run_that_gives_up_in_a_step_leaves_the_order_completed(
    shop: Shop, again: Again, at: str, hurry: Hurry
) -> None:
    order, gates = shop.order(LABEL), Gates()
    async with shop.working():
        assert await how_it_ended(await shop.start(order)) == "completed"
    before = await goods_and_money(shop.database)
    gates.fail(order, at)
    hurry()

    async with shop.working(interceptors=(gates,)):
        await again(shop, order)
        ended = await how_it_ended(shop.newest_run(order))

    assert ended == "completed"
    await require_untouched(shop, order, before)


async def test_a_second_run_that_goes_forward_after_all_knows_the_parcels_number(shop: Shop, hurry: Hurry) -> None:
    order, gates = shop.order(LABEL), Gates()
    async with shop.working():
        first = await (await shop.start(order)).result()
    gates.fail(order, "charge_payment")
    hurry()

    async with shop.working(interceptors=(gates,)):
        second = await (await shop.run_again(order)).result()

    assert second.tracking_number == first.tracking_number


@pytest.mark.parametrize("at", DOES)
async def test_a_saga_that_gives_up_leaves_an_order_completed_that_a_batch_has_shipped(
    shop: Shop, at: str, hurry: Hurry
) -> None:
    order, gates = shop.order(LABEL), Gates()
    async with shop.working():
        [outcome] = (await (await start_batch(shop, [order])).result()).unpacked()
    before = await goods_and_money(shop.database)
    gates.fail(order, at)
    hurry()

    async with shop.working(interceptors=(gates,)):
        checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
        await checkouts.start(order)
        status = await checkouts.outcome(order.order_id)

    assert (outcome.status, status.status) == ("completed", "completed")
    await require_untouched(shop, order, before)


async def test_a_load_that_is_grouped_anew_during_an_outage_leaves_its_orders_completed(
    shop: Shop, hurry: Hurry
) -> None:
    orders, gates = [shop.order(LABEL) for _ in range(3)], Gates()
    async with shop.working():
        await (await start_batch(shop, orders)).result()
    before = await goods_and_money(shop.database)
    regrouped = orders[::-1]
    gates.fail(gates_of(shop, regrouped), "check_out_orders")
    for order in orders:
        gates.fail(order, "reserve_inventory")
    hurry()

    async with shop.working(interceptors=(gates,)):
        report = await (await start_batch(shop, regrouped)).result()
        ends = [await how_it_ended(shop.newest_run(order)) for order in orders]

    assert {outcome.status for outcome in report.unpacked()} == {"handed over"}
    assert set(ends) == {"completed"}
    for order in orders:
        await require_untouched(shop, order, before)


async def test_a_saga_whose_undo_comes_after_its_orders_batch_has_shipped_it_goes_forward(shop: Shop) -> None:
    gates, order, other = Gates(), shop.order(LABEL, ("last-one", 1)), shop.order("alice", ("last-one", 1))
    await Inventory(shop.engine).reserve_inventory(other)
    gate = gates.hold(order, "release_inventory", "before")

    async with shop.working(interceptors=(gates,)):
        own = await shop.start(order)
        await gate.reached()  # refused as out of stock; its undo is on its way
        undo = UndoInput(other, Ending.CANCELLED, "cancelled: a test")
        await Inventory(shop.engine).release_inventory(undo)
        await Orders(shop.engine).close_order(undo)
        outcomes = (await (await start_batch(shop, [order])).result()).unpacked()
        before = await goods_and_money(shop.database)
        gate.open()
        ended = await how_it_ended(own)

    assert outcomes == [Outcome(order.order_id, "completed", None, 4200, "EUR", outcomes[0].tracking_number)]
    assert ended == "completed"
    await require_untouched(shop, order, before)


async def test_a_repair_of_an_order_in_label_state_leaves_it_completed_whichever_undo_comes_first(shop: Shop) -> None:
    order = shop.order(LABEL)
    await Inventory(shop.engine).reserve_inventory(order)
    await Payments(shop.engine).charge_payment(order)
    async with shop.working():
        await how_it_ended(await shop.start(order))  # ships it, in a run of its own
        before = await goods_and_money(shop.database)
        undo = UndoInput(replace(order, repair=True), Ending.CANCELLED, "Abandoned: a test")
        results = [
            await Inventory(shop.engine).release_inventory(undo),
            await Payments(shop.engine).refund_payment(undo),
            await Shipping(shop.engine).cancel_shipment(undo),
        ]
        await _repair(shop, order)
        ended = await how_it_ended(shop.newest_run(order))

    assert {result.outcome for result in results} == {UndoOutcome.IRREVOCABLE}
    assert len({result.stored["tracking_number"] for result in results}) == 1
    assert ended == "completed"
    await require_untouched(shop, order, before)


@pytest.mark.parametrize("ending", list(Ending))
async def test_parking_and_closing_leave_an_order_completed_that_another_run_has_shipped(
    shop: Shop, ending: Ending
) -> None:
    order = shop.order(LABEL)
    async with shop.working():
        await how_it_ended(await shop.start(order))
    before = await goods_and_money(shop.database)
    undo = UndoInput(replace(order, repair=ending is Ending.CANCELLED), ending, "an outage")

    parked = await Orders(shop.engine).park_order(ParkInput(undo, ["reserve", "pay", "ship"], "an outage"))
    closed = await Orders(shop.engine).close_order(undo)

    assert (parked.status, parked.active_steps) == ("completed", [])
    assert (closed.status, closed.active_steps) == ("completed", [])
    await require_untouched(shop, order, before)


@pytest.mark.parametrize("status", ["unwinding", "stuck"])
@pytest.mark.parametrize("by", [None, "", "another-run"])
async def test_the_database_lets_nobody_else_take_a_completed_order_back(
    shop: Shop, status: str, by: str | None
) -> None:
    order = shop.order(LABEL)
    async with shop.working():
        await how_it_ended(await shop.start(order))
    connection = await asyncpg.connect(shop.database.admin_url)
    try:
        with pytest.raises(asyncpg.CheckViolationError, match="cannot move from completed"):
            await connection.execute("UPDATE orders SET status = $1, taken_back_by = $2", status, by)
    finally:
        await connection.close()


async def test_the_run_that_shipped_an_order_and_never_heard_of_it_takes_it_back_itself(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, gates, before = shop.order(LABEL), Gates(), await goods_and_money(shop.database)
    gates.fail(order, "ship_order", "after")
    monkeypatch.setattr(policies, "SHIP", hasty(policies.SHIP, attempts=3))

    async with shop.working(interceptors=(gates,)):
        ended = await how_it_ended(await shop.start(order))

    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_label_that_was_cancelled_by_hand_is_not_taken_for_a_parcel_that_is_gone(shop: Shop) -> None:
    order, before = shop.order(LABEL), await goods_and_money(shop.database)
    async with shop.working():
        handle = await shop.start(order)
        await how_it_ended(handle)
    await shop.database.run("UPDATE shipments SET state = 'cancelled'")
    undo = UndoInput(order, Ending.CANCELLED, "cancelled: a test")

    result = await Shipping(shop.engine).cancel_shipment(undo)

    assert result.outcome is UndoOutcome.REVERSED
    assert await shop.order_status(order) == "unwinding"
    await Payments(shop.engine).refund_payment(undo)
    await Inventory(shop.engine).release_inventory(undo)
    assert await goods_and_money(shop.database) == before
