"""What a sweep and its activities are asked and what they return."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from domain.model import CheckoutInput
from domain.policies import SWEEP_UNFINISHED_AFTER

_BEGINNING = "0001-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class UnfinishedInput:
    """Where a page of the search begins, and its size."""

    earlier_names: ClassVar[Mapping[str, str]] = {"stood_still_seconds": "idle_seconds"}

    limit: int
    idle_seconds: float
    after_at: str = _BEGINNING
    after_id: str = ""


@dataclass(frozen=True)
class UnfinishedPage:
    """Orders that may need a saga, oldest first, and where the next page begins."""

    orders: list[CheckoutInput] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    """Orders written by hand that no saga can take, each with the reason."""
    next_at: str | None = None
    next_id: str = ""


@dataclass(frozen=True)
class StartInput:
    """Orders that need a saga, and whether one is started also where an earlier one has completed."""

    orders: list[CheckoutInput]
    even_completed: bool = False


_LISTED = 1_000
# Four lists are one value to Temporal, which takes 2 MB.
_LISTED_BYTES = 400_000


@dataclass
class SweepReport:
    """What the sweep did. Each list names the first thousand, of very long ids fewer; the counts count all."""

    started: list[str] = field(default_factory=list)
    """Pending orders that had no saga and have one now."""
    started_count: int = 0
    repaired: list[str] = field(default_factory=list)
    """Orders whose saga was gone; a new run undoes what it left."""
    repaired_count: int = 0
    alive: int = 0
    """Unfinished orders whose saga is running."""
    parked: list[str] = field(default_factory=list)
    """Orders that Temporal has completed and the database has not: they need a review."""
    parked_count: int = 0
    malformed: list[str] = field(default_factory=list)
    """Orders that no saga can take, with the reason."""
    malformed_count: int = 0

    def add(self, order: CheckoutInput) -> None:
        """Count an order whose run was started, by what the run is for."""
        if order.review_reason:
            self.parked_count += 1
            _list(self.parked, order.order_id)
        elif order.repair:
            self.repaired_count += 1
            _list(self.repaired, order.order_id)
        else:
            self.started_count += 1
            _list(self.started, order.order_id)

    def add_malformed(self, problems: list[str]) -> None:
        """Count orders that no saga can take."""
        self.malformed_count += len(problems)
        for problem in problems:
            _list(self.malformed, problem)


def _list(names: list[str], name: str) -> None:
    """Add a name, unless the list is full."""
    if len(names) < _LISTED and sum(map(_json_bytes, names)) + _json_bytes(name) <= _LISTED_BYTES:
        names.append(name)


def _json_bytes(name: str) -> int:
    """Return how long a name may be in a list of JSON: a character that is not ASCII takes up to twelve bytes."""
    return len(name) * (1 if name.isascii() else 12) + 4


@dataclass(frozen=True)
class SweepInput:
    """How long an order must have been idle before its saga is looked for, in seconds.

    The rest is what one run of a long sweep passes on to the next.
    """

    earlier_names: ClassVar[Mapping[str, str]] = {"stood_still_seconds": "idle_seconds"}

    idle_seconds: float = SWEEP_UNFINISHED_AFTER.total_seconds()
    after_at: str = _BEGINNING
    after_id: str = ""
    so_far: SweepReport = field(default_factory=SweepReport)
    refuse_malformed: ClassVar[bool] = True
