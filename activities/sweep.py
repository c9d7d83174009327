"""The sweep: finding unfinished orders whose saga is missing, from the database and from Temporal together."""

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Mapping
from dataclasses import replace
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

from adapters.database import snapshot
from domain.bulk import BatchReport, payload_bytes
from domain.errors import DatabaseContradictsHistory
from domain.model import CheckoutInput, OrderLine, OrderStatus
from domain.policies import checkout_workflow_id
from domain.sweep import UnfinishedInput, UnfinishedPage
from sagafence import InvalidInput

_Answer = TypeVar("_Answer")
_COMPLETED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED

# A page is one value to Temporal, which takes 2 MB; each order in it has 160 KB at most.
_PAGE_BYTES = 1_000_000
_REQUESTS_AT_ONCE = 10
_NEEDS_REVIEW = f"{DatabaseContradictsHistory.__name__}: "

# Orders by hand (`pending`) are taken as soon as they have lines; others only once they have been idle. The page is cut
# before the lines are read, so that it costs the same however many orders are unfinished.
_UNFINISHED = text("""
    WITH page AS MATERIALIZED (
        SELECT order_id, customer, status, updated_at, fingerprint, batch_workflow_id FROM orders o
         WHERE status IN ('pending', 'reserved', 'paid', 'unwinding', 'stuck')
           AND (updated_at, order_id) > (CAST(:after_at AS timestamptz), :after_id)
           AND (status = 'pending' OR updated_at <= now() - CAST(:idle_for AS interval))
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

# `was_completed`: no longer, because a cancel was asked for. The database has not lost the completion.
_UNFINISHED_STILL = text("""
    SELECT order_id, status, updated_at,
           EXISTS (SELECT FROM order_events e WHERE e.order_id = o.order_id AND e.status = 'completed') AS was_completed
      FROM orders o WHERE order_id = ANY (CAST(:order_ids AS text[]))
       AND status NOT IN ('completed', 'rejected', 'cancelled')
""")


class Sweep:
    """Activities that find orders which need a saga. They write nothing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def find_unfinished(self, page: UnfinishedInput) -> UnfinishedPage:
        """List one page of orders that are not at an ending and have been idle for a while.

        The orders of a batch have no lost saga as long as the batch is running. One that closes while we look may
        have changed its orders since we read them: an order that has moved is left to the next sweep. One that has
        not, and that the batch has reported as completed, gets a `review_reason`: the database has lost what it had.
        """
        asked = {
            "after_at": datetime.fromisoformat(page.after_at),
            "after_id": page.after_id,
            "idle_for": timedelta(seconds=page.idle_seconds),
            "limit": page.limit,
        }
        async with snapshot(self._engine) as connection:
            rows = (await connection.execute(_UNFINISHED, asked)).all()
        orders: list[CheckoutInput] = []
        malformed: list[str] = []
        size = 0
        reported = await _reported_by({row.batch_workflow_id for row in rows if row.batch_workflow_id is not None})
        of_ended = [row.order_id for row in rows if reported.get(row.batch_workflow_id) is not None]
        current = await self._unfinished_still(of_ended)
        for row in rows:
            # It needs a review, whatever became of the run that waited for it.
            review_reason = (row.to_review or "").removeprefix(_NEEDS_REVIEW)
            if row.batch_workflow_id is not None:
                completed, now = reported[row.batch_workflow_id], current.get(row.order_id)
                if completed is None or now is None or now.updated_at != row.updated_at:
                    continue
                if row.order_id in completed and not now.was_completed:
                    review_reason = review_reason or _contradiction(now)
            lines = tuple(OrderLine(sku, n) for sku, n in zip(row.skus, row.quantities, strict=True))
            try:
                order = CheckoutInput(
                    row.order_id, row.customer, lines, row.status != OrderStatus.PENDING, review_reason
                )
            except InvalidInput as problem:
                malformed.append(f"{row.order_id}: {problem.message}")
                continue
            if row.fingerprint not in {None, order.fingerprint}:
                malformed.append(f"{row.order_id}: its lines were changed after a saga took it; restore them")
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
        after Temporal, has the order unfinished, it has lost what it once had, and the order's `review_reason` says so.
        Unless the order is unwinding: then a late undo of an earlier run came after the completion, and what was
        asked for is known.
        """
        answers = await _concurrently(_has_completed(order) for order in orders)
        completed = [order for order, has_completed in zip(orders, answers, strict=True) if has_completed]
        current = await self._unfinished_still([order.order_id for order in completed])
        return [
            replace(order, repair=True, review_reason=review_reason)
            if (review_reason := _contradiction(now))
            else order
            for order in completed
            if (now := current.get(order.order_id)) is not None
        ]

    async def _unfinished_still(self, order_ids: list[str]) -> Mapping[str, Row[Any]]:
        """Read orders again, after Temporal was asked about them; those that have ended contradict nothing."""
        if not order_ids:
            return {}
        async with snapshot(self._engine) as connection:
            rows = await connection.execute(_UNFINISHED_STILL, {"order_ids": order_ids})
            return {row.order_id: row for row in rows}


def _contradiction(now: Row[Any]) -> str:
    """Return what is wrong with an order that Temporal has completed, and that was read as unfinished after that."""
    if now.status == OrderStatus.UNWINDING:
        return ""
    return (
        f"Temporal has completed order {now.order_id}, and the database has it as {now.status}; "
        f"{DatabaseContradictsHistory.question}"
    )


async def _has_completed(order: CheckoutInput) -> bool:
    run = await _newest_run(checkout_workflow_id(order.order_id))
    return run is not None and run.status == _COMPLETED


async def _reported_by(batches: Collection[str]) -> Mapping[str | None, frozenset[str] | None]:
    """Return which orders each batch has reported as completed; None for one that is running."""
    return dict(zip(batches, await _concurrently(map(_completed_by, batches)), strict=True))


async def _completed_by(workflow_id: str) -> frozenset[str] | None:
    run = await _newest_run(workflow_id)
    if run is None:
        return frozenset()
    if not run.HasField("close_time"):  # whatever its status is called: a paused one will run on
        return None
    if run.status != _COMPLETED:
        return frozenset()
    # This run's result: a newer one, of a reset, would be waited for.
    closed = activity.client().get_workflow_handle(workflow_id, run_id=run.execution.run_id, result_type=BatchReport)
    report = await _none_if_gone(closed.result())
    if report is None:
        return frozenset()
    return frozenset(outcome.order_id for outcome in report.unpacked() if outcome.status == OrderStatus.COMPLETED)


async def _newest_run(workflow_id: str) -> WorkflowExecutionInfo | None:
    # Not by the SDK's `describe` (1.35), which fails for a paused one.
    asked = DescribeWorkflowExecutionRequest(
        namespace=activity.client().namespace, execution=WorkflowExecution(workflow_id=workflow_id)
    )
    answer = await _none_if_gone(activity.client().workflow_service.describe_workflow_execution(asked, retry=True))
    return None if answer is None else answer.workflow_execution_info


async def _none_if_gone(request: Awaitable[_Answer]) -> _Answer | None:
    """Return what Temporal answers about a run; None where it has none, or not any more."""
    try:
        return await request
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return None


async def _concurrently(requests: Iterable[Awaitable[_Answer]]) -> list[_Answer]:
    """Await a few requests to Temporal at a time, and return the answers in their order."""
    turn = asyncio.Semaphore(_REQUESTS_AT_ONCE)

    async def asked(request: Awaitable[_Answer]) -> _Answer:
        async with turn:
            return await request

    return await asyncio.gather(*map(asked, requests))
