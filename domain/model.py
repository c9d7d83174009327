"""The nouns of the shop, as frozen values that travel between starter, workflow, activities and database."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import ClassVar

from domain.currencies import MINOR_UNITS
from domain.identifiers import identifier_problem, shown
from domain.text import tidy
from sagafence import InvalidInput

MAX_LINES = 100
MAX_QUANTITY = 1_000
MAX_REASON_LENGTH = 200
MAX_NAME_LENGTH = 100
_SKU_SHOWN = 64


class OrderStatus(StrEnum):
    """The status of an order, as in `orders.status`."""

    PENDING = "pending"
    RESERVED = "reserved"
    PAID = "paid"
    COMPLETED = "completed"
    UNWINDING = "unwinding"
    STUCK = "stuck"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


ENDINGS = frozenset({OrderStatus.COMPLETED, OrderStatus.REJECTED, OrderStatus.CANCELLED})
"""The statuses of an order that has ended."""


class Ending(StrEnum):
    """Where an unwind is heading."""

    REJECTED = "rejected"
    CANCELLED = "cancelled"


class Step(StrEnum):
    """The three steps, by the key that their fence rows carry."""

    RESERVE = "reserve"
    PAY = "pay"
    SHIP = "ship"


class ExecutionMode(StrEnum):
    """How a saga runs the steps of its story.

    Every new one is `activity`. Those that an earlier build began go on as they began, and their histories replay.
    """

    ACTIVITY = "activity"
    """Each step is an activity, which any worker may take."""
    LOCAL_FIRST = "local-first"
    """Each step is tried once where the workflow runs, as a local activity; an activity only if that fails. Orders that
    have to be fast are checked out together instead."""

    @classmethod
    def _missing_(cls, value: object) -> "ExecutionMode | None":
        """Read the words of earlier builds."""
        return {"classic": cls.ACTIVITY, "fast": cls.LOCAL_FIRST}.get(str(value))


@dataclass(frozen=True)
class OrderLine:
    """So many units of one SKU."""

    sku: str
    quantity: int


@dataclass(frozen=True)
class CheckoutInput:
    """One order as it was asked for; also the input of its saga.

    Lines of the same SKU are merged into one, and lines are kept in SKU order, so that equal orders are
    equal values with equal fingerprints.

    Raises:
        InvalidInput: anything is malformed or out of range; the message lists every problem.
    """

    # A payload that does not fit ends the saga at once instead of failing its workflow task for ever.
    refuse_malformed: ClassVar[bool] = True
    earlier_names: ClassVar[Mapping[str, str]] = {"lane": "execution_mode", "doubt": "review_reason"}
    # Above the longest order there can be: 100 SKUs of 128 characters, each of which JSON writes in 12 bytes at most.
    max_payload_bytes: ClassVar[int] = 262_144

    order_id: str
    customer: str
    lines: tuple[OrderLine, ...]
    repair: bool = False
    """Do no step: undo whatever an earlier run of this order may have left.

    Set by the sweep, by a batch that delegates what it could not undo, by a cancel of an order that has not begun, and
    by a stuck run that continues as new."""
    review_reason: str = ""
    """With `repair`: why an operator has to review the order before anything is undone. Set by the sweep alone."""
    reason: str = ""
    """With `repair`: why the order is being undone, kept as its reason. Set by the run that began to undo it."""
    ending: Ending | None = None
    """With `repair`: where the unwind is heading; cancelled by default."""
    is_partly_undone: bool = False
    """With `repair`: a step is undone for certain, so that the order cannot complete any more."""
    execution_mode: ExecutionMode = ExecutionMode.ACTIVITY
    """Not part of the order's content."""

    def __post_init__(self) -> None:
        """Refuse what cannot be an order; merge and sort the lines."""
        problems = [
            f"{name} {problem}"
            for name, value in (("order id", self.order_id), ("customer", self.customer))
            if (problem := identifier_problem(value))
        ]
        problems += _line_problems(self.lines)
        if not problems:
            merged: dict[str, int] = {}
            for line in self.lines:
                merged[line.sku] = merged.get(line.sku, 0) + line.quantity
            problems += [
                f"{sku}: quantity {quantity} is above {MAX_QUANTITY} per order"
                for sku, quantity in merged.items()
                if quantity > MAX_QUANTITY
            ]
            lines = tuple(OrderLine(sku, quantity) for sku, quantity in sorted(merged.items()))
            object.__setattr__(self, "lines", lines)
        if problems:
            raise InvalidInput(
                "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of who wants how many of what: equal exactly for orders with the same content."""
        content = [self.customer, [[line.sku, line.quantity] for line in self.lines]]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    @property
    def summary(self) -> str:
        """The lines in words, shortened: `2 x poster, 1 x tea-mug`."""
        return lines_summary(self.lines)


@dataclass(frozen=True)
class Reservation:
    """The stored result of reserve: stock is held, and the server has priced the order."""

    total_minor: int
    currency: str


@dataclass(frozen=True)
class Payment:
    """The stored result of pay."""

    transfer_id: str
    amount_minor: int
    currency: str


@dataclass(frozen=True)
class Shipment:
    """The stored result of ship."""

    tracking_number: str
    carrier: str
    is_handed_over: bool


@dataclass(frozen=True)
class UndoInput:
    """What every undo needs: whose order, and where the unwind is heading and why."""

    order: CheckoutInput
    ending: Ending
    reason: str


@dataclass(frozen=True)
class RetryRequest:
    """Who asks for another round of undos, and why. Both may be empty; both are kept in the order's log."""

    by: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Resolution:
    """An operator's word that a stuck step was resolved by hand, and whose word it is."""

    step: str
    reason: str
    by: str = ""


@dataclass(frozen=True)
class StepView:
    """One step as an operator sees it. `state` is a word of `sagafence.StepState`."""

    step: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class CheckoutStatus:
    """The answer of the `status` query, and the result of a completed saga."""

    order_id: str
    status: str
    """running, completed, unwinding, rejected, cancelled or stuck"""
    reason: str | None = None
    total_minor: int | None = None
    currency: str | None = None
    tracking_number: str | None = None
    steps: list[StepView] = field(default_factory=list)


def order_id_conflict(order_id: str) -> str:
    """Return that an order's id belongs to another order."""
    return f"order id {order_id} already belongs to an order with another customer or other lines"


def reason_problem(reason: object) -> str | None:
    """Return what is wrong with a reason, or None: 1 to 200 printable characters."""
    if not isinstance(reason, str) or not reason.strip():
        return "a reason is needed: it is kept in the order's log"
    if len(reason) > MAX_REASON_LENGTH:
        return f"the reason has {len(reason)} characters; {MAX_REASON_LENGTH} are allowed"
    if not reason.isprintable():
        return "the reason has unprintable characters; use plain text on one line"
    return None


def quantity_of(text: str) -> int:
    """Read a quantity that is written in digits, perhaps with a minus before them.

    Raises:
        InvalidInput: it has more digits than any quantity has; int() itself refuses thousands of them.
    """
    minus, digits = text[: text.startswith("-")], text.removeprefix("-").lstrip("0") or "0"
    if len(digits) > len(str(MAX_QUANTITY)):
        shortened = digits if len(digits) <= 40 else f"{digits[:36]}... ({len(digits)} digits)"
        raise InvalidInput(f"quantity {minus}{shortened} is not between 1 and {MAX_QUANTITY}")
    return int(minus + digits)


def too_many_lines(count: int) -> str:
    """Return that an order has more lines than it may have."""
    return f"the order has {count} lines; {MAX_LINES} are allowed, split it"


def who_and_why(by: str, reason: str) -> str:
    """Join who acts and why for an order's log; either may be empty, and the name may come from anywhere."""
    return ": ".join(filter(None, (tidy(by, MAX_NAME_LENGTH), reason)))


def lines_summary(lines: Iterable[OrderLine], limit: int = 3, *, shown: Callable[[str], str] = str) -> str:
    """Name the first few lines, each SKU as `shown` returns it and cut if long, and count the rest."""
    named = [f"{line.quantity} × {shown(tidy(line.sku, _SKU_SHOWN))}" for line in lines]
    more = f", and {len(named) - limit} more" if len(named) > limit else ""
    return ", ".join(named[:limit]) + more


def format_money(amount_minor: int, currency: str) -> str:
    """Format an amount of minor units: `41.00 EUR`, `4100 JPY`, `4.100 KWD`."""
    decimals = MINOR_UNITS.get(currency)
    if decimals is None:  # an order from before setup.sql had its currency
        return f"{amount_minor} minor units of {currency}"
    digits = f"{abs(amount_minor):0{decimals + 1}d}"
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :]
    return f"{'-' if amount_minor < 0 else ''}{whole}{'.' if decimals else ''}{fraction} {currency}"


def _line_problems(lines: tuple[OrderLine, ...]) -> list[str]:
    if not lines:
        return ["the order has no lines; give at least one SKU and quantity"]
    if len(lines) > MAX_LINES:
        return [too_many_lines(len(lines))]
    problems = []
    for number, line in enumerate(lines, start=1):
        if problem := identifier_problem(line.sku):
            problems.append(f"line {number}: SKU {problem}")
        # A bool is an int to Python, and 1.5 would pass for one on the wire.
        if type(line.quantity) is not int:
            problems.append(f"line {number}: quantity {shown(line.quantity)} is not a whole number")
        elif not 1 <= line.quantity <= MAX_QUANTITY:
            problems.append(f"line {number}: quantity {line.quantity} is not between 1 and {MAX_QUANTITY}")
    return problems
