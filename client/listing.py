"""Orders as Temporal's visibility lists them: about a second behind."""

from dataclasses import dataclass
from datetime import datetime

from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status

from client.executions import Execution
from domain import policies
from domain.model import OrderStatus

TERMINATED = "terminated"
"""The status of an order whose workflow was ended from outside and that the sweep has not repaired yet."""
GONE = frozenset(
    {
        Status.WORKFLOW_EXECUTION_STATUS_TERMINATED,
        Status.WORKFLOW_EXECUTION_STATUS_TIMED_OUT,
    }
)
_UNMARKED = {
    Status.WORKFLOW_EXECUTION_STATUS_RUNNING: "running",
    Status.WORKFLOW_EXECUTION_STATUS_PAUSED: "paused",
    Status.WORKFLOW_EXECUTION_STATUS_COMPLETED: "completed",
    Status.WORKFLOW_EXECUTION_STATUS_FAILED: "failed",
    Status.WORKFLOW_EXECUTION_STATUS_CANCELED: OrderStatus.CANCELLED.value,
}
"""The status of an order whose workflow has not set the search attribute."""
ORDERS = "WorkflowType = 'Checkout'"
QUERIES = {
    "running": "ExecutionStatus = 'Running' AND (OrderStatus IS NULL OR OrderStatus = 'unwinding')",
    "unwinding": "ExecutionStatus = 'Running' AND OrderStatus = 'unwinding'",
    "stuck": "ExecutionStatus = 'Running' AND OrderStatus = 'stuck'",
    "completed": "(OrderStatus = 'completed' OR (OrderStatus IS NULL AND ExecutionStatus = 'Completed'))",
    "rejected": "OrderStatus = 'rejected'",
    "cancelled": "OrderStatus = 'cancelled'",
    TERMINATED: "ExecutionStatus IN ('Terminated', 'TimedOut')",
}


@dataclass(frozen=True)
class Listed:
    """One saga in a list."""

    order_id: str
    status: str
    failed_step: str | None
    started_at: datetime
    closed_at: datetime | None


def listed_status(found: Execution) -> str:
    """Name the status of an order as Temporal knows it, without a query."""
    if found.status in GONE:
        return TERMINATED
    return found.attributes.get(policies.ORDER_STATUS) or _UNMARKED.get(found.status, "unknown")


def listed(order_id: str, run: Execution) -> Listed:
    """Show an order by its newest run."""
    return Listed(order_id, listed_status(run), run.attributes.get(policies.FAILED_STEP), run.started_at, run.closed_at)
