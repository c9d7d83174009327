"""What the reports of all batches have told, compared with the database: an outcome is a promise."""

from collections.abc import Set as AbstractSet
from typing import NamedTuple

import asyncpg
from temporalio.client import Client, WorkflowExecutionStatus

from domain.bulk import HANDED_OVER, ORDER_ID_CONFLICT, Outcome, digest
from domain.model import CheckoutInput
from domain.policies import bulk_workflow_id
from tests.soak.batches import PlannedBatch
from tests.soak.loads import overlapping
from tests.soak.model import ENDINGS
from tests.soak.plan import Plan
from tests.soak.planned import regrouped
from tests.soak.stage import Stage
from workflows.bulk import BulkCheckoutWorkflow

_ROWS = """
    SELECT o.order_id, o.status, o.reason, o.total_minor, o.currency, s.tracking_number, o.fingerprint
      FROM orders o LEFT JOIN shipments s ON s.order_id = o.order_id AND s.state <> 'cancelled'
     WHERE o.order_id = ANY ($1::text[])
"""


class _Wanted(NamedTuple):
    batch: PlannedBatch
    fingerprints: dict[str, str]
    is_certain: bool = True
    """Whether it is sure to be started."""


class Promises:
    """The reports of the batches, read again from Temporal."""

    def __init__(self, stage: Stage, client: Client, plan: Plan) -> None:
        self._stage = stage
        self._client = client
        self._plan = plan
        self._wanted = self._planned()
        self.compared = 0
        """Outcomes that were looked up in the database."""

    @property
    def workflows(self) -> dict[str, PlannedBatch]:
        """The workflows of all batches, by id, each with the batch that it carries or overlaps with."""
        return {name: wanted.batch for name, wanted in self._wanted.items() if wanted.is_certain}

    async def broken(self, with_sagas: AbstractSet[str]) -> list[str]:
        """List what does not hold. `with_sagas` are the orders that have a saga of their own."""
        seen: set[str] = set()
        problems: list[str] = []
        self.compared = 0
        async for run in self._client.list_workflows("WorkflowType = 'BulkCheckout'", page_size=1_000):
            seen.add(run.id)
            planned = self._wanted.get(run.id)
            if planned is None:
                problems.append(f"{run.id} was started, and nobody planned it")
            elif run.status is WorkflowExecutionStatus.TERMINATED:
                if planned.batch.interruption is None or planned.batch.interruption.kind != "terminate":
                    problems.append(f"{run.id} was terminated, and nobody did it")
            elif run.status is not WorkflowExecutionStatus.COMPLETED:
                problems.append(f"{run.id} is {run.status}")
            else:
                problems += await self._of_report(run.id, run.run_id, planned, with_sagas)
        return problems + [
            f"{name} was acknowledged, and Temporal does not know it" for name in self.workflows.keys() - seen
        ]

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
        handle = self._client.get_workflow_handle_for(BulkCheckoutWorkflow.run, workflow_id, run_id=run_id)
        outcomes = (await handle.result(follow_runs=False)).unpacked()
        if [outcome.order_id for outcome in outcomes] != list(planned.fingerprints):
            return [f"{workflow_id} tells of other orders than it was asked for"]
        async with self._stage.asking() as connection:
            rows = {row["order_id"]: row for row in await connection.fetch(_ROWS, list(planned.fingerprints))}
        self.compared += len(outcomes)
        return [
            f"{workflow_id} tells {outcome}, and {problem}"
            for outcome in outcomes
            if (problem := self._of_outcome(outcome, rows.get(outcome.order_id), planned, with_sagas))
        ]

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
        if outcome.status == HANDED_OVER:
            # Where another order may have the id, `carried_on` was asked whose saga that is, and the book has it.
            has_rival = self._plan.order(self._plan.number_of(outcome.order_id)).second_start == "other"
            is_true = outcome.order_id in with_sagas and (is_its_own or has_rival)
            return None if is_true else "it has no saga of its own"
        if not is_its_own:
            return "the database has another order under this id"
        stands = Outcome(*list(row.values())[:6])
        if outcome.status not in ENDINGS or outcome != stands:
            return f"the database says {stands}"
        return None
