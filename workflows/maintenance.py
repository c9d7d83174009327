"""The audit and the sweep, as workflows: whoever asks for them needs no way into the database."""

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    from activities.maintenance import Maintenance
    from domain import policies
    from domain.maintenance import (
        AuditInput,
        AuditReport,
        SweepInput,
        SweepReport,
        UnfinishedInput,
        UnfinishedPage,
    )
    from domain.model import CheckoutInput
    from workflows.checkout import CheckoutWorkflow

_PAGES_PER_RUN = 20


@workflow.defn(name="Audit")
class AuditWorkflow:
    """Runs every check of activities/audit.sql. Violations are its result, not its failure."""

    @workflow.run
    async def run(self, audit: AuditInput) -> AuditReport:
        """Audit once."""
        return await workflow.execute_activity_method(
            Maintenance.run_audit,
            audit,
            start_to_close_timeout=policies.MAINTENANCE.start_to_close,
            schedule_to_close_timeout=policies.MAINTENANCE.schedule_to_close,
            retry_policy=policies.MAINTENANCE.retry,
            summary="Check every invariant on one snapshot",
        )


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
            page = await self._find(UnfinishedInput(policies.SWEEP_BATCH, sweep.stood_still_seconds, *place))
            report.add_malformed(page.malformed)
            for order in page.orders:
                await self._start(order, report)
            if page.next_at is None:
                return report
            place, pages = (page.next_at, page.next_id), pages + 1
            if pages == _PAGES_PER_RUN:
                # A run's history is bounded. The next goes on from here: nobody starves behind the oldest.
                workflow.continue_as_new(SweepInput(sweep.stood_still_seconds, *place, report))

    async def _find(self, wanted: UnfinishedInput) -> UnfinishedPage:
        return await workflow.execute_activity_method(
            Maintenance.find_unfinished,
            wanted,
            start_to_close_timeout=policies.MAINTENANCE.start_to_close,
            schedule_to_close_timeout=policies.MAINTENANCE.schedule_to_close,
            retry_policy=policies.MAINTENANCE.retry,
            summary="Look for orders that stand still",
        )

    async def _start(self, order: CheckoutInput, report: SweepReport) -> None:
        verb = "Repair" if order.repair else "Start"
        try:
            child = await workflow.start_child_workflow(
                CheckoutWorkflow.run,
                order,
                id=policies.checkout_workflow_id(order.order_id),
                # The database says that the order has not ended, and it is the authority: whatever run
                # there was has closed without telling it.
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                static_summary=f"{verb}: {order.summary} for {order.customer}",
                memo={policies.FINGERPRINT_MEMO: order.fingerprint},
            )
        except WorkflowAlreadyStartedError:
            report.alive += 1
        else:
            # How the order ends is its own affair; asyncio would report an ending that nobody asked about.
            child.add_done_callback(lambda done: done.cancelled() or done.exception())
            report.add_started(order.order_id, is_repair=order.repair)
