"""What Temporal knows of workflow runs without a query: their status and their search attributes.

Read from the server's own answers: the SDK's `describe`, `list_workflows` and `query` (1.35) fail on a status that they
have no name for, such as that of a paused workflow.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest, ListWorkflowExecutionsRequest
from temporalio.client import Client
from temporalio.common import TypedSearchAttributes
from temporalio.converter import decode_typed_search_attributes
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from client.failures import NoSuchOrder
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id

_PAGE = 200


@dataclass(frozen=True)
class Execution:
    """One run of a workflow."""

    workflow_id: str
    run_id: str
    status: Status.ValueType
    """Possibly one that only a newer server knows."""
    attributes: TypedSearchAttributes
    started_at: datetime
    closed_at: datetime | None

    @property
    def is_paused(self) -> bool:
        """Whether it was paused: it is open, and no task of it runs."""
        return self.status == Status.WORKFLOW_EXECUTION_STATUS_PAUSED

    @property
    def is_open(self) -> bool:
        """Whether it has not ended yet."""
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


async def of_order(client: Client, order_id: str) -> Execution:
    """Look up the newest run of an order's saga.

    Raises:
        NoSuchOrder: Temporal has no history of it.
    """
    try:
        return await describe(client, checkout_workflow_id(order_id))
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND and not _is_about_the_namespace(error):
            raise NoSuchOrder(
                f"there is no saga of order {order_id}; starter.py list shows those that there are"
            ) from None
        raise


async def find(client: Client, query: str) -> AsyncIterator[Sequence[Execution]]:
    """List runs page by page, as visibility knows them: about a second behind.

    There is no limit here: only the caller knows which of the runs count.
    """
    asked = ListWorkflowExecutionsRequest(namespace=client.namespace, query=query, page_size=_PAGE)
    while True:
        page = await client.workflow_service.list_workflow_executions(asked, retry=True)
        yield [_execution(info) for info in page.executions]
        if not page.next_page_token:
            return
        asked.next_page_token = page.next_page_token


async def order_of(client: Client, workflow_id: str, run_id: str = "") -> CheckoutInput | None:
    """Read the order from the input of a run, by default the newest; None where the input is no order."""
    handle = client.get_workflow_handle(workflow_id, run_id=run_id or None)
    async for first in handle.fetch_history_events(page_size=1):
        payloads = first.workflow_execution_started_event_attributes.input.payloads
        try:
            [order] = await client.data_converter.decode(payloads, [CheckoutInput])
        except (ApplicationError, RuntimeError, TypeError, ValueError):
            break
        return order if isinstance(order, CheckoutInput) else None
    return None


async def was_taken(client: Client, run: Execution) -> bool:
    """Return whether a worker has ever taken a task of a run."""
    handle = client.get_workflow_handle(run.workflow_id, run_id=run.run_id)
    async for event in handle.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED:
            return True
    return False


def _execution(info: WorkflowExecutionInfo) -> Execution:
    return Execution(
        info.execution.workflow_id,
        info.execution.run_id,
        info.status,
        decode_typed_search_attributes(info.search_attributes),
        info.start_time.ToDatetime(UTC),
        info.close_time.ToDatetime(UTC) if info.HasField("close_time") else None,
    )


def _is_about_the_namespace(error: RPCError) -> bool:
    return any(detail.type_url.endswith("NamespaceNotFoundFailure") for detail in error.grpc_status.details)
