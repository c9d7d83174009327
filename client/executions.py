"""What Temporal knows of workflow runs without asking the workflow: how they stand and what they are marked with.

Read from the server's own answers. The SDK's `describe`, `list_workflows` and `query` (1.35) fail of a status that they
have no name for, and a paused workflow has such a one.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest, ListWorkflowExecutionsRequest
from temporalio.client import Client
from temporalio.common import TypedSearchAttributes
from temporalio.converter import decode_typed_search_attributes

_PAGE = 1_000


@dataclass(frozen=True)
class Execution:
    """One run of a workflow."""

    workflow_id: str
    run_id: str
    status: Status.ValueType
    """Perhaps one that only a newer server knows."""
    attributes: TypedSearchAttributes
    started_at: datetime
    closed_at: datetime | None

    @property
    def is_paused(self) -> bool:
        """Tell whether somebody has paused it: it is open, and nothing of it runs."""
        return self.status == Status.WORKFLOW_EXECUTION_STATUS_PAUSED

    @property
    def is_open(self) -> bool:
        """Tell whether it has not ended yet."""
        return self.closed_at is None


async def describe(client: Client, workflow_id: str) -> Execution:
    """Look up a workflow's newest run.

    Raises:
        RPCError: `NOT_FOUND` where there is none.
    """
    answer = await client.workflow_service.describe_workflow_execution(
        DescribeWorkflowExecutionRequest(
            namespace=client.namespace, execution=WorkflowExecution(workflow_id=workflow_id)
        ),
        retry=True,
    )
    return _execution(answer.workflow_execution_info)


async def find(client: Client, query: str, limit: int) -> AsyncIterator[Execution]:
    """List runs as visibility knows them, about a second behind what has happened."""
    asked = ListWorkflowExecutionsRequest(namespace=client.namespace, query=query, page_size=min(limit, _PAGE))
    while True:
        page = await client.workflow_service.list_workflow_executions(asked, retry=True)
        for info in page.executions[:limit]:
            yield _execution(info)
        limit -= len(page.executions)
        if limit <= 0 or not page.next_page_token:
            return
        asked.next_page_token = page.next_page_token


def _execution(info: WorkflowExecutionInfo) -> Execution:
    return Execution(
        info.execution.workflow_id,
        info.execution.run_id,
        info.status,
        decode_typed_search_attributes(info.search_attributes),
        info.start_time.ToDatetime(UTC),
        info.close_time.ToDatetime(UTC) if info.HasField("close_time") else None,
    )
