"""What a soak will do, derived from its seed alone: every order, every fault, every delivery. No I/O.

An order, a batch and a fault are drawn from a generator of their own, so that a plan of 100 000 orders needs no
memory and order 77 is the same however many there are.


The numbers are cut into blocks, and each block into stretches by a generator of its own: where a stretch begins is
known without drawing those before it, and is the same however many orders there are.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from domain.model import CheckoutInput, OrderLine
from tests.soak.catalogue import BROKE, CITY, LABEL, MISSING, NOWHERE, PLENTY, POPULAR, SCARCE, TIGHT

BLOCK = 240
SMALLEST, LARGEST = 2, 60


@dataclass(frozen=True)
class Interruption:
    kind: str
    """cancel (Temporal's own), update (ours, of an order) or terminate"""
    after: float
    """How long after its start, as a share of what they take at present: instants in its life, not on a clock."""


@dataclass(frozen=True)
class SecondRun:
    kind: str
    """after retention (another run of the same id) or reset, of an order; grouped anew, of a batch"""
    gives_up_in: str | None
    """The step for which Postgres refuses its statements, and those of its undo, so that it gives up there."""
    seconds: float
    """How long they are refused: shorter and longer than a refused undo is tried."""


STEPS = ("reserve", "pay", "ship")


def second_run(draw: random.Random, kinds: tuple[str, ...]) -> SecondRun:
    """Draw a second run; two of three are refused in one of the steps."""
    refused = draw.choice([*STEPS, *STEPS, None, None, None])
    return SecondRun(draw.choice(kinds), refused, round(draw.uniform(0.3, 4.5), 2))


@dataclass(frozen=True)
class PlannedBatch:
    """A stretch of orders that come in one workflow, and everything that is going to happen to it as a whole.

    Its orders end as they would by themselves. Cancelled or terminated, any of them may be cancelled instead; and of
    those of a terminated batch the database may know nothing, where it had not begun and was not started again.
    """

    first: int
    size: int
    interruption: Interruption | None
    starts_again: bool
    """The same file is loaded again after the batch was terminated."""
    has_twin: bool
    """The same batch is started twice at once. One workflow carries it, and both get the same report."""
    overlap: int
    """So many of its last orders come at the same time in a second batch; 0: none does."""
    regrouping: SecondRun | None = None
    """Most of its orders are loaded again once they have ended, in another sequence and in a smaller batch."""

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.size)

    @property
    def overlapping(self) -> range:
        return self.numbers[self.size - self.overlap :]


@lru_cache(maxsize=64)
def stretches(seed: int, block: int, share: float) -> tuple[tuple[range, bool], ...]:
    """Cut one block of numbers into stretches, and say of each whether it is a batch."""
    draw = random.Random(f"stretches {seed}/{block}")
    first, end = block * BLOCK, (block + 1) * BLOCK
    found = []
    while first < end:
        stretch = range(first, min(end, first + draw.randint(SMALLEST, LARGEST)))
        found.append((stretch, draw.random() < share))
        first = stretch.stop
    return tuple(found)


@lru_cache(maxsize=256)
def batch(seed: int, numbers: range) -> PlannedBatch:
    draw = random.Random(f"batch {seed}/{numbers.start}")
    interruption = None
    if draw.random() < 0.14:
        interruption = Interruption(draw.choice(["cancel", "terminate"]), round(draw.uniform(0.02, 1.2), 3))
    starts_again = draw.random() < 0.5
    # Of a batch that was terminated, each of two callers would get another report.
    has_twin = draw.random() < 0.08 and (interruption is None or interruption.kind == "cancel")
    overlap = 0
    if draw.random() < 0.10:
        overlap = min(len(numbers) - 1, max(1, round(len(numbers) * draw.uniform(0.1, 0.9))))
    regrouping = second_run(draw, ("grouped anew",)) if draw.random() < 0.25 and not (interruption or overlap) else None
    return PlannedBatch(numbers.start, len(numbers), interruption, starts_again, has_twin, overlap, regrouping)


