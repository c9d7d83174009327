"""A second run of an order: after a reset, a lost history, a repair that comes too late, or under a taken id."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import TerminatedError

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from client.checkouts import Checkouts
from domain import policies
from domain.errors import OrderIdConflict
from domain.model import CheckoutInput, CheckoutStatus, Ending, OrderLine, UndoInput
from domain.policies import checkout_workflow_id
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.gates import Gates
from tests.workflow.sagas import (
    MEND_UNDO,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    reset_to,
    retry,
    until,
    violations,
)
from tests.workflow.test_stuck import stuck_with_a_label
from workflows.checkout import CheckoutWorkflow


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))
    monkeypatch.setattr(policies, "SHIP", hasty(policies.SHIP, attempts=3))


@pytest.mark.parametrize("customer", ["alice", "carol"])
async def test_a_repair_of_an_order_that_completed_meanwhile_leaves_it_completed(shop: Shop, customer: str) -> None:
    order = shop.order(customer)

    async with shop.working():
        await (await shop.start(order)).result()
        before = await goods_and_money(shop.database)
        ended = await how_it_ended(await shop.run_again(replace(order, repair=True)))

    assert ended == "completed"
    assert await shop.order_status(order) == "completed"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("done", ["reserve", "reserve and pay"])
async def test_a_second_run_that_is_cancelled_before_its_first_step_undoes_what_the_first_run_left(
    shop: Shop, done: str
) -> None:
    order = shop.order("alice")
    before = await goods_and_money(shop.database)
    await Inventory(shop.engine).reserve_inventory(order)
    if done != "reserve":
        await Payments(shop.engine).charge_payment(order)
    handle = await shop.run_again(order)
    await handle.cancel()

    async with shop.working():
        ended = await how_it_ended(handle)

    assert ended == "CANCELED"
    assert await shop.order_status(order) == "cancelled"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_second_run_that_is_cancelled_while_it_reserves_undoes_the_first_runs_payment(shop: Shop) -> None:
    order = shop.order("alice")
    before = await goods_and_money(shop.database)
    await Inventory(shop.engine).reserve_inventory(order)
    await Payments(shop.engine).charge_payment(order)
    gates = Gates()
    gate = gates.hold(order, "reserve_inventory", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.run_again(order)
        await gate.reached()
        await handle.execute_update(CheckoutWorkflow.cancel, "found it cheaper")
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderCancelled"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("at", ["reserve_inventory", "charge_payment"])
async def test_a_second_run_that_is_cancelled_before_it_knows_of_the_first_runs_parcel_undoes_that_first(
    shop: Shop, at: str
) -> None:
    order, gates = shop.order("carol"), Gates()
    before = await goods_and_money(shop.database)
    await Inventory(shop.engine).reserve_inventory(order)
    await Payments(shop.engine).charge_payment(order)
    await Shipping(shop.engine).ship_order(order)
    gate = gates.hold(order, at, "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.run_again(order)
        await gate.reached()
        await handle.execute_update(CheckoutWorkflow.cancel, "found it cheaper")
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderCancelled"
    assert await goods_and_money(shop.database) == before
    assert await shop.database.value("SELECT count(*) FROM incidents") == 0
    assert await violations(shop) == []


async def test_an_intruder_that_is_cancelled_before_its_first_step_ends_cancelled_and_touches_nothing(
    shop: Shop,
) -> None:
    order = shop.order("alice")
    async with shop.working():
        await (await shop.start(order)).result()
    before = await goods_and_money(shop.database)
    handle = await shop.run_again(replace(order, lines=(OrderLine("poster", 3),)))
    await handle.cancel()

    async with shop.working():
        ended = await how_it_ended(handle)

    assert ended == "CANCELED"
    attributes = (await handle.describe()).typed_search_attributes
    assert attributes.get(policies.ORDER_STATUS) == "cancelled"
    assert await shop.order_status(order) == "completed"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_step_that_stands_although_it_was_undone_is_undone_again(shop: Shop) -> None:
    gates, order = Gates(), shop.order("nemo")
    before = await goods_and_money(shop.database)
    gate = gates.hold(order, "close_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        # As after a restore of the database to a minute ago: the release is lost, and Temporal knows of it.
        await shop.database.run(
            "UPDATE step_fence SET phase = 'done' WHERE step = 'reserve'; UPDATE reservations SET state = 'held';"
            "UPDATE inventory SET reserved = reserved + 1 WHERE sku = 'tea-mug'"
        )
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert gates.attempts_of(order, "release_inventory") == 2
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def until_stuck_again(shop: Shop, order: CheckoutInput) -> None:
    async def is_stuck() -> bool:
        return (await shop.newest_run(order).query(CheckoutWorkflow.status)).status == "stuck"

    await until(is_stuck)


async def _until_it_waits(handle: WorkflowHandle[Any, Any]) -> None:
    """Wait until a run has begun to wait for its next round, which shows in its history alone."""

    async def waits() -> bool:
        events = [event.event_type async for event in handle.fetch_history_events()]
        return EventType.EVENT_TYPE_TIMER_STARTED in events

    await until(waits)


async def _reset(shop: Shop, order: CheckoutInput) -> None:
    """Reset the order's run to its first task."""
    handle = shop.newest_run(order)
    await reset_to(shop, handle.id, (await handle.describe()).run_id, 4)


