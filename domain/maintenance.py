"""What the audit and the sweep are asked and what they answer."""

from dataclasses import dataclass, field
from typing import ClassVar

from domain.model import CheckoutInput
from domain.policies import SWEEP_UNFINISHED_AFTER

_BEGINNING = "0001-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Violation:
    """One row that breaks an invariant."""

    check: str
    subject: str
    detail: str


@dataclass(frozen=True)
class AuditInput:
    """How long an order must have stood still to count as at rest, in seconds."""

    at_rest_after_seconds: float = 3600.0
    refuse_malformed: ClassVar[bool] = True


@dataclass(frozen=True)
class AuditReport:
    """What the audit found in one snapshot."""

    checks: dict[str, str]
    """What each check asserts, by its id."""
    violations: list[Violation]
    """The first few of each check."""
    violation_count: int
    orders: dict[str, int]
    """How many orders stand at each status."""


@dataclass(frozen=True)
class UnfinishedInput:
    """Where a page of the search begins, and its size."""

    limit: int
    stood_still_seconds: float
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


_LISTED = 1_000


@dataclass
class SweepReport:
    """What the sweep did. Each list names the first thousand, the counts count all."""

    started: list[str] = field(default_factory=list)
    """Pending orders that had no saga and have one now."""
    started_count: int = 0
    repaired: list[str] = field(default_factory=list)
    """Orders whose saga was gone; a new run undoes what it left."""
    repaired_count: int = 0
    alive: int = 0
    """Unfinished orders whose saga is running."""
    malformed: list[str] = field(default_factory=list)
    """Orders that no saga can take, with the reason."""
    malformed_count: int = 0

    def add_started(self, order_id: str, *, is_repair: bool) -> None:
        """Count an order that has got a run."""
        if is_repair:
            self.repaired_count += 1
            self.repaired += [order_id] if len(self.repaired) < _LISTED else []
        else:
            self.started_count += 1
            self.started += [order_id] if len(self.started) < _LISTED else []

    def add_malformed(self, problems: list[str]) -> None:
        """Count orders that cannot get one."""
        self.malformed_count += len(problems)
        self.malformed += problems[: max(0, _LISTED - len(self.malformed))]


@dataclass(frozen=True)
class SweepInput:
    """How long an order must have stood still before its saga is looked for, in seconds.

    The rest is how one run of a long sweep hands over to the next.
    """

    stood_still_seconds: float = SWEEP_UNFINISHED_AFTER.total_seconds()
    after_at: str = _BEGINNING
    after_id: str = ""
    so_far: SweepReport = field(default_factory=SweepReport)
    refuse_malformed: ClassVar[bool] = True
