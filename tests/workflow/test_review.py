"""An order that needs a review is not undone, by whatever run, until an operator has asked for it."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowUpdateFailedError, WorkflowUpdateStage
from temporalio.exceptions import ApplicationError

from domain import policies
from domain.model import CheckoutInput, CheckoutStatus, Resolution, RetryRequest
from tests.conftest import Shop
from tests.workflow.bulk_scenes import start_batch
from tests.workflow.gates import Gates
from tests.workflow.sagas import (
    BREAK_UNDO,
    MEND_UNDO,
    failure_of,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    reset_to,
    retry,
    until,
    until_status,
    until_tried,
    violations,
)
from tests.workflow.test_restored_database import Backup, Handle
from workflows.checkout import CheckoutWorkflow


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=500))


async def needs_review(shop: Shop, gates: Gates) -> CheckoutInput:
    """Have an order parked because the database has forgotten its payment."""
    order = shop.order("carol")
    await forget_the_payment(shop, gates, order)
    await until_status(shop, order, "stuck")
    return order


async def forget_the_payment(shop: Shop, gates: Gates, order: CheckoutInput) -> Handle:
    """Start an order, and restore the database to what it was before the payment."""
    backup = Backup(shop.database)
    pay, ship = gates.hold(order, "charge_payment", "before"), gates.hold(order, "ship_order", "before")
    handle = await shop.start(order)
    await pay.reached()
    await backup.take()
    pay.open()
    await ship.reached()
    await backup.restore()
    ship.open()
    return handle


async def until_noted(shop: Shop) -> None:
    """Wait until the log has an operator's retry."""

    async def is_noted() -> bool:
        return bool(await shop.database.value("SELECT count(*) FROM order_events WHERE event = 'retry_requested'"))

    await until(is_noted)


async def is_under_review(shop: Shop) -> bool:
    return bool(await shop.database.value("SELECT count(*) FROM incidents WHERE closed_at IS NULL AND needs_review"))


async def _reset(shop: Shop, order: CheckoutInput) -> None:
    handle = shop.newest_run(order)
    await reset_to(shop, handle.id, (await handle.describe()).run_id, 4)


async def _terminate_and_start(shop: Shop, order: CheckoutInput) -> None:
    await shop.newest_run(order).terminate()
    await shop.run_again(order)


async def _terminate_and_load(shop: Shop, order: CheckoutInput) -> None:
    await shop.newest_run(order).terminate()
    await (await start_batch(shop, [order])).result()


async def _terminate_and_sweep(shop: Shop, order: CheckoutInput) -> None:
    await shop.newest_run(order).terminate()
    await shop.sweep()


async def _terminate_and_cancel_a_new_run(shop: Shop, order: CheckoutInput) -> None:
    await shop.newest_run(order).terminate()
    await (await shop.run_again(order)).cancel()


