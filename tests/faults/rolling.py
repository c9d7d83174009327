"""The sagas that a deploy strikes: by which awaits each comes, and how it must end all the same."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.exceptions import ApplicationError

from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.conftest import Shop
from tests.workflow.gates import Gates, Moment
from tests.workflow.sagas import BREAK_UNDO, DOES, MEND_UNDO, UNDOS, resolve, retry, until_status
from workflows.checkout import CheckoutWorkflow

Handle = WorkflowHandle[CheckoutWorkflow, CheckoutStatus]
Act = Callable[[Shop, CheckoutInput, Handle, Gates], Coroutine[Any, Any, None]]

# A worker that refuses a workflow task says so once; then it keeps silent, and each try ends by this.
_TASK_TIMEOUT = timedelta(seconds=1)


async def watch(shop: Shop, order: CheckoutInput, handle: Handle, first: Gates) -> None:
    """Let the saga go its way."""


async def cancel(_shop: Shop, order: CheckoutInput, handle: Handle, first: Gates) -> None:
    gate = first.hold(order, "ship_order", "before")
    await gate.reached()
    await handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")
    gate.open()


async def mend_and_retry(shop: Shop, order: CheckoutInput, handle: Handle, _first: Gates) -> None:
    await until_status(shop, order, "stuck")
    await shop.database.run(MEND_UNDO["pay"])
    await retry(handle)


async def resolve_by_hand(shop: Shop, order: CheckoutInput, handle: Handle, _first: Gates) -> None:
    await until_status(shop, order, "stuck")
    await resolve(handle, "pay")
    await shop.database.run(MEND_UNDO["pay"])


def report_lost_for_good() -> Exception:
    return ApplicationError("the report was lost", type="ReportLost", non_retryable=True)


@dataclass(frozen=True)
class Story:
    customer: str
    ending: str
    trace: tuple[str, ...]
    """The activities at which a deploy strikes it, in the order in which they come."""
    act: Act = watch
    is_repair: bool = False
    breaks_refund: bool = False
    loses_report: bool = False

    async def start(self, shop: Shop, order: CheckoutInput) -> Handle:
        if self.breaks_refund:
            await shop.database.run(BREAK_UNDO["pay"])
        return await shop.client.start_workflow(
            CheckoutWorkflow.run,
            replace(order, repair=self.is_repair),
            id=checkout_workflow_id(order.order_id),
            task_queue=shop.task_queue,
            task_timeout=_TASK_TIMEOUT,
        )

    def prepare(self, order: CheckoutInput, gates: Gates) -> None:
        """Put this story's faults before a worker's activities."""
        if self.loses_report:
            gates.fail(order, "ship_order", "after", error=report_lost_for_good)

    @property
    def is_settled_by_hand(self) -> bool:
        """Tell whether somebody took it on himself to give the money back."""
        return self.act is resolve_by_hand

    def after(self, name: str) -> str | None:
        rest = self.trace[self.trace.index(name) + 1 :]
        return rest[0] if rest else None


STORIES = {
    "completes": Story("alice", "completed", DOES),
    "is-refused": Story("nemo", "OrderRejected", (*UNDOS, "close_order")),
    "is-cancelled": Story("carol", "OrderCancelled", (*UNDOS, "close_order"), act=cancel),
    "is-repaired": Story("alice", "OrderCancelled", (*UNDOS, "close_order"), is_repair=True),
    "is-retried": Story(
        "nemo",
        "OrderRejected",
        ("park_order", "note_retry", "close_order"),
        act=mend_and_retry,
        breaks_refund=True,
    ),
    "is-resolved": Story(
        "nemo",
        "OrderRejected",
        ("park_order", "resolve_step", "close_order"),
        act=resolve_by_hand,
        breaks_refund=True,
    ),
    "goes-forward": Story("alice", "completed", ("cancel_shipment", "complete_order"), loses_report=True),
}


@dataclass(frozen=True)
class Cell:
    """Where in which story the deploy strikes."""

    story: str
    activity: str
    moment: Moment

    def __str__(self) -> str:
        return f"{self.story}-{self.moment}-{self.activity}"


MOMENTS: tuple[Moment, ...] = ("before", "after")
CELLS = [
    Cell(name, activity, moment) for name, story in STORIES.items() for activity in story.trace for moment in MOMENTS
]
