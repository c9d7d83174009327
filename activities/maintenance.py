"""Reading the whole database: the audit of every invariant, and the search for unfinished orders."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.service import RPCError, RPCStatusCode

from activities.audit_checks import audit_checks, first_and_count
from adapters.database import snapshot, transaction
from domain.bulk import BatchReport, payload_bytes
from domain.errors import DatabaseContradictsHistory, InvalidInput
from domain.maintenance import Anchor, AuditInput, AuditReport, UnfinishedInput, UnfinishedPage, Violation
from domain.model import CheckoutInput, OrderLine, OrderStatus
from domain.policies import AUDIT_VIOLATIONS_SHOWN, checkout_workflow_id

_Answer = TypeVar("_Answer")

_HEARTBEAT_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 1.0
# A page is one value to Temporal, which takes 2 MB; each order in it has 160 KB at most.
_PAGE_BYTES = 1_000_000
_ASKED_AT_ONCE = 10

_COUNTS = text("""
    SELECT status, count(*) AS orders FROM orders GROUP BY status ORDER BY status
""")

_NEWEST_EVENT = text("""
    SELECT event_id, order_id, seq, extract(epoch FROM at)::text AS at FROM order_events
     ORDER BY event_id DESC LIMIT 1
""")
_HAS_EVENT = text("""
    SELECT EXISTS (SELECT FROM order_events WHERE event_id = :event_id AND order_id = :order_id AND seq = :seq
                      AND extract(epoch FROM at)::text = :at)
""")

_TAKE_THE_AUDIT = text("SELECT pg_try_advisory_xact_lock(hashtext('checkout audit'))")

_TAKE_TURNS = text("SELECT pg_advisory_xact_lock(hashtext('checkout audit_events'))")
# What is open is what was told last. A check of which not every row was listed cannot clear any.
_RECORD = text("""
    WITH found AS (
        SELECT DISTINCT ON (check_id, subject) check_id, subject, detail
          FROM unnest(CAST(:checks AS text[]), CAST(:subjects AS text[]), CAST(:details AS text[]))
               AS f (check_id, subject, detail)
         ORDER BY check_id, subject
    ), told AS (
        SELECT DISTINCT ON (check_id, subject) check_id, subject, event
          FROM audit_events ORDER BY check_id, subject, event_id DESC
    )
    INSERT INTO audit_events (check_id, subject, event, detail)
    SELECT f.check_id, f.subject, 'violated', f.detail
      FROM found f LEFT JOIN told USING (check_id, subject) WHERE told.event IS DISTINCT FROM 'violated'
    UNION ALL
    SELECT told.check_id, told.subject, 'cleared', 'it holds again'
      FROM told LEFT JOIN found f USING (check_id, subject)
     WHERE told.event = 'violated' AND f.check_id IS NULL AND told.check_id = ANY (CAST(:whole AS text[]))
""")

# Orders by hand (`pending`) are taken as soon as they have lines; others only once they have stood still. The page is
# cut before the lines are looked up, so that it costs the same however many orders are unfinished.
_UNFINISHED = text("""
    WITH page AS MATERIALIZED (
        SELECT order_id, customer, status, updated_at, fingerprint, carrier FROM orders o
         WHERE status IN ('pending', 'reserved', 'paid', 'unwinding', 'stuck')
           AND (updated_at, order_id) > (CAST(:after_at AS timestamptz), :after_id)
           AND (status = 'pending' OR updated_at <= now() - CAST(:stood_still AS interval))
           AND EXISTS (SELECT FROM order_lines l WHERE l.order_id = o.order_id)
         ORDER BY updated_at, order_id LIMIT :limit
    )
    SELECT page.*, lines.skus, lines.quantities,
           (SELECT cause FROM incidents i
             WHERE i.order_id = page.order_id AND i.closed_at IS NULL AND i.needs_review) AS to_review
      FROM page CROSS JOIN LATERAL (
          SELECT array_agg(sku ORDER BY sku) AS skus, array_agg(quantity ORDER BY sku) AS quantities
            FROM order_lines l WHERE l.order_id = page.order_id
      ) AS lines
     ORDER BY page.updated_at, page.order_id
""")


# `was_completed`: left again, since somebody asked for it. That is known here, and not forgotten.
_UNFINISHED_STILL = text("""
    SELECT order_id, status, updated_at,
           EXISTS (SELECT FROM order_events e WHERE e.order_id = o.order_id AND e.status = 'completed') AS was_completed
      FROM orders o WHERE order_id = ANY (CAST(:order_ids AS text[]))
       AND status NOT IN ('completed', 'rejected', 'cancelled')