_THROUGH_DOOR = 0.5
"""The share of the orders that come by themselves, and do so over HTTP."""

# What an order is about, in percent, and how such an order may end without an interruption.
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
    """It is started again after its run was terminated."""
    is_through_door: bool = False
    """It comes over HTTP: together with those that come at the same time, or in a saga of its own."""

    @property
    def interruptions(self) -> set[str]:
        found = {self.interruption, self.batch.interruption if self.batch else None}
        return {interruption.kind for interruption in found if interruption is not None}

    @property
    def endings(self) -> frozenset[str]:
        asked = {"cancelled"} if self.interruptions else set()
        return frozenset(_ENDINGS[self.kind] | asked)

    @property
    def may_never_begin(self) -> bool:
        return "terminate" in self.interruptions

    @property
    def can_be_recalled(self) -> bool:
        """Whether its parcel waits as a label, so that no cancel can come too late while it is open."""
        return self.order.customer in LABEL

    @property
    def other(self) -> CheckoutInput:
        return replace(self.order, lines=(*self.order.lines, OrderLine(PLENTY[0], 7)))

    @property
    def is_contested(self) -> bool:
        """Whether its batch is not alone with it, so that its own report need not have the last word."""
        overlaps = self.batch is not None and self.number in self.batch.overlapping
        return overlaps or self.second_start is not None


def planned_order(seed: int, number: int, order_id: str, batch: PlannedBatch | None) -> PlannedOrder:
    draw = random.Random(f"order {seed}/{number}")
    [kind] = draw.choices(list(KINDS), list(KINDS.values()))
    customer, lines = _customer(draw, kind), _lines(draw, kind)
    is_through_door = batch is None and random.Random(f"door {seed}/{number}").random() < _THROUGH_DOOR
    # In a batch of dozens, once is often enough for what gives an order a saga of its own.
    is_by_hand = draw.random() < (0.01 if batch else 0.03) and not is_through_door
    second_start = draw.choices([None, "same", "other"], [98, 1, 1] if batch else [94, 3, 3])[0]
    interruption = None
    if draw.random() < 0.10:
        act = draw.choices(["cancel", "update", "terminate"], [4, 4, 2])[0]
        interruption = Interruption(act, round(draw.uniform(0.0, 1.2), 3))
    if batch:
        interruption = None  # what is not a saga of its own cannot be interrupted by itself
    elif interruption and is_through_door:
        interruption = replace(interruption, kind="update")  # what the API has
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
        CheckoutInput(order_id, customer, lines),
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
        is_through_door,
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
    chance, choice = draw.random(), draw.choice([("pay",), ("reserve",), ("reserve", "pay"), ("ship",)])
    if kind == "nowhere" and chance < likelihood:
        return choice if choice != ("ship",) else ("pay",)
    if interruption is not None and chance < likelihood:
        return choice
    return ()


# Every fault: its weight, and the shortest and longest in seconds that it lasts, or that something stays down. The link
# faults meet the one worker that is behind links.
FAULTS = {
    "worker-kill": (5, 0.0, 6.0),
    "worker-pause": (5, 2.0, 12.0),
    "worker-term": (3, 0.0, 2.0),
    "postgres-restart": (3, 0.0, 5.0),
    "sessions-kill": (5, 0.0, 0.0),
    "temporal-kill": (2, 0.0, 3.0),
    "row-lock": (4, 1.0, 4.0),
    "api-kill": (4, 0.0, 3.0),
    "api-term": (2, 0.0, 2.0),
    "postgres-link-slow": (2, 1.0, 5.0),
    "postgres-link-hole": (3, 1.0, 8.0),
    "postgres-link-reset": (3, 0.0, 0.0),
    "temporal-link-slow": (2, 1.0, 5.0),
    "temporal-link-hole": (3, 1.0, 8.0),
    "temporal-link-reset": (3, 0.0, 0.0),
    "postgres-read-only": (2, 2.0, 6.0),
    "postgres-password": (2, 1.0, 6.0),
    "postgres-right": (2, 1.0, 6.0),
    "postgres-column": (2, 1.0, 6.0),
}

