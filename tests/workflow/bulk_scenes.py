"""The ways of a batch, one scene each, for record.py."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from temporalio.client import WithStartWorkflowOperation, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy

from activities.inventory import Inventory
from activities.payments import Payments
from domain import policies
from domain.bulk import Batch, BatchReport, CancelOrder, digest, pack, unpack
from domain.model import CheckoutInput
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.gates import Gates
from tests.workflow.sagas import events_of, until, until_tried
from workflows.bulk import BulkCheckoutWorkflow

BulkHandle = WorkflowHandle[BulkCheckoutWorkflow, BatchReport]
BulkScene = Callable[[Shop, Gates], Awaitable[WorkflowHandle[Any, Any]]]


def mixed(shop: Shop) -> list[CheckoutInput]:
    """Two orders that complete, and one that each step refuses."""
    return [
        shop.order("alice", ("tea-mug", 2)),
        shop.order("alice", ("no-such", 1)),
        shop.order("bob", ("tea-mug", 1)),
        shop.order("nemo", ("poster", 1)),
        shop.order("carol", ("poster", 1)),
    ]


async def start_batch(shop: Shop, orders: Sequence[CheckoutInput]) -> BulkHandle:
    batch = Batch([pack(order) for order in orders])
    return await shop.client.start_workflow(
        BulkCheckoutWorkflow.run, batch, id=policies.bulk_workflow_id(digest(orders)), task_queue=shop.task_queue
    )


def gates_of(shop: Shop, orders: Sequence[CheckoutInput]) -> CheckoutInput:
    """Give what gates know a batch by."""
    return shop.order(order_id=policies.bulk_workflow_id(digest(orders)))


async def forget_orders(shop: Shop) -> None:
    """Put the database back to where it knew of no order."""
    await shop.database.run(
        "UPDATE inventory SET reserved = 0;"
        "TRUNCATE orders, order_lines, reservations, order_events, step_fence, shipments, incidents"
    )


async def between_steps(
    shop: Shop, workflow_id: str, orders: Sequence[CheckoutInput], *, are_paid: bool = False
) -> None:
    """Leave orders as a batch of an earlier build had them between two of its steps."""
    for order in orders:
        await Inventory(shop.engine).reserve_inventory(order)
        if are_paid:
            await Payments(shop.engine).charge_payment(order)
    ids = ", ".join(f"'{order.order_id}'" for order in orders)
    await shop.database.run(
        "SET session_replication_role = replica;"
        f"UPDATE orders SET batch_workflow_id = '{workflow_id}' WHERE order_id IN ({ids})"
    )


async def _after_a_failed_attempt(shop: Shop, gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    gates.fail(gates_of(shop, orders), "check_out_orders", times=1)
    return await start_batch(shop, orders)


async def _with_one_of_a_saga(shop: Shop, _gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    await Inventory(shop.engine).reserve_inventory(orders[0])
    return await start_batch(shop, orders)


async def _handed_over(shop: Shop, gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    gates.fail(gates_of(shop, orders), "check_out_orders", error=lambda: DatabaseRefusedStatement("no right: injected"))
    return await start_batch(shop, orders)


async def _called_off(shop: Shop, gates: Gates) -> BulkHandle:
    """One order is reserved, and lost, when the batch is cancelled."""
    orders = mixed(shop)
    key = gates_of(shop, orders)
    await between_steps(shop, key.order_id, orders[:1])
    gates.fail(key, "check_out_orders")
    handle = await start_batch(shop, orders)
    await until_tried(gates, key, "check_out_orders", times=2)
    await handle.cancel(reason="the supplier is gone")
    return handle


async def _called_off_at_work(shop: Shop, gates: Gates) -> BulkHandle:
    """One order is reserved, and lost; the attempt during which the batch is cancelled succeeds, and leaves it."""
    orders = mixed(shop)
    key = gates_of(shop, orders)
    await between_steps(shop, key.order_id, orders[:1])
    gate = gates.hold(key, "check_out_orders", "before")
    handle = await start_batch(shop, orders)
    await until_tried(gates, key, "check_out_orders", times=2)
    await handle.cancel(reason="the supplier is gone")

    async def is_heard() -> bool:
        return "EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED" in await events_of(handle)

    await until(is_heard)
    gate.open()
    return handle


async def _one_cancelled(shop: Shop, _gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    batch = Batch([pack(order) for order in orders])
    return await start_with_a_cancel(shop, batch, CancelOrder(orders[0].order_id, "found it cheaper", "anna@desk"))


async def start_with_a_cancel(shop: Shop, batch: Batch, cancel: CancelOrder) -> BulkHandle:
    """Start a batch that hears of a cancel before it begins."""
    workflow_id = policies.bulk_workflow_id(digest(map(unpack, batch.orders)))
    start = WithStartWorkflowOperation(
        BulkCheckoutWorkflow.run,
        batch,
        id=workflow_id,
        task_queue=shop.task_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
    )
    await shop.client.execute_update_with_start_workflow(
        BulkCheckoutWorkflow.cancel_order, cancel, start_workflow_operation=start
    )
    return shop.client.get_workflow_handle_for(BulkCheckoutWorkflow.run, workflow_id)


BULK_SCENES: dict[str, BulkScene] = {
    "bulk-together-after-a-failed-attempt": _after_a_failed_attempt,
    "bulk-together-with-one-of-a-saga": _with_one_of_a_saga,
    "bulk-together-handed-over": _handed_over,
    "bulk-together-called-off": _called_off,
    "bulk-together-called-off-at-work": _called_off_at_work,
    "bulk-together-one-cancelled": _one_cancelled,
}
"""The other recordings of batches are of an earlier build, which went step by step."""