async def _terminate_and_run_again(shop: Shop, order: CheckoutInput) -> None:
    await shop.newest_run(order).terminate()
    await shop.run_again(order)


@pytest.mark.parametrize("again", [_reset, _terminate_and_run_again])
@pytest.mark.parametrize("meanwhile", ["mended", "still broken", "collected"])
async def test_a_second_run_of_a_stuck_order_whose_steps_all_stand_does_not_take_it_for_completed(
    shop: Shop, again: Callable[[Shop, CheckoutInput], Awaitable[None]], meanwhile: str
) -> None:
    before, gates = await goods_and_money(shop.database), Gates()
    async with shop.working(interceptors=(gates,)):
        order, _ = await stuck_with_a_label(shop, gates, ("ship",))
    if meanwhile == "mended":
        await shop.database.run(MEND_UNDO["ship"])
    if meanwhile == "collected":
        await shop.database.run("UPDATE shipments SET state = 'handed_over', handed_over_at = now()")

    async with shop.working():
        await again(shop, order)
        if meanwhile == "still broken":
            await until_stuck_again(shop, order)
            await shop.database.run(MEND_UNDO["ship"])
            await retry(shop.newest_run(order))
        ended = await how_it_ended(shop.newest_run(order))

    assert ended == ("completed" if meanwhile == "collected" else "OrderRejected")
    assert await shop.order_status(order) == ("completed" if meanwhile == "collected" else "rejected")
    assert (await goods_and_money(shop.database) == before) == (meanwhile != "collected")
    assert await open_incidents(shop, order) == []
    assert await violations(shop) == []


