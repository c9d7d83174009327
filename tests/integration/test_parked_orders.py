"""What the database keeps of an order that is parked or settled by hand: lines, the first reason, what was undone."""

import pytest

from activities.inventory import Inventory
from activities.orders import OperatorNote, Orders, ParkInput
from domain.errors import DatabaseContradictsHistory
from domain.model import CheckoutInput, Ending, UndoInput
from sagafence import StepAlreadyCompensated, UndoOutcome
from tests.conftest import Shop


def park(order: CheckoutInput, reason: str) -> ParkInput:
    return ParkInput(UndoInput(order, Ending.REJECTED, reason), ["reserve"], "the shelf does not answer")


async def test_an_order_that_is_parked_before_it_had_a_row_keeps_its_lines(shop: Shop) -> None:
    order = shop.order("alice", ("tea-mug", 2), ("poster", 1))

    await Orders(shop.engine).park_order(park(order, "a reason"))

    [row] = await shop.database.fetch("SELECT customer, status, reason FROM orders")
    lines = await shop.database.fetch("SELECT order_id, sku, quantity FROM order_lines ORDER BY sku")
    assert tuple(row) == ("alice", "stuck", "a reason")
    assert [tuple(line) for line in lines] == [(order.order_id, "poster", 1), (order.order_id, "tea-mug", 2)]


async def test_a_parked_order_keeps_the_reason_that_its_unwind_began_with(shop: Shop) -> None:
    order, inventory = shop.order("alice"), Inventory(shop.engine)
    await inventory.reserve_inventory(order)
    await inventory.release_inventory(UndoInput(order, Ending.CANCELLED, "cancelled: found it cheaper"))

    first = await Orders(shop.engine).park_order(park(order, "a later reason"))
    again = await Orders(shop.engine).park_order(park(order, "one later still"))

    assert {first.reason, again.reason} == {"cancelled: found it cheaper"}
    [row] = await shop.database.fetch("SELECT reason, ending FROM orders")
    assert tuple(row) == ("cancelled: found it cheaper", "cancelled")


async def test_a_step_that_was_undone_cannot_be_resolved_and_stays_undone(shop: Shop) -> None:
    order, inventory = shop.order("alice"), Inventory(shop.engine)
    await inventory.reserve_inventory(order)
    await inventory.release_inventory(UndoInput(order, Ending.REJECTED, "a reason"))
    await Orders(shop.engine).park_order(park(order, "a reason"))

    with pytest.raises(StepAlreadyCompensated, match="undone already"):
        await Orders(shop.engine).resolve_step(OperatorNote(order, "counted by hand", "reserve"))

    assert await shop.database.value("SELECT phase FROM step_fence WHERE step = 'reserve'") == "undone"


async def test_an_incident_that_is_closed_keeps_how_it_was_settled(shop: Shop) -> None:
    order = shop.order("alice")
    await Orders(shop.engine).park_order(park(order, "a reason"))
    await shop.database.run("UPDATE incidents SET closed_at = now(), resolution = 'the shelf was mended'")
    await Orders(shop.engine).park_order(park(order, "a reason"))

    await Orders(shop.engine).close_order(UndoInput(order, Ending.REJECTED, "a reason"))

    settled = await shop.database.fetch("SELECT resolution FROM incidents ORDER BY incident_id")
    assert [row[0] for row in settled] == ["the shelf was mended", "every undo was done or resolved"]


async def test_a_review_that_is_over_holds_up_nothing_any_more(shop: Shop) -> None:
    order, inventory = shop.order("alice"), Inventory(shop.engine)
    undo = UndoInput(order, Ending.REJECTED, "a reason")
    await inventory.reserve_inventory(order)
    await Orders(shop.engine).park_order(ParkInput(undo, ["reserve"], "was it restored?", needs_review=True))
    with pytest.raises(DatabaseContradictsHistory):
        await inventory.release_inventory(undo)
    await shop.database.run("UPDATE incidents SET closed_at = now(), resolution = 'somebody has looked'")
    await Orders(shop.engine).park_order(park(order, "a reason"))

    assert (await inventory.release_inventory(undo)).outcome is UndoOutcome.REVERSED
