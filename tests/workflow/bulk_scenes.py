"""The ways of a batch, one scene each, for record.py."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from temporalio.client import WorkflowHandle

from activities.inventory import Inventory
from domain import policies
from domain.bulk import Batch, BatchReport, CancelOrder, digest, pack
from domain.model import CheckoutInput
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.gates import Gates, Moment
from tests.workflow.sagas import BREAK_UNDO, until_tried
from workflows.bulk import BulkCheckoutWorkflow

BulkHandle = WorkflowHandle[BulkCheckoutWorkflow, BatchReport]
BulkScene = Callable[[Shop, Gates], Awaitable[WorkflowHandle[Any, Any]]]

_A_SHORT_ATTEMPT = timedelta(milliseconds=300)


def mixed(shop: Shop) -> list[CheckoutInput]:
    """Two orders that complete, and one that each step refuses."""
    return [
        shop.order("alice", ("tea-mug", 2)),
        shop.order("alice", ("no-such", 1)),
        shop.order("bob", ("tea-mug", 1)),
        shop.order("nemo", ("poster", 1)),
        shop.order("carol", ("poster", 1)),
    ]


async def start_batch(shop: Shop, orders: Sequence[CheckoutInput], *, together: bool = False) -> BulkHandle:
    batch = Batch([pack(order) for order in orders], is_together=together)
    return await shop.client.start_workflow(
        BulkCheckoutWorkflow.run, batch, id=policies.bulk_workflow_id(digest(orders)), task_queue=shop.task_queue
    )


def gates_of(shop: Shop, orders: Sequence[CheckoutInput]) -> CheckoutInput:
    """Give what gates know a batch by."""
    return shop.order(order_id=policies.bulk_workflow_id(digest(orders)))


async def _completed(shop: Shop, _gates: Gates) -> BulkHandle:
    return await start_batch(shop, [shop.order("alice"), shop.order("carol", ("poster", 2))])


async def _refused(shop: Shop, _gates: Gates) -> BulkHandle:
    return await start_batch(shop, mixed(shop))


async def _failed_once(shop: Shop, gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    gates.fail(gates_of(shop, orders), "ship_orders", times=1)
    return await start_batch(shop, orders)


def _called_off(name: str, moment: Moment) -> BulkScene:
    async def scene(shop: Shop, gates: Gates) -> BulkHandle:
        orders, usual = mixed(shop), policies.LOCAL_ATTEMPT
        key = gates_of(shop, orders)
        gate = gates.hold(key, name, moment)
        policies.LOCAL_ATTEMPT = _A_SHORT_ATTEMPT
        try:
            handle = await start_batch(shop, orders)
            await until_tried(gates, key, name, times=2)
            await handle.cancel(reason="the supplier is gone")
            gate.open()
            await handle.result()
        finally:
            policies.LOCAL_ATTEMPT = usual
        return handle

    return scene


async def _one_cancelled(shop: Shop, gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    key = gates_of(shop, orders)
    gates.fail(key, "charge_orders", times=1)
    gate = gates.hold(key, "charge_orders", "after")
    handle = await start_batch(shop, orders)
    await gate.reached()
    await handle.execute_update(
        BulkCheckoutWorkflow.cancel_order, CancelOrder(orders[0].order_id, "found it cheaper", "anna@desk")
    )
    gate.open()
    return handle


async def _handed_over(shop: Shop, gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    gates.fail(gates_of(shop, orders), "ship_orders", error=lambda: DatabaseRefusedStatement("no right: injected"))
    return await start_batch(shop, orders)


async def _handed_over_when_undone(shop: Shop, _gates: Gates) -> BulkHandle:
    await shop.database.run(BREAK_UNDO["pay"])
    return await start_batch(shop, [shop.order("nemo"), shop.order("alice")])


async def _forgotten(shop: Shop, gates: Gates) -> BulkHandle:
    orders = [shop.order()]
    pay = gates.hold(gates_of(shop, orders), "charge_orders", "before")
    handle = await start_batch(shop, orders)
    await pay.reached()
    await forget_orders(shop)
    pay.open()
    return handle


async def forget_orders(shop: Shop) -> None:
    """Put the database back to where it knew of no order."""
    await shop.database.run(
        "UPDATE inventory SET reserved = 0;"
        "TRUNCATE orders, order_lines, reservations, order_events, step_fence, shipments, incidents"
    )


async def _together(shop: Shop, gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    gates.fail(gates_of(shop, orders), "check_out_orders", times=1)
    return await start_batch(shop, orders, together=True)


async def _together_with_one_of_a_saga(shop: Shop, _gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    await Inventory(shop.engine).reserve_inventory(orders[0])
    return await start_batch(shop, orders, together=True)


async def _together_handed_over(shop: Shop, gates: Gates) -> BulkHandle:
    orders = mixed(shop)
    gates.fail(gates_of(shop, orders), "check_out_orders", error=lambda: DatabaseRefusedStatement("no right: injected"))
    return await start_batch(shop, orders, together=True)


BULK_SCENES: dict[str, BulkScene] = {
    "bulk-completed": _completed,
    "bulk-refused-at-each-step": _refused,
    "bulk-after-ship-failed-once": _failed_once,
    "bulk-called-off-at-reserve": _called_off("reserve_orders", "before"),
    "bulk-called-off-at-pay": _called_off("charge_orders", "after"),
    "bulk-one-cancelled-at-pay": _one_cancelled,
    "bulk-handed-over-at-ship": _handed_over,
    "bulk-handed-over-what-failed-locally": _handed_over,  # the one above is of batches that took it for a cancel
    "bulk-handed-over-when-undone": _handed_over_when_undone,
    "bulk-forgotten": _forgotten,
    "bulk-together-after-a-failed-attempt": _together,
    "bulk-together-with-one-of-a-saga": _together_with_one_of_a_saga,
    "bulk-together-handed-over": _together_handed_over,
}
