"""Orders as Temporal's visibility lists them: about a second behind what has happened."""

from dataclasses import dataclass
from datetime import datetime

from temporalio.client import WorkflowExecutionStatus
from temporalio.common import TypedSearchAttributes

from domain import policies

TERMINATED = "terminated"
"""The status of an order whose workflow was ended from outside and which the sweep has not repaired yet."""
GONE = frozenset(
    {
        WorkflowExecutionStatus.TERMINATED,
        WorkflowExecutionStatus.TIMED_OUT,
    }
)
# What visibility knows of each status. Eventually consistent: about a second behind.
QUERIES = {
    "running": "ExecutionStatus = 'Running' AND (OrderStatus IS NULL OR OrderStatus = 'unwinding')",
    "unwinding": "ExecutionStatus = 'Running' AND OrderStatus = 'unwinding'",
    "stuck": "ExecutionStatus = 'Running' AND OrderStatus = 'stuck'",
    "completed": "(OrderStatus = 'completed' OR (OrderStatus IS NULL AND ExecutionStatus = 'Completed'))",
    "rejected": "OrderStatus = 'rejected'",
    "cancelled": "OrderStatus = 'cancelled'",
    TERMINATED: "ExecutionStatus IN ('Terminated', 'TimedOut')",
}
LISTABLE = tuple(QUERIES)


@dataclass(frozen=True)
class Listed:
    """One saga as visibility knows it."""

    order_id: str
    status: str
    failed_step: str | None
    started_at: datetime
    closed_at: datetime | None


def listed_status(status: WorkflowExecutionStatus | None, attributes: TypedSearchAttributes) -> str:
    """Name the status of a listed order."""
    if status in GONE:
        return TERMINATED
    known = attributes.get(policies.ORDER_STATUS)
    if known:
        return known
    return status.name.lower() if status else "unknown"
