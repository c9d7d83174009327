"""Deploys and rollbacks in the middle of sagas, without worker versioning: no order is stranded, none is done twice.

At each await of each story the worker is taken away and one of another build takes over. Where the other build's
commands are the same, no order notices. Where they are not, it can do nothing to the orders of the first, and they
go on when the first is back.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.exceptions import ApplicationError

from domain import policies
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.conftest import Shop
from tests.faults.share import share
from tests.workflow.builds import TellsMore, WaitsFirst, WaitsFirstPatched
from tests.workflow.deployments import Build, is_refused_by_its_worker, temporal_cli
from tests.workflow.gates import Gates, Moment
from tests.workflow.sagas import (
    BREAK_UNDO,
    DOES,
    MEND_UNDO,
    UNDOS,
    goods_and_money,
    hasty,
    how_it_ended,
    resolve,
    retry,
    until,
    until_status,
    violations,
)
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
    """The activities at which a deploy comes, in the order in which they come."""
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
        """Whether an operator has resolved its refund."""
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
    story: str
    activity: str
    moment: Moment

    def __str__(self) -> str:
        return f"{self.story}-{self.moment}-{self.activity}"


MOMENTS: tuple[Moment, ...] = ("before", "after")
CELLS = [
    Cell(name, activity, moment) for name, story in STORIES.items() for activity in story.trace for moment in MOMENTS
]


@pytest.fixture(autouse=True)
def _hasty_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESERVE", "PAY", "SHIP", "UNDO", "RECORD"):
        monkeypatch.setattr(policies, name, hasty(getattr(policies, name)))


@pytest.mark.parametrize("cell", share(CELLS, every=13))
async def test_a_saga_is_carried_on_by_the_next_build_and_by_the_one_before_it_again(shop: Shop, cell: Cell) -> None:
    story, following = STORIES[cell.story], STORIES[cell.story].after(cell.activity)
    order, before = shop.order(story.customer), await goods_and_money(shop.database)
    v1, v2, v1_again = Build(shop), Build(shop, TellsMore), Build(shop)
    for build in (v1, v2, v1_again):
        story.prepare(order, build.gates)
    held = v1.gates.hold(order, cell.activity, cell.moment)
    held_again = v2.gates.hold(order, following, "before") if following else None

    async with v1.working():
        handle = await story.start(shop, order)
        acting = asyncio.create_task(story.act(shop, order, handle, v1.gates))
        await held.reached()
    async with v2.working():
        # Only a workflow task that v2 completed leads to the next activity, or to the end.
        await (held_again.reached() if held_again else how_it_ended(handle))
    async with v1_again.working():
        ended = await how_it_ended(handle)
        await acting

    assert ended == story.ending
    assert v2.gates.attempts_of(order, cell.activity) >= 1
    assert not await is_refused_by_its_worker(handle)
    assert await violations(shop) == []
    if ended != "completed" and not story.is_settled_by_hand:
        assert await goods_and_money(shop.database) == before


@pytest.mark.parametrize("cell", share(CELLS, every=13))
async def test_a_build_with_other_commands_stops_a_saga_and_harms_it_in_no_way(shop: Shop, cell: Cell) -> None:
    story = STORIES[cell.story]
    order = shop.order(story.customer)
    v1, v2, v1_again = Build(shop), Build(shop, WaitsFirst), Build(shop)
    for build in (v1, v2, v1_again):
        story.prepare(order, build.gates)
    held = v1.gates.hold(order, cell.activity, cell.moment)

    async with v1.working():
        handle = await story.start(shop, order)
        acting = asyncio.create_task(story.act(shop, order, handle, v1.gates))
        await held.reached()
    async with v2.working():
        await until(lambda: is_refused_by_its_worker(handle))
        described = await handle.describe()
    async with v1_again.working():
        ended = await how_it_ended(handle)
        await acting

    assert described.status is WorkflowExecutionStatus.RUNNING
    assert ended == story.ending
    assert await violations(shop) == []


def test_the_cells_meet_every_activity_of_the_checkout() -> None:
    others = {"close_order", "complete_order", "park_order", "resolve_step", "note_retry"}

    assert {cell.activity for cell in CELLS} == {*DOES, *UNDOS, *others}


async def test_a_stuck_order_waits_through_a_deploy_and_is_fixed_on_the_next_build(shop: Shop) -> None:
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")

    async with Build(shop).working():
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
    await shop.database.run(MEND_UNDO["pay"])
    async with Build(shop, TellsMore).working():
        status = await retry(handle)
        ended = await how_it_ended(handle)

    assert next(step.state for step in status.steps if step.step == "pay") == "undone"
    assert ended == "OrderRejected"
    assert await violations(shop) == []


def newest_run(shop: Shop, handle: Handle) -> Handle:
    return shop.client.get_workflow_handle_for(CheckoutWorkflow.run, handle.id)


@pytest.mark.parametrize("name", ["reserve_inventory", "charge_payment", "ship_order"])
async def test_an_order_that_began_on_the_bad_build_is_reset_and_done_once(shop: Shop, name: str) -> None:
    order = shop.order("alice")
    v1, v2 = Build(shop), Build(shop, WaitsFirst)
    held = v2.gates.hold(order, name, "after")

    async with v2.working():
        handle = await STORIES["completes"].start(shop, order)
        await held.reached()
    async with v1.working():
        await until(lambda: is_refused_by_its_worker(handle))
        reset = await temporal_cli(
            shop,
            *("workflow", "reset", "--workflow-id", handle.id),
            *("--type", "FirstWorkflowTask", "--reason", "rollback"),
        )
        ended = await how_it_ended(newest_run(shop, handle))

    assert reset.returncode == 0, reset.stderr
    assert ended == "completed"
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE order_id = $1", order.order_id) == 1
    assert await violations(shop) == []


async def test_an_order_that_began_on_the_bad_build_is_terminated_and_undone_by_the_sweep(shop: Shop) -> None:
    order, before = shop.order("alice"), await goods_and_money(shop.database)
    v1, v2 = Build(shop), Build(shop, WaitsFirst)
    held = v2.gates.hold(order, "charge_payment", "before")

    async with v2.working():
        handle = await STORIES["completes"].start(shop, order)
        await held.reached()
    async with v1.working():
        await until(lambda: is_refused_by_its_worker(handle))
        await handle.terminate("rollback")
        await shop.sweep()
        ended = await how_it_ended(newest_run(shop, handle))

    assert ended == "OrderCancelled"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_patched_build_carries_old_orders_on_and_its_own_wait_out_a_rollback(shop: Shop) -> None:
    old, new = shop.order("alice"), shop.order("nemo")
    v1, v2 = Build(shop), Build(shop, WaitsFirstPatched)
    v1_again, v2_again = Build(shop), Build(shop, WaitsFirstPatched)
    held = v1.gates.hold(old, "charge_payment", "before")
    held_too = v2.gates.hold(new, "charge_payment", "before")

    async with v1.working():
        first = await STORIES["completes"].start(shop, old)
        await held.reached()
    async with v2.working():
        ends = [await how_it_ended(first)]
        second = await STORIES["is-refused"].start(shop, new)
        await held_too.reached()
    async with v1_again.working():
        await until(lambda: is_refused_by_its_worker(second))
    async with v2_again.working():
        ends.append(await how_it_ended(second))

    assert not await is_refused_by_its_worker(first)
    assert ends == ["completed", "OrderRejected"]
    assert await violations(shop) == []
