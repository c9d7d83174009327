"""The soak's model and plan: the model computes what a shop has to look like, the plan follows from its seed."""

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from domain.bulk import StepInput, pack
from domain.model import Ending, OrderLine, UndoInput
from tests.soak.book import Book, Ended
from tests.soak.catalogue import BROKE, LABEL, MISSING, SCARCE, catalogue
from tests.soak.loads import overlapping
from tests.soak.model import NEVER_BEGUN, Effect, Picture, ShopModel, differences
from tests.soak.plan import FAULTS, KINDS, LARGEST, STEPS, Interruption, Plan, PlannedBatch, PlannedOrder, regrouped
from tests.soak.worker import orders_of

LINES = (OrderLine("plenty-00", 3), OrderLine("popular", 2))
TOTAL = 3 * 100 + 2 * 1_250
BUYER = "city-00"


@pytest.fixture
def model() -> ShopModel:
    return ShopModel(catalogue(100))


def changes(model: ShopModel) -> tuple[dict[str, int], dict[str, int], dict[str, int], int]:
    """Give what is not as it was: on hand, reserved, balances, and the shop's takings."""
    now, before = model.picture(), ShopModel(catalogue(100)).picture()

    def less(new: dict[str, int], old: dict[str, int]) -> dict[str, int]:
        return {key: new[key] - old[key] for key in new if new[key] != old[key]}

    return (
        less(now.on_hand, before.on_hand),
        less(now.reserved, before.reserved),
        less(now.balances, before.balances),
        now.shop - before.shop,
    )


def test_a_completed_order_takes_goods_and_money_at_the_listed_prices(model: ShopModel) -> None:
    model.end("one", BUYER, LINES, "completed")

    assert changes(model) == ({"plenty-00": -3, "popular": -2}, {}, {BUYER: -TOTAL}, TOTAL)
    assert model.picture().effects == {"one": Effect("completed", TOTAL, gone=5)}


@pytest.mark.parametrize("status", ["rejected", "cancelled"])
def test_a_refused_or_cancelled_order_changes_nothing(model: ShopModel, status: str) -> None:
    model.end("one", BUYER, (*LINES, OrderLine(MISSING, 1)), status)

    assert changes(model) == ({}, {}, {}, 0)
    assert model.picture().effects == {"one": Effect(status)}


def test_an_order_that_was_never_begun_is_in_no_database(model: ShopModel) -> None:
    model.end("one", BUYER, LINES, NEVER_BEGUN)

    assert changes(model) == ({}, {}, {}, 0)
    assert model.picture().effects == {}


@pytest.mark.parametrize(
    ("vouched", "expected"),
    [
        ({"pay"}, ({}, {}, {BUYER: -TOTAL}, TOTAL)),
        ({"reserve"}, ({}, {"plenty-00": 3, "popular": 2}, {}, 0)),
        ({"ship"}, ({"plenty-00": -3, "popular": -2}, {}, {}, 0)),
        ({"reserve", "pay"}, ({}, {"plenty-00": 3, "popular": 2}, {BUYER: -TOTAL}, TOTAL)),
    ],
)
def test_what_a_person_vouches_for_stands(model: ShopModel, vouched: set[str], expected: object) -> None:
    model.end("one", BUYER, LINES, "cancelled", frozenset(vouched))

    assert changes(model) == expected


def test_a_delivery_adds_to_what_is_on_hand(model: ShopModel) -> None:
    model.restock("scarce-0", 4)

    assert changes(model) == ({"scarce-0": 4}, {}, {}, 0)


def test_an_order_ends_once_and_with_an_ending(model: ShopModel) -> None:
    model.end("one", BUYER, LINES, "completed")

    with pytest.raises(ValueError, match="has ended before"):
        model.end("one", BUYER, LINES, "completed")
    with pytest.raises(ValueError, match="is no ending"):
        model.end("two", BUYER, LINES, "paid")


def broken(part: str) -> Picture:
    """Make a picture that is wrong in one part by one unit."""
    picture = Picture({"mug": 5}, {"mug": 1}, {"ann": 70}, 30, {"one": Effect("completed", 30, 1)})
    wrong: dict[str, Any] = {
        "on_hand": {"mug": 4},
        "reserved": {"mug": 0},
        "balances": {"ann": 71},
        "shop": 29,
        "effects": {"one": Effect("completed", 30, 2)},
        "missing": {},
        "extra": {"one": Effect("completed", 30, 1), "two": Effect("rejected")},
    }
    field = part if part not in {"missing", "extra"} else "effects"
    return replace(picture, **{field: wrong[part]}) if part else picture


def test_equal_pictures_have_no_differences() -> None:
    assert differences(broken(""), broken("")) == []


@pytest.mark.parametrize("part", ["on_hand", "reserved", "balances", "shop", "effects", "missing", "extra"])
def test_a_picture_that_is_wrong_by_one_unit_differs_once(part: str) -> None:
    assert len(differences(broken(""), broken(part))) == 1


# The plan ----------------------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_plan() -> None:
    assert list(Plan(5, 300).all_orders()) == list(Plan(5, 300).all_orders())
    assert Plan(5, 300).document() == Plan(5, 300).document()
    assert Plan(5, 300).document() != Plan(6, 300).document()


