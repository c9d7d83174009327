"""What becomes of the orders of a batch follows from their sequence, as if each came when the one before had ended."""

from types import SimpleNamespace
from typing import Any

from activities.batch_decisions import Decision, decide
from domain.model import CheckoutInput, Ending, OrderLine, Step

BUYERS: Any = {
    "alice": SimpleNamespace(currency="EUR", balance_minor=1_000, delivery_zone="city", is_served=True),
    "nemo": SimpleNamespace(currency="EUR", balance_minor=1_000, delivery_zone=None, is_served=False),
}
CATALOGUE: Any = {
    "mug": SimpleNamespace(unit_price_minor=400, currency="EUR", free=3),
    "last": SimpleNamespace(unit_price_minor=100, currency="EUR", free=1),
}


def order(customer: str, **lines: int) -> CheckoutInput:
    return CheckoutInput("o", customer, tuple(OrderLine(sku, quantity) for sku, quantity in lines.items()))


def decided(*orders: CheckoutInput) -> list[Decision]:
    return decide(orders, BUYERS, CATALOGUE)


def test_what_is_gone_within_the_batch_is_refused_to_the_later_order() -> None:
    first, second, third = decided(order("alice", last=1), order("alice", last=1), order("alice", mug=3))

    assert (first.total_minor, first.currency, first.zone, first.reason) == (100, "EUR", "city", None)
    assert (second.last_step, (second.reason or "").split(":")[0]) == (Step.RESERVE, "OutOfStock")
    assert (third.last_step, (third.reason or "").split(":")[0]) == (Step.PAY, "InsufficientFunds")


def test_a_refused_order_takes_nothing_from_those_behind_it() -> None:
    refused, nowhere, served = decided(order("alice", mug=3), order("nemo", mug=2), order("alice", mug=2))

    assert [refused.last_step, nowhere.last_step, served.last_step] == [Step.PAY, Step.SHIP, Step.SHIP]
    assert [refused.ending, nowhere.ending, served.ending] == [Ending.REJECTED, Ending.REJECTED, None]
    assert [len(each.steps) for each in (refused, nowhere, served)] == [2, 3, 3]


def test_what_nobody_has_or_knows_is_refused_at_the_first_step() -> None:
    stranger, unknown = decided(order("nobody", mug=1), order("alice", unicorn=1, mug=1))

    assert [each.last_step for each in (stranger, unknown)] == [Step.RESERVE] * 2
    assert [(each.reason or "").split(":")[0] for each in (stranger, unknown)] == ["UnknownCustomer", "UnknownSku"]
    assert len(unknown.steps) == 1
