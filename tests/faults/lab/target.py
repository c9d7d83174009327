"""A workflow that a fault is injected into, a saga or a batch, and what proves where its operation was then."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHandle

from domain.model import CheckoutInput
from tests.faults.lab.batch_cells import BatchCell
from tests.faults.lab.cells import Cell
from tests.faults.lab.control import Report


@dataclass(frozen=True)
class Before:
    """What proves where an operation was just before the fault."""

    report: Report
    """The attempt, as its worker reported it."""
    backend_pid: int | None
    """The server process that worked for it, if any did."""
    backend_state: str | None
    """`active`, `idle` or `idle in transaction`."""
    has_written: bool
    """Whether that server process holds a transaction that has written."""
    fence: dict[tuple[str, str], str]
    """The phase of each fence row, by order and step, as other sessions see it."""
    pending: tuple[str, int] | None
    """The activity's state and attempt, as Temporal sees them; None once it has a result."""
    is_reported: bool
    """Whether the history has the operation's result and no later workflow task that ended."""


_C = TypeVar("_C", Cell, BatchCell)


@dataclass(kw_only=True, eq=False)
class Target(Generic[_C]):
    cell: _C
    orders: list[CheckoutInput]
    """One, or one of each fate."""
    name: str
    """What the database knows it by: the order's id, or what the ids of all orders of a batch begin with."""
    subject: str
    """What the control server knows it by: the order's id, or the batch's workflow id."""
    handle: WorkflowHandle[Any, Any]
    """Of the first run."""
    newest: WorkflowHandle[Any, Any]
    """Of whichever run is the newest."""
    noted: Before | None = None

    @property
    def operation(self) -> str:
        """The name of the activity that the fault meets."""
        return self.cell.operation.value

    @property
    def order_ids(self) -> list[str]:
        return [order.order_id for order in self.orders]

    @property
    def before(self) -> Before:
        assert self.noted is not None
        return self.noted


AnyTarget = Target[Cell] | Target[BatchCell]


async def pending(target: AnyTarget) -> tuple[str, int] | None:
    description = await target.handle.describe()
    for activity in description.raw_description.pending_activities:
        if activity.activity_type.name == target.operation:
            name = PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_")
            return name, activity.attempt
    return None


async def history(handle: WorkflowHandle[Any, Any]) -> list[HistoryEvent]:
    return [event async for event in handle.fetch_history_events()]


async def is_reported(target: AnyTarget) -> bool:
    """Read in the history whether the operation has its result and no workflow task has seen it."""
    events = await history(target.handle)
    scheduled = {
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
        and event.activity_task_scheduled_event_attributes.activity_type.name == target.operation
    }
    reported = [
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        and event.activity_task_completed_event_attributes.scheduled_event_id in scheduled
    ]
    seen = [event.event_id for event in events if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED]
    return bool(reported) and max(seen) < reported[-1]