def test_ten_thousand_orders_meet_every_kind_of_everything() -> None:
    plan = Plan(1, 10_000)
    orders = list(plan.all_orders())
    faults = plan.faults()

    assert {planned.kind for planned in orders} == set(KINDS)
    acts = {planned.interruption.kind for planned in orders if planned.interruption}
    assert acts == {"cancel", "update", "terminate"}
    assert {planned.second_start for planned in orders} == {None, "same", "other"}
    assert {step for planned in orders for step in planned.broken} == {"reserve", "pay", "ship"}
    assert {planned.remedy for planned in orders if planned.broken} == {"retry", "resolve"}
    assert any(planned.is_by_hand for planned in orders)
    assert len(faults) == 360
    assert Counter(fault.kind for fault in faults).keys() == FAULTS.keys()
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(500 <= fault.at < 9_500 for fault in faults)


def test_ten_thousand_orders_come_over_http_in_every_kind() -> None:
    plan = Plan(1, 10_000)
    orders = [order for order in plan.all_orders() if order.is_through_door]

    assert 0.4 < len(orders) / sum(order.batch is None for order in plan.all_orders()) < 0.6
    assert {order.kind for order in orders} == set(KINDS)
    assert {order.interruption and order.interruption.kind for order in orders} == {None, "update"}
    assert {order.second_start for order in orders} == {None, "same", "other"}
    assert any(order.broken for order in orders)
    assert not any(order.batch or order.is_by_hand for order in orders)
    repeated = {order.again.gives_up_in for order in orders if order.again}
    assert repeated == {None, *STEPS}


def test_every_order_comes_once_by_itself_or_in_a_batch() -> None:
    plan = Plan(3, 5_000)
    numbers: list[int] = []
    for unit in plan.units():
        numbers += unit.numbers if isinstance(unit, PlannedBatch) else [unit.number]

    assert numbers == list(range(5_000))
    assert list(plan.batches()) == [unit for unit in plan.units() if isinstance(unit, PlannedBatch)]
    assert all(batch == plan.batch_of(number) for batch in plan.batches() for number in batch.numbers)
    assert 0.65 < sum(batch.size for batch in plan.batches()) / 5_000 < 0.85


def test_an_order_is_the_same_however_many_there_are() -> None:
    few, many = Plan(3, 500), Plan(3, 5_000)
    whole = [number for number in range(500) if few.batch_of(number) == many.batch_of(number)]

    assert len(whole) > 500 - LARGEST  # only the last batch may be cut short
    assert [few.order(number) for number in whole] == [many.order(number) for number in whole]
    assert [few.order(number).order for number in range(500)] == [many.order(number).order for number in range(500)]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_how_many_orders_come_in_batches_is_chosen(share: float) -> None:
    assert sum(batch.size for batch in Plan(3, 2_000, batched=share).batches()) == 2_000 * share


def test_ten_thousand_orders_meet_every_kind_of_batch() -> None:
    plan = Plan(1, 10_000)
    batches = list(plan.batches())
    orders = [order for order in plan.all_orders() if order.batch]

    assert {batch.interruption and batch.interruption.kind for batch in batches} == {None, "cancel", "terminate"}
    assert {batch.starts_again for batch in batches if batch.interruption} == {True, False}
    assert {batch.has_twin for batch in batches} == {True, False}
    assert {order.second_start for order in orders} == {None, "same", "other"}
    assert {order.kind for order in orders} == set(KINDS)
    assert any(order.is_by_hand for order in orders)
    assert any(order.broken for order in orders)
    assert not any(order.interruption for order in orders)
    assert not any(order.remedy == "resolve" for order in orders if order.may_never_begin or order.is_contested)
    overlaps = [batch for batch in batches if batch.overlap]
    assert all(batch.overlap < batch.size for batch in batches)
    [batch, *_] = [batch for batch in overlaps if batch.size > 10]
    content = overlapping(batch, [plan.order(number) for number in batch.numbers])
    assert [order.order_id for order in content] == [plan.order_id(number) for number in batch.overlapping]


def test_ten_thousand_orders_meet_every_kind_of_second_run() -> None:
    plan = Plan(1, 10_000)
    orders = list(plan.all_orders())
    repeated = [one for one in orders if one.again]
    regroupings = [one.regrouping for one in plan.batches() if one.regrouping]

    for is_batched in (False, True):
        runs = {
            (one.again.kind, one.again.gives_up_in) for one in repeated if one.again and bool(one.batch) is is_batched
        }
        assert runs == set(product(("after retention", "reset"), (None, *STEPS)))
    assert {regrouping.gives_up_in for regrouping in regroupings} == {None, *STEPS}
    assert any(one.starts_again for one in orders)
    # How any of these would end does not follow from the first run alone.
    assert not any(one.interruption or one.broken or one.is_by_hand or one.second_start == "other" for one in repeated)
    assert not any(batch.interruption or batch.overlap for batch in plan.batches() if batch.regrouping)
    labels = sum(one.order.customer in LABEL for one in repeated)
    assert labels > len(repeated) / 2


