"""What the audit and the sweep are asked and what they answer."""

from dataclasses import dataclass, field
from typing import ClassVar

from domain.model import CheckoutInput
from domain.policies import AUDIT_AT_REST_AFTER, SWEEP_UNFINISHED_AFTER

_BEGINNING = "0001-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Violation:
    """One row that breaks an invariant."""

    check: str
    subject: str
    detail: str


@dataclass(frozen=True)
class Anchor:
    """The newest event that an audit saw. A later audit that does not find it looks at an older database."""

    event_id: int
    order_id: str
    seq: int
    at: str
    """Seconds since 1970, as Postgres writes them."""


@dataclass(frozen=True)
class AuditInput:
    """How long an order must have stood still to count as at rest, in seconds."""

    at_rest_after_seconds: float = AUDIT_AT_REST_AFTER.total_seconds()
    is_recorded: bool = True
    """Whether saga.log is told what is found. Not where `at rest` is only somebody's claim."""
    anchor: Anchor | None = None
    """What must still be there; by default what the schedule's last clean audit saw."""
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
    anchor: Anchor | None = None
    """The newest event in the snapshot."""

    @property
    def is_clean(self) -> bool:
        """Tell whether everything held."""
        return self.violation_count == 0

    @property
    def summary(self) -> str:
        """The first few violations in words."""
        named = [f"{found.check} {found.subject}: {found.detail}" for found in self.violations[:3]]
        more = f"; and {self.violation_count - len(named)} more" if self.violation_count > len(named) else ""
        return "; ".join(named) + more


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


@dataclass(frozen=True)
class StartInput:
    """Orders that need a saga, and whether one that has completed is no reason to refuse it."""

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
    """Orders that Temporal has completed and the database has not: only a person may decide."""
    parked_count: int = 0
    malformed: list[str] = field(default_factory=list)
    """Orders that no saga can take, with the reason."""
    malformed_count: int = 0

    def add(self, order: CheckoutInput) -> None:
        """Count an order that has got a run, by what the run is for."""
        if order.doubt:
            self.parked_count += 1
            _list(self.parked, order.order_id)
        elif order.repair:
            self.repaired_count += 1
            _list(self.repaired, order.order_id)
        else:
            self.started_count += 1
            _list(self.started, order.order_id)

    def add_malformed(self, problems: list[str]) -> None:
        """Count orders that cannot get one."""
        self.malformed_count += len(problems)
        for problem in problems:
            _list(self.malformed, problem)


def _list(names: list[str], name: str) -> None:
    """Add a name, unless there are enough."""
    if len(names) < _LISTED and sum(map(_json_bytes, names)) + _json_bytes(name) <= _LISTED_BYTES:
        names.append(name)


def _json_bytes(name: str) -> int:
    """Tell how long a name is in a list of JSON, at most: a character that is not ASCII has up to twelve bytes."""
    return len(name) * (1 if name.isascii() else 12) + 4


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
