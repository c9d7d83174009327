"""The ways of a saga, one scene each, for record.py: every ending, and every way there with commands of its own."""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import WorkflowIDReusePolicy

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from domain import policies
from domain.audit import AuditInput
from domain.lookup import NamesInput
from domain.model import CheckoutInput, CheckoutStatus, ExecutionMode, OrderLine
from domain.policies import checkout_workflow_id
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.bulk_scenes import BULK_SCENES
from tests.workflow.gates import Gates, Moment, lost_report
from tests.workflow.sagas import (
    BREAK_STEPS,
    BREAK_UNDO,
    MEND_STEPS,
    MEND_UNDO,
    failure_of,
    hasty,
    resolve,
    retry,
    until,
    until_another_run,
    until_it_waits,
    until_status,
    until_tried,
)
from workflows.checkout import CheckoutWorkflow
from workflows.maintenance import AuditWorkflow, NamesWorkflow

Handle = WorkflowHandle[Any, Any]
Scene = Callable[[Shop, Gates], Awaitable[Handle]]

MANY_UPDATES = 5
"""After how many updates the recording server suggests another run."""

# Long enough that whatever is asked meanwhile comes together with the first task.
_BEFORE_THE_FIRST_TASK = timedelta(seconds=1)


# Straight ways ------------------------------------------------------------------------------------------


def ordered(customer: str, sku: str = "tea-mug") -> Scene:
    async def scene(shop: Shop, _gates: Gates) -> Handle:
        return await shop.start(shop.order(customer, (sku, 1)))

    return scene


async def rejected_again(shop: Shop, gates: Gates) -> Handle:
    """Run an order again that is rejected, while Postgres refuses its statements."""
    order = shop.order("nemo")
    await failure_of(await shop.start(order))
    for activity in ("reserve_inventory", "release_inventory"):
        gates.fail(order, activity, times=1, error=lambda: DatabaseRefusedStatement("a rule", non_retryable=True))
    return await shop.run_again(order)


async def irrevocable(shop: Shop, gates: Gates) -> Handle:
    order = shop.order("alice")
    gates.fail(order, "ship_order", "after", error=lost_report)
    return await shop.start(order)


def given_up(name: str) -> Scene:
    """Have a step fail until its time is up."""

    async def scene(shop: Shop, gates: Gates) -> Handle:
        order = shop.order("carol")
        gates.fail(order, name)
        return await shop.start(order)

    return scene


# The local-first mode ------------------------------------------------------------------------------------------


def in_local_first(scene: Scene) -> Scene:
    """Play a scene with orders that ask for the local-first mode."""

    async def played(shop: Shop, gates: Gates) -> Handle:
        return await scene(replace(shop, execution_mode=ExecutionMode.LOCAL_FIRST), gates)

    return played


def failed_once(name: str, moment: Moment) -> Scene:
    """Have the first attempt of a step fail."""

    async def scene(shop: Shop, gates: Gates) -> Handle:
        order = shop.order("carol")
        gates.fail(order, name, moment, times=1)
        return await shop.start(order)

    return scene


def took_too_long(name: str) -> Scene:
    """Have the first attempt of a step take longer than it may."""

    async def scene(shop: Shop, gates: Gates) -> Handle:
        order = shop.order("carol")
        gate = gates.hold(order, name, "after")
        handle = await shop.start(order)
        await until_tried(gates, order, name, times=2)
        gate.open()
        return handle

    return scene


# Cancels ------------------------------------------------------------------------------------------------


def cancelled(name: str, *, by_update: bool, moment: Moment = "after", customer: str = "carol") -> Scene:
    async def scene(shop: Shop, gates: Gates) -> Handle:
        order = shop.order(customer)
        gate = gates.hold(order, name, moment)
        handle = await shop.start(order)
        await gate.reached()
        if by_update:
            await handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")
        else:
            await handle.cancel(reason="changed my mind")
        gate.open()
        return handle

    return scene


async def cancelled_twice(shop: Shop, gates: Gates) -> Handle:
    order = shop.order("carol")
    gate = gates.hold(order, "charge_payment", "after")
    handle = await shop.start(order)
    await gate.reached()
    await handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")
    await handle.cancel(reason="and once more")
    gate.open()
    return handle


async def cancelled_by_update_then_by_temporal(shop: Shop, gates: Gates) -> Handle:
    """Have a cancel by Temporal come while what a cancel by update began is being undone."""
    order = shop.order("carol")
    paid = gates.hold(order, "charge_payment", "after")
    refunding = gates.hold(order, "refund_payment", "before")
    handle = await shop.start(order)
    await paid.reached()
    await handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")
    paid.open()
    await refunding.reached()
    await handle.cancel(reason="and once more")
    refunding.open()
    return handle


