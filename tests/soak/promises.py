"""At rest Temporal and the database agree on every order, and the database has every outcome that a batch reported."""

from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle

from domain.bulk import DELEGATED, ORDER_ID_CONFLICT, Batch, BatchReport, Outcome, digest, unpack
from domain.model import CheckoutInput
from domain.policies import ORDER_STATUS, bulk_workflow_id, order_id_of
from tests.soak.book import Book
from tests.soak.harness import Harness
from tests.soak.loads import overlapping
from tests.soak.model import ENDINGS, NEVER_BEGUN
from tests.soak.plan import Plan, PlannedBatch, regrouped

_AGREES = {
    WorkflowExecutionStatus.COMPLETED: {"completed"},
    WorkflowExecutionStatus.FAILED: {"rejected", "cancelled"},
    WorkflowExecutionStatus.CANCELED: {"cancelled"},
}


class Run(NamedTuple):
    begun: datetime
    closed: WorkflowExecutionStatus | None
    said: str | None


async def newest_runs(client: Client) -> dict[str, Run]:
    newest: dict[str, Run] = {}
    async for run in client.list_workflows("WorkflowType = 'Checkout'", page_size=1_000):
        order_id = order_id_of(run.id)
        if order_id not in newest or newest[order_id].begun < run.start_time:
            newest[order_id] = Run(run.start_time, run.status, run.typed_search_attributes.get(ORDER_STATUS))
    return newest


def disagreements(plan: Plan, book: Book, runs: dict[str, Run], statuses: dict[str, str]) -> list[str]:
    problems = [
        f"{name} has a row and no run, and came in no batch"
        for name in sorted(statuses.keys() - runs.keys())
        if not _may_share_a_run(plan, plan.number_of(name))
    ]
    for number in sorted(book.acknowledged):
        name, ending = plan.order_id(number), book.endings.get(number)
        run = runs.get(name)
        if run is None and not _may_share_a_run(plan, number):
            problems.append(f"{name} was acknowledged, and Temporal does not know it")
        elif ending == NEVER_BEGUN:
            if name in statuses or (run and run.closed is not WorkflowExecutionStatus.TERMINATED):
                problems.append(f"{name} was never begun, and yet: {statuses.get(name)}, {run}")
        elif ending != statuses.get(name):
            problems.append(f"{name}: its caller was told {ending}, the database says {statuses.get(name)}")
    found = (_disagreement(plan, book, name, run, statuses.get(name)) for name, run in runs.items())
    return problems + [problem for problem in found if problem]


def _may_share_a_run(plan: Plan, number: int) -> bool:
    return plan.batch_of(number) is not None or plan.order(number).is_through_door


def _disagreement(plan: Plan, book: Book, name: str, run: Run, status: str | None) -> str | None:
    planned = plan.order(plan.number_of(name))
    if run.closed is WorkflowExecutionStatus.TERMINATED:
        is_planned = planned.interruption is not None and planned.interruption.kind == "terminate"
        return None if is_planned else f"{name} was terminated, and nobody did it"
    is_strangers = planned.batch is not None and planned.second_start == "other" and planned.number not in book.taken
    if (is_strangers or planned.number in book.rivals) and run.said == "rejected":
        status = "rejected"  # the other content came too late and was refused; what the database has stands
    if run.closed is None or status not in _AGREES.get(run.closed, set()) or (run.said and run.said != status):
        return f"{name}: its run is {run.closed} ({run.said}), the database says {status}"
    return None


_ROWS = """
    SELECT o.order_id, o.status, o.reason, o.total_minor, o.currency, s.tracking_number, o.fingerprint
      FROM orders o LEFT JOIN shipments s ON s.order_id = o.order_id AND s.state <> 'cancelled'
     WHERE o.order_id = ANY ($1::text[])
"""


class _Wanted(NamedTuple):
    batch: PlannedBatch | None
    """None of those that came over HTTP."""
    fingerprints: dict[str, str]
    is_certain: bool = True


