"""What the API takes and returns."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from domain.identifiers import MAX_LENGTH
from domain.model import MAX_LINES, MAX_QUANTITY, MAX_REASON_LENGTH, Step

Identifier = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]
Reason = Annotated[str, Field(min_length=1, max_length=MAX_REASON_LENGTH, description="Why; kept in the order's log.")]


def _require_digits(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise ValueError("a whole number has digits alone")
    return value


digits_alone = BeforeValidator(_require_digits)
"""Of a whole number in an address or a header: `+0.0` is none, although Pydantic takes it."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class OrderStatusWord(StrEnum):
    """The status of an order."""

    PENDING = "pending"
    """Inserted by hand, and not started yet."""
    RUNNING = "running"
    """Its steps are under way."""
    COMPLETED = "completed"
    UNWINDING = "unwinding"
    """It is being undone."""
    REJECTED = "rejected"
    """Refused for a reason of business; nothing is kept."""
    CANCELLED = "cancelled"
    STUCK = "stuck"
    """An undo keeps failing; an operator is needed."""
    TERMINATED = "terminated"
    """Its workflow was ended from outside; the sweep repairs it."""


class NewLine(_Body):
    """What, and how many."""

    sku: Identifier
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)]


class NewOrder(_Body):
    """An order to be placed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"customer": "alice", "lines": [{"sku": "tea-mug", "quantity": 2}]}]}
    )

    customer: Identifier
    lines: Annotated[list[NewLine], Field(min_length=1, max_length=MAX_LINES)]
    order_id: Annotated[
        Identifier | None,
        Field(description="The order's id, where the caller has one; by default it follows from the Idempotency-Key."),
    ] = None


class OperatorRequest(_Body):
    """Why an order is cancelled or retried."""

    reason: Reason


class ResolveRequest(OperatorRequest):
    """What was done by hand about a stuck step."""

    step: Annotated[Step, Field(strict=False)]


class Line(BaseModel):
    """What was ordered, and how many."""

    sku: str
    quantity: int


class StepState(BaseModel):
    """One step of an order."""

    step: str
    state: str = Field(description="done, undone, nothing to undo, stuck, resolved, or what its saga says meanwhile.")
    detail: str


class Incident(BaseModel):
    """Why an order is stuck."""

    steps: list[str] = Field(description="The steps whose undo keeps failing.")
    cause: str
    opened_at: datetime
    needs_review: bool = Field(description="Nothing is undone until an operator asks for a retry.")


class Links(BaseModel):
    """Where more of an order is."""

    self: str
    events: str
    stream: str
    history: str | None = Field(description="Its workflow, or its batch's, in the Temporal UI; null where none is.")


class OrderSummary(BaseModel):
    """An order in a list."""

    order_id: str
    customer: str
    status: OrderStatusWord
    reason: str | None = Field(description="Why it was refused, cancelled or parked.")
    total_minor: int | None = Field(description="In minor units of the currency; null until it is priced.")
    currency: str | None
    created_at: datetime
    updated_at: datetime


class Order(BaseModel):
    """An order as it is now."""

    order_id: str
    customer: str
    status: OrderStatusWord
    reason: str | None = Field(default=None, description="Why it was refused, cancelled or parked.")
    total_minor: int | None = Field(default=None, description="In minor units of the currency; null until priced.")
    currency: str | None = None
    tracking_number: str | None = None
    lines: list[Line]
    steps: list[StepState]
    incident: Incident | None = None
    created_at: datetime | None = Field(default=None, description="Null where the database has no row of it yet.")
    updated_at: datetime | None = None
    links: Links


class OrderList(BaseModel):
    """A page of orders, the newest first."""

    orders: list[OrderSummary]
    next_cursor: str | None = Field(description="Where the next page begins; null on the last one.")


class StatusCount(BaseModel):
    """How many orders have a status."""

    status: OrderStatusWord
    orders: int
    is_at_least: bool = Field(description="There are more: orders that have ended are counted up to a bound only.")


class OrderCounts(BaseModel):
    """How many orders there are, by status."""

    counts: list[StatusCount]


class Event(BaseModel):
    """One change of an order, or one act of an operator."""

    seq: int = Field(description="From 1 on, without a gap.")
    event: str = Field(description="The new status, or retry_requested or step_resolved.")
    previous_status: str | None
    status: str
    changed_by: str
    reason: str | None
    at: datetime


class EventList(BaseModel):
    """An order's events, the oldest first."""

    events: list[Event]


class Accepted(BaseModel):
    """A request that was accepted: its result shows in the order."""

    order_id: str
    detail: str
    links: Links


class Finding(BaseModel):
    """What the audit found wrong, and is not over."""

    check_id: str
    subject: str = Field(description="The order, SKU or account.")
    detail: str
    since: datetime


class AuditState(BaseModel):
    """What the newest audits found."""

    is_clean: bool
    findings: list[Finding]
    stuck_orders: int = Field(description="Orders that wait for an operator.")


class AuditRun(BaseModel):
    """An audit that was asked for."""

    is_finished: bool = Field(description="If not, it goes on; GET /v1/audit shows what it finds.")
    violation_count: int | None = None


class Dependency(StrEnum):
    """Whether a server answers."""

    OK = "ok"
    AWAY = "away"


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """What the API needs, and whether it answers."""

    postgres: Dependency
    temporal: Dependency