def cancel_refused(customer: str, name: str, reason: str) -> Scene:
    """Have an update that its validator refuses."""

    async def scene(shop: Shop, gates: Gates) -> Handle:
        order = shop.order(customer)
        gate = gates.hold(order, name, "before")
        handle = await shop.start(order)
        await gate.reached()
        with contextlib.suppress(WorkflowUpdateFailedError):
            await handle.execute_update(CheckoutWorkflow.cancel, reason)
        gate.open()
        return handle

    return scene


async def start_and_cancel(shop: Shop, order: CheckoutInput) -> Handle:
    handle = await shop.client.start_workflow(
        CheckoutWorkflow.run,
        order,
        id=checkout_workflow_id(order.order_id),
        task_queue=shop.task_queue,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        start_delay=_BEFORE_THE_FIRST_TASK,
    )
    await handle.cancel(reason="changed my mind")
    return handle


async def cancelled_at_once(shop: Shop, _gates: Gates) -> Handle:
    return await start_and_cancel(shop, shop.order("carol"))


# Stuck orders -------------------------------------------------------------------------------------------


async def stuck(shop: Shop, *steps: str) -> tuple[CheckoutInput, Handle]:
    for step in steps or ("pay",):
        await shop.database.run(BREAK_UNDO[step])
    order = shop.order("nemo")
    handle = await shop.start(order)
    await until_status(shop, order, "stuck")
    return order, handle


async def stuck_and_retried(shop: Shop, _gates: Gates) -> Handle:
    _, handle = await stuck(shop)
    await shop.database.run(MEND_UNDO["pay"])
    await retry(handle)
    return handle


async def stuck_and_retried_in_vain(shop: Shop, _gates: Gates) -> Handle:
    _, handle = await stuck(shop)
    await retry(handle)
    await shop.database.run(MEND_UNDO["pay"])
    await retry(handle)
    return handle


async def stuck_until_it_tries_again(shop: Shop, _gates: Gates) -> Handle:
    usual = policies.STUCK_RETRY_FIRST
    policies.STUCK_RETRY_FIRST = timedelta(milliseconds=300)
    try:
        _, handle = await stuck(shop)
    finally:
        policies.STUCK_RETRY_FIRST = usual
    await shop.database.run(MEND_UNDO["pay"])
    return handle


async def stuck_and_resolved(shop: Shop, _gates: Gates) -> Handle:
    _, handle = await stuck(shop)
    await resolve(handle, "pay", "wired back, slip 77")
    return handle


async def stuck_in_two_steps(shop: Shop, _gates: Gates) -> Handle:
    """Have one stuck step resolved by hand, and the other undone by a retry."""
    _, handle = await stuck(shop, "pay", "reserve")
    await resolve(handle, "pay", "wired back, slip 77")
    await shop.database.run(MEND_UNDO["reserve"])
    await retry(handle)
    return handle


async def stuck_and_retried_during_a_round(shop: Shop, gates: Gates) -> Handle:
    """Have a retry come while a round is running that has failed at one step already, and is at another."""
    usual = policies.UNDO
    policies.UNDO = hasty(usual, give_up_ms=60_000)  # the other step's undo waits at a gate
    try:
        order, handle = await stuck(shop, "pay", "reserve")
        retries = await retried_during_a_round(shop, gates, order, handle)
        await asyncio.gather(*retries)
    finally:
        policies.UNDO = usual
    return handle


async def retried_during_a_round(
    shop: Shop, gates: Gates, order: CheckoutInput, handle: Handle
) -> "list[asyncio.Task[CheckoutStatus]]":
    """Retry an order that is stuck in pay and reserve, and retry it again when pay has failed again and is mended."""
    releasing = gates.hold(order, "release_inventory", "before")
    retries = [asyncio.create_task(retry(handle))]
    await releasing.reached()
    for step in ("pay", "reserve"):
        await shop.database.run(MEND_UNDO[step])
    retries.append(asyncio.create_task(retry(handle)))
    await until_tried(gates, order, "note_retry", times=2)

    async def is_noted() -> bool:
        pending = (await handle.describe()).raw_description.pending_activities
        return [activity.activity_type.name for activity in pending] == ["release_inventory"]

    await until(is_noted)
    await handle.query(CheckoutWorkflow.status)  # answered once the workflow has seen that it is noted
    releasing.open()
    return retries