@pytest.mark.parametrize(("customer", "ending"), [("nemo", "rejected"), ("alice", "cancelled")])
async def test_a_second_run_whose_undo_is_refused_ends_as_the_order_has_and_is_not_stuck(
    shop: Shop, customer: str, ending: str
) -> None:
    order, gates = shop.order(customer), Gates()
    first = await shop.start(order)
    if ending == "cancelled":
        await first.cancel()
    async with shop.working():
        await how_it_ended(first)
    before = await goods_and_money(shop.database)
    for activity in ("reserve_inventory", "release_inventory"):
        gates.fail(order, activity, times=1, error=lambda: DatabaseRefusedStatement("a rule", non_retryable=True))

    async with shop.working(interceptors=(gates,)):
        second = await shop.run_again(order)
        ended = await how_it_ended(second)

    assert gates.attempts_of(order, "park_order") == 1
    assert ended == {"rejected": "OrderRejected", "cancelled": "OrderCancelled"}[ending]
    assert await shop.order_status(order) == ending
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_second_run_of_what_has_ended_is_stuck_where_a_step_stands_after_all(shop: Shop) -> None:
    order, gates = shop.order("nemo"), Gates()
    before = await goods_and_money(shop.database)
    async with shop.working():
        await how_it_ended(await shop.start(order))
    # As after a restore of the database to an earlier instant, in which a release was lost.
    await shop.database.run(
        "UPDATE step_fence SET phase = 'done' WHERE step = 'reserve'; UPDATE reservations SET state = 'held';"
        "UPDATE inventory SET reserved = reserved + 1 WHERE sku = 'tea-mug'"
    )
    refusal = gates.fail(
        order, "release_inventory", error=lambda: DatabaseRefusedStatement("a rule", non_retryable=True)
    )

    async with shop.working(interceptors=(gates,)):
        second = await shop.run_again(order)
        await _until_it_waits(second)
        refusal.mend()
        await retry(second)
        ended = await how_it_ended(second)

    assert gates.attempts_of(order, "release_inventory") == 2
    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_retries_that_find_the_parcel_gone_are_all_answered_and_the_saga_ends(shop: Shop) -> None:
    gates = Gates()

    async with shop.working(interceptors=(gates,)):
        order, handle = await stuck_with_a_label(shop, gates, ("ship",))
        completing = gates.hold(order, "complete_order", "before")
        await shop.database.run(
            "UPDATE shipments SET state = 'handed_over', handed_over_at = now();" + MEND_UNDO["ship"]
        )
        first = await retry(handle)
        await completing.reached()
        late = asyncio.create_task(retry(handle))
        await asyncio.sleep(0)
        completing.open()
        await asyncio.gather(late, return_exceptions=True)
        ended = await how_it_ended(handle)

    assert [step.state for step in first.steps if step.state == "stuck"] == []
    assert ended == "completed"
    assert await violations(shop) == []


async def test_an_outcome_is_waited_for_across_a_terminated_run_and_its_repair(shop: Shop) -> None:
    order = shop.order("alice")
    gates = Gates()
    gate = gates.hold(order, "charge_payment", "before")
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        await gate.reached()
        handle = shop.client.get_workflow_handle(checkout_workflow_id(order.order_id))
        repairing = gates.hold(order, "release_inventory", "before")
        await handle.terminate("by hand")
        gate.open()
        await shop.sweep()
        await repairing.reached()
        waiting = asyncio.create_task(checkouts.outcome(order.order_id))
        await asyncio.sleep(0)
        repairing.open()
        outcome = await waiting

    assert outcome.status == "cancelled"


async def test_whoever_waits_for_a_run_that_was_replaced_waits_for_the_newer_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = WorkflowFailureError(cause=TerminatedError("reset"))
    ends: list[WorkflowFailureError | CheckoutStatus] = [first, CheckoutStatus("o-1", "cancelled")]

    class Replaced:
        async def result(self) -> CheckoutStatus:
            end = ends.pop(0)
            if isinstance(end, WorkflowFailureError):
                raise end
            return end

        async def query(self, *_: Any, **__: Any) -> CheckoutStatus:
            return CheckoutStatus("o-1", "running")

    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    monkeypatch.setattr(checkouts, "_handle", lambda _: Replaced())

    async def describe(_: str) -> Any:
        return SimpleNamespace(is_open=True, is_paused=False, status=None, attributes={})

    monkeypatch.setattr(checkouts, "_describe", describe)
    outcome = await checkouts.outcome("o-1")

    assert outcome.status == "cancelled"
    assert ends == []


async def test_the_status_of_a_cancelled_order_is_reported_without_a_worker(shop: Shop) -> None:
    order = shop.order("alice")
    handle = await shop.start(order)
    await handle.cancel()
    async with shop.working():
        await how_it_ended(handle)

    status = await Checkouts(shop.client, shop.task_queue, "http://ui").status(order.order_id)

    assert status.status == "cancelled"


async def test_a_sweep_of_more_pages_than_one_run_takes_reaches_the_last_order(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "SWEEP_BATCH", 1)
    await shop.database.run(
        "INSERT INTO orders (order_id, customer, created_at, updated_at)"
        " SELECT current_database() || '-' || n, 'alice', now(), now() + n * interval '1 ms'"
        " FROM generate_series(1, 45) n;"
        # The first forty cannot be started, and stay.
        "INSERT INTO order_lines (order_id, sku, quantity)"
        " SELECT o.order_id, 's-' || l, 1 FROM (SELECT order_id FROM orders ORDER BY updated_at LIMIT 43) o,"
        " generate_series(1, 101) l;"
        "INSERT INTO order_lines (order_id, sku, quantity)"
        " SELECT order_id, 'pen', 1 FROM orders ORDER BY updated_at DESC LIMIT 2"
    )

    async with shop.working():
        report = await shop.sweep()

    assert (report.started_count, report.malformed_count) == (2, 43)


