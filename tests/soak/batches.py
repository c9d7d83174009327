"""Which orders of a soak come together in a batch, and what is done to each batch. No I/O.

The numbers are cut into blocks, and each block into stretches by a generator of its own: where a stretch begins is
known without drawing those before it, and is the same however many orders there are.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

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
    """Somebody loads the same file again after the batch was terminated."""
    has_twin: bool
    """The same batch is started twice at once. One workflow carries it, and both are told the same."""
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
    """Cut one block of numbers into stretches, and tell of each whether it is a batch."""
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
    # Of a batch that was terminated, each of two callers would be told something else.
    has_twin = draw.random() < 0.08 and (interruption is None or interruption.kind == "cancel")
    overlap = 0
    if draw.random() < 0.10:
        overlap = min(len(numbers) - 1, max(1, round(len(numbers) * draw.uniform(0.1, 0.9))))
    regrouping = second_run(draw, ("grouped anew",)) if draw.random() < 0.25 and not (interruption or overlap) else None
    return PlannedBatch(numbers.start, len(numbers), interruption, starts_again, has_twin, overlap, regrouping)
