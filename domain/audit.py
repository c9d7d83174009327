"""What an audit is asked and what it returns."""

from dataclasses import dataclass
from typing import ClassVar

from domain.policies import AUDIT_AT_REST_AFTER

CAN_WAIT = frozenset({"A1", "A2", "A6", "A8", "A10", "A11", "A13", "Q1", "Q2", "Q3", "Q4", "Q7"})
"""Checks whose violation is no worse in the morning.

What breaks any other costs goods or money meanwhile, or misleads sagas that are running: it needs a person at once."""


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
    """How long an order must have been idle to count as at rest, in seconds."""

    at_rest_after_seconds: float = AUDIT_AT_REST_AFTER.total_seconds()
    is_recorded: bool = True
    """Whether what is found goes into saga.log. Not where `at_rest_after_seconds` is only the caller's guess."""
    anchor: Anchor | None = None
    """What must still exist; by default what the schedule's last clean audit saw."""
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
    """How many orders have each status."""
    anchor: Anchor | None = None
    """The newest event in the snapshot."""

    @property
    def is_clean(self) -> bool:
        """Whether everything held."""
        return self.violation_count == 0

    @property
    def urgent(self) -> list[str]:
        """The checks of which a violation needs a person at once."""
        return sorted({found.check for found in self.violations} - CAN_WAIT)

    @property
    def summary(self) -> str:
        """The first few violations in words."""
        named = [f"{found.check} {found.subject}: {found.detail}" for found in self.violations[:3]]
        more = f"; and {self.violation_count - len(named)} more" if self.violation_count > len(named) else ""
        return "; ".join(named) + more
