"""The workflows beside the checkouts: audit, sweep and lookups, for callers that cannot reach the database.

Each has a versioned form, which moves to whatever version is current. An order is pinned to the version that it began
on; a sweep that waited for a version without workers would hold up every later sweep of its schedule. An unversioned
worker cannot run a workflow that declares a versioning behaviour, so it runs the plain form.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import VersioningBehavior

with workflow.unsafe.imports_passed_through():
    from activities.audit import Audit
    from activities.lookups import Lookups, Names
    from activities.sagas import Sagas
    from activities.sweep import Sweep
    from domain import policies
    from domain.audit import AuditInput, AuditReport
    from domain.errors import AuditViolation
    from domain.lookup import LookupAnswer, LookupInput, NamesInput, NamesReport
    from domain.model import CheckoutInput
    from domain.sweep import StartInput, SweepInput, SweepReport, UnfinishedInput
    from sagafence import ActivityPolicy, perform

_PAGES_PER_RUN = 20

Given = TypeVar("Given")
Answer = TypeVar("Answer")


@workflow.defn(name=policies.AUDIT_WORKFLOW)
class AuditWorkflow:
    """Runs every check of activities/audit.sql; fails as `AuditViolation` when one finds something.

    The failure is red in the UI's list, with the first violations in words and the whole report as its detail. Run by a
    schedule, it also sees whether the database has gone back to an earlier state since the last clean audit.
    """

    @workflow.run
    async def run(self, audit: AuditInput) -> AuditReport:
        """Audit once."""
        if audit.anchor is None and (last := workflow.get_last_completion_result(AuditReport)) is not None:
            audit = replace(audit, anchor=last.anchor)
        summary = "Check every invariant on one snapshot"
        queue = policies.audit_task_queue(workflow.info().task_queue)
        report = await _maintain(Audit.run_audit, audit, summary, policies.AUDIT, queue)
        if audit.is_recorded:
            await _maintain(Audit.record_findings, report, "Write to saga.log what is new and what is over")
        if not report.is_clean:
            raise AuditViolation(f"{report.violation_count} violations: {report.summary}", details=[report])
        return report


@workflow.defn(name=policies.SWEEP_WORKFLOW)
class SweepWorkflow:
    """Starts a saga for each order that should have one and has none.

    Safe at any time and beside any other sweep: a workflow id has one open run, so an order whose saga is alive is left
    alone, and the fences make a second run of an order harmless.
    """

    @workflow.run
    async def run(self, sweep: SweepInput) -> SweepReport:
        """Sweep once through all unfinished orders, the oldest first."""
        report = sweep.so_far
        place = (sweep.after_at, sweep.after_id)
        pages = 0
        while True:
            page = await _maintain(
                Sweep.find_unfinished,
                UnfinishedInput(policies.SWEEP_BATCH, sweep.idle_seconds, *place),
                "Find idle orders",
            )
            report.add_malformed(page.malformed)
            await self._start_all(page.orders, report)
            if page.next_at is None:
                return report
            place, pages = (page.next_at, page.next_id), pages + 1
            if pages == _PAGES_PER_RUN:
                # A run's history is bounded. The next goes on from here: no order starves behind the oldest.
                workflow.continue_as_new(SweepInput(sweep.idle_seconds, *place, report))

    async def _start_all(self, orders: list[CheckoutInput], report: SweepReport) -> None:
        refused = await self._start(StartInput(orders), report)
        if not refused:
            return
        # A run that was lost, refused or cancelled may be followed by another; a completed one may not, unless the
        # database has lost what it did.
        completed = await _maintain(
            Sweep.find_contradictions, refused, "Separate the sagas that are alive from those that have completed"
        )
        alive = await self._start(StartInput(completed, even_completed=True), report)
        report.alive += len(refused) - len(completed) + len(alive)

    async def _start(self, asked: StartInput, report: SweepReport) -> list[CheckoutInput]:
        """Start the sagas of a page, and return the orders that were refused one.

        By an activity, not as child workflows: a child whose parent closes in the instant of its start may exist for
        ever without its first task, and keep its order's id from any saga that works.
        """
        if not asked.orders:
            return []
        refused = await _maintain(Sagas.start_sagas, asked, f"Start the sagas of {len(asked.orders)} orders")
        names = {order.order_id for order in refused}
        for order in asked.orders:
            if order.order_id not in names:
                report.add(order)
        return refused


@workflow.defn(name=policies.LOOKUP_WORKFLOW)
class LookupWorkflow:
    """Answers from the database about orders that have no history of their own in Temporal."""

    @workflow.run
    async def run(self, asked: LookupInput) -> LookupAnswer:
        """Look up once."""
        summary = f"Look up {asked.order_id}" if asked.order_id else "List the newest orders"
        return await perform(Lookups.look_up_orders, asked, policies.LOOKUP, None, summary)


@workflow.defn(name=policies.NAMES_WORKFLOW)
class NamesWorkflow:
    """Looks up as many names of a file as fit into one message."""

    @workflow.run
    async def run(self, asked: NamesInput) -> NamesReport:
        """Look up once."""
        names = f"{len(asked.skus)} SKUs, {len(asked.customers)} customers, {len(asked.order_ids)} orders"
        return await _maintain(Names.look_up_names, asked, f"Look up {names}")


@workflow.defn(name=policies.AUDIT_WORKFLOW, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class VersionedAudit(AuditWorkflow):
    """The audit, for a versioned worker."""

    @workflow.run
    async def run(self, audit: AuditInput) -> AuditReport:
        """Audit once."""
        return await super().run(audit)


@workflow.defn(name=policies.SWEEP_WORKFLOW, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class VersionedSweep(SweepWorkflow):
    """The sweep, for a versioned worker."""

    @workflow.run
    async def run(self, sweep: SweepInput) -> SweepReport:
        """Sweep once through all unfinished orders, the oldest first."""
        return await super().run(sweep)


@workflow.defn(name=policies.LOOKUP_WORKFLOW, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class VersionedLookup(LookupWorkflow):
    """The lookup, for a versioned worker."""

    @workflow.run
    async def run(self, asked: LookupInput) -> LookupAnswer:
        """Look up once."""
        return await super().run(asked)


async def _maintain(
    activity: Callable[[Any, Given], Awaitable[Answer]],
    given: Given,
    summary: str,
    policy: ActivityPolicy = policies.MAINTENANCE,
    task_queue: str | None = None,
) -> Answer:
    return await workflow.execute_activity_method(
        activity,
        given,
        task_queue=task_queue,
        summary=summary,
        **policy.limits(),
    )
