"""The sweep finds every order that was lost, and only those; the audit reports what is wrong."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace

import asyncpg
import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError

from activities.audit import Audit
from domain import policies
from domain.audit import AuditInput, AuditReport
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from domain.sweep import SweepReport
from tests.conftest import Shop
from tests.workflow.gates import Gates, Moment, lost_report
from tests.workflow.sagas import (
    BREAK_UNDO,
    MEND_UNDO,
    UNDOS,
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
from workflows.maintenance import AuditWorkflow


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))


async def accept_by_hand(
    shop: Shop, customer: str = "alice", lines: Sequence[tuple[str, int]] = (("tea-mug", 1),)
) -> CheckoutInput:
    """Write a pending order as a person with psql would."""
    order = shop.order(customer)
    await shop.database.run(
        f"INSERT INTO orders (order_id, customer) VALUES ('{order.order_id}', '{customer}');"
        + "".join(
            f"INSERT INTO order_lines (order_id, sku, quantity) VALUES ('{order.order_id}', '{sku}', {quantity});"
            for sku, quantity in lines
        )
    )
    return order


async def audit(shop: Shop, given: AuditInput | None = None) -> AuditReport:
    return await shop.client.execute_workflow(
        AuditWorkflow.run, given or AuditInput(), id=f"audit-{uuid.uuid4()}", task_queue=shop.task_queue
    )


# Orders by hand -----------------------------------------------------------------------------------------


async def test_an_order_written_by_hand_is_started_and_completes(shop: Shop) -> None:
    order = await accept_by_hand(shop, "carol", (("poster", 2), ("lamp", 1)))

    async with shop.working():
        report = await shop.sweep()
        ended = await how_it_ended(shop.newest_run(order))
        summary = await (await shop.newest_run(order).describe()).static_summary()

    assert (report.started, report.repaired) == ([order.order_id], [])
    assert ended == "completed"
    assert summary == "Start: 1 × lamp, 2 × poster for carol"
    assert await violations(shop) == []


async def test_an_order_written_by_hand_that_is_refused_is_rejected(shop: Shop) -> None:
    order = await accept_by_hand(shop, "nobody")

    async with shop.working():
        await shop.sweep()
        ended = await how_it_ended(shop.newest_run(order))

    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert await violations(shop) == []


async def test_an_order_whose_lines_are_not_written_yet_is_left_alone(shop: Shop) -> None:
    order = await accept_by_hand(shop, "alice", ())

    async with shop.working():
        report = await shop.sweep()

    assert report == SweepReport()
    assert await shop.order_status(order) == "pending"


async def test_an_order_that_no_saga_can_take_is_reported_and_does_not_stop_the_others(shop: Shop) -> None:
    malformed = await accept_by_hand(shop, "alice", [(f"sku-{n:03}", 1) for n in range(101)])
    good = await accept_by_hand(shop)

    async with shop.working():
        report = await shop.sweep()
        ended = await how_it_ended(shop.newest_run(good))

    assert report.started == [good.order_id]
    assert report.malformed == [f"{malformed.order_id}: the order has 101 lines; 100 are allowed, split it"]
    assert ended == "completed"


async def test_more_orders_than_a_page_are_all_started(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "SWEEP_BATCH", 4)
    await shop.database.run(
        "INSERT INTO orders (order_id, customer) SELECT current_database() || '-' || n, 'nobody' "
        "FROM generate_series(1, 12) n;"
        "INSERT INTO order_lines (order_id, sku, quantity) SELECT order_id, 'lamp', 1 FROM orders"
    )

    async with shop.working():
        report = await shop.sweep()
        ends = [
            await how_it_ended(shop.client.get_workflow_handle(checkout_workflow_id(order_id)))
            for order_id in report.started
        ]

    assert len(set(report.started)) == 12
    assert report.started_count == len(report.started)
    assert set(ends) == {"OrderRejected"}


# Terminated sagas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "moment", "repaired"),
    [
        ("reserve_inventory", "after", True),
        ("charge_payment", "before", True),
        ("charge_payment", "after", True),
        ("ship_order", "before", True),
    ],
)
async def test_what_a_terminated_saga_left_is_undone_and_the_order_cancelled(
    shop: Shop, name: str, moment: Moment, repaired: bool
) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("alice")
    gate = gates.hold(order, name, moment)

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.terminate()
        report = await shop.sweep()
        ended = await how_it_ended(shop.newest_run(order))
        summary = await (await shop.newest_run(order).describe()).static_summary()
        gate.open()
        await gate.passed()

    assert (order.order_id in report.repaired) is repaired
    assert (summary == "Repair: 1 × tea-mug for alice") is repaired
    assert ended == "OrderCancelled"
    assert await shop.order_status(order) == "cancelled"
    assert (await reason_of(shop, order) or "").startswith("Abandoned: ")
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize("customer", ["alice", "carol"])
async def test_a_saga_that_was_terminated_after_its_parcel_left_is_completed_and_needs_nothing(
    shop: Shop, customer: str
) -> None:
    gates, order = Gates(), shop.order(customer)
    gate = gates.hold(order, "ship_order", "after")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.terminate()
        report = await shop.sweep()
        gate.open()

    assert report == SweepReport()
    assert await shop.order_status(order) == "completed"
    assert await violations(shop) == []


async def test_an_attempt_that_outlives_its_terminated_saga_is_undone_by_the_next_sweep(shop: Shop) -> None:
    before, gates, order = await goods_and_money(shop.database), Gates(), shop.order("alice")
    gate = gates.hold(order, "reserve_inventory", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.terminate()
        while_held = await shop.sweep()
        gate.open()
        await until_status(shop, order, "reserved")
        afterwards = await shop.sweep()
        await how_it_ended(shop.newest_run(order))

    assert while_held == SweepReport()
    assert afterwards.repaired == [order.order_id]
    assert await shop.order_status(order) == "cancelled"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


@pytest.mark.parametrize(
    ("name", "moment"), [("cancel_shipment", "after"), ("refund_payment", "after"), ("close_order", "before")]
)
@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_unwind_that_was_terminated_is_finished_with_the_ending_it_was_heading_to(
    shop: Shop, name: str, moment: Moment, cancelled: bool
) -> None:
    before, gates = await goods_and_money(shop.database), Gates()
    order = shop.order("carol" if cancelled else "nemo")
    shipped, gate = gates.hold(order, "ship_order", "after"), gates.hold(order, name, moment)

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        if cancelled:
            await shipped.reached()
            await handle.cancel(reason="changed my mind")
        shipped.open()
        await gate.reached()
        await handle.terminate()
        report = await shop.sweep()
        gate.open()
        await how_it_ended(shop.newest_run(order))

    assert report.repaired == [order.order_id]
    assert await shop.order_status(order) == ("cancelled" if cancelled else "rejected")
    assert (await reason_of(shop, order) or "").startswith(
        "cancelled: changed my mind" if cancelled else "UndeliverableAddress: "
    )
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_stuck_order_whose_saga_was_terminated_is_finished(shop: Shop) -> None:
    before = await goods_and_money(shop.database)
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")

    async with shop.working():
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
        await handle.terminate()
        await shop.database.run(MEND_UNDO["pay"])
        report = await shop.sweep()
        ended = await how_it_ended(shop.newest_run(order))

    assert report.repaired == [order.order_id]
    assert ended == "OrderRejected"
    assert await shop.order_status(order) == "rejected"
    assert (await reason_of(shop, order) or "").startswith("UndeliverableAddress: ")
    assert await open_incidents(shop, order) == []
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_the_sagas_that_a_sweep_starts_are_nobodys_children(shop: Shop) -> None:
    order = shop.order("alice")
    await shop.accept_by_hand(order)

    async with shop.working():
        await shop.sweep()
        saga = shop.newest_run(order)
        ended = await how_it_ended(saga)

    assert ended == "completed"
    # Whatever becomes of the sweep, a run without a parent has its first task from its first instant.
    assert not (await saga.describe()).raw_description.workflow_execution_info.HasField("parent_execution")


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_sweep_that_is_terminated_while_it_starts_sagas_leaves_none_that_nobody_works_on(
    shop: Shop, moment: Moment
) -> None:
    gates, orders, sweep_id = Gates(), [shop.order("alice") for _ in range(5)], f"sweep-{uuid.uuid4()}"
    await shop.accept_by_hand(*orders)
    gate = gates.hold(replace(orders[0], order_id=sweep_id), "start_sagas", moment)

    async with shop.working(interceptors=(gates,)):
        sweeping = await shop.start_sweep(sweep_id=sweep_id)
        await gate.reached()
        await sweeping.terminate()
        gate.open()
        await shop.sweep()
        ends = [await how_it_ended(shop.newest_run(order)) for order in orders]

    assert ends == ["completed"] * len(orders)


async def test_a_lost_answer_makes_the_sweep_start_nothing_twice(shop: Shop) -> None:
    gates, order, sweep_id = Gates(), shop.order("alice"), f"sweep-{uuid.uuid4()}"
    await shop.accept_by_hand(order)
    gates.fail(replace(order, order_id=sweep_id), "start_sagas", "after", times=1, error=lost_report)

    async with shop.working(interceptors=(gates,)):
        report = await (await shop.start_sweep(sweep_id=sweep_id)).result()
        ended = await how_it_ended(shop.newest_run(order))

    assert (ended, report.started_count) == ("completed", 0)
    newest = (await shop.newest_run(order).describe()).run_id
    runs: list[str] = []

    async def are_listed() -> bool:
        listed = [run async for run in shop.client.list_workflows(f"WorkflowId = '{shop.newest_run(order).id}'")]
        runs[:] = [run.run_id for run in listed]
        return any(run.run_id == newest and run.close_time for run in listed)

    await until(are_listed)  # the newest one's end: any other was listed before
    assert runs == [newest]


# Sagas that are alive -----------------------------------------------------------------------------------


async def test_running_and_stuck_sagas_are_left_alone_and_counted(shop: Shop) -> None:
    gates, running, stuck = Gates(), shop.order("alice"), shop.order("nemo")
    await shop.database.run(BREAK_UNDO["pay"])
    gate = gates.hold(running, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handles = [await shop.start(running), await shop.start(stuck)]
        await gate.reached()
        await until_status(shop, stuck, "stuck")
        report = await shop.sweep()
        gate.open()
        ended = await how_it_ended(handles[0])
        await handles[1].terminate()

    assert report == SweepReport(alive=2)
    assert ended == "completed"


async def test_an_order_that_moved_a_moment_ago_is_not_looked_at(shop: Shop) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.terminate()
        report = await shop.sweep(idle_seconds=60)
        gate.open()

    assert report == SweepReport()


async def test_sweeps_at_the_same_time_are_harmless(shop: Shop) -> None:
    before, gates, lost = await goods_and_money(shop.database), Gates(), shop.order("alice")
    gate = gates.hold(lost, "ship_order", "before")
    by_hand = [await accept_by_hand(shop) for _ in range(5)]

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(lost)
        await gate.reached()
        await handle.terminate()
        reports = await asyncio.gather(*(shop.sweep() for _ in range(4)))
        ends = [await how_it_ended(shop.newest_run(order)) for order in by_hand]
        ended = await how_it_ended(shop.newest_run(lost))
        gate.open()

    assert {order_id for report in reports for order_id in report.started} == {o.order_id for o in by_hand}
    assert ends == ["completed"] * 5
    assert ended == "OrderCancelled"
    assert await goods_and_money(shop.database) != before
    assert await violations(shop) == []


async def test_a_second_sweep_finds_nothing_left_to_do(shop: Shop) -> None:
    order = await accept_by_hand(shop)

    async with shop.working():
        await shop.sweep()
        await how_it_ended(shop.newest_run(order))
        report = await shop.sweep()

    assert report == SweepReport()


# The audit ----------------------------------------------------------------------------------------------


async def test_the_audit_of_a_healthy_database_counts_orders_and_finds_nothing(shop: Shop) -> None:
    orders = [shop.order("alice"), shop.order("nemo"), shop.order("carol")]

    async with shop.working():
        await asyncio.gather(*[how_it_ended(await shop.start(order)) for order in orders])
        report = await shop.client.execute_workflow(
            AuditWorkflow.run, AuditInput(0.0), id=f"audit-{uuid.uuid4()}", task_queue=shop.task_queue
        )

    assert report.violations == []
    assert report.orders == {"completed": 2, "rejected": 1}
    assert len(report.checks) >= 15


async def test_an_audit_that_finds_something_fails_with_its_report(shop: Shop) -> None:
    order = shop.order("alice")

    async with shop.working():
        await (await shop.start(order)).result()
        await shop.database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'tea-mug'")
        with pytest.raises(WorkflowFailureError) as failed:
            await audit(shop)

    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.type == "AuditViolation"
    assert failed.value.cause.message == "1 violations: A1 tea-mug: on hand 998, accounted for 999"
    report = value_to_type(AuditReport, failed.value.cause.details[0])
    assert [(found.check, found.subject) for found in report.violations] == [("A1", "tea-mug")]


async def findings(shop: Shop) -> list[tuple[str, str, str]]:
    rows = await shop.database.fetch("SELECT check_id, subject, event FROM audit_events ORDER BY event_id")
    return [tuple(row) for row in rows]


async def test_a_violation_is_reported_once_when_it_comes_and_once_when_it_is_over(shop: Shop) -> None:
    async with shop.working():
        await shop.database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku IN ('lamp', 'cap')")
        for _ in range(2):
            with pytest.raises(WorkflowFailureError):
                await audit(shop)
        await shop.database.run("UPDATE inventory SET on_hand = on_hand + 1 WHERE sku = 'lamp'")
        with pytest.raises(WorkflowFailureError):
            await audit(shop)
        await shop.database.run("UPDATE inventory SET on_hand = on_hand + 1 WHERE sku = 'cap'")
        await audit(shop)
        await audit(shop)

    assert sorted((await findings(shop))[:2]) == [("A1", "cap", "violated"), ("A1", "lamp", "violated")]
    assert (await findings(shop))[2:] == [("A1", "lamp", "cleared"), ("A1", "cap", "cleared")]


async def test_a_violation_that_two_audits_find_at_once_is_reported_once(shop: Shop) -> None:
    audit = Audit(shop.engine)
    await shop.database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'lamp'")
    report = await audit.run_audit(AuditInput())
    other = await asyncpg.connect(shop.database.admin_url)

    async def both_wait() -> bool:
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND database = ("
        return bool(
            await shop.database.value(waiting + "SELECT oid FROM pg_database WHERE datname = current_database())") == 2
        )

    try:
        async with other.transaction():
            await other.execute("SELECT pg_advisory_xact_lock(hashtext('checkout audit_events'))")
            telling = [asyncio.create_task(audit.record_findings(report)) for _ in range(2)]
            await until(both_wait)
    finally:
        await other.close()
    await asyncio.gather(*telling)

    assert await findings(shop) == [("A1", "lamp", "violated")]


async def test_a_check_that_found_more_than_it_lists_clears_nothing(shop: Shop) -> None:
    async with shop.working():
        await shop.database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'item-090'")
        with pytest.raises(WorkflowFailureError):
            await audit(shop)
        await shop.database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku LIKE 'item-%'")
        with pytest.raises(WorkflowFailureError):
            await audit(shop)

    assert {event for _, _, event in await findings(shop)} == {"violated"}


async def test_an_audit_on_somebodys_word_that_all_is_at_rest_reports_the_log_nothing(shop: Shop) -> None:
    await accept_by_hand(shop)

    async with shop.working():
        with pytest.raises(WorkflowFailureError):
            await audit(shop, AuditInput(0.0, is_recorded=False))

    assert await findings(shop) == []


async def test_undos_of_a_repair_are_tried_once_each(shop: Shop) -> None:
    gates, order = Gates(), shop.order("carol")
    gate = gates.hold(order, "ship_order", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.terminate()
        await shop.sweep()
        repair: WorkflowHandle[CheckoutWorkflow, CheckoutStatus] = shop.newest_run(order)
        await how_it_ended(repair)
        gate.open()

    assert [gates.attempts_of(order, undo) for undo in UNDOS] == [1, 1, 1]
