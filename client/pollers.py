"""Whether a worker polls the task queue that a workflow waits on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import PendingWorkflowTaskState, TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

AFTER_SECONDS = 5.0
_SEEN_WAITING_SECONDS = 2.0
"""How long the same task has to be seen waiting: on a busy machine each waits for a moment between two polls."""
# A poll that gets nothing is answered after a minute, and the next one follows at once.
_POLL = timedelta(seconds=70)
_MAY_NOT_ASK = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED, RPCStatusCode.UNIMPLEMENTED})


class Watch:
    """Warns once, whatever is waited for, that no worker polls."""

    def __init__(self, client: Client, task_queue: str, warn: Callable[[str], None] | None) -> None:
        self._client = client
        self._task_queue = task_queue
        self._warn = warn

    @contextlib.asynccontextmanager
    async def over(self, workflow_id: str) -> AsyncIterator[None]:
        """Check at intervals, inside the block, whether the workflow waits for a worker that is not there."""
        if self._warn is None:
            yield
            return
        looking = asyncio.create_task(self._look(workflow_id))
        try:
            yield
        finally:
            looking.cancel()

    async def _look(self, workflow_id: str) -> None:
        seen: datetime | None = None
        while self._warn is not None:
            await asyncio.sleep(AFTER_SECONDS - _SEEN_WAITING_SECONDS if seen is None else _SEEN_WAITING_SECONDS)
            try:
                waits_since = await alone_since(self._client, self._task_queue, workflow_id)
            except RPCError as error:
                if error.status in _MAY_NOT_ASK:
                    return
                continue  # the caller that waits for the workflow reports a server that is away
            is_alone = waits_since is not None and waits_since == seen
            seen = waits_since
            if is_alone and self._warn is not None:
                warn, self._warn = self._warn, None
                warn(
                    f"no worker polls task queue {self._task_queue}: nothing happens until one does; `python "
                    "worker.py`, with the same settings, starts one"
                )


async def alone_since(client: Client, task_queue: str, workflow_id: str) -> datetime | None:
    """Return since when a workflow's task has waited, where no worker has polled since; else None.

    The server lists pollers for minutes after they are gone. An idle one would have taken the task at once; a busy one
    polls again. A worker of a version that is not current polls, and does not get it.
    """
    run = await client.workflow_service.describe_workflow_execution(
        DescribeWorkflowExecutionRequest(
            namespace=client.namespace, execution=WorkflowExecution(workflow_id=workflow_id)
        )
    )
    if run.pending_workflow_task.state != PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED:
        return None
    since = run.pending_workflow_task.scheduled_time.ToDatetime()
    queue = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
    )

    def has_polled(poller: PollerInfo) -> bool:
        margin = _POLL if poller.deployment_options.build_id else timedelta()
        return poller.last_access_time.ToDatetime() >= since - margin

    return None if any(map(has_polled, queue.pollers)) else since
