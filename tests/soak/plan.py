"""What a soak will do, derived from its seed alone: every order, every fault, every delivery. No I/O.

An order and a fault are drawn from a generator of their own, so that a plan of 100 000 orders needs no memory
and order 77 is the same however many there are.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from domain.model import CheckoutInput, Lane, OrderLine
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

# Every fault, with its weight. The link faults strike the one worker that is behind links.
FAULTS = {
    "worker-kill": 5,
    "worker-pause": 5,
    "worker-term": 3,
    "postgres-restart": 3,
    "sessions-kill": 5,
    "temporal-kill": 2,
    "row-lock": 4,
    "postgres-link-slow": 2,
    "postgres-link-hole": 3,
    "postgres-link-reset": 3,
    "temporal-link-slow": 2,
    "temporal-link-hole": 3,
    "temporal-link-reset": 3,
}
# The shortest and the longest, in seconds: how long it lasts, or how long something stays down.
_DURATIONS = {
    "worker-kill": (0.0, 6.0),
    "worker-pause": (2.0, 12.0),
    "worker-term": (0.0, 2.0),
    "postgres-restart": (0.0, 5.0),
    "sessions-kill": (0.0, 0.0),
    "temporal-kill": (0.0, 3.0),
    "row-lock": (1.0, 4.0),
    "postgres-link-slow": (1.0, 5.0),
    "postgres-link-hole": (1.0, 8.0),
    "postgres-link-reset": (0.0, 0.0),
    "temporal-link-slow": (1.0, 5.0),
    "temporal-link-hole": (1.0, 8.0),
    "temporal-link-reset": (0.0, 0.0),
}

# Faults come in storms, with quiet windows between them in which everything has to recover.
WINDOW = 120
_QUIET_WINDOWS = 0.25
RESTOCK_EVERY = 400


@dataclass(frozen=True)
class Interruption:
    """Something that somebody does to an order while it runs."""

    kind: str
    """cancel (Temporal's own), update (ours) or terminate"""
    after: float
    """How long after its start, as a share of what orders take at present: instants in its life, not on a clock."""


@dataclass(frozen=True)
class PlannedOrder:
    """One order, and everything that is going to happen to it."""

    number: int
    order: CheckoutInput
    kind: str
    is_by_hand: bool
    """Inserted as `pending` with SQL; a sweep starts it."""
    second_start: str | None
    """A second start of the same id, with the `same` content or with `other`."""
    interruption: Interruption | None
    broken: tuple[str, ...]
    """Steps whose undo is broken on purpose."""
    remedy: str
    """What the operator does when it is stuck: retry (after mending) or resolve."""
    remedy_after: float

    @property
    def endings(self) -> frozenset[str]:
        """How it may end without a fault being to blame."""
        asked = {"cancelled"} if self.interruption else set()
        return frozenset(_ENDINGS[self.kind] | asked)

    @property
    def can_be_recalled(self) -> bool:
        """Tell whether its parcel waits as a label, so that no cancel can come too late while it is open."""
        return self.order.customer in LABEL


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
    """The whole soak."""

    seed: int
    orders: int
    faults_per_thousand: int = 36
    with_links: bool = True

    def order_id(self, number: int) -> str:
        """Name an order."""
        return f"soak-{self.seed}-{number:06d}"

    def number_of(self, order_id: str) -> int:
        """Undo `order_id`."""
        return int(order_id.rpartition("-")[2])

    def order(self, number: int) -> PlannedOrder:
        """Draw one order."""
        draw = random.Random(f"order {self.seed}/{number}")
        [kind] = draw.choices(list(KINDS), list(KINDS.values()))
        order = CheckoutInput(self.order_id(number), _customer(draw, kind), _lines(draw, kind))
        is_by_hand = draw.random() < 0.03
        second_start = draw.choices([None, "same", "other"], [94, 3, 3])[0]
        interruption = None
        if draw.random() < 0.10:
            act = draw.choices(["cancel", "update", "terminate"], [4, 4, 2])[0]
            interruption = Interruption(act, round(draw.uniform(0.0, 1.2), 3))
        broken = _broken(draw, kind, interruption)
        remedy = draw.choice(["retry", "retry", "resolve"])
        if interruption is not None and interruption.kind == "terminate":
            remedy = "retry"  # a second run would not know what a person vouched for in the first
        return PlannedOrder(
            number,
            replace(order, lane=draw.choice(list(Lane))),
            kind,
            is_by_hand,
            None if is_by_hand else second_start,
            interruption,
            broken,
            remedy,
            round(draw.uniform(0.5, 8.0), 2),
        )

    def all_orders(self) -> Iterator[PlannedOrder]:
        """Draw all orders, one after the other."""
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
        """Draw the deliveries of scarce goods: when, of what, how many."""
        draw = random.Random(f"restocks {self.seed}")
        return [
            (at, draw.choice(SCARCE), draw.randint(1, 6)) for at in range(RESTOCK_EVERY, self.orders, RESTOCK_EVERY)
        ]

    def document(self) -> dict[str, Any]:
        """Give the plan as JSON; the orders follow from the seed."""
        return {
            "seed": self.seed,
            "orders": self.orders,
            "faults": [asdict(fault) for fault in self.faults()],
            "restocks": self.restocks(),
        }

    def _kinds(self, draw: random.Random, count: int) -> list[str]:
        """Choose kinds by weight, every kind at least once where there are enough faults."""
        weights = {kind: weight for kind, weight in FAULTS.items() if self.with_links or "-link-" not in kind}
        kinds = list(weights)[:count]
        kinds += draw.choices(list(weights), list(weights.values()), k=count - len(kinds))
        draw.shuffle(kinds)
        return kinds

    @staticmethod
    def _fault(draw: random.Random, number: int, at: int, kind: str) -> PlannedFault:
        return PlannedFault(number, at, kind, draw.randrange(1_000), round(draw.uniform(*_DURATIONS[kind]), 2))


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


def _broken(draw: random.Random, kind: str, interruption: Interruption | None) -> tuple[str, ...]:
    """Choose undos to break, for orders that are likely to need them."""
    chance, choice = draw.random(), draw.choice([("pay",), ("reserve",), ("reserve", "pay"), ("ship",)])
    if kind == "nowhere" and chance < 0.15:
        return choice if choice != ("ship",) else ("pay",)
    if interruption is not None and chance < 0.15:
        return choice
    return ()
