"""What a caller who talks to Temporal alone asks of the database, and what it returns: orders, and known names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from domain.model import OrderLine, StepView

PAGE = 1_000
"""Orders in one answer: far below what the server takes as one value."""


@dataclass(frozen=True)
class LookupInput:
    """Which order, or which of the newest orders."""

    order_id: str = ""
    """One order by its id; all else is ignored then."""
    statuses: list[str] = field(default_factory=list)
    """Only orders at these statuses, as the database has them; all without any."""
    limit: int = PAGE
    before: int = 0
    """Only orders before this `next_before` of an earlier answer; from the newest where 0."""
    refuse_malformed: ClassVar[bool] = True


@dataclass(frozen=True)
class OrderRecord:
    """An order as the database has it."""

    earlier_names: ClassVar[Mapping[str, str]] = {"carrier": "batch_workflow_id"}

    order_id: str
    status: str
    """A word of `orders.status`."""
    reason: str | None = None
    total_minor: int | None = None
    currency: str | None = None
    tracking_number: str | None = None
    batch_workflow_id: str | None = None
    """The workflow of the batch that brought it; None for an order of its own saga, or by hand."""
    customer: str = ""
    fingerprint: str | None = None
    """Of customer and lines; None until a saga has taken it."""
    lines: list[OrderLine] = field(default_factory=list)
    steps: list[StepView] = field(default_factory=list)
    created_at: str = ""
    updated_at: str = ""


@dataclass(frozen=True)
class LookupAnswer:
    """The orders that were found: by id with everything, in a list without lines and steps."""

    orders: list[OrderRecord] = field(default_factory=list)
    next_before: int = 0
    """Where the next page begins; 0 where there is none."""
    is_cut: bool = False
    """Whether older orders were not looked at: the search ends after so many events."""


@dataclass(frozen=True)
class NamesInput:
    """Names to be looked up, each once. Nothing is started, and nothing is written."""

    refuse_malformed: ClassVar[bool] = True

    skus: list[str] = field(default_factory=list)
    customers: list[str] = field(default_factory=list)
    order_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KnownOrder:
    """An order that exists already."""

    order_id: str
    status: str
    fingerprint: str | None
    """None until a saga has taken it."""


@dataclass(frozen=True)
class NamesReport:
    """Which names do not exist, and which orders exist already."""

    unknown_skus: list[str] = field(default_factory=list)
    unknown_customers: list[str] = field(default_factory=list)
    known_orders: list[KnownOrder] = field(default_factory=list)
