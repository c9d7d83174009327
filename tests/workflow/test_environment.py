"""What Postgres refuses to the service as a whole rejects no customer: the step waits until it is put right."""

import pytest

from domain import policies
from tests.conftest import Shop
from tests.workflow.bulk_scenes import start_batch
from tests.workflow.gates import Gates, lost_report
from tests.workflow.sagas import (
    BREAK_STEPS,
    DOES,
    MEND_STEPS,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    until_it_waits,
    until_tried,
    violations,
)
from tests.workflow.test_shown import details_of
from workflows.checkout import CheckoutWorkflow

BREAK = {
    "a missing right": (BREAK_STEPS, MEND_STEPS),
    "a missing column": (
        "ALTER TABLE orders RENAME fingerprint TO was_fingerprint",
        "ALTER TABLE orders RENAME was_fingerprint TO fingerprint",
    ),
    "a column that became mandatory": (
        "ALTER TABLE orders ADD later text NOT NULL",
        "ALTER TABLE orders ALTER later DROP NOT NULL",
    ),
    "a missing table": ("ALTER TABLE step_fence RENAME TO was_fence", "ALTER TABLE was_fence RENAME TO step_fence"),
}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))
    for name in ("RESERVE", "PAY", "SHIP", "BATCH"):
        monkeypatch.setattr(policies, name, hasty(getattr(policies, name), give_up_ms=1_500))
    monkeypatch.setattr(policies, "ENVIRONMENT", hasty(policies.ENVIRONMENT))


@pytest.mark.parametrize(
    ("what", "at"),
    [
        *(("a missing right", at) for at in DOES),
        *((what, "reserve_inventory") for what in BREAK if what != "a missing right"),
    ],
)
async def test_an_order_waits_in_whatever_step_and_completes_once_it_is_put_right(
    shop: Shop, what: str, at: str
) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, at, "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await shop.database.run(BREAK[what][0])
        gate.open()
        status = await until_it_waits(shop, order.order_id)
        attributes = (await handle.describe()).typed_search_attributes
        await shop.database.run(BREAK[what][1])
        ended = await how_it_ended(handle)
        at_the_end = (await handle.describe()).typed_search_attributes

    assert status.status == "running"
    says = ("Postgres refuses the service: ", f"the database lacks something, which {at} uses: ")
    assert (status.reason or "").startswith(
        tuple(f"waiting until it is fixed: {what_is_wrong}" for what_is_wrong in says)
    )
    assert attributes.get(policies.FAILED_STEP) == status.steps[-1].step
    assert ended == "completed"
    assert at_the_end.get(policies.FAILED_STEP) is None
    assert await open_incidents(shop, order) == []
    assert await violations(shop) == []


async def test_an_order_that_waits_can_be_cancelled(shop: Shop) -> None:
    gates, order, before = Gates(), shop.order("alice"), await goods_and_money(shop.database)
    gate = gates.hold(order, "ship_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await shop.database.run(BREAK["a missing right"][0])
        gate.open()
        await until_it_waits(shop, order.order_id)
        await handle.execute_update(CheckoutWorkflow.cancel, "found it cheaper")
        await until_tried(gates, order, "cancel_shipment", times=2)
        await shop.database.run(BREAK["a missing right"][1])
        ended = await how_it_ended(handle)

    assert ended == "OrderCancelled"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_parcel_that_left_when_it_was_put_right_completes_the_order_without_a_word_of_the_wait(
    shop: Shop,
) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "ship_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await shop.database.run(BREAK["a missing right"][0])
        gate.open()
        await until_it_waits(shop, order.order_id)
        fault = gates.fail(order, "ship_order", "after", error=lost_report)
        await shop.database.run(BREAK["a missing right"][1])
        await fault.struck()
        await handle.execute_update(CheckoutWorkflow.cancel, "found it cheaper")
        status = await handle.result()
        details = await details_of(handle)

    assert (status.status, status.reason) == ("completed", None)
    assert details[0] == "**completed**"
    assert await open_incidents(shop, order) == []
    assert await violations(shop) == []


async def test_an_order_that_waits_is_still_refused_for_what_is_its_own(shop: Shop) -> None:
    gates, order = Gates(), shop.order("bob")  # who cannot pay

    async with shop.working(interceptors=(gates,)):
        await shop.database.run(BREAK["a missing right"][0])
        handle = await shop.start(order)
        await until_it_waits(shop, order.order_id)
        await shop.database.run(BREAK["a missing right"][1])
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await shop.database.value("SELECT reason LIKE 'InsufficientFunds%' FROM orders")


async def test_a_batch_leaves_its_orders_to_sagas_that_wait(shop: Shop) -> None:
    orders = [shop.order("alice"), shop.order("carol")]

    async with shop.working():
        await shop.database.run(BREAK["a missing right"][0])
        report = await (await start_batch(shop, orders)).result()
        for order in orders:
            await until_it_waits(shop, order.order_id)
        await shop.database.run(BREAK["a missing right"][1])
        ends = [await how_it_ended(shop.newest_run(order)) for order in orders]

    assert {outcome.status for outcome in report.unpacked()} == {"handed over"}
    assert ends == ["completed", "completed"]
