"""What a worker answers about orders and names, straight from the database."""

import pytest

from activities import lookups
from activities.inventory import Inventory
from activities.lookups import Lookups, Names
from activities.orders import OperatorNote, Orders, ParkInput
from activities.payments import Payments
from activities.shipping import Shipping
from domain.lookup import KnownOrder, LookupAnswer, LookupInput, NamesInput
from domain.model import CheckoutInput, Ending, UndoInput
from tests.conftest import Shop


async def by_hand(shop: Shop, count: int) -> list[str]:
    """Write so many orders, one after the other, and give their ids, the newest first."""
    orders = [shop.order("alice") for _ in range(count)]
    for order in orders:
        await shop.accept_by_hand(order)
    return [order.order_id for order in reversed(orders)]


def ids(answer: LookupAnswer) -> list[str]:
    return [order.order_id for order in answer.orders]


async def test_a_list_begins_with_the_newest_and_goes_on_where_its_page_ended(shop: Shop) -> None:
    newest_first = await by_hand(shop, 5)

    pages = [await Lookups(shop.engine).look_up_orders(LookupInput(limit=2))]
    while pages[-1].next_before:
        pages.append(await Lookups(shop.engine).look_up_orders(LookupInput(limit=2, before=pages[-1].next_before)))

    assert [ids(page) for page in pages] == [newest_first[:2], newest_first[2:4], newest_first[4:]]
    assert not any(page.is_cut for page in pages)


@pytest.mark.parametrize(("looked_at", "found", "is_cut"), [(2, 2, True), (4, 4, True), (5, 5, False), (9, 5, False)])
async def test_a_list_says_whether_there_are_orders_at_which_it_has_not_looked(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, looked_at: int, found: int, is_cut: bool
) -> None:
    newest_first = await by_hand(shop, 5)
    monkeypatch.setattr(lookups, "_EVENTS_LOOKED_AT", looked_at)

    answer = await Lookups(shop.engine).look_up_orders(LookupInput(limit=10))

    assert (ids(answer), answer.is_cut) == (newest_first[:found], is_cut)


@pytest.mark.parametrize(("page", "is_cut"), [(2, True), (5, False)])
async def test_of_unfinished_orders_those_that_moved_last_are_given_and_no_more_than_a_page(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, page: int, is_cut: bool
) -> None:
    newest_first = await by_hand(shop, 3)
    monkeypatch.setattr(lookups, "PAGE", page)

    answer = await Lookups(shop.engine).look_up_orders(LookupInput(statuses=["pending"], limit=10))

    assert (ids(answer), answer.is_cut) == (newest_first[:page], is_cut)


def undo(order: CheckoutInput) -> UndoInput:
    return UndoInput(order, Ending.CANCELLED, "cancelled: found it cheaper")


async def steps_of(shop: Shop, order: CheckoutInput) -> list[tuple[str, str, str]]:
    [record] = (await Lookups(shop.engine).look_up_orders(LookupInput(order.order_id))).orders
    assert record.tracking_number is None
    return [(step.step, step.state, step.detail) for step in record.steps]


async def test_an_order_that_got_stuck_twice_shows_each_step_as_its_saga_would(shop: Shop) -> None:
    order, engine = shop.order("carol"), shop.engine
    await Inventory(engine).reserve_inventory(order)
    paid = await Payments(engine).charge_payment(order)
    parcel = await Shipping(engine).ship_order(order)
    await Shipping(engine).cancel_shipment(undo(order))
    await Payments(engine).refund_payment(undo(order))
    for cause in ("the shelf does not answer", "the shelf is gone"):
        await shop.database.run("UPDATE incidents SET closed_at = now(), resolution = 'it was mended'")
        await Orders(engine).park_order(ParkInput(undo(order), ["reserve"], cause))
    await shop.database.run(
        "INSERT INTO incidents (order_id, steps, cause, opened_at, closed_at, resolution)"
        " SELECT order_id, steps, 'long ago', opened_at - interval '1 day', now(), 'it was mended'"
        " FROM incidents WHERE closed_at IS NULL"
    )

    assert await steps_of(shop, order) == [
        ("reserve", "stuck", "the shelf is gone"),
        ("pay", "undone", paid.transfer_id),
        ("ship", "undone", f"{parcel.tracking_number}, {parcel.carrier}"),
    ]


async def test_a_step_that_never_ran_shows_who_has_settled_it(shop: Shop) -> None:
    order = shop.order("carol")
    await Orders(shop.engine).park_order(ParkInput(undo(order), ["ship"], "a cause"))
    await Inventory(shop.engine).release_inventory(undo(order))
    await Orders(shop.engine).resolve_step(OperatorNote(order, "called the carrier", "ship"))

    assert await steps_of(shop, order) == [("reserve", "nothing to undo", ""), ("ship", "resolved", "")]


async def test_names_that_nobody_knows_are_reported_and_a_house_account_is_no_customer(shop: Shop) -> None:
    taken, pending = shop.order("alice"), shop.order("alice")
    await Inventory(shop.engine).reserve_inventory(taken)
    await shop.accept_by_hand(pending)

    output = await Names(shop.engine).look_up_names(
        NamesInput(["tea-mug", "no-such"], ["alice", "shop", "nobody"], [taken.order_id, pending.order_id, "free"])
    )

    assert (output.unknown_skus, sorted(output.unknown_customers)) == (["no-such"], ["nobody", "shop"])
    assert set(output.known_orders) == {
        KnownOrder(taken.order_id, "reserved", taken.fingerprint),
        KnownOrder(pending.order_id, "pending", None),
    }