""")

ANCHOR_CHECK = "R1"
_ANCHOR_CLAIM = "what an earlier audit saw is still there"
_IN_DOUBT = f"{DatabaseContradictsHistory.__name__}: "


class Maintenance:
    """Activities that read everything, and write no more than what the audit found."""

    def __init__(self, engine: AsyncEngine, audit_engine: AsyncEngine | None = None) -> None:
        self._engine = engine
        self._audit_engine = audit_engine or engine

    @activity.defn
    async def run_audit(self, audit: AuditInput) -> AuditReport:
        """Run every check of audit.sql on one snapshot. Takes the longer, the more orders there ever were."""
        async with _heartbeat():
            return await self._audit(audit)

    async def _audit(self, audit: AuditInput) -> AuditReport:
        """Audit once nobody else does: many at once take the database away from the orders."""
        while True:
            report = await self._audit_unless_under_way(audit)
            if report is not None:
                return report
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def _audit_unless_under_way(self, audit: AuditInput) -> AuditReport | None:
        checks = audit_checks()
        violations: list[Violation] = []
        count = 0
        parameters = {"at_rest_after": timedelta(seconds=audit.at_rest_after_seconds)}
        async with snapshot(self._audit_engine) as connection:
            # Not waited for: the snapshot is as old as this statement.
            if not (await connection.execute(_TAKE_THE_AUDIT)).scalar_one():
                return None
            for name, (_, query) in checks.items():
                bound = parameters if ":at_rest_after" in query.text else {}
                rows = (await connection.execute(first_and_count(query), bound)).all()
                count += rows[0].found if rows else 0
                violations += [Violation(name, str(row.subject), str(row.detail)) for row in rows]
            claims = {name: claim for name, (claim, _) in checks.items()}
            if audit.anchor is not None:
                claims[ANCHOR_CHECK] = _ANCHOR_CLAIM
                if not (await connection.execute(_HAS_EVENT, asdict(audit.anchor))).scalar_one():
                    count += 1
                    violations.append(_went_back(audit.anchor))
            orders = {row.status: row.orders for row in await connection.execute(_COUNTS)}
            newest = (await connection.execute(_NEWEST_EVENT)).one_or_none()
        anchor = None if newest is None else Anchor(newest.event_id, newest.order_id, newest.seq, newest.at)
        return AuditReport(claims, violations, count, orders, anchor)

    @activity.defn
    async def record_findings(self, report: AuditReport) -> None:
        """Tell saga.log which violations are new, and which of those it was told are over. A repeat tells nothing."""
        listed = Counter(found.check for found in report.violations)
        async with transaction(self._engine) as connection:
            await connection.execute(_TAKE_TURNS)
            await connection.execute(
                _RECORD,
                {
                    "checks": [found.check for found in report.violations],
                    "subjects": [found.subject for found in report.violations],
                    "details": [found.detail for found in report.violations],
                    "whole": [check for check in report.checks if listed[check] < AUDIT_VIOLATIONS_SHOWN],
                },
            )

    @activity.defn
    async def find_unfinished(self, page: UnfinishedInput) -> UnfinishedPage:
        """List one page of orders that are not at an ending and have not moved for a while.

        Those that a batch brought are not lost as long as the batch is under way. Once it has closed, it may have
        closed since we read: one that has moved meanwhile is left to the next sweep. One that stands as it did, and
        that the batch has reported as completed, gets a `doubt`: the database has forgotten what it once knew.
        """
        async with snapshot(self._engine) as connection:
            rows = (
                await connection.execute(
                    _UNFINISHED,
                    {
                        "after_at": datetime.fromisoformat(page.after_at),
                        "after_id": page.after_id,
                        "stood_still": timedelta(seconds=page.stood_still_seconds),
                        "limit": page.limit,
                    },
                )
            ).all()
        orders: list[CheckoutInput] = []
        malformed: list[str] = []
        size = 0
        reported = await _reported_by({row.carrier for row in rows if row.carrier is not None})
        now = await self._unfinished_still([row.order_id for row in rows if reported.get(row.carrier) is not None])
        for row in rows:
            # Somebody has to decide about it, whatever became of the run that waited for that.
            doubt = (row.to_review or "").removeprefix(_IN_DOUBT)
            if row.carrier is not None:
                completed, stands = reported[row.carrier], now.get(row.order_id)
                if completed is None or stands is None or stands.updated_at != row.updated_at:
                    continue
                if row.order_id in completed and not stands.was_completed:
                    doubt = doubt or _contradiction(stands)
            lines = tuple(OrderLine(sku, n) for sku, n in zip(row.skus, row.quantities, strict=True))
            try:
                order = CheckoutInput(row.order_id, row.customer, lines, row.status != OrderStatus.PENDING, doubt)
            except InvalidInput as problem:
                malformed.append(f"{row.order_id}: {problem.message}")
                continue
            if row.fingerprint not in {None, order.fingerprint}:
                malformed.append(f"{row.order_id}: its lines were changed after a saga took it; put them back")
                continue
            orders.append(order)
            size += payload_bytes(order)
            if size > _PAGE_BYTES:
                return UnfinishedPage(orders, malformed, row.updated_at.isoformat(), row.order_id)
        if len(rows) < page.limit:
            return UnfinishedPage(orders, malformed)
        return UnfinishedPage(orders, malformed, rows[-1].updated_at.isoformat(), rows[-1].order_id)

    @activity.defn
    async def find_contradictions(self, orders: list[CheckoutInput]) -> list[CheckoutInput]:
        """Find among unfinished orders those whose newest run has completed: each needs another run all the same.

        A run completes after the database has committed the order's completion. So where the database, read
        after Temporal, has the order unfinished, it has forgotten what it once knew, and the order's `doubt` says
        so. Unless the order is unwinding: then a late undo of an earlier run came after the completion, and there
        is nothing to guess about what was asked for.
        """
        answers = await _side_by_side(_has_completed(order) for order in orders)
        completed = [order for order, has_completed in zip(orders, answers, strict=True) if has_completed]
        now = await self._unfinished_still([order.order_id for order in completed])
        return [
            replace(order, repair=True, doubt=doubt) if (doubt := _contradiction(stands)) else order
            for order in completed
            if (stands := now.get(order.order_id)) is not None
        ]

    async def _unfinished_still(self, order_ids: list[str]) -> Mapping[str, Row[Any]]:
        """Read orders again, after Temporal was asked about them; those that have ended contradict nothing."""
        if not order_ids:
            return {}
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_UNFINISHED_STILL, {"order_ids": order_ids})
            return {row.order_id: row for row in rows}


@asynccontextmanager
async def _heartbeat() -> AsyncIterator[None]:
    """Tell Temporal that this attempt lives for as long as the block runs, so that a lost one is soon tried again.

    With each of them we learn whether anybody still waits: where not, the block is cancelled, and its statement.
    """

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    beating = asyncio.create_task(beat()) if activity.in_activity() else None
    try:
        yield
    finally:
        if beating is not None:
            beating.cancel()


def _contradiction(stands: Row[Any]) -> str:
    """Say what is wrong with an order that Temporal has completed, and that was read as unfinished after that."""
    if stands.status == OrderStatus.UNWINDING:
        return ""
    return (
        f"Temporal has completed order {stands.order_id}, and the database has it as {stands.status}; "
        f"{DatabaseContradictsHistory.question}"
    )


async def _has_completed(order: CheckoutInput) -> bool:
    run = await _run_of(checkout_workflow_id(order.order_id))
    return run is not None and _is_completed(run)


async def _reported_by(carriers: Collection[str]) -> Mapping[str | None, frozenset[str] | None]:
    """Ask the batches which orders they have completed."""
    return dict(zip(carriers, await _side_by_side(map(_completed_by, carriers)), strict=True))


async def _completed_by(carrier: str) -> frozenset[str] | None:
    """Tell which orders a batch has reported as completed; None as long as it is under way."""
    run = await _run_of(carrier)
    if run is None:
        return frozenset()
    if not run.HasField("close_time"):  # whatever its status is called: a paused one goes on some time
        return None
    if not _is_completed(run):
        return frozenset()
    # This run's result: a newer one, of a reset, would be waited for.
    closed = activity.client().get_workflow_handle(carrier, run_id=run.execution.run_id, result_type=BatchReport)
    try:
        report = await closed.result()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return frozenset()
    return frozenset(outcome.order_id for outcome in report.unpacked() if outcome.status == OrderStatus.COMPLETED)


async def _run_of(workflow_id: str) -> WorkflowExecutionInfo | None:
    """Look up a workflow's newest run; None where Temporal knows of none, or not any more."""
    try:
        return await _newest_run(workflow_id)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return None


async def _newest_run(workflow_id: str) -> WorkflowExecutionInfo:
    """Look up a workflow's newest run. The SDK's `describe` (1.35) fails of a paused one."""
    asked = DescribeWorkflowExecutionRequest(
        namespace=activity.client().namespace, execution=WorkflowExecution(workflow_id=workflow_id)
    )
    answer = await activity.client().workflow_service.describe_workflow_execution(asked, retry=True)
    return answer.workflow_execution_info


async def _side_by_side(questions: Iterable[Awaitable[_Answer]]) -> list[_Answer]:
    """Ask Temporal so many things at once, and give the answers in their sequence."""
    turn = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def asked(question: Awaitable[_Answer]) -> _Answer:
        async with turn:
            return await question

    return await asyncio.gather(*map(asked, questions))


def _is_completed(run: WorkflowExecutionInfo) -> bool:
    return run.status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED


def _went_back(anchor: Anchor) -> Violation:
    return Violation(
        ANCHOR_CHECK,
        anchor.order_id,
        f"its event {anchor.seq} is gone: the database was restored to an earlier instant, or it is another one",
    )
