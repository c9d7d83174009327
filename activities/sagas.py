"""Starting sagas: those that a sweep finds missing, and those of orders that a batch delegates."""

import asyncio

from temporalio import activity
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError

from domain import summaries
from domain.model import CheckoutInput
from domain.policies import CHECKOUT_WORKFLOW, WORKFLOW_TASK, checkout_workflow_id
from domain.sweep import StartInput

_AT_ONCE = 10


class Sagas:
    """The activity that starts sagas. It needs no database: Temporal knows which order has one."""

    @activity.defn
    async def start_sagas(self, asked: StartInput) -> list[CheckoutInput]:
        """Start each order's saga on this worker's task queue; return the orders for which Temporal refuses that.

        It refuses where a run of the order is open, and, unless `even_completed`, where the newest has completed.
        A saga whose start was not heard of is refused to the next attempt: it counts as alive.
        """
        turn = asyncio.Semaphore(_AT_ONCE)
        are_started = await asyncio.gather(*(_start(order, asked.even_completed, turn) for order in asked.orders))
        return [order for order, is_started in zip(asked.orders, are_started, strict=True) if not is_started]


async def _start(order: CheckoutInput, even_completed: bool, turn: asyncio.Semaphore) -> bool:
    reuse = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
    if even_completed:
        reuse = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    async with turn:
        if not (order.repair or even_completed):
            if await _begin(order, WorkflowIDReusePolicy.REJECT_DUPLICATE):
                return True
            # A repair stays a repair, whoever starts it again: the order is not to be bought after all.
            order = await _repair_of(order) or order
        return await _begin(order, reuse)


async def _begin(order: CheckoutInput, reuse: WorkflowIDReusePolicy) -> bool:
    verb = "Park" if order.review_reason else "Repair" if order.repair else "Start"
    try:
        await activity.client().start_workflow(
            CHECKOUT_WORKFLOW,
            order,
            id=checkout_workflow_id(order.order_id),
            task_queue=activity.info().task_queue,
            task_timeout=WORKFLOW_TASK,
            id_reuse_policy=reuse,
            static_summary=f"{verb}: {summaries.of_order(order)}",
        )
    except WorkflowAlreadyStartedError:
        return False
    return True


async def _repair_of(order: CheckoutInput) -> CheckoutInput | None:
    """Return what the newest run of the order was asked for, where that was to undo this very order."""
    client = activity.client()
    async for first in client.get_workflow_handle(checkout_workflow_id(order.order_id)).fetch_history_events(
        page_size=1
    ):
        payloads = first.workflow_execution_started_event_attributes.input.payloads
        try:
            [found] = await client.data_converter.decode(payloads, [CheckoutInput])
        except (ApplicationError, RuntimeError, TypeError, ValueError):
            return None  # no order: somebody else's workflow
        is_ours = isinstance(found, CheckoutInput) and found.repair and found.fingerprint == order.fingerprint
        return found if is_ours else None
    return None
