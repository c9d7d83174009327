"""Cancelling, at any instant and in both ways: honoured, or refused with a reason, and never half done."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from temporalio.client import (
    WithStartWorkflowOperation,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from temporalio.common import RetryPolicy, WorkflowIDConflictPolicy
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.inventory import Inventory
from activities.orders import Orders
from activities.payments import Payments
from domain import policies
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from sagafence import ActivityPolicy
from tests.conftest import Shop
from tests.workflow.gates import Gates, Moment
from tests.workflow.sagas import (
    BREAK_UNDO,
    DOES,
    UNDOS,
    events_of,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    reason_of,
    until,
    until_status,
    violations,
)
from workflows.checkout import CheckoutWorkflow

Handle = WorkflowHandle[CheckoutWorkflow, CheckoutStatus]
Ask = Callable[[Handle], Awaitable[None]]
REASON = "changed my mind"


async def by_temporal(handle: Handle) -> None:
    await handle.cancel(reason=REASON)


async def by_update(handle: Handle) -> None:
    await handle.execute_update(CheckoutWorkflow.cancel, REASON)


WAYS: dict[str, tuple[Ask, str]] = {
    "temporal": (by_temporal, "CANCELED"),
    "update": (by_update, "OrderCancelled"),
}
both_ways = pytest.mark.parametrize(("ask", "end"), WAYS.values(), ids=WAYS)
moments = pytest.mark.parametrize("moment", ["before", "after"])


async def assert_cancelled(shop: Shop, order: CheckoutInput, before: list[tuple[Any, ...]]) -> None:
    assert await shop.order_status(order) == "cancelled"
    assert await reason_of(shop, order) == f"cancelled: {REASON}"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def is_in_backoff(handle: Handle) -> bool:
    pending = (await handle.describe()).raw_description.pending_activities
    return any(activity.attempt > 1 for activity in pending)


# Before, during and after each step ---------------------------------------------------------------------


async def test_a_cancel_by_temporal_before_any_worker_runs_leaves_a_cancelled_order(shop: Shop) -> None:
    before, order = await goods_and_money(shop.database), shop.order("alice")
    handle = await shop.start(order)
    await by_temporal(handle)

    async with shop.working():
        ended = await how_it_ended(handle)

    assert ended == "CANCELED"
    await assert_cancelled(shop, order, before)


async def test_a_cancel_update_that_comes_with_the_start_leaves_a_cancelled_order(shop: Shop) -> None:
    before, order = await goods_and_money(shop.database), shop.order("alice")
    start = WithStartWorkflowOperation(
        CheckoutWorkflow.run,
        order,
        id=checkout_workflow_id(order.order_id),
        task_queue=shop.task_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
    )

    async with shop.working():
        await shop.client.execute_update_with_start_workflow(
            CheckoutWorkflow.cancel, REASON, start_workflow_operation=start
        )
        ended = await how_it_ended(await start.workflow_handle())

    assert ended == "OrderCancelled"
    await assert_cancelled(shop, order, before)


@both_ways
@pytest.mark.parametrize("customer", ["alice", "carol"])
@pytest.mark.parametrize("name", DOES)
@moments
async def test_a_cancel_around_a_step_undoes_everything_or_comes_too_late_for_a_handed_over_parcel(
    shop: Shop, customer: str, name: str, moment: Moment, ask: Ask, end: str
) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order(customer)
    gate = gates.hold(order, name, moment)

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await ask(handle)
        gate.open()
        ended = await how_it_ended(handle)

    if customer == "alice" and name == "ship_order":
        assert ended == "completed"
        assert await shop.order_status(order) == "completed"
        assert await violations(shop) == []
    else:
        assert ended == end
        await assert_cancelled(shop, order, before)


LOCKED_BY_STEP = {
    "reserve_inventory": "SELECT FROM inventory WHERE sku = 'tea-mug' FOR UPDATE",
    "charge_payment": "SELECT FROM accounts WHERE account_id = 'carol' FOR UPDATE",
    "ship_order": "SELECT FROM inventory WHERE sku = 'tea-mug' FOR UPDATE",
}


@both_ways
@pytest.mark.parametrize("name", DOES)
async def test_a_cancel_while_a_statement_waits_in_postgres_undoes_everything(
    shop: Shop, name: str, ask: Ask, end: str
) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("carol")
    gate = gates.hold(order, name, "before")

    async def is_waiting() -> bool:
        return bool(
            await shop.database.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        rival = await asyncpg.connect(shop.database.admin_url)
        async with rival.transaction():
            await rival.execute(LOCKED_BY_STEP[name])
            gate.open()
            await until(is_waiting)
            await ask(handle)
        await rival.close()
        ended = await how_it_ended(handle)

    assert ended == end
    await assert_cancelled(shop, order, before)


@both_ways
@pytest.mark.parametrize("name", DOES)
async def test_a_cancel_during_an_outage_is_honoured_before_the_next_attempt(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str, ask: Ask, end: str
) -> None:
    # The second attempt would come after a minute.
    slow = RetryPolicy(initial_interval=timedelta(minutes=1))
    for policy in ("RESERVE", "PAY", "SHIP"):
        old: ActivityPolicy = getattr(policies, policy)
        monkeypatch.setattr(policies, policy, ActivityPolicy(old.start_to_close, timedelta(hours=1), slow))
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("alice")
    fault = gates.fail(order, name)

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await fault.struck()
        await until(lambda: is_in_backoff(handle))
        await ask(handle)
        ended = await how_it_ended(handle)

    assert ended == end
    assert gates.attempts_of(order, name) == 1
    await assert_cancelled(shop, order, before)


@both_ways
@pytest.mark.parametrize("name", DOES)
async def test_a_cancel_that_keeps_an_outage_from_being_retried_is_a_cancel_and_no_rejection(
    shop: Shop, name: str, ask: Ask, end: str
) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("alice")
    gate = gates.hold(order, name, "before")
    gates.fail(order, name, times=1)

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await ask(handle)
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == end
    await assert_cancelled(shop, order, before)


@both_ways
async def test_a_refusal_that_comes_after_a_cancel_is_a_rejection(shop: Shop, ask: Ask, end: str) -> None:
    del end
    gates, order = Gates(), shop.order("bob")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await ask(handle)
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert (await reason_of(shop, order) or "").startswith("InsufficientFunds: ")
    assert await violations(shop) == []


def runs_workflows(shop: Shop) -> Worker:
    """Make a worker that decides, and does nothing."""
    return Worker(shop.client, task_queue=shop.task_queue, workflows=[CheckoutWorkflow])


def does_activities(shop: Shop, gates: Gates) -> Worker:
    """Make a worker that does, and decides nothing."""
    inventory, payments = Inventory(shop.engine), Payments(shop.engine)
    return Worker(
        shop.client,
        task_queue=shop.task_queue,
        activities=[
            inventory.reserve_inventory,
            inventory.release_inventory,
            payments.charge_payment,
            payments.refund_payment,
            Orders(shop.engine).close_order,
        ],
        interceptors=[gates],
    )


async def test_a_refusal_that_arrives_together_with_temporals_cancel_is_a_rejection(shop: Shop) -> None:
    gates, order = Gates(), shop.order("bob")
    gate = gates.hold(order, "charge_payment", "before")

    async def is_refused() -> bool:
        return "EVENT_TYPE_ACTIVITY_TASK_FAILED" in await events_of(handle)

    async with does_activities(shop, gates):
        async with runs_workflows(shop):
            handle = await shop.start(order)
            await gate.reached()
        # Nobody runs workflows now: both wait in the history for the same workflow task.
        await by_temporal(handle)
        gate.open()
        await until(is_refused)
        async with runs_workflows(shop):
            ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert (await reason_of(shop, order) or "").startswith("InsufficientFunds: ")
    assert await violations(shop) == []


# Many at once: the cancel races with the activity's completion ------------------------------------------


@both_ways
@pytest.mark.parametrize("name", DOES)
async def test_a_cancel_in_the_instant_of_a_completion_is_never_half_done(
    shop: Shop, name: str, ask: Ask, end: str
) -> None:
    before, gates = await goods_and_money(shop.database), Gates()
    orders = [shop.order("carol") for _ in range(15)]
    held = [gates.hold(order, name, "after") for order in orders]

    async def ask_at_once(handle: Handle) -> str:
        try:
            await ask(handle)
        except (RPCError, WorkflowUpdateFailedError):
            return "refused"
        return "accepted"

    async with shop.working(interceptors=(gates,)):
        handles = await asyncio.gather(*(shop.start(order) for order in orders))
        await asyncio.gather(*(gate.reached() for gate in held))
        answers = [asyncio.create_task(ask_at_once(handle)) for handle in handles]
        for number, gate in enumerate(held):
            if number % 3:
                await asyncio.sleep(0.001 * (number % 5))  # vary who is first; either may be
            gate.open()
        answered = await asyncio.gather(*answers)
        ends = await asyncio.gather(*(how_it_ended(handle) for handle in handles))

    completed = ends.count("completed")
    for answer, ended in zip(answered, ends, strict=True):
        # The server also takes a cancel of a run that has closed meanwhile, and drops it.
        allowed = {"completed"} if answer == "refused" else {end}
        assert ended in (allowed | {"completed"} if end == "CANCELED" else allowed)
    for order, ended in zip(orders, ends, strict=True):
        assert await shop.order_status(order) == ("completed" if ended == "completed" else "cancelled")
    assert (await goods_and_money(shop.database) == before) is (completed == 0)
    assert await violations(shop) == []


@both_ways
async def test_an_unwind_begins_after_the_cancelled_step_has_stopped(shop: Shop, ask: Ask, end: str) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await ask(handle)
        # Answered after the cancel was taken in: what it sets off at once has been set off by now.
        await handle.query(CheckoutWorkflow.status)
        while_it_runs = await handle.query(CheckoutWorkflow.status)
        gate.open()
        ended = await how_it_ended(handle)

    assert while_it_runs.status == "running"
    assert gates.attempts_of(order, "refund_payment") == 1
    assert ended == end


# After the end ------------------------------------------------------------------------------------------


async def test_a_cancel_update_of_a_finished_order_is_refused(shop: Shop) -> None:
    order = shop.order("carol")

    async with shop.working():
        handle = await shop.start(order)
        await handle.result()
        with pytest.raises(RPCError, match="already completed"):
            await by_update(handle)

    assert await shop.order_status(order) == "completed"


async def test_a_cancel_by_temporal_of_a_finished_order_changes_nothing(shop: Shop) -> None:
    order = shop.order("carol")

    async with shop.working():
        handle = await shop.start(order)
        await handle.result()
        with contextlib.suppress(RPCError):
            await by_temporal(handle)
        ended = await how_it_ended(handle)

    assert ended == "completed"
    assert await shop.order_status(order) == "completed"


# Reasons ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "problem"),
    [
        ("", "a reason is needed"),
        ("  ", "a reason is needed"),
        ("x" * 201, "200 are allowed"),
        ("a\nb", "unprintable"),
        ("a\x00b", "unprintable"),
    ],
)
async def test_a_cancel_update_without_a_good_reason_is_refused_and_changes_nothing(
    shop: Shop, reason: str, problem: str
) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update(CheckoutWorkflow.cancel, reason)
        gate.open()
        ended = await how_it_ended(handle)

    assert problem in str(refused.value.cause)
    assert ended == "completed"


@pytest.mark.parametrize("arguments", [[], [7], [None], ["a", 7], ["a", "b", "c"]], ids=str)
async def test_a_malformed_cancel_update_is_refused_and_the_order_goes_on(shop: Shop, arguments: list[Any]) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("cancel", args=arguments)
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "completed"
    assert "EVENT_TYPE_WORKFLOW_TASK_FAILED" not in await events_of(handle)


@pytest.mark.parametrize(
    "reason",
    ["", "x" * 5_000, "a\x00b", "two\nlines"],
    ids=["none", "of 5 000 characters", "with NUL", "on two lines"],
)
async def test_any_reason_that_temporal_lets_through_is_honoured(shop: Shop, reason: str) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.cancel(reason=reason)
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "CANCELED"
    assert await shop.order_status(order) == "cancelled"
    assert (await reason_of(shop, order) or "").startswith("cancelled: ")
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_the_first_of_two_cancels_is_the_one_on_record(shop: Shop) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await by_update(handle)
        await asyncio.gather(handle.execute_update(CheckoutWorkflow.cancel, "another reason"), return_exceptions=True)
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderCancelled"
    await assert_cancelled(shop, order, before)


async def test_cancelling_in_both_ways_at_once_undoes_everything_once(shop: Shop) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("carol")
    gate = gates.hold(order, "ship_order", "after")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await asyncio.gather(by_temporal(handle), by_update(handle), by_temporal(handle))
        gate.open()
        ended = await how_it_ended(handle)

    assert ended in {"CANCELED", "OrderCancelled"}
    assert [gates.attempts_of(order, name) for name in UNDOS] == [1, 1, 1]
    await assert_cancelled(shop, order, before)


# During an unwind ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancels", [1, 2])
@pytest.mark.parametrize("name", [*UNDOS, "close_order"])
@moments
async def test_a_cancel_by_temporal_during_an_unwind_changes_nothing(
    shop: Shop, name: str, moment: Moment, cancels: int
) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("nemo")
    gate = gates.hold(order, name, moment)

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        for _ in range(cancels):
            await by_temporal(handle)
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert [gates.attempts_of(order, undo) for undo in UNDOS] == [1, 1, 1]
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("name", [*UNDOS, "close_order"])
async def test_a_cancel_by_temporal_while_an_unwind_waits_for_the_database_changes_nothing(
    shop: Shop, name: str
) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("nemo")
    fault = gates.fail(order, name)

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await fault.struck()
        await until(lambda: is_in_backoff(handle))
        await by_temporal(handle)
        await handle.query(CheckoutWorkflow.status)
        fault.mend()
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("name", [*UNDOS, "close_order"])
async def test_a_cancel_update_during_an_unwind_is_refused_with_the_reason_of_the_unwind(shop: Shop, name: str) -> None:
    gates, order = Gates(), shop.order("nemo")
    gate = gates.hold(order, name, "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await by_update(handle)
        gate.open()
        ended = await how_it_ended(handle)

    assert "unwinding already: UndeliverableAddress" in str(refused.value.cause)
    assert ended == "OrderRejected"


@pytest.mark.parametrize("name", [*UNDOS, "close_order"])
async def test_a_second_cancel_during_the_unwind_of_the_first_changes_nothing(shop: Shop, name: str) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("carol")
    shipped = gates.hold(order, "ship_order", "after")
    gate = gates.hold(order, name, "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await shipped.reached()
        await by_update(handle)
        shipped.open()
        await gate.reached()
        await handle.cancel(reason="and again")
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderCancelled"
    assert [gates.attempts_of(order, undo) for undo in UNDOS] == [1, 1, 1]
    await assert_cancelled(shop, order, before)


async def test_a_cancel_by_temporal_while_stuck_leaves_the_order_open_and_stuck(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")

    async with shop.working():
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
        await by_temporal(handle)
        status = await handle.query(CheckoutWorkflow.status)
        await handle.terminate()

    assert status.status == "stuck"
    assert await open_incidents(shop, order) == [["pay"]]


async def test_a_parcel_that_was_handed_over_beats_the_cancel_that_undid_nothing(shop: Shop) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "ship_order", "after")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        update = await handle.start_update(CheckoutWorkflow.cancel, REASON, wait_for_stage=WorkflowUpdateStage.ACCEPTED)
        gate.open()
        status = await handle.result()

    await update.result()
    assert (status.status, status.reason) == ("completed", None)
    assert gates.attempts_of(order, "refund_payment") == 0
    assert gates.attempts_of(order, "release_inventory") == 0
