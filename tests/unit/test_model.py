"""The nouns and the failures: what is accepted, what is refused, and in which words."""

import inspect
import re
import sys
import unicodedata
from typing import Any

import pytest
from temporalio.exceptions import ApplicationErrorCategory

import sagafence
from domain import errors, identifiers
from domain.identifiers import composed, identifier_problem, is_identifier
from domain.model import (
    MAX_LINES,
    MAX_QUANTITY,
    MAX_REASON_LENGTH,
    CheckoutInput,
    OrderLine,
    format_money,
    lines_summary,
    reason_problem,
)
from sagafence import DatabaseUnavailable, InvalidInput, Refusal, SagaError
from tests.identifiers import ILLEGAL, LEGAL

ERRORS = [
    kind
    for module in (sagafence, errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, SagaError) and kind is not SagaError and kind.__module__.startswith(module.__name__)
]


def order(*lines: tuple[Any, Any], order_id: Any = "o-1", customer: Any = "alice") -> CheckoutInput:
    return CheckoutInput(order_id, customer, tuple(OrderLine(*line) for line in lines))


# Orders -------------------------------------------------------------------------------------------------


def test_lines_of_one_sku_are_merged_and_all_are_sorted() -> None:
    made = order(("poster", 1), ("lamp", 2), ("poster", 3))

    assert made.lines == (OrderLine("lamp", 2), OrderLine("poster", 4))


def test_orders_with_equal_content_are_equal_and_have_one_fingerprint() -> None:
    one, other = order(("lamp", 1), ("poster", 2)), order(("poster", 1), ("lamp", 1), ("poster", 1))

    assert one == other
    assert one.fingerprint == other.fingerprint


def test_the_fingerprint_is_of_the_content_and_not_of_the_id() -> None:
    assert order(("lamp", 1), order_id="o-1").fingerprint == order(("lamp", 1), order_id="o-2").fingerprint


@pytest.mark.parametrize(
    "other",
    [
        order(("lamp", 2)),
        order(("poster", 1)),
        order(("lamp", 1), customer="bob"),
        order(("lamp", 1), ("poster", 1)),
    ],
)
def test_other_content_has_another_fingerprint(other: CheckoutInput) -> None:
    assert other.fingerprint != order(("lamp", 1)).fingerprint


def test_the_fingerprint_does_not_change_between_releases() -> None:
    assert order(("lamp", 1), ("poster", 2)).fingerprint == (
        "02ab3e5013d7fa41c645e92b170ab3a92ebaa7cf1a9bb2b77e02da54b55b7ea5"
    )


def test_the_largest_order_is_accepted() -> None:
    made = order(*((f"sku-{n}", MAX_QUANTITY) for n in range(MAX_LINES)))

    assert len(made.lines) == MAX_LINES


@pytest.mark.parametrize("name", LEGAL)
def test_what_other_systems_call_an_order_a_customer_or_a_sku_is_taken_as_it_is(name: str) -> None:
    made = order((name, 1), order_id=name, customer=name)

    assert (made.order_id, made.customer, made.lines) == (name, name, (OrderLine(name, 1),))


@pytest.mark.parametrize("name", [*ILLEGAL, None, 7, True, ["a"]])
def test_what_is_no_id_is_refused_by_name(name: Any) -> None:
    for what in ("order id", "customer", "line 1: SKU"):
        output = f"^InvalidInput: {what} .* is not 1 to 128 printable characters: "
        with pytest.raises(InvalidInput, match=output):
            order(
                (name if "SKU" in what else "lamp", 1),
                order_id=name if what == "order id" else "o-1",
                customer=name if what == "customer" else "alice",
            )


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "it has 0"),
        ("x" * 129, "it has 129"),
        (7, "it is no text"),
        ("a\u202eb", "U+202E in it is not printable"),
        (" a", "a blank at an end is not allowed"),
        ("caf\u0065\u0301", "it is not in Unicode's normal form C, which is 'caf\\xe9'"),
    ],
)
def test_it_is_reported_what_is_wrong_with_an_id(name: Any, fault: str) -> None:
    assert (identifier_problem(name) or "").endswith(f": {fault}")


