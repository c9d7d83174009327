"""What a soak will do, derived from its seed alone: every order, every fault, every delivery. No I/O.

An order, a batch and a fault are drawn from a generator of their own, so that a plan of 100 000 orders needs no
memory and order 77 is the same however many there are.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tests.soak.batches import BLOCK, PlannedBatch, batch, stretches
from tests.soak.catalogue import SCARCE
from tests.soak.planned import PlannedOrder, planned_order

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
        """Give the plan as JSON; the orders follow from the seed."""
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