class Promises:
    def __init__(self, harness: Harness, client: Client, plan: Plan) -> None:
        self._harness = harness
        self._client = client
        self._plan = plan
        self._wanted = self._planned()
        self.compared = 0

    @property
    def workflows(self) -> dict[str, PlannedBatch | None]:
        """The workflows of all batches, by id, each with the batch that it carries or overlaps with.

        After `broken` also those of orders that came over HTTP, which nobody plans.
        """
        return {name: wanted.batch for name, wanted in self._wanted.items() if wanted.is_certain}

    async def broken(self, with_sagas: AbstractSet[str]) -> list[str]:
        """List what does not hold. `with_sagas` are the orders that have a saga of their own."""
        seen: set[str] = set()
        problems: list[str] = []
        self.compared = 0
        async for run in self._client.list_workflows("WorkflowType = 'BulkCheckout'", page_size=1_000):
            seen.add(run.id)
            planned = self._wanted.get(run.id) or await self._through_door(run.id)
            if planned is None:
                problems.append(f"{run.id} was started, and nobody planned it")
            elif run.status is WorkflowExecutionStatus.TERMINATED:
                interruption = planned.batch.interruption if planned.batch else None
                if interruption is None or interruption.kind != "terminate":
                    problems.append(f"{run.id} was terminated, and nobody did it")
            elif run.status is not WorkflowExecutionStatus.COMPLETED:
                problems.append(f"{run.id} is {run.status}")
            else:
                problems += await self._of_report(run.id, run.run_id, planned, with_sagas)
        return problems + [
            f"{name} was acknowledged, and Temporal does not know it" for name in self.workflows.keys() - seen
        ]

    async def _through_door(self, workflow_id: str) -> _Wanted | None:
        """Read which orders a batch was started with; None unless all of them were to come over HTTP."""
        handle = self._client.get_workflow_handle(workflow_id)
        first = await anext(handle.fetch_history_events())
        payloads = first.workflow_execution_started_event_attributes.input.payloads
        [batch] = await self._client.data_converter.decode(payloads, [Batch])
        orders = [unpack(packed) for packed in batch.orders]
        if not all(self._plan.order(self._plan.number_of(order.order_id)).is_through_door for order in orders):
            return None
        self._wanted[workflow_id] = _Wanted(None, {order.order_id: order.fingerprint for order in orders})
        return self._wanted[workflow_id]

    def _planned(self) -> dict[str, _Wanted]:
        """Name the workflow of every batch, and of every second batch that overlaps with one."""
        found = {}
        for batch in self._plan.batches():
            orders = [self._plan.order(number) for number in batch.numbers]
            contents: list[list[CheckoutInput]] = [[planned.order for planned in orders]]
            contents += [overlapping(batch, orders)] if batch.overlap else []
            again = [planned.order for planned in regrouped(batch, orders)]
            contents += [again] if again else []
            for content in contents:
                fingerprints = {order.order_id: order.fingerprint for order in content}
                found[bulk_workflow_id(digest(content))] = _Wanted(batch, fingerprints)
            # Where a stranger's saga has an order's id, a load asks for that order once more, by itself.
            for planned in (one for one in orders if one.second_start == "other"):
                alone = _Wanted(batch, {planned.order.order_id: planned.order.fingerprint}, is_certain=False)
                found.setdefault(bulk_workflow_id(digest([planned.order])), alone)
        return found

    async def _of_report(
        self, workflow_id: str, run_id: str, planned: _Wanted, with_sagas: AbstractSet[str]
    ) -> list[str]:
        handle: WorkflowHandle[Any, BatchReport] = self._client.get_workflow_handle(
            workflow_id, run_id=run_id, result_type=BatchReport
        )
        outcomes = (await handle.result(follow_runs=False)).unpacked()
        if [outcome.order_id for outcome in outcomes] != list(planned.fingerprints):
            return [f"{workflow_id} tells of other orders than it was asked for"]
        async with self._harness.asking() as connection:
            rows = {row["order_id"]: row for row in await connection.fetch(_ROWS, list(planned.fingerprints))}
        self.compared += len(outcomes)
        return [
            f"{workflow_id} tells {outcome}, and {problem}"
            for outcome in outcomes
            if (problem := self._of_outcome(outcome, rows.get(outcome.order_id), planned, with_sagas))
        ]

    def _may_be_recalled(self, stands: Outcome) -> bool:
        """Return whether a cancel may have come after the batch's end, to a saga that a repeat had begun beside it."""
        planned = self._plan.order(self._plan.number_of(stands.order_id))
        return planned.is_through_door and planned.interruption is not None

    def _of_outcome(
        self, outcome: Outcome, row: asyncpg.Record | None, planned: _Wanted, with_sagas: AbstractSet[str]
    ) -> str | None:
        if row is None:
            return "the database knows nothing of it"
        is_its_own = row["fingerprint"] == planned.fingerprints[outcome.order_id] or (
            row["fingerprint"] is None and self._plan.order(self._plan.number_of(outcome.order_id)).is_by_hand
        )
        if outcome.status == ORDER_ID_CONFLICT:
            return "the database has that content" if is_its_own else None
        if outcome.status == DELEGATED:
            # Where another order may have the id, `carried_on` was asked whose saga that is, and the book has it.
            has_rival = self._plan.order(self._plan.number_of(outcome.order_id)).second_start == "other"
            is_true = outcome.order_id in with_sagas and (is_its_own or has_rival)
            return None if is_true else "it has no saga of its own"
        if not is_its_own:
            return "the database has another order under this id"
        stands = Outcome(*list(row.values())[:6])
        was_recalled = (outcome.status, stands.status) == ("completed", "cancelled") and self._may_be_recalled(stands)
        if outcome.status not in ENDINGS or (outcome != stands and not was_recalled):
            return f"the database says {stands}"
        return None