async def stuck_until_the_parcel_is_gone(shop: Shop, gates: Gates) -> Handle:
    await shop.database.run(BREAK_UNDO["ship"])
    order = shop.order("carol")
    gates.fail(order, "ship_order", "after", error=lost_report)
    handle = await shop.start(order)
    await until_status(shop, order, "stuck")
    await shop.database.run("UPDATE shipments SET state = 'handed_over', handed_over_at = now();" + MEND_UNDO["ship"])
    await retry(handle)
    return handle


async def stuck_beyond_what_one_run_takes(shop: Shop, _gates: Gates) -> Handle:
    """Have a run that answers so many updates that the order goes on in another one."""
    order, first = await stuck(shop)
    for _ in range(MANY_UPDATES):
        await retry(first)
    await until_another_run(shop, order, first)
    return shop.client.get_workflow_handle(first.id, run_id=first.first_execution_run_id)


async def stuck_in_another_run(shop: Shop, gates: Gates) -> Handle:
    """Have the run that goes on with a stuck order bring it to its end."""
    earlier = await stuck_beyond_what_one_run_takes(shop, gates)
    await shop.database.run(MEND_UNDO["pay"])
    newest: Handle = shop.client.get_workflow_handle_for(CheckoutWorkflow.run, earlier.id)
    await retry(newest)
    return newest


# Waits for what an operator has to put right -----------------------------------------------------------


async def waiting_at(name: str, shop: Shop, gates: Gates) -> Handle:
    order = shop.order("carol")
    gate = gates.hold(order, name, "before")
    handle = await shop.start(order)
    await gate.reached()
    await shop.database.run(BREAK_STEPS)
    gate.open()
    await until_it_waits(shop, order.order_id)
    return handle


def put_right(name: str) -> Scene:
    """Have a step wait beyond its own policy until somebody has put the database right."""

    async def scene(shop: Shop, gates: Gates) -> Handle:
        handle = await waiting_at(name, shop, gates)
        await shop.database.run(MEND_STEPS)
        return handle

    return scene


async def cancelled_while_it_waits(shop: Shop, gates: Gates) -> Handle:
    handle = await waiting_at("charge_payment", shop, gates)
    await handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")
    await shop.database.run(MEND_STEPS)
    return handle


# Second runs --------------------------------------------------------------------------------------------


async def terminated(shop: Shop, gates: Gates) -> CheckoutInput:
    order = shop.order("carol")
    gate = gates.hold(order, "ship_order", "before")
    handle = await shop.start(order)
    await gate.reached()
    await handle.terminate()
    return order


async def repaired(shop: Shop, gates: Gates) -> Handle:
    order = await terminated(shop, gates)
    await shop.sweep()
    gates.hold(order, "ship_order", "before").open()
    return shop.newest_run(order)


async def repaired_though_completed(shop: Shop, _gates: Gates) -> Handle:
    order = shop.order("alice")
    await (await shop.start(order)).result()
    return await shop.run_again(replace(order, repair=True))


async def closes_what_stands(shop: Shop, _gates: Gates) -> Handle:
    """Have a run that is cancelled before its first step, where an earlier one has reserved and been paid."""
    order = shop.order("alice")
    await Inventory(shop.engine).reserve_inventory(order)
    await Payments(shop.engine).charge_payment(order)
    return await start_and_cancel(shop, order)


async def anothers_order(shop: Shop) -> CheckoutInput:
    """Give an order whose id belongs to one with other content."""
    order = shop.order("alice")
    await (await shop.start(order)).result()
    return replace(order, lines=(OrderLine("poster", 3),))


async def intruder(shop: Shop, _gates: Gates) -> Handle:
    return await shop.run_again(await anothers_order(shop))


async def intruder_cancelled(shop: Shop, _gates: Gates) -> Handle:
    return await start_and_cancel(shop, await anothers_order(shop))


async def cancelled_before_it_knows_of_the_parcel(shop: Shop, gates: Gates) -> Handle:
    """Have a run that is cancelled while it reserves, where an earlier one has a label."""
    order = shop.order("carol")
    await Inventory(shop.engine).reserve_inventory(order)
    await Payments(shop.engine).charge_payment(order)
    await Shipping(shop.engine).ship_order(order)
    gate = gates.hold(order, "reserve_inventory", "before")
    handle = await shop.run_again(order)
    await gate.reached()
    await handle.execute_update(CheckoutWorkflow.cancel, "found it cheaper")
    gate.open()
    return handle


# Restored databases -------------------------------------------------------------------------------------


_AS_IF_RESTORED = "SET session_replication_role = replica;"