async def test_an_order_whose_lines_changed_after_a_saga_took_it_is_reported_and_left_alone(shop: Shop) -> None:
    order = shop.order("alice")
    await Inventory(shop.engine).reserve_inventory(order)
    await shop.database.run(f"INSERT INTO order_lines (order_id, sku, quantity) VALUES ('{order.order_id}', 'pen', 1)")

    async with shop.working():
        report = await shop.sweep()

    assert (report.repaired, report.malformed_count) == ([], 1)
    assert "lines were changed" in report.malformed[0]
    assert await shop.order_status(order) == "reserved"


async def test_a_row_that_is_committed_while_reserve_waits_for_it_is_not_taken_over(shop: Shop) -> None:
    order = shop.order("alice")
    by_hand = await asyncpg.connect(shop.database.admin_url)
    transaction = by_hand.transaction()
    await transaction.start()
    await by_hand.execute("INSERT INTO orders (order_id, customer) VALUES ($1, 'carol')", order.order_id)
    await by_hand.execute("INSERT INTO order_lines (order_id, sku, quantity) VALUES ($1, 'lamp', 1)", order.order_id)
    reserving = asyncio.create_task(Inventory(shop.engine).reserve_inventory(order))
    async with asyncio.timeout(10):
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'"
        while not await shop.database.value(waiting, shop.database.name):
            await asyncio.sleep(0.02)
    await transaction.commit()
    await by_hand.close()

    with pytest.raises(OrderIdConflict):
        await reserving

    [row] = await shop.database.fetch("SELECT customer, status FROM orders WHERE order_id = $1", order.order_id)
    assert tuple(row) == ("carol", "pending")
    assert await shop.database.value("SELECT count(*) FROM step_fence") == 0
    assert (await shop.audit(at_rest=False)).violations == []


async def test_ship_in_flight_beside_a_repair_is_undone_or_stands_as_a_whole(shop: Shop) -> None:
    order = shop.order("carol")
    await Inventory(shop.engine).reserve_inventory(order)
    await Payments(shop.engine).charge_payment(order)

    async with shop.working():
        handle = await shop.run_again(replace(order, repair=True))
        await asyncio.gather(Shipping(shop.engine).ship_order(order), how_it_ended(handle), return_exceptions=True)

    assert await shop.order_status(order) in {"completed", "cancelled"}
    assert await violations(shop) == []


@pytest.mark.parametrize(("customer", "ending"), [("carol", "CANCELED"), ("alice", "completed")])
async def test_a_second_run_that_is_cancelled_reaches_behind_the_completion_as_long_as_there_is_a_label(
    shop: Shop, customer: str, ending: str
) -> None:
    order, before = shop.order(customer), await goods_and_money(shop.database)
    await Inventory(shop.engine).reserve_inventory(order)
    await Payments(shop.engine).charge_payment(order)
    await Shipping(shop.engine).ship_order(order)
    handle = await shop.run_again(order)
    await handle.cancel()

    async with shop.working():
        ended = await how_it_ended(handle)

    assert ended == ending
    assert (await goods_and_money(shop.database) == before) == (ending == "CANCELED")
    assert await violations(shop) == []


async def test_an_order_that_a_late_undo_left_unwinding_is_repaired_although_its_run_has_completed(shop: Shop) -> None:
    order, before = shop.order("carol"), await goods_and_money(shop.database)

    async with shop.working():
        await (await shop.start(order)).result()
        await Shipping(shop.engine).cancel_shipment(UndoInput(order, Ending.CANCELLED, "cancelled: too late"))
        report = await shop.sweep()
        ended = await how_it_ended(shop.client.get_workflow_handle(checkout_workflow_id(order.order_id)))

    assert (report.repaired, report.parked) == ([order.order_id], [])
    assert ended == "OrderCancelled"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
