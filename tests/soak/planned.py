"""One order of a soak: what is asked for, and everything that is going to happen to it. No I/O."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from domain.model import CheckoutInput, Lane, OrderLine
from tests.soak.batches import Interruption, PlannedBatch, SecondRun, second_run
from tests.soak.catalogue import BROKE, CITY, LABEL, MISSING, NOWHERE, PLENTY, POPULAR, SCARCE, TIGHT

# What an order is about, in percent, and how such an order may end when nobody interrupts it.
KINDS = {"plain": 67, "scarce": 12, "tight": 5, "broke": 6, "nowhere": 8, "unknown": 2}
_ENDINGS = {
    "plain": {"completed"},
    "scarce": {"completed", "rejected"},
    "tight": {"completed", "rejected"},
    "broke": {"rejected"},
    "nowhere": {"rejected"},
    "unknown": {"rejected"},
}


@dataclass(frozen=True)
class PlannedOrder:
    number: int
    order: CheckoutInput
    kind: str
    is_by_hand: bool
    """Inserted as `pending` with SQL; a sweep starts it, or its batch finds it there."""
    second_start: str | None
    """A second start of the same id, with the `same` content or with `other`. Of an order that comes in a batch it is
    the start of a saga of its own, or that of a second batch: with other content, either may come first."""
    interruption: Interruption | None
    broken: tuple[str, ...]
    remedy: str
    """What the operator does when it is stuck: retry (after mending) or resolve."""
    remedy_after: float
    batch: PlannedBatch | None = None
    again: SecondRun | None = None
    starts_again: bool = False
    """Somebody starts it again after its run was terminated."""

    @property
    def interruptions(self) -> set[str]:
        found = {self.interruption, self.batch.interruption if self.batch else None}
        return {interruption.kind for interruption in found if interruption is not None}

    @property
    def endings(self) -> frozenset[str]:
        """How it may end without a fault being to blame."""
        asked = {"cancelled"} if self.interruptions else set()
        return frozenset(_ENDINGS[self.kind] | asked)

    @property
    def may_never_begin(self) -> bool:
        """Tell whether Temporal may know of it and the database not."""
        return "terminate" in self.interruptions

    @property
    def can_be_recalled(self) -> bool:
        """Tell whether its parcel waits as a label, so that no cancel can come too late while it is open."""
        return self.order.customer in LABEL

    @property
    def other(self) -> CheckoutInput:
        return replace(self.order, lines=(*self.order.lines, OrderLine(PLENTY[0], 7)))

    @property
    def is_contested(self) -> bool:
        """Tell whether its batch is not alone with it, so that its own report need not have the last word."""
        overlaps = self.batch is not None and self.number in self.batch.overlapping
        return overlaps or self.second_start is not None


def planned_order(seed: int, number: int, order_id: str, batch: PlannedBatch | None) -> PlannedOrder:
    draw = random.Random(f"order {seed}/{number}")
    [kind] = draw.choices(list(KINDS), list(KINDS.values()))
    customer, lines = _customer(draw, kind), _lines(draw, kind)
    # In a batch of dozens, once is often enough for what gives an order a saga of its own.
    is_by_hand = draw.random() < (0.01 if batch else 0.03)
    second_start = draw.choices([None, "same", "other"], [98, 1, 1] if batch else [94, 3, 3])[0]
    interruption = None
    if draw.random() < 0.10:
        act = draw.choices(["cancel", "update", "terminate"], [4, 4, 2])[0]
        interruption = Interruption(act, round(draw.uniform(0.0, 1.2), 3))
    if batch:
        interruption = None  # what is not a saga of its own cannot be interrupted by itself
    broken = _broken(draw, kind, interruption or (batch.interruption if batch else None), 0.03 if batch else 0.15)
    remedy, remedy_after = draw.choice(["retry", "retry", "resolve"]), round(draw.uniform(0.5, 8.0), 2)
    # A label could be taken back; a parcel that a courier has could not anyway.
    again = second_run(draw, ("after retention", "reset"))
    is_repeated = draw.random() < (0.3 if customer in LABEL else 0.08)
    starts_again = draw.random() < 0.5
    if interruption or broken or is_by_hand or second_start == "other":
        is_repeated = False  # what it comes to is not settled by its own content
    planned = PlannedOrder(
        number,
        CheckoutInput(order_id, customer, lines, lane=draw.choice(list(Lane))),
        kind,
        is_by_hand,
        None if is_by_hand else second_start,
        interruption,
        broken,
        remedy,
        remedy_after,
        batch,
        again if is_repeated else None,
        starts_again and interruption is not None and interruption.kind == "terminate",
    )
    if planned.may_never_begin or (batch and planned.is_contested):
        return replace(planned, remedy="retry")  # a second run would not know what a person vouched for in the first
    return planned


def regrouped(batch: PlannedBatch, orders: Sequence[PlannedOrder]) -> list[PlannedOrder]:
    """Give those orders of a batch that are loaded again when it is over, in the sequence in which they are."""
    kept = [one for one in orders if one.second_start != "other" and not one.broken and not one.is_by_hand]
    return kept[: -(-2 * batch.size // 3)][::-1] if batch.regrouping else []


def _customer(draw: random.Random, kind: str) -> str:
    special = {"tight": TIGHT, "broke": BROKE, "nowhere": NOWHERE}
    return draw.choice(special.get(kind) or draw.choice([CITY, LABEL]))


def _lines(draw: random.Random, kind: str) -> tuple[OrderLine, ...]:
    skus = draw.sample(PLENTY, draw.randint(1, 3))
    if draw.random() < 0.25:
        skus.append(POPULAR)
    lines = [OrderLine(sku, draw.randint(1, 3)) for sku in skus]
    if kind == "scarce":
        lines.append(OrderLine(draw.choice(SCARCE), draw.randint(1, 2)))
    if kind == "unknown":
        lines.append(OrderLine(MISSING, 1))
    return tuple(lines)


def _broken(draw: random.Random, kind: str, interruption: Interruption | None, likelihood: float) -> tuple[str, ...]:
    """Choose undos to break, for orders that are likely to need them."""
    chance, choice = draw.random(), draw.choice([("pay",), ("reserve",), ("reserve", "pay"), ("ship",)])
    if kind == "nowhere" and chance < likelihood:
        return choice if choice != ("ship",) else ("pay",)
    if interruption is not None and chance < likelihood:
        return choice
    return ()
