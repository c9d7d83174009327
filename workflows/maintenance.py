"""The audit and the sweep, as workflows: whoever asks for them needs no way into the database."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    from activities.maintenance import Maintenance
    from domain import policies
    from domain.errors import AuditViolation
    from domain.maintenance import (
        AuditInput,
        AuditReport,
        SweepInput,
        SweepReport,
        UnfinishedInput,
    )
    from domain.model import CheckoutInput
    from workflows.checkout import CheckoutWorkflow

_PAGES_PER_RUN = 20

Given = TypeVar("Given")
Answer = TypeVar("Answer")


@workflow.defn(name="Audit")
class AuditWorkflow:
    """Runs every check of activities/audit.sql; fails as `AuditViolation` when one finds something.

    A failure is what people see: red in the UI's list, with the first violations in words and the whole report
    as its detail. Run by a schedule, it also sees whether the database has gone back to an earlier state since
    the last audit that was clean.
    """

    @workflow.run
    async def run(self, audit: AuditInput) -> AuditReport:
        """Audit once."""
        if audit.anchor is None and (last := workflow.get_last_completion_result(AuditReport)) is not None:
            audit = replace(audit, anchor=last.anchor)
        report = await _maintain(Maintenance.run_audit, audit, "Check every invariant on one snapshot")
        if audit.is_recorded:
            await _maintain(Maintenance.record_findings, report, "Tell saga.log what is new and what is over")
        if not report.is_clean:
            raise AuditViolation(f"{report.violation_count} violations: {report.summary}", details=[report])
        return report


@workflow.defn(name="Sweep")
class SweepWorkflow:
    """Starts a saga for each order that should have one and has none.

    Safe at any time and beside any other sweep: a workflow id has one open run, so an order whose saga is
    alive is left alone, and the fences make a second run of an order harmless.
    """

    @workflow.run
    async def run(self, sweep: SweepInput) -> SweepReport:
        """Sweep once through all unfinished orders, the oldest first."""
        report = sweep.so_far
        place = (sweep.after_at, sweep.after_id)
        pages = 0
        while True:
            page = await _maintain(
                Maintenance.find_unfinished,
                UnfinishedInput(policies.SWEEP_BATCH, sweep.stood_still_seconds, *place),
                "Look for orders that stand still",
            )
            report.add_malformed(page.malformed)
            await self._start_all(page.orders, report)
            if page.next_at is None:
                return report
            place, pages = (page.next_at, page.next_id), pages + 1
            if pages == _PAGES_PER_RUN:
                # A run's history is bounded. The next goes on from here: nobody starves behind the oldest.
                workflow.continue_as_new(SweepInput(sweep.stood_still_seconds, *place, report))

    async def _start_all(self, orders: list[CheckoutInput], report: SweepReport) -> None:
        # A run that was lost, refused or cancelled may be followed by another; one that has completed may not.
        closed_unwell = WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
        # All of a page together: one workflow task instead of one for each.
        are_started = await asyncio.gather(*(self._start(order, report, closed_unwell) for order in orders))
        refused = [order for order, is_started in zip(orders, are_started, strict=True) if not is_started]
        if not refused:
            return
        completed = await _maintain(
            Maintenance.find_contradictions, refused, "Tell the sagas that are alive from those that have completed"
        )
        report.alive += len(refused) - len(completed)
        for order in completed:
            if not await self._start(order, report, WorkflowIDReusePolicy.ALLOW_DUPLICATE):
                report.alive += 1

    async def _start(self, order: CheckoutInput, report: SweepReport, reuse: WorkflowIDReusePolicy) -> bool:
        verb = "Park" if order.doubt else "Repair" if order.repair else "Start"
        try:
            child = await workflow.start_child_workflow(
                CheckoutWorkflow.run,
                order,
                id=policies.checkout_workflow_id(order.order_id),
                task_timeout=policies.WORKFLOW_TASK,
                id_reuse_policy=reuse,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                static_summary=f"{verb}: {order.summary} for {order.customer}",
                memo={policies.FINGERPRINT_MEMO: order.fingerprint},
            )
        except WorkflowAlreadyStartedError:
            return False
        # How the order ends is its own affair; asyncio would report an ending that nobody asked about.
        child.add_done_callback(lambda done: done.cancelled() or done.exception())
        report.add(order)
        return True


async def _maintain(
    activity: Callable[[Any, Given], Awaitable[Answer]],
    given: Given,
    summary: str,
) -> Answer:
    return await workflow.execute_activity_method(
        activity,
        given,
        start_to_close_timeout=policies.MAINTENANCE.start_to_close,
        schedule_to_close_timeout=policies.MAINTENANCE.schedule_to_close,
        retry_policy=policies.MAINTENANCE.retry,
        summary=summary,
    )
