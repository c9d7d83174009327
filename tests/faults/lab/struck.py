"""What is struck: a saga or a batch, how to reach its workflow, and what proves where its operation stood."""

from dataclasses import dataclass
from typing import Any

from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHandle

from domain.bulk import BatchReport
from domain.model import CheckoutInput, CheckoutStatus
from tests.faults.lab.batch_cells import BatchCell, Fate
from tests.faults.lab.cells import Cell
from tests.faults.lab.control import Report


@dataclass(frozen=True)
class Standing:
    """What proves where an operation stood just before the strike."""

    report: Report
    """The attempt, as its worker reported it."""
    backend_pid: int | None
    """The server process that worked for it, if any did."""
    backend_state: str | None
    """`active`, `idle` or `idle in transaction`."""
    has_written: bool
    """Whether that server process holds a transaction that has written."""
    fence: dict[tuple[str, str], str]
    """The phase of each fence row, by order and step, as anybody else sees it."""
    pending: tuple[str, int] | None
    """The activity's state and attempt, as Temporal sees them; None once it has a result."""
    is_reported: bool
    """Whether the history has the operation's result and no later workflow task that ended."""


@dataclass(kw_only=True)
class Struck:
    """A workflow of which one operation is struck."""

    name: str
    """What the database knows it by: the order's id, or what the ids of all orders of a batch begin with."""
    subject: str
    """What the desk knows it by: the order's id, or the batch's workflow id."""
    handle: WorkflowHandle[Any, Any]
    """Of the first run."""
    newest: WorkflowHandle[Any, Any]
    """Of whichever run is the newest."""
    standing: Standing | None = None

    @property
    def operation(self) -> str:
        """The name of the activity that is struck."""
        raise NotImplementedError

    @property
    def order_ids(self) -> list[str]:
        raise NotImplementedError

    @property
    def stood(self) -> Standing:
        assert self.standing is not None
        return self.standing


@dataclass(kw_only=True)
class Saga(Struck):
    """One order, and its workflow."""

    cell: Cell
    order: CheckoutInput
    handle: WorkflowHandle[Any, CheckoutStatus]
    newest: WorkflowHandle[Any, CheckoutStatus]

    @property
    def operation(self) -> str:
        return self.cell.operation.value

    @property
    def order_id(self) -> str:
        return self.order.order_id

    @property
    def order_ids(self) -> list[str]:
        return [self.order_id]


@dataclass(kw_only=True)
class Load(Struck):
    """The orders of one batch, and its workflow."""

    cell: BatchCell
    orders: dict[Fate, CheckoutInput]
    handle: WorkflowHandle[Any, BatchReport]
    newest: WorkflowHandle[Any, BatchReport]

    @property
    def operation(self) -> str:
        return self.cell.operation.value

    @property
    def order_ids(self) -> list[str]:
        return [order.order_id for order in self.orders.values()]


async def pending(struck: Struck) -> tuple[str, int] | None:
    """Ask Temporal how the operation stands."""
    description = await struck.handle.describe()
    for activity in description.raw_description.pending_activities:
        if activity.activity_type.name == struck.operation:
            name = PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_")
            return name, activity.attempt
    return None


async def history(handle: WorkflowHandle[Any, Any]) -> list[HistoryEvent]:
    return [event async for event in handle.fetch_history_events()]


async def is_reported(struck: Struck) -> bool:
    """Read in the history whether the operation has its result and no workflow task has seen it."""
    events = await history(struck.handle)
    scheduled = {
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
        and event.activity_task_scheduled_event_attributes.activity_type.name == struck.operation
    }
    reported = [
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        and event.activity_task_completed_event_attributes.scheduled_event_id in scheduled
    ]
    seen = [event.event_id for event in events if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED]
    return bool(reported) and max(seen) < reported[-1]