def test_a_load_that_is_grouped_anew_has_most_of_the_orders_in_another_sequence() -> None:
    plan = Plan(1, 10_000)
    for batch in plan.batches():
        numbers = [one.number for one in regrouped(batch, [plan.order(number) for number in batch.numbers])]
        assert numbers == sorted(numbers, reverse=True)
        assert set(numbers) <= set(batch.numbers)
        assert bool(numbers) <= (batch.regrouping is not None)
        assert len(numbers) < batch.size or batch.size <= 2


def test_a_refusal_names_the_orders_of_each_activity_of_a_step() -> None:
    order = Plan(1, 10).order(3).order

    assert orders_of(order) == [order.order_id]
    assert orders_of(UndoInput(order, Ending.REJECTED, "why")) == [order.order_id]
    assert orders_of(StepInput("bulk", [pack(order), pack(order)])) == [order.order_id, order.order_id]


def test_scarce_goods_run_out_and_the_others_do_not() -> None:
    plan, shop = Plan(1, 10_000), catalogue(10_000)
    wanted: Counter[str] = Counter()
    for planned in plan.all_orders():
        for line in planned.order.lines:
            wanted[line.sku] += line.quantity
    for _, sku, units in plan.restocks():
        wanted[sku] -= units

    assert all(wanted[sku] > shop.stock[sku] for sku in SCARCE)
    assert all(wanted[sku] < shop.stock[sku] for sku in shop.stock if sku not in SCARCE)


def test_without_links_there_are_no_link_faults() -> None:
    assert not any("-link-" in fault.kind for fault in Plan(1, 2_000, with_links=False).faults())


# The book ----------------------------------------------------------------------------------------------


def booked(kind: str, ended: Ended, **about: object) -> Book:
    """Book one order of this kind, which nobody interrupts unless told otherwise, as ended like that."""
    plan = Plan(1, 1_000)
    book = Book(plan, ShopModel(catalogue(1_000)))
    planned: PlannedOrder = next(
        one for one in plan.all_orders() if one.kind == kind and one.interruption is None and not one.broken
    )
    is_cancelled = bool(about.pop("is_cancelled", False))
    book.end(replace(planned, **about), ended, is_cancel_accepted=is_cancelled)  # type: ignore[arg-type]
    return book


@pytest.mark.parametrize(
    ("kind", "ended"),
    [
        ("plain", Ended("completed")),
        ("scarce", Ended("rejected", "OutOfStock: scarce-0: 2 wanted, 1 free")),
        ("broke", Ended("rejected", "InsufficientFunds: too little")),
        ("nowhere", Ended("rejected", "UndeliverableAddress: no carrier delivers")),
    ],
)
def test_a_planned_ending_is_no_problem(kind: str, ended: Ended) -> None:
    book = booked(kind, ended)

    assert (book.problems, book.unplanned) == ([], [])


@pytest.mark.parametrize(
    ("kind", "ended"),
    [
        ("broke", Ended("completed")),
        ("nowhere", Ended("completed")),
        ("plain", Ended("cancelled")),
        ("plain", Ended("rejected", "OutOfStock: plenty-00: 1 wanted, 0 free")),
        ("plain", Ended("rejected", "StepAlreadyCompensated: too late")),
        ("plain", Ended("rejected", "DatabaseMisconfigured: Postgres refuses the service: permission denied (42501)")),
        ("plain", Ended("rejected", "DatabaseRefusedStatement: Postgres refused: permission denied (42501)")),
        ("plain", Ended(NEVER_BEGUN)),
    ],
)
def test_an_impossible_ending_is_a_problem(kind: str, ended: Ended) -> None:
    assert len(booked(kind, ended).problems) == 1


def test_a_refusal_that_a_fault_explains_is_counted_and_no_problem() -> None:
    book = booked("plain", Ended("rejected", "DatabaseUnavailable: no connection to Postgres"))

    assert book.problems == []
    assert book.unplanned_percent == 100


@pytest.mark.parametrize(
    ("kind", "act", "ended", "problems"),
    [
        ("plain", "cancel", Ended("cancelled"), 0),
        ("plain", "terminate", Ended("cancelled"), 0),
        ("plain", "terminate", Ended(NEVER_BEGUN), 0),
        ("plain", "cancel", Ended(NEVER_BEGUN), 1),
        ("broke", "cancel", Ended("completed"), 1),
    ],
)
def test_what_is_done_to_a_batch_may_happen_to_its_orders(kind: str, act: str, ended: Ended, problems: int) -> None:
    batch = PlannedBatch(0, 10, Interruption(act, 0.5), starts_again=False, has_twin=False, overlap=0)

    assert len(booked(kind, ended, batch=batch).problems) == problems


def test_a_cancel_that_was_accepted_and_lost_is_a_problem() -> None:
    plan = Plan(1, 1_000)
    recallable = next(one.order for one in plan.all_orders() if one.order.customer in LABEL)

    assert booked("plain", Ended("completed"), is_cancelled=True, order=recallable).problems
    assert recallable.customer not in BROKE
