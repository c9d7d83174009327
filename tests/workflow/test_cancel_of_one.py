"""A cancel of one order of a batch, asked of the batch itself: what is refused, with which words, and what is kept."""

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from domain import policies
from domain.bulk import CancelOrder
from tests.conftest import Shop
from tests.workflow.bulk_scenes import BulkHandle, gates_of, start_batch
from tests.workflow.gates import Gates
from tests.workflow.sagas import hasty
from workflows.bulk import BulkCheckoutWorkflow


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=2_000))


async def refusal_of(batch: BulkHandle, order_id: str, reason: str = "found it cheaper") -> str:
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await batch.execute_update(BulkCheckoutWorkflow.cancel_order, CancelOrder(order_id, reason))
    assert isinstance(refused.value.cause, ApplicationError)
    return refused.value.cause.message


async def test_what_is_not_to_be_cancelled_any_more_is_refused_and_the_first_reason_is_kept(shop: Shop) -> None:
    sold, unknown, wanted = shop.order("carol"), shop.order("alice", ("no-such", 1)), shop.order("alice")
    await Inventory(shop.engine).reserve_inventory(sold)
    await Payments(shop.engine).charge_payment(sold)
    await Shipping(shop.engine).ship_order(sold)
    orders, gates = [sold, unknown, wanted], Gates()
    key = gates_of(shop, orders)
    gates.fail(key, "charge_orders", times=1)  # its second attempt is an activity: an update is taken meanwhile
    gate = gates.hold(key, "charge_orders", "before")

    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, orders)
        await gate.reached()
        output = {order.order_id: await refusal_of(batch, order.order_id) for order in (sold, unknown)}
        stranger = await refusal_of(batch, "somebody-elses")
        without_a_reason = await refusal_of(batch, wanted.order_id, " ")
        for reason in ("found it cheaper", "another reason"):
            await batch.execute_update(BulkCheckoutWorkflow.cancel_order, CancelOrder(wanted.order_id, reason))
        gate.open()
        outcomes = (await batch.result()).unpacked()

    assert output[sold.order_id] == f"order {sold.order_id} is completed already"
    assert output[unknown.order_id].startswith(f"order {unknown.order_id} is being undone already: UnknownSku: ")
    assert stranger == "order somebody-elses is not in this batch"
    assert without_a_reason == "a reason is needed: it is kept in the order's log"
    assert [outcome.status for outcome in outcomes] == ["completed", "rejected", "cancelled"]
    assert outcomes[2].reason == "cancelled: found it cheaper"
