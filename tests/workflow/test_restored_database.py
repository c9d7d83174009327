"""The database is restored to an earlier instant behind a live Temporal: detected, parked, not guessed."""

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import ScheduleActionExecutionStartWorkflow, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from activities.sweep import Sweep
from adapters import schedules
from adapters.schedules import Every
from adapters.schema import tables
from domain import policies
from domain.audit import AuditInput, AuditReport
from domain.model import CheckoutInput, CheckoutStatus
from tests.conftest import Database, Shop
from tests.later_sdk import switch_on
from tests.workflow.bulk_scenes import between_steps, start_batch
from tests.workflow.gates import Gates
from tests.workflow.sagas import (
    failure_of,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    reason_of,
    resolve,
    retry,
    until,
    until_status,
    until_tried,
    violations,
)
from workflows.checkout import CheckoutWorkflow
from workflows.maintenance import AuditWorkflow

Handle = WorkflowHandle[CheckoutWorkflow, CheckoutStatus]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))


class Backup:
    """Every row as it was at one instant, and the way back to it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self) -> None:
        await self._database.run(
            "CREATE SCHEMA backup;" + "".join(f"CREATE TABLE backup.{table} AS TABLE {table};" for table in tables())
        )

    async def restore(self) -> None:
        """Put every row back, past triggers and constraints, as a restored data folder would."""
        await self._database.run(
            "SET session_replication_role = replica;"
            + "".join(f"DELETE FROM {table};" for table in tables())
            + "".join(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE backup.{table};" for table in tables())
        )


@pytest.fixture
async def backup(database: Database) -> Backup:
    return Backup(database)


# A saga that was running --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backed_up_at", "goes_on_at", "missing_step"),
    [
        (None, "charge_payment", "reserve"),
        ("charge_payment", "ship_order", "pay"),
        (None, "ship_order", "pay"),
    ],
)
async def test_a_saga_whose_steps_are_forgotten_is_parked_and_undoes_nothing_by_itself(
    shop: Shop, backup: Backup, backed_up_at: str | None, goes_on_at: str, missing_step: str
) -> None:
    gates, order = Gates(), shop.order("carol")
    if backed_up_at is None:
        await backup.take()
    places = [gates.hold(order, name, "before") for name in (backed_up_at, goes_on_at) if name]

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await places[0].reached()
        if backed_up_at is not None:
            await backup.take()
            places[0].open()
            await places[1].reached()
        await backup.restore()
        places[-1].open()
        await until_status(shop, order, "stuck")
        status = await handle.query(CheckoutWorkflow.status)

    assert f"step {missing_step} of order {order.order_id} was done" in (await reason_of(shop, order) or "")
    assert {step.state for step in status.steps} == {"stuck"}
    assert [sorted(steps) for steps in await open_incidents(shop, order)] == [
        sorted(step.step for step in status.steps)
    ]
    assert gates.attempts_of(order, "release_inventory") == 0
    assert await violations(shop) == []


async def test_a_parked_saga_undoes_what_there_is_once_somebody_has_looked(shop: Shop, backup: Backup) -> None:
    gates, order, before = Gates(), shop.order("carol"), await goods_and_money(shop.database)
    pay, ship = gates.hold(order, "charge_payment", "before"), gates.hold(order, "ship_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await pay.reached()
        await backup.take()
        pay.open()
        await ship.reached()
        await backup.restore()
        ship.open()
        await until_status(shop, order, "stuck")
        await retry(handle)
        failure = await failure_of(handle)

    assert failure.type == "OrderRejected"
    assert await goods_and_money(shop.database) == before
    assert await open_incidents(shop, order) == []
    assert await violations(shop) == []


async def test_a_parked_saga_does_not_try_by_itself_however_long_it_waits(
    shop: Shop, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", policies.SWEEP_EVERY / 600)
    monkeypatch.setattr(policies, "STUCK_RETRY_LONGEST", policies.SWEEP_EVERY / 600)
    gates, order = Gates(), shop.order("alice")
    await backup.take()
    pay = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        await shop.start(order)
        await pay.reached()
        await backup.restore()
        pay.open()
        await until_tried(gates, order, "park_order", times=3)

    assert gates.attempts_of(order, "release_inventory") == 0
    assert len(await open_incidents(shop, order)) == 1


# A saga that had completed ------------------------------------------------------------------------------


async def completed_and_forgotten(shop: Shop, backup: Backup, forgotten_before: str, customer: str = "alice") -> Any:
    """Complete an order, then restore the database to the instant before one of its steps."""
    gates, order = Gates(), shop.order(customer)
    place = gates.hold(order, forgotten_before, "before")
    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await place.reached()
        await backup.take()
        place.open()
        assert await how_it_ended(handle) == "completed"
    await backup.restore()
    return order


@pytest.mark.parametrize("forgotten_before", ["charge_payment", "ship_order"])
async def test_an_order_that_temporal_has_completed_is_parked_by_the_sweep_and_not_refunded(
    shop: Shop, backup: Backup, forgotten_before: str
) -> None:
    order = await completed_and_forgotten(shop, backup, forgotten_before)
    before = await goods_and_money(shop.database)

    async with shop.working():
        report = await shop.sweep()
        await until_status(shop, order, "stuck")
        again = await shop.sweep()

    assert (report.parked, report.repaired, report.started) == ([order.order_id], [], [])
    assert (again.parked, again.repaired, again.alive) == ([], [], 1)
    assert "Temporal has completed order" in (await reason_of(shop, order) or "")
    assert [sorted(steps) for steps in await open_incidents(shop, order)] == [["pay", "reserve", "ship"]]
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("are_paid", [False, True])
async def test_an_order_that_a_batch_has_completed_is_parked_and_one_that_it_refused_is_undone(
    shop: Shop, backup: Backup, are_paid: bool
) -> None:
    """A batch of an earlier build: one of today writes an order with its ending, and a restore has it or not."""
    sent, refused = orders = [shop.order("alice"), shop.order("nemo")]  # no carrier delivers to nemo
    before = await goods_and_money(shop.database)
    await backup.take()
    async with shop.working():
        batch = await start_batch(shop, orders)
        outcomes = (await batch.result()).unpacked()
        await backup.restore()
        await between_steps(shop, batch.id, orders, are_paid=are_paid)
        report = await shop.sweep()
        await until_status(shop, sent, "stuck")
        assert await how_it_ended(shop.newest_run(refused)) == "OrderCancelled"
        reason = await reason_of(shop, sent)
        incidents = await open_incidents(shop, sent)
        await retry(shop.newest_run(sent))
        await failure_of(shop.newest_run(sent))

    assert [outcome.status for outcome in outcomes] == ["completed", "rejected"]
    assert (report.parked, report.repaired) == ([sent.order_id], [refused.order_id])
    assert "Temporal has completed order" in (reason or "")
    assert len(incidents) == 1
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_an_order_by_hand_that_temporal_has_completed_is_not_sold_twice(shop: Shop, backup: Backup) -> None:
    order = shop.order("alice")
    await shop.database.run(
        f"INSERT INTO orders (order_id, customer) VALUES ('{order.order_id}', 'alice');"
        f"INSERT INTO order_lines (order_id, sku, quantity) VALUES ('{order.order_id}', 'tea-mug', 1)"
    )
    await backup.take()

    async with shop.working():
        await shop.sweep()
        assert await how_it_ended(shop.newest_run(order)) == "completed"
        await backup.restore()
        report = await shop.sweep()
        await until_status(shop, order, "stuck")

    assert (report.parked, report.started) == ([order.order_id], [])
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE order_id = $1", order.order_id) == 0


async def test_a_parked_order_whose_run_is_terminated_is_parked_again(shop: Shop, backup: Backup) -> None:
    order = await completed_and_forgotten(shop, backup, "ship_order")

    async with shop.working():
        await shop.sweep()
        await until_status(shop, order, "stuck")
        await shop.newest_run(order).terminate()
        report = await shop.sweep()
        status = await shop.newest_run(order).query(CheckoutWorkflow.status)

    assert (report.parked, report.repaired) == ([order.order_id], [])
    assert status.status in {"running", "unwinding", "stuck"}
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'refund'") == 0


@pytest.mark.parametrize("is_later_sdk", [False, True], ids=["this SDK", "a later one"])
async def test_a_parked_saga_that_is_cancelled_before_its_first_task_waits_for_a_person_all_the_same(
    is_later_sdk: bool, shop: Shop, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_later_sdk:  # the cancel is known before the story has begun
        switch_on(monkeypatch)
    order = await completed_and_forgotten(shop, backup, "ship_order")
    before = await goods_and_money(shop.database)
    handle = await shop.run_again(replace(order, repair=True, review_reason="Temporal has completed it"))
    await handle.cancel(reason="too early")

    async with shop.working():
        await until_status(shop, order, "stuck")

    assert await goods_and_money(shop.database) == before
    assert len(await open_incidents(shop, order)) == 1


async def test_somebody_settles_a_parked_order_that_was_delivered(shop: Shop, backup: Backup) -> None:
    order = await completed_and_forgotten(shop, backup, "ship_order")

    async with shop.working():
        await shop.sweep()
        await until_status(shop, order, "stuck")
        for step in ("ship", "pay", "reserve"):
            await resolve(shop.newest_run(order), step, "delivered, says the carrier")
        ended = await how_it_ended(shop.newest_run(order))

    assert ended == "OrderCancelled"
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'refund'") == 0
    assert await open_incidents(shop, order) == []
    assert [found for found in await violations(shop) if found.check.startswith("Q")] == []


async def test_an_order_that_temporal_has_rejected_is_undone_again(shop: Shop, backup: Backup) -> None:
    gates, order, before = Gates(), shop.order("nemo"), await goods_and_money(shop.database)
    ship = gates.hold(order, "ship_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await ship.reached()
        await backup.take()
        ship.open()
        assert await how_it_ended(handle) == "OrderRejected"
        await backup.restore()
        report = await shop.sweep()
        await how_it_ended(shop.newest_run(order))

    assert report.repaired == [order.order_id]
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_an_order_that_completes_while_the_sweep_looks_is_no_contradiction(shop: Shop) -> None:
    gates, order = Gates(), shop.order("carol")
    ship = gates.hold(order, "ship_order", "before")
    look = gates.hold(replace(order, order_id=(sweep_id := f"sweep-{uuid.uuid4()}")), "find_contradictions", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await ship.reached()
        sweeping = await shop.start_sweep(sweep_id=sweep_id)
        await look.reached()
        ship.open()
        assert await how_it_ended(handle) == "completed"
        look.open()
        report = await sweeping.result()

    assert (report.parked, report.repaired, report.alive) == ([], [], 1)
    assert await shop.order_status(order) == "completed"


async def test_an_order_that_completes_between_the_two_looks_is_no_contradiction(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = shop.order("carol")
    await Inventory(shop.engine).reserve_inventory(order)
    await Payments(shop.engine).charge_payment(order)

    async def completes_while_temporal_is_asked(_: CheckoutInput) -> bool:
        await Shipping(shop.engine).ship_order(order)
        return True

    monkeypatch.setattr("activities.sweep._has_completed", completes_while_temporal_is_asked)

    found = await Sweep(shop.engine).find_contradictions([order])

    assert await shop.order_status(order) == "completed"
    assert found == []


async def test_two_sweeps_that_look_at_once_park_an_order_once(shop: Shop, backup: Backup) -> None:
    order = await completed_and_forgotten(shop, backup, "ship_order")
    gates, sweep_id = Gates(), f"sweep-{uuid.uuid4()}"
    look = gates.hold(replace(order, order_id=sweep_id), "find_contradictions", "after")

    async with shop.working(interceptors=(gates,)):
        slow = await shop.start_sweep(sweep_id=sweep_id)
        await look.reached()
        quick = await shop.sweep()
        look.open()
        report = await slow.result()

    assert (quick.parked, quick.alive) == ([order.order_id], 0)
    assert (report.parked, report.alive) == ([], 1)


# The audit sees it --------------------------------------------------------------------------------------


async def audit(shop: Shop, after: AuditReport | None = None) -> AuditReport:
    return await shop.client.execute_workflow(
        AuditWorkflow.run,
        AuditInput(anchor=after.anchor if after else None),
        id=f"audit-{uuid.uuid4()}",
        task_queue=shop.task_queue,
    )


async def test_an_audit_finds_what_an_earlier_one_saw(shop: Shop) -> None:
    async with shop.working():
        await (await shop.start(shop.order())).result()
        first = await audit(shop)
        await (await shop.start(shop.order())).result()
        second = await audit(shop, first)

    assert first.anchor is not None
    assert second.anchor is not None
    assert second.anchor.event_id > first.anchor.event_id
    assert "R1" in second.checks


async def test_an_audit_says_that_the_database_went_back_although_newer_orders_came(shop: Shop, backup: Backup) -> None:
    await backup.take()
    async with shop.working():
        lost = shop.order()
        await (await shop.start(lost)).result()
        seen = await audit(shop)
        await backup.restore()
        for _ in range(2):
            await (await shop.start(shop.order())).result()
        with pytest.raises(WorkflowFailureError) as failed:
            await audit(shop, seen)

    cause = failed.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "AuditViolation"
    assert f"R1 {lost.order_id}" in cause.message
    assert "restored to an earlier instant" in cause.message


async def test_the_schedule_hands_each_audit_what_the_last_clean_one_saw(shop: Shop, backup: Backup) -> None:
    await backup.take()
    audits = shop.client.get_schedule_handle(f"audit-{shop.task_queue}")

    async def statuses() -> list[str]:
        started = [
            action.action.workflow_id
            for action in (await audits.describe()).info.recent_actions
            if isinstance(action.action, ScheduleActionExecutionStartWorkflow)
        ]
        ran = [await shop.client.get_workflow_handle(name).describe() for name in started]
        return [run.status.name for run in ran if run.status]

    async with shop.working():
        await (await shop.start(shop.order())).result()
        await schedules.ensure(shop.client, shop.task_queue, Every(sweep=timedelta(), audit=timedelta(seconds=1)))

        async def is_clean_so_far() -> bool:
            return "COMPLETED" in await statuses()

        await until(is_clean_so_far)
        assert "FAILED" not in await statuses()
        await backup.restore()

        async def is_seen() -> bool:
            return "FAILED" in await statuses()

        await until(is_seen)
        await audits.delete()

    assert await shop.database.value("SELECT check_id || ' ' || event FROM audit_events LIMIT 1") == "R1 violated"