async def missing_step(shop: Shop, gates: Gates) -> Handle:
    """Have a saga find its payment gone, be parked, and be undone once somebody has looked."""
    order = shop.order("carol")
    gate = gates.hold(order, "ship_order", "before")
    handle = await shop.start(order)
    await gate.reached()
    await shop.database.run(
        f"{_AS_IF_RESTORED} UPDATE orders SET status = 'reserved';"
        "DELETE FROM step_fence WHERE step = 'pay'; DELETE FROM transfers WHERE kind = 'capture';"
        "UPDATE accounts SET balance_minor = 100000 WHERE account_id = 'carol'"
    )
    gate.open()
    await until_status(shop, order, "stuck")
    await retry(handle)
    return handle


async def forgotten_after_its_end(shop: Shop) -> CheckoutInput:
    order = shop.order("alice")
    await (await shop.start(order)).result()
    await shop.database.run(
        f"{_AS_IF_RESTORED} UPDATE orders SET status = 'paid'; DELETE FROM step_fence WHERE step = 'ship';"
        "DELETE FROM shipments; UPDATE reservations SET state = 'held';"
        "UPDATE inventory SET on_hand = initial, reserved = 1 WHERE sku = 'tea-mug'"
    )
    return order


async def parked_by_the_sweep(shop: Shop, _gates: Gates) -> Handle:
    """Have the sweep park an order that Temporal has completed; somebody then has it undone."""
    order = await forgotten_after_its_end(shop)
    await shop.sweep()
    handle = shop.newest_run(order)
    await until_status(shop, order, "stuck")
    await retry(handle)
    return handle


async def sweeps_and_parks(shop: Shop, _gates: Gates) -> Handle:
    await forgotten_after_its_end(shop)
    return await shop.start_sweep()


# Maintenance --------------------------------------------------------------------------------------------


async def write_by_hand(shop: Shop, orders: int, lines: int = 1) -> str:
    """Write pending orders, numbered from 1, and give what their ids begin with: no other scene's do."""
    prefix = f"by-hand-{shop.task_queue}-"
    await shop.database.run(
        "INSERT INTO orders (order_id, customer, created_at, updated_at)"
        f" SELECT '{prefix}' || n, 'alice', now(), now() + n * interval '1 ms' FROM generate_series(1, {orders}) n;"
        "INSERT INTO order_lines (order_id, sku, quantity)"
        f" SELECT order_id, CASE l WHEN 1 THEN 'pen' ELSE 's-' || l END, 1 FROM orders, generate_series(1, {lines}) l"
        " WHERE order_id LIKE 'by-hand-%'"
    )
    return prefix


async def written_by_hand(shop: Shop, _gates: Gates) -> Handle:
    prefix = await write_by_hand(shop, 1)
    await shop.sweep()
    return shop.client.get_workflow_handle_for(CheckoutWorkflow.run, checkout_workflow_id(f"{prefix}1"))


async def sweeps(shop: Shop, gates: Gates) -> Handle:
    """Have a sweep that starts an order, repairs one, and finds one alive."""
    lost = await terminated(shop, gates)
    alive = shop.order("alice")
    gate = gates.hold(alive, "charge_payment", "before")
    await shop.start(alive)
    await gate.reached()
    await write_by_hand(shop, 1)
    handle = await shop.start_sweep()
    await handle.result()
    gate.open()
    gates.hold(lost, "ship_order", "before").open()
    return handle


async def sweeps_on_and_on(shop: Shop, _gates: Gates) -> Handle:
    """Have a sweep of more pages than one run takes. None of its orders can be started: they have too many lines."""
    usual, policies.SWEEP_BATCH = policies.SWEEP_BATCH, 1
    try:
        await write_by_hand(shop, 25, lines=101)
        newest = await shop.start_sweep()
        await newest.result()
    finally:
        policies.SWEEP_BATCH = usual
    return shop.client.get_workflow_handle(newest.id, run_id=newest.first_execution_run_id)


async def audits(shop: Shop, _gates: Gates) -> Handle:
    return await shop.client.start_workflow(
        AuditWorkflow.run, AuditInput(), id=f"audit-{uuid.uuid4()}", task_queue=shop.task_queue
    )


async def audits_and_finds(shop: Shop, gates: Gates) -> Handle:
    await shop.database.run("UPDATE inventory SET reserved = reserved + 1 WHERE sku = 'lamp'")
    return await audits(shop, gates)


async def looks_up(shop: Shop, _gates: Gates) -> Handle:
    asked = NamesInput(["lamp", "no-such"], ["alice", "nobody"], ["n-1"])
    return await shop.client.start_workflow(
        NamesWorkflow.run, asked, id=f"look-up-{uuid.uuid4()}", task_queue=shop.task_queue
    )


