"""Orders as the database has them, looked up through a worker."""

import asyncio
import contextlib
import uuid
from typing import Any

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from client import executions
from client.failures import NoAnswer
from domain import policies
from domain.lookup import LookupAnswer, LookupInput, OrderRecord

TAKEN_WITHIN_SECONDS = 5.0
"""How long a worker has to take the lookup. One that takes it answers within milliseconds."""


async def find_order(client: Client, task_queue: str, order_id: str) -> OrderRecord | None:
    """Return an order as the database has it; None where it has none.

    Raises:
        NoAnswer: no worker, or the database behind it, answers.
    """
    answer = await look_up(client, task_queue, LookupInput(order_id))
    return answer.orders[0] if answer.orders else None


async def look_up(client: Client, task_queue: str, asked: LookupInput, *, within: float | None = None) -> LookupAnswer:
    """Look orders up.

    Raises:
        NoAnswer: no worker, or the database behind it, answers.
    """
    handle: WorkflowHandle[Any, LookupAnswer] = await client.start_workflow(
        policies.LOOKUP_WORKFLOW,
        asked,
        result_type=LookupAnswer,
        id=f"lookup-{task_queue}-{uuid.uuid4().hex[:12]}",
        task_queue=task_queue,
        execution_timeout=policies.LOOKUP_RUN_TIMEOUT,
        task_timeout=policies.WORKFLOW_TASK,
    )
    seconds = TAKEN_WITHIN_SECONDS if within is None else within
    answering = asyncio.ensure_future(handle.result())
    try:
        await asyncio.wait({answering}, timeout=seconds)
        if not answering.done() and not await _is_taken(client, handle.id):
            with contextlib.suppress(RPCError):  # it has just ended, or will by its timeout
                await handle.terminate("the caller has stopped waiting")
            raise NoAnswer(_no_worker(task_queue, seconds))
        return await answering
    except WorkflowFailureError as failure:
        raise NoAnswer(_why(failure, task_queue)) from None
    finally:
        answering.cancel()


async def _is_taken(client: Client, workflow_id: str) -> bool:
    return await executions.was_taken(client, await executions.describe(client, workflow_id))


def _why(failure: WorkflowFailureError, task_queue: str) -> str:
    cause: BaseException | None = failure.cause
    while cause is not None and not isinstance(cause, ApplicationError):
        cause = cause.__cause__
    if cause is not None:
        return f"the database cannot be asked: {cause.message}"
    return _no_worker(task_queue, policies.LOOKUP_RUN_TIMEOUT.total_seconds())


def _no_worker(task_queue: str, seconds: float) -> str:
    return (
        f"no worker answered within {seconds:g} s; is one of this release running on task queue {task_queue}? "
        "`python worker.py` starts one"
    )
