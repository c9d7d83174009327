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


async def reset_to_task(client: Client, handle: WorkflowHandle[Any, Any], task: int) -> WorkflowHandle[Any, Any]:
    """Reset the run that a handle has started to one of its tasks, and return whichever run is the newest."""
    tasks = await _tasks(client, handle)
    await reset(client, handle.id, handle.first_execution_run_id, tasks[task])
    return client.get_workflow_handle(handle.id)


async def number_of_tasks(client: Client, handle: WorkflowHandle[Any, Any]) -> int:
    """Count the tasks to which the run that a handle has started can be reset."""
    return len(await _tasks(client, handle))


async def _tasks(client: Client, handle: WorkflowHandle[Any, Any]) -> list[int]:
    run = client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
    done = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    return [event.event_id async for event in run.fetch_history_events() if event.event_type == done]