SCENES: dict[str, Scene] = {
    **BULK_SCENES,
    "completed": ordered("carol"),
    "completed-because-irrevocable": irrevocable,
    "completed-with-a-cancel-that-was-refused": cancel_refused("alice", "charge_payment", " "),
    "completed-by-sweep": written_by_hand,
    "completed-though-cancelled-after-the-hand-over": cancelled("ship_order", by_update=True, customer="alice"),
    "completed-though-repaired": repaired_though_completed,
    "completed-after-being-stuck": stuck_until_the_parcel_is_gone,
    "completed-after-waiting-for-a-right": put_right("charge_payment"),
    "cancelled-while-waiting-for-a-right": cancelled_while_it_waits,
    "fast-completed-after-waiting-for-a-right": in_local_first(put_right("ship_order")),
    "continued-when-stuck-for-long": stuck_beyond_what_one_run_takes,
    "stuck-in-another-run-and-retried": stuck_in_another_run,
    "fast-completed": in_local_first(ordered("carol")),
    "fast-completed-after-reserve-failed": in_local_first(failed_once("reserve_inventory", "before")),
    "fast-completed-after-pay-lost-its-report": in_local_first(failed_once("charge_payment", "after")),
    "fast-completed-after-ship-took-too-long": in_local_first(took_too_long("ship_order")),
    "fast-rejected-at-reserve": in_local_first(ordered("alice", "no-such")),
    "fast-rejected-at-pay": in_local_first(ordered("bob")),
    "fast-rejected-at-ship": in_local_first(ordered("nemo")),
    "fast-rejected-when-pay-was-given-up": in_local_first(given_up("charge_payment")),
    "fast-cancelled-before-the-first-step": in_local_first(cancelled_at_once),
    "fast-cancelled-by-temporal-at-pay": in_local_first(cancelled("charge_payment", by_update=False)),
    "fast-cancelled-by-update-at-ship": in_local_first(cancelled("ship_order", by_update=True)),
    "fast-stuck-and-retried": in_local_first(stuck_and_retried),
    "rejected-at-reserve": ordered("alice", "no-such"),
    "rejected-at-pay": ordered("bob"),
    "rejected-at-ship": ordered("nemo"),
    "rejected-when-pay-was-given-up": given_up("charge_payment"),
    "rejected-when-ship-was-given-up": given_up("ship_order"),
    "rejected-again-while-statements-are-refused": rejected_again,
    "rejected-with-a-cancel-while-unwinding": cancelled(
        "refund_payment", by_update=False, moment="before", customer="nemo"
    ),
    "rejected-with-a-cancel-that-came-too-late": cancel_refused("nemo", "refund_payment", "changed my mind"),
    "rejected-because-the-id-is-anothers": intruder,
    "cancelled-before-the-first-step": cancelled_at_once,
    "cancelled-by-temporal-at-reserve": cancelled("reserve_inventory", by_update=False),
    "cancelled-by-temporal-at-pay": cancelled("charge_payment", by_update=False),
    "cancelled-by-temporal-at-ship": cancelled("ship_order", by_update=False),
    "cancelled-by-update-at-reserve": cancelled("reserve_inventory", by_update=True),
    "cancelled-by-update-at-pay": cancelled("charge_payment", by_update=True),
    "cancelled-by-update-at-ship": cancelled("ship_order", by_update=True),
    "cancelled-twice": cancelled_twice,
    "cancelled-by-update-then-by-temporal": cancelled_by_update_then_by_temporal,
    "cancelled-by-repair": repaired,
    "cancelled-and-what-stood-undone": closes_what_stands,
    "cancelled-under-anothers-id": intruder_cancelled,
    "stuck-and-retried": stuck_and_retried,
    "stuck-and-retried-in-vain": stuck_and_retried_in_vain,
    "stuck-until-it-tried-again": stuck_until_it_tries_again,
    "stuck-and-resolved": stuck_and_resolved,
    "stuck-in-two-steps": stuck_in_two_steps,
    "stuck-and-retried-during-a-round": stuck_and_retried_during_a_round,
    "cancelled-before-it-knew-of-the-parcel": cancelled_before_it_knows_of_the_parcel,
    "parked-and-undone": missing_step,
    "parked-by-the-sweep-and-undone": parked_by_the_sweep,
    "sweep": sweeps,
    "sweep-that-parks": sweeps_and_parks,
    "sweep-that-goes-on": sweeps_on_and_on,
    "look-up-names": looks_up,
    "audit": audits,
    "audit-that-finds": audits_and_finds,
}
