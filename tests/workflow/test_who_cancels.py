"""Who cancels an order is kept with the reason, whichever release the starter and the worker are of."""

import pytest
from temporalio import workflow
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from client.checkouts import Checkouts
from domain.model import MAX_NAME_LENGTH, MAX_REASON_LENGTH, CheckoutInput, CheckoutStatus, reason_problem
from sagafence import InvalidInput
from tests.conftest import Shop
from tests.workflow.gates import Gates
from tests.workflow.sagas import how_it_ended, reason_of


@workflow.defn(name="Checkout")
class EarlierCheckout:
    """A checkout whose cancel takes a reason and nothing else."""

    def __init__(self) -> None:
        self._reason = ""

    @workflow.run
    async def run(self, order: CheckoutInput) -> CheckoutStatus:
        await workflow.wait_condition(lambda: bool(self._reason))
        return CheckoutStatus(order.order_id, "cancelled", self._reason)

    @workflow.update
    def cancel(self, reason: str) -> None:
        self._reason = reason

    @cancel.validator
    def _validate_cancel(self, reason: str) -> None:
        if problem := reason_problem(reason):
            raise InvalidInput(problem)


async def test_who_cancels_is_kept_with_the_reason(shop: Shop) -> None:
    gates, order, checkouts = Gates(), shop.order("carol"), Checkouts(shop.client, shop.task_queue, "http://ui")
    gate = gates.hold(order, "charge_payment", "before")
    by, reason = "anna\x1b[1m" * 100, "x" * MAX_REASON_LENGTH

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await checkouts.cancel(order.order_id, reason, by)
        await checkouts.cancel(order.order_id, reason, "bob@desk")  # the same request: the first is on record
        gate.open()
        assert await how_it_ended(handle) == "OrderCancelled"

    kept = await reason_of(shop, order)
    assert kept is not None
    assert kept.startswith("cancelled: anna [1manna")
    assert kept.endswith(f"...: {reason}")
    assert kept.isprintable()
    assert len(kept) == len("cancelled: ") + MAX_NAME_LENGTH + len(": ") + MAX_REASON_LENGTH
    logged = await shop.database.value(
        "SELECT reason FROM order_events WHERE order_id = $1 AND status = 'cancelled'", order.order_id
    )
    assert logged == kept


async def test_a_starter_of_an_earlier_release_sends_the_reason_alone(shop: Shop) -> None:
    gates, order = Gates(), shop.order("carol")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.execute_update("cancel", "found it cheaper", result_type=None)
        gate.open()
        await how_it_ended(handle)

    assert await reason_of(shop, order) == "cancelled: found it cheaper"


@pytest.mark.parametrize(
    ("reason", "output"),
    [("found it cheaper", "anna@desk: found it cheaper"), ("x" * MAX_REASON_LENGTH, "x" * MAX_REASON_LENGTH)],
    ids=["with who asks", "without, where both are too long"],
)
async def test_a_worker_of_an_earlier_release_is_reported_who_cancels_with_the_reason(
    shop: Shop, reason: str, output: str
) -> None:
    order, checkouts = shop.order(), Checkouts(shop.client, shop.task_queue, "http://ui")
    earlier = Worker(
        shop.client,
        task_queue=shop.task_queue,
        workflows=[EarlierCheckout],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    async with earlier:
        await checkouts.start(order)
        await checkouts.cancel(order.order_id, reason, "anna@desk")
        ended = await checkouts.outcome(order.order_id)

    assert ended.reason == output