@pytest.mark.parametrize(
    "again",
    [_reset, _terminate_and_start, _terminate_and_load, _terminate_and_sweep, _terminate_and_cancel_a_new_run],
)
async def test_a_second_run_of_an_order_that_needs_review_undoes_nothing_until_it_is_retried(
    shop: Shop, again: Callable[[Shop, CheckoutInput], Awaitable[None]]
) -> None:
    before, gates = await goods_and_money(shop.database), Gates()

    async with shop.working(interceptors=(gates,)):
        order = await needs_review(shop, gates)
        parked = gates.attempts_of(order, "park_order")
        await again(shop, order)
        await until_tried(gates, order, "park_order", times=parked + 1)

        async def is_stuck() -> bool:
            return (await shop.newest_run(order).query(CheckoutWorkflow.status)).status == "stuck"

        await until(is_stuck)
        assert await shop.order_status(order) == "stuck"
        assert await is_under_review(shop)
        assert await shop.database.value("SELECT count(*) FROM step_fence WHERE phase <> 'done'") == 0
        assert len(await open_incidents(shop, order)) == 1
        handle = shop.newest_run(order)
        await handle.execute_update("retry_compensation", RetryRequest("anna@desk", "the parcel never left"))
        ended = await how_it_ended(handle)

    assert ended in {"OrderRejected", "OrderCancelled", "CANCELED"}
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_retry_that_comes_while_the_order_is_being_parked_is_not_lost(shop: Shop) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("carol")
    parking = gates.hold(order, "park_order", "before")

    async with shop.working(interceptors=(gates,)):
        await forget_the_payment(shop, gates, order)
        await parking.reached()
        handle = shop.newest_run(order)
        retrying = await handle.start_update(
            "retry_compensation",
            RetryRequest("anna@desk", "the parcel never left"),
            wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            result_type=CheckoutStatus,
        )
        if "note_retry" in {
            begun.activity_type.name for begun in (await handle.describe()).raw_description.pending_activities
        }:
            await until_tried(gates, order, "note_retry", times=1)  # what the parking writes then comes last
        parking.open()
        await retrying.result()
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_retry_that_is_being_noted_while_a_round_of_its_own_accord_parks_the_order_is_not_lost(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", timedelta(seconds=2))
    before, gates = await goods_and_money(shop.database), Gates()

    async with shop.working(interceptors=(gates,)):
        order = await needs_review(shop, gates)
        handle = shop.newest_run(order)
        noting = gates.hold(order, "note_retry", "before")
        retrying = asyncio.create_task(retry(handle))
        await noting.reached()
        parking = gates.hold(order, "park_order", "before")

        async def round_began() -> bool:
            events = [event async for event in handle.fetch_history_events()]
            return any(event.event_type == EventType.EVENT_TYPE_TIMER_FIRED for event in events)

        await until(round_began)
        noting.open()
        await until_noted(shop)
        await parking.reached()
        parking.open()
        await retrying
        ended = await how_it_ended(handle)

    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_closing_waits_for_the_review_too_where_the_database_has_forgotten_every_step(shop: Shop) -> None:
    gates = Gates()
    async with shop.working(interceptors=(gates,)):
        order = await needs_review(shop, gates)
        await shop.newest_run(order).terminate()
    await shop.database.run("DELETE FROM step_fence; DELETE FROM reservations; UPDATE inventory SET reserved = 0")
    await (await shop.run_again(order)).cancel()  # before its first task: it puts nothing on the stack
    again = Gates()

    async with shop.working(interceptors=(again,)):
        await until_tried(again, order, "close_order", times=1)
        await until_tried(again, order, "park_order", times=1)

    assert await shop.order_status(order) == "stuck"
    assert await is_under_review(shop)


async def test_a_retry_that_fails_again_has_lifted_the_review_all_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", timedelta(milliseconds=200))
    monkeypatch.setattr(policies, "STUCK_RETRY_LONGEST", timedelta(milliseconds=200))
    gates = Gates()

    async with shop.working(interceptors=(gates,)):
        order = await needs_review(shop, gates)
        await shop.database.run(BREAK_UNDO["reserve"])
        status = await shop.newest_run(order).execute_update("retry_compensation", result_type=CheckoutStatus)
        assert not await is_under_review(shop)
        assert [step.state for step in status.steps if step.step == "reserve"] == ["stuck"]
        await shop.database.run(MEND_UNDO["reserve"])
        failure = await failure_of(shop.newest_run(order))  # by itself: nothing waits for an operator any more

    assert failure.type == "OrderRejected"


async def test_a_sweep_of_an_order_whose_run_was_ended_after_a_retry_asks_for_no_second_review(shop: Shop) -> None:
    before, gates = await goods_and_money(shop.database), Gates()

    async with shop.working(interceptors=(gates,)):
        order = await needs_review(shop, gates)
        undo = gates.hold(order, "cancel_shipment", "before")
        await shop.newest_run(order).start_update(
            "retry_compensation", wait_for_stage=WorkflowUpdateStage.ACCEPTED, result_type=CheckoutStatus
        )
        await undo.reached()
        await shop.newest_run(order).terminate()
        report = await shop.sweep()
        undo.open()
        ended = await how_it_ended(shop.newest_run(order))

    assert (report.repaired, report.parked) == ([order.order_id], [])
    assert ended == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_who_asked_for_a_retry_and_why_is_in_the_orders_log(shop: Shop) -> None:
    gates = Gates()

    async with shop.working(interceptors=(gates,)):
        order = await needs_review(shop, gates)
        await shop.newest_run(order).execute_update(
            "retry_compensation", RetryRequest("anna@desk", "the parcel never left")
        )
        await how_it_ended(shop.newest_run(order))

    reason = await shop.database.value("SELECT reason FROM order_events WHERE event = 'retry_requested'")
    assert reason.startswith("anna@desk: the parcel never left (request ")


# Resolving beside a round -------------------------------------------------------------------------------


async def test_a_resolution_that_comes_after_a_round_has_undone_the_step_is_refused_and_not_logged(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", timedelta(milliseconds=300))
    gates, order, before = Gates(), shop.order("nemo"), await goods_and_money(shop.database)
    await shop.database.run(BREAK_UNDO["pay"])
    resolving = gates.hold(order, "resolve_step", "before")
    closing = gates.hold(order, "close_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
        update = await handle.start_update(
            "resolve_compensation",
            Resolution("pay", "refunded at the bank"),
            wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            result_type=CheckoutStatus,
        )
        await resolving.reached()
        await shop.database.run(MEND_UNDO["pay"])
        await closing.reached()  # the round that came by itself has refunded
        resolving.open()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await update.result()
        closing.open()
        await how_it_ended(handle)

    assert isinstance(refused.value.cause, ApplicationError)
    assert "undone already" in refused.value.cause.message
    assert await shop.database.value("SELECT count(*) FROM order_events WHERE event = 'step_resolved'") == 0
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_round_that_comes_after_a_resolution_undoes_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", timedelta(milliseconds=300))
    gates, order = Gates(), shop.order("nemo")
    await shop.database.run(BREAK_UNDO["pay"])
    resolved = gates.hold(order, "resolve_step", "after")
    closing = gates.hold(order, "close_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
        update = await handle.start_update(
            "resolve_compensation",
            Resolution("pay", "refunded at the bank"),
            wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            result_type=CheckoutStatus,
        )
        await resolved.reached()
        await shop.database.run(MEND_UNDO["pay"])
        await closing.reached()
        closing.open()
        resolved.open()
        status = await update.result()
        await how_it_ended(handle)

    assert [step.state for step in status.steps if step.step == "pay"] == ["resolved"]
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'refund'") == 0
    assert await shop.database.value("SELECT count(*) FROM order_events WHERE event = 'step_resolved'") == 1
