"""The run of a batch: the workflow that checks out many orders."""

import contextlib
import secrets
from collections.abc import Sequence

from temporalio.client import Client, WorkflowFailureError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from domain import policies, summaries
from domain.bulk import UNKNOWN, Batch, BatchReport, Outcome, digest, pack
from domain.model import CheckoutInput
from domain.text import tidy


def id_of_load(orders: Sequence[CheckoutInput]) -> str:
    """Return the workflow id of a batch of a load: the same for the same orders, which joins the one that there is."""
    return policies.bulk_workflow_id(digest(orders))


def new_id() -> str:
    """Return a workflow id that no batch has had: what it did can be told from what was done before."""
    return policies.bulk_workflow_id(secrets.token_hex(12))


async def begin(client: Client, task_queue: str, orders: Sequence[CheckoutInput], workflow_id: str) -> None:
    """Start a batch, unless the one of that id is or was under way."""
    with contextlib.suppress(WorkflowAlreadyStartedError):
        await client.start_workflow(
            policies.BULK_WORKFLOW,
            Batch([pack(order) for order in orders]),
            id=workflow_id,
            task_queue=task_queue,
            request_eager_start=True,
            task_timeout=policies.WORKFLOW_TASK,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            static_summary=summaries.of_batch(orders),
        )


async def outcomes(client: Client, orders: Sequence[CheckoutInput], workflow_id: str) -> Sequence[Outcome]:
    """Wait for the end of a batch that was begun, and return how each of its orders has ended."""
    handle = client.get_workflow_handle(workflow_id, result_type=BatchReport)
    try:
        report: BatchReport = await handle.result()
    except WorkflowFailureError as failure:
        why = tidy(f"the workflow {handle.id} was ended: {failure.cause}")
        return [Outcome(order.order_id, UNKNOWN, why) for order in orders]
    return report.unpacked()
