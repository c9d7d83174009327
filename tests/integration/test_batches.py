"""Where a batch was cancelled, orders that nothing was done for end so, and the others are left to their sagas.

And what the transactions of batches have in common.
"""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from activities.batch import Changed, until_unchanged
from activities.batch_checkout import BatchCheckout
from activities.inventory import Inventory
from activities.orders import Orders
from activities.payments import Payments
from activities.shipping import Shipping
from domain.bulk import ORDER_ID_CONFLICT, StepReport, UnwindInput, pack
from domain.model import CheckoutInput, Ending, UndoInput
from sagafence import DatabaseRefusedStatement, DatabaseUnavailable
from tests.conftest import Database, Shop
from tests.integration.batch_orders import left_behind, one_by_one, together
from tests.workflow.sagas import violations


async def unwound(shop: Shop, *orders: CheckoutInput, reason: str = "why") -> StepReport:
    count = len(orders)
    given = UnwindInput([pack(order) for order in orders], [reason] * count, ["cancelled"] * count)
    return await BatchCheckout(shop.engine).unwind_orders(given)


# Ended without an effect --------------------------------------------------------------------------------


async def test_orders_that_were_not_begun_end_without_an_effect_and_a_late_attempt_finds_them_so(shop: Shop) -> None:
    orders = [shop.order("alice"), shop.order("nobody", ("poster", 2))]

    report = await unwound(shop, *orders)
    before = await left_behind(shop.database)
    again, late = await unwound(shop, *orders, reason="another reason"), await together(shop, orders)

    assert [(outcome.order_id, outcome.status, outcome.reason) for outcome in report.ended] == [
        (order.order_id, "cancelled", "why") for order in orders
    ]
    assert (again, late) == (report, report.ended)
    assert await left_behind(shop.database) == before
    fences = await shop.database.fetch("SELECT step, phase, had_effect FROM step_fence")
    assert [tuple(row) for row in fences] == [("reserve", "undone", False)] * 2
    lines = await shop.database.fetch("SELECT sku, quantity, unit_price_minor FROM order_lines ORDER BY sku")
    assert [tuple(row) for row in lines] == [("poster", 2, None), ("tea-mug", 1, None)]
    assert await violations(shop) == []


async def test_what_has_ended_or_belongs_to_another_order_is_reported_and_left_alone(shop: Shop) -> None:
    completed, refused = shop.order("alice"), shop.order("nobody")
    await together(shop, [completed])
    await one_by_one(shop, [refused])
    other = shop.order("erin", ("poster", 2), order_id=completed.order_id)
    before = await left_behind(shop.database)

    ended, taken = await unwound(shop, completed, refused), await unwound(shop, other)

    assert [outcome.status for outcome in ended.ended] == ["completed", "rejected"]
    assert [outcome.status for outcome in taken.ended] == [ORDER_ID_CONFLICT]
    assert await left_behind(shop.database) == before


async def test_orders_that_a_saga_has_begun_are_left_to_it(shop: Shop) -> None:
    reserved, undone, by_hand, stuck = orders = [shop.order("alice") for _ in range(4)]
    for order in (reserved, stuck):
        await Inventory(shop.engine).reserve_inventory(order)
    await Inventory(shop.engine).release_inventory(UndoInput(undone, Ending.CANCELLED, "early"))
    await shop.accept_by_hand(by_hand)
    await shop.database.run(f"UPDATE orders SET status = 'stuck', reason = 'why' WHERE order_id = '{stuck.order_id}'")
    before = await left_behind(shop.database)

    report = await unwound(shop, *orders)

    assert report == StepReport(delegated=[order.order_id for order in orders])
    assert await left_behind(shop.database) == before


@pytest.mark.parametrize("fault", ["its row is locked", "it cannot be written"])
async def test_an_order_that_cannot_be_ended_is_left_to_its_saga_and_the_others_are_ended(
    shop: Shop, database: Database, fault: str
) -> None:
    orders = [shop.order("alice") for _ in range(5)]
    odd = orders[1].order_id
    row = f"INSERT INTO orders (order_id, customer) VALUES ('{odd}', 'alice')"
    if fault == "it cannot be written":
        await database.run(f"ALTER TABLE orders ADD CONSTRAINT odd CHECK (order_id <> '{odd}')")
    async with database.locked(row if fault == "its row is locked" else "SELECT"):
        report = await unwound(shop, *orders)

    assert report.delegated == [odd]
    assert [outcome.status for outcome in report.ended] == ["cancelled"] * 4


async def test_an_order_that_comes_while_a_stranger_is_ended_under_its_id_is_left_alone(
    shop: Shop, database: Database
) -> None:
    stranger = shop.order("erin")
    async with database.locked(
        "INSERT INTO orders (order_id, customer, status, changed_by, fingerprint, total_minor, currency)"
        f" VALUES ('{stranger.order_id}', 'alice', 'reserved', 'reserve', 'another', 100, 'EUR')"
    ):
        undoing = asyncio.create_task(unwound(shop, stranger))
        await database.until_blocked()
    report = await undoing

    assert [outcome.status for outcome in report.ended] == [ORDER_ID_CONFLICT]
    assert await shop.order_status(stranger) == "reserved"
    assert await database.value("SELECT count(*) FROM step_fence") == 0


# What their transactions have in common -----------------------------------------------------------------


async def test_an_order_whose_label_was_cancelled_has_no_parcel_to_follow(shop: Shop) -> None:
    order, asked_for = shop.order("carol"), "cancelled: found it cheaper"
    await one_by_one(shop, [order])
    undo = UndoInput(order, Ending.CANCELLED, asked_for)
    await Shipping(shop.engine).cancel_shipment(undo)
    await Payments(shop.engine).refund_payment(undo)
    await Inventory(shop.engine).release_inventory(undo)
    await Orders(shop.engine).close_order(undo)

    [outcome] = await together(shop, [order])

    assert (outcome.status, outcome.reason, outcome.tracking_number) == ("cancelled", asked_for, None)


async def test_a_batch_that_never_finds_its_facts_as_it_decided_is_tried_again_later(shop: Shop) -> None:
    tries: list[int] = []

    async def attempt(_connection: AsyncConnection) -> None:
        tries.append(1)
        raise Changed("the stock")

    with pytest.raises(DatabaseUnavailable, match="since it was read: the stock"):
        await until_unchanged(shop.engine, attempt)

    assert len(tries) == 5


async def test_a_constraint_that_refuses_one_of_the_orders_is_no_outage(shop: Shop) -> None:
    async def attempt(connection: AsyncConnection) -> None:
        await connection.execute(text("UPDATE inventory SET reserved = on_hand + 1 WHERE sku = 'lamp'"))

    with pytest.raises(DatabaseRefusedStatement, match="one of the orders cannot be written") as refused:
        await until_unchanged(shop.engine, attempt)

    assert "inventory_never_oversold" in refused.value.message
