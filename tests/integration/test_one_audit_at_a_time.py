"""Audits read everything: one at a time, on slots of their own, and no more of them than are asked for."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.audit import Audit, audit_checks, first_and_count
from adapters.database import create_audit_engine
from adapters.temporal import DATA_CONVERTER
from client.checkouts import Checkouts
from client.failures import NoWorker
from domain import policies
from domain.audit import AuditInput, AuditReport
from domain.sweep import SweepInput
from tests.conftest import Shop
from tests.workflow.gates import PATIENCE_SECONDS, Gates
from tests.workflow.sagas import how_it_ended, until
from workflows.maintenance import AuditWorkflow

_PATIENCE = timedelta(seconds=PATIENCE_SECONDS)


@pytest.fixture
def checkouts(shop: Shop) -> Checkouts:
    return Checkouts(shop.client, shop.task_queue, "http://ui")


async def start_audits(shop: Shop, count: int) -> list[WorkflowHandle[AuditWorkflow, AuditReport]]:
    """Start audits as anybody can, each under an id of its own."""
    return [
        await shop.client.start_workflow(
            AuditWorkflow.run, AuditInput(), id=f"audit-{shop.task_queue}-{number}", task_queue=shop.task_queue
        )
        for number in range(count)
    ]


async def auditing(shop: Shop) -> int:
    """Count the connections that are at an audit: all of them wait for the table that the test has locked."""
    count: int = await shop.database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'checkout'"
        " AND wait_event_type = 'Lock' AND query LIKE '%broken AS MATERIALIZED%'"
    )
    return count


async def test_a_hundred_audits_take_no_slot_from_the_undo_of_an_order(shop: Shop) -> None:
    gates = Gates()
    held = [
        gates.hold(shop.order(order_id=f"audit-{shop.task_queue}-{number}"), "run_audit", "before")
        for number in range(100)
    ]

    async with shop.working(interceptors=(gates,), max_concurrent_activities=5):
        audits = await start_audits(shop, 100)
        await until(lambda: _is_begun(gates))
        ended = await asyncio.wait_for(how_it_ended(await shop.start(shop.order("nemo"))), PATIENCE_SECONDS)
        begun = sum(count for (_, name), count in gates.attempts.items() if name == "run_audit")
        for audit, gate in zip(audits, held, strict=True):
            await audit.terminate()
            gate.open()

    assert ended == "OrderRejected"
    assert begun == 1


async def _is_begun(gates: Gates) -> bool:
    return any(name == "run_audit" for _, name in gates.attempts)


async def _is(shop: Shop, count: int) -> bool:
    return await auditing(shop) == count


async def test_two_workers_audit_one_after_the_other(shop: Shop) -> None:
    long_query = replace(shop, engine=create_audit_engine(shop.database.url))  # no statement of it ends while we look
    await shop.database.run(f'ALTER ROLE checkout IN DATABASE "{shop.database.name}" SET lock_timeout = 0')
    # A process has one worker for each task queue and client.
    client = await Client.connect(shop.client.service_client.config.target_host, data_converter=DATA_CONVERTER)
    async with long_query.working(), replace(long_query, client=client).working():
        async with shop.database.locked("LOCK TABLE inventory IN ACCESS EXCLUSIVE MODE"):
            audits = await start_audits(shop, 2)
            await until(lambda: _is(shop, 1))

            async def both_are_taken() -> bool:
                described = [await audit.describe() for audit in audits]
                return all(
                    pending.attempt == 1 and pending.HasField("last_heartbeat_time")
                    for one in described
                    for pending in one.raw_description.pending_activities
                )

            await until(both_are_taken)
            at_once = await auditing(shop)
        reports = [await audit.result() for audit in audits]

    assert at_once == 1
    assert [report.violations for report in reports] == [[], []]


async def test_an_audit_that_waited_sees_what_was_committed_meanwhile(shop: Shop) -> None:
    audit = Audit(shop.engine)
    async with shop.database.locked("SELECT pg_advisory_xact_lock(hashtext('checkout audit'))"):
        waiting = asyncio.create_task(audit.run_audit(AuditInput()))

        async def has_looked() -> bool:
            looked: int = await shop.database.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND state = 'idle' AND query ~ 'ROLLBACK|COMMIT' AND usename = 'checkout'"
            )
            return looked > 0

        await until(has_looked)
        await shop.database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'lamp'")
        is_waiting = not waiting.done()
    report = await asyncio.wait_for(waiting, PATIENCE_SECONDS)

    assert is_waiting
    assert [found.subject for found in report.violations] == ["lamp"]


async def test_a_check_sends_the_rows_it_shows_and_counts_them_all(shop: Shop) -> None:
    await shop.database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku LIKE 'item-%'")
    _, check = audit_checks()["A1"]

    report = await shop.audit()
    async with shop.database.connected() as connection:
        sent = await connection.fetch(first_and_count(check).text)
        [plan] = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {first_and_count(check).text}"))

    assert report.violation_count == 100
    assert len(report.violations) == len(sent) == policies.AUDIT_VIOLATIONS_SHOWN
    assert plan["Plan"]["Actual Rows"] == policies.AUDIT_VIOLATIONS_SHOWN


# Asked for by hand --------------------------------------------------------------------------------------


async def runs_of(shop: Shop, workflow_type: str) -> int:
    query = f"TaskQueue = '{shop.task_queue}' AND WorkflowType = '{workflow_type}'"
    return (await shop.client.count_workflows(query)).count


@pytest.mark.parametrize("kind", ["Audit", "Sweep"])
async def test_whoever_asks_for_the_same_shares_a_run_that_began_after_they_asked(
    shop: Shop, checkouts: Checkouts, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    gates = Gates()
    name = f"{kind.lower()}-{shop.task_queue}-by-hand" + ("-60" if kind == "Sweep" else "")
    gate = gates.hold(shop.order(order_id=name), "run_audit" if kind == "Audit" else "find_unfinished", "after")

    async def ask() -> object:
        if kind == "Audit":
            return await checkouts.audit(_PATIENCE)
        return await checkouts.sweep(timedelta(seconds=60), _PATIENCE)

    refused: list[object] = []
    start = shop.client.start_workflow

    async def counted(*arguments: Any, **options: Any) -> Any:
        try:
            return await start(*arguments, **options)
        except WorkflowAlreadyStartedError as error:
            refused.append(error)
            raise

    async def all_wait() -> bool:
        return len(refused) == 20

    async def are_visible() -> bool:
        return await runs_of(shop, kind) >= 2

    monkeypatch.setattr(shop.client, "start_workflow", counted)
    async with shop.working(interceptors=(gates,)):
        first = asyncio.create_task(ask())
        await gate.reached()
        others = [asyncio.create_task(ask()) for _ in range(20)]
        await until(all_wait)
        gate.open()
        await asyncio.gather(first, *others)
        await until(are_visible)

    assert await runs_of(shop, kind) == 2


async def test_an_audit_at_rest_is_another_question(shop: Shop, checkouts: Checkouts) -> None:
    gates = Gates()
    gate = gates.hold(shop.order(order_id=f"audit-{shop.task_queue}-by-hand"), "record_findings", "before")
    await shop.accept_by_hand(shop.order())

    async with shop.working(interceptors=(gates,)):
        usual = asyncio.create_task(checkouts.audit(_PATIENCE))
        await gate.reached()
        at_rest = await checkouts.audit(_PATIENCE, is_at_rest=True)
        gate.open()
        report = await usual

    assert [found.check for found in at_rest.violations] == ["Q1"]
    assert report.is_clean


async def test_a_sweep_of_other_orders_is_another_question(shop: Shop, checkouts: Checkouts) -> None:
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(shop.order(order_id=f"sweep-{shop.task_queue}-by-hand-60"), "find_unfinished", "before")
    await shop.accept_by_hand(order)

    async with shop.working(interceptors=(gates,)):
        usual = asyncio.create_task(checkouts.sweep(timedelta(seconds=60), _PATIENCE))
        await gate.reached()
        report = await checkouts.sweep(timedelta(), _PATIENCE)
        gate.open()
        await usual

    assert report.started == [order.order_id]


async def test_who_waits_in_vain_for_an_earlier_one_is_reported_so(shop: Shop, checkouts: Checkouts) -> None:
    await shop.client.start_workflow(
        policies.SWEEP_WORKFLOW,
        SweepInput(),
        id=f"sweep-{shop.task_queue}-by-hand-60",
        task_queue=shop.task_queue,
    )

    with pytest.raises(NoWorker, match="did not finish within 1 s"):
        await checkouts.sweep(timedelta(seconds=60), timedelta(seconds=1))
