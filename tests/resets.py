"""Resetting a workflow run, as an operator does with Temporal's own means."""

import uuid
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle


async def reset(client: Client, workflow_id: str, run_id: str | None, finish_event_id: int) -> None:
    """Reset a run to the workflow task whose completion is, or would have been, this event; a new run begins."""
    await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id or ""),
            reason="a test",
            workflow_task_finish_event_id=finish_event_id,
            request_id=uuid.uuid4().hex,
        )
    )


async def completed_tasks(handle: WorkflowHandle[Any, Any]) -> list[int]:
    """List the events to which a run can be reset, the earliest first."""
    done = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    return [event.event_id async for event in handle.fetch_history_events() if event.event_type == done]