# Faults come in storms, with quiet windows between them in which everything has to recover.
WINDOW = 120
_QUIET_WINDOWS = 0.25
RESTOCK_EVERY = 400


@dataclass(frozen=True)
class PlannedFault:
    """One fault: it begins when order number `at` is about to be started."""

    number: int
    at: int
    kind: str
    target: int
    """Which worker, session or row, modulo how many there are."""
    seconds: float
    """How long it lasts, or how long a server stays down."""


@dataclass(frozen=True)
class Plan:
    seed: int
    orders: int
    faults_per_thousand: int = 36
    with_links: bool = True
    batched: float = 0.75

    def order_id(self, number: int) -> str:
        return f"soak-{self.seed}-{number:06d}"

    def number_of(self, order_id: str) -> int:
        return int(order_id.rpartition("-")[2])

    def order(self, number: int) -> PlannedOrder:
        return planned_order(self.seed, number, self.order_id(number), self.batch_of(number))

    def batch_of(self, number: int) -> PlannedBatch | None:
        """Draw the batch in which an order comes; None where it comes by itself. The last one may be cut short."""
        for numbers, is_batch in stretches(self.seed, number // BLOCK, self.batched):
            if number in numbers:
                return batch(self.seed, range(numbers.start, min(numbers.stop, self.orders))) if is_batch else None
        raise ValueError(f"there is no order {number}")

    def units(self) -> Iterator[PlannedOrder | PlannedBatch]:
        number = 0
        while number < self.orders:
            found = self.batch_of(number)
            yield found or self.order(number)
            number = found.numbers.stop if found else number + 1

    def batches(self) -> Iterator[PlannedBatch]:
        for block in range(0, self.orders, BLOCK):
            for numbers, is_batch in stretches(self.seed, block // BLOCK, self.batched):
                if is_batch and numbers.start < self.orders:
                    yield batch(self.seed, range(numbers.start, min(numbers.stop, self.orders)))

    def all_orders(self) -> Iterator[PlannedOrder]:
        return (self.order(number) for number in range(self.orders))

    def faults(self) -> list[PlannedFault]:
        """Draw the faults, in their sequence. Neither the first nor the last twentieth of the orders has any."""
        draw = random.Random(f"faults {self.seed}/{self.orders}")
        count = round(self.orders * self.faults_per_thousand / 1000)
        first, last = self.orders // 20, self.orders - self.orders // 20
        windows = [range(start, min(start + WINDOW, last)) for start in range(first, last, WINDOW)]
        stormy = [window for window in windows if draw.random() >= _QUIET_WINDOWS] or windows
        instants = sorted(draw.choice(draw.choice(stormy)) for _ in range(count if stormy else 0))
        kinds = self._kinds(draw, len(instants))
        return [self._fault(draw, number, at, kinds[number]) for number, at in enumerate(instants)]

    def restocks(self) -> list[tuple[int, str, int]]:
        draw = random.Random(f"restocks {self.seed}")
        return [
            (at, draw.choice(SCARCE), draw.randint(1, 6)) for at in range(RESTOCK_EVERY, self.orders, RESTOCK_EVERY)
        ]

    def document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "orders": self.orders,
            "batched": self.batched,
            "faults": [asdict(fault) for fault in self.faults()],
            "restocks": self.restocks(),
        }

    def _kinds(self, draw: random.Random, count: int) -> list[str]:
        """Choose kinds by weight, every kind at least once where there are enough faults."""
        weights = {kind: weight for kind, (weight, _, _) in FAULTS.items() if self.with_links or "-link-" not in kind}
        kinds = list(weights)[:count]
        kinds += draw.choices(list(weights), list(weights.values()), k=count - len(kinds))
        draw.shuffle(kinds)
        return kinds

    @staticmethod
    def _fault(draw: random.Random, number: int, at: int, kind: str) -> PlannedFault:
        return PlannedFault(number, at, kind, draw.randrange(1_000), round(draw.uniform(*FAULTS[kind][1:]), 2))