def test_an_id_has_no_character_that_python_does_not_print() -> None:
    of_later_versions = re.compile(f"[{identifiers._COMPOSED_LATER}]")
    known = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) != "Cn")

    wrong = [
        char
        for char in known
        if is_identifier(text := composed(f"a{char}b")) != text.isprintable() and not of_later_versions.match(char)
    ]

    assert wrong == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        *(([("lamp", n)], "line 1: quantity .* is not between 1 and 1000") for n in (0, -1, MAX_QUANTITY + 1, 10**30)),
        *(
            ([("lamp", odd)], "line 1: quantity .* is not a whole number")
            for odd in ("1", None, 1.5, float("nan"), True, False)
        ),
        ([], "the order has no lines; give at least one SKU and quantity"),
        *(
            ([(f"sku-{n}", 1) for n in range(count)], f"the order has {count} lines; 100 are allowed, split it")
            for count in (MAX_LINES + 1, 10_000)
        ),
        ([("lamp", 600), ("poster", 1), ("lamp", 600)], "lamp: quantity 1200 is above 1000 per order"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_lines_that_no_order_can_have_are_refused(lines: list[tuple[str, Any]], said: str) -> None:
    with pytest.raises(InvalidInput, match=f"^InvalidInput: {said}$"):
        order(*lines)


def test_every_problem_is_named() -> None:
    with pytest.raises(InvalidInput) as refused:
        order(("lamp", 0), ("", 1), order_id="", customer=" ")

    for problem in ("order id ''", "customer ' '", "line 1: quantity 0", "line 2: SKU ''"):
        assert problem in refused.value.message


def test_many_problems_are_shortened_to_five_and_counted() -> None:
    with pytest.raises(InvalidInput, match=r"and 95 more$") as refused:
        order(*((f"sku-{n}", 0) for n in range(100)))

    assert refused.value.message.count("quantity 0") == 5


@pytest.mark.parametrize("name", ["x" * 300, "\x00\x1b[31m", "\u202e" * 100, "x" * 100_000])
def test_a_refusal_is_short_and_printable_whatever_was_sent(name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        order(*((name, 1),) * 100, order_id=name, customer=name)

    assert len(refused.value.message) < 2_000
    assert refused.value.message.isprintable()


# Reasons, sums and summaries ----------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["x", "changed my mind", "größer, ελληνικά, 日本", "x" * MAX_REASON_LENGTH])
def test_a_plain_reason_is_accepted(reason: str) -> None:
    assert reason_problem(reason) is None


@pytest.mark.parametrize(
    ("reason", "problem"),
    [
        ("", "a reason is needed"),
        ("   ", "a reason is needed"),
        (None, "a reason is needed"),
        (7, "a reason is needed"),
        ("x" * (MAX_REASON_LENGTH + 1), "has 201 characters; 200 are allowed"),
        ("a\nb", "unprintable"),
        ("a\x00b", "unprintable"),
        ("a\x1b[31mb", "unprintable"),
        ("a\u202eb", "unprintable"),
    ],
)
def test_the_problem_with_a_reason_is_named(reason: Any, problem: str) -> None:
    assert problem in (reason_problem(reason) or "")


@pytest.mark.parametrize(
    ("amount", "currency", "written"),
    [
        (0, "EUR", "0.00 EUR"),
        (5, "EUR", "0.05 EUR"),
        (4100, "EUR", "41.00 EUR"),
        (10**15 + 1, "USD", "10000000000000.01 USD"),
        (4100, "JPY", "4100 JPY"),
        (0, "VND", "0 VND"),
        (4, "KWD", "0.004 KWD"),
        (12345, "TND", "12.345 TND"),
        (123456, "CLF", "12.3456 CLF"),
        (10**18, "IDR", "10000000000000000.00 IDR"),
        (-5, "EUR", "-0.05 EUR"),
        (-4100, "JPY", "-4100 JPY"),
        (4100, "XXX", "4100 minor units of XXX"),
    ],
)
def test_money_is_written_with_the_decimals_of_its_currency(amount: int, currency: str, written: str) -> None:
    assert format_money(amount, currency) == written


@pytest.mark.parametrize(
    ("lines", "summary"),
    [
        ([], ""),
        ([("lamp", 1)], "1 × lamp"),
        ([("a", 1), ("b", 2), ("c", 3)], "1 × a, 2 × b, 3 × c"),
        ([("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)], "1 × a, 2 × b, 3 × c, and 2 more"),
    ],
)
def test_a_summary_names_three_lines_and_counts_the_rest(lines: list[tuple[str, int]], summary: str) -> None:
    assert lines_summary(OrderLine(*line) for line in lines) == summary


# Failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ERRORS)
def test_a_failures_type_is_its_class_name(kind: type[SagaError]) -> None:
    assert kind("what happened").type == kind.__name__


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if issubclass(kind, Refusal)])
def test_a_refusal_is_not_retried_and_no_alarm(kind: type[Refusal]) -> None:
    refusal = kind("no")

    assert refusal.non_retryable
    assert refusal.category is ApplicationErrorCategory.BENIGN


def test_an_outage_is_retried() -> None:
    assert not DatabaseUnavailable("away").non_retryable


def test_a_failure_carries_its_message_and_details() -> None:
    failure = InvalidInput("no lines", details=[{"line": 1}])

    assert failure.message == "no lines"
    assert list(failure.details) == [{"line": 1}]
