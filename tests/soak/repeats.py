"""Second runs of orders that have ended: whatever they meet, the order stays as it ended, and as it was told.

A run of its own for an order that its batch has brought; another run after the last one has closed, as after Temporal's
retention; a reset; a load that is grouped anew. Many of them find that Postgres refuses their statements for a while,
so that they give up in reserve, pay or ship and unwind, which is nothing that completed orders may be touched by.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowExecutionStatus
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from domain.bulk import DELEGATED
from domain.policies import CHECKOUT_TASK_QUEUE, CHECKOUT_WORKFLOW, WORKFLOW_TASK, checkout_workflow_id
from tests.soak.harness import SoakFailed
from tests.soak.model import NEVER_BEGUN
from tests.soak.plan import PlannedBatch, PlannedOrder, regrouped
from tests.soak.requests import Requests
from tests.soak.sagas import Sagas
from tests.soak.worker import refusal

_FIRST_TASK_ENDS = 4
"""The number of the event that ends a run's first workflow task; a reset goes back to there."""


class Repeats:
    def __init__(self, requests: Requests, sagas: Sagas) -> None:
        self._requests = requests
        self._book, self._checkouts, self._persist = requests.book, requests.checkouts, requests.persist
        self._sagas = sagas

    async def run_again(self, planned: PlannedOrder) -> None:
        """Run an order again as the plan says, and require that nothing comes of it."""
        again, ended = planned.again, self._book.endings[planned.number]
        if again is None or ended == NEVER_BEGUN:
            return
        async with self._refusing([planned], again.gives_up_in, again.seconds):
            kind = await self._begin(planned, again.kind)
            second = await self._sagas.ending(planned)
        self._book.special.add(planned.number)
        gave_up = f", refused in {again.gives_up_in}" if again.gives_up_in else ""
        self._book.counts[f"second runs of {ended} orders, {kind}{gave_up}"] += 1
        await self._require_same(planned, ended, f"a second run ({kind}{gave_up})")
        if second.status != ended:
            raise SoakFailed(f"{planned.order.order_id} is {ended}, and its second run tells {second}")

    async def load_anew(self, batch: PlannedBatch, orders: Sequence[PlannedOrder]) -> None:
        """Load the orders of a batch that have ended in another batch, and require that nothing comes of it."""
        again = regrouped(batch, orders)
        if batch.regrouping is None or not again:
            return
        refused = batch.regrouping.gives_up_in
        async with self._refusing(again, refused, batch.regrouping.seconds):
            content = [planned.order for planned in again]
            outcomes = await self._persist(lambda: self._checkouts.process(content))
            for planned, outcome in zip(again, outcomes, strict=True):
                ended = self._book.endings[planned.number]
                if outcome.status == DELEGATED:
                    output = (await self._sagas.ending(planned)).status
                    self._book.special.add(planned.number)
                else:
                    output = outcome.status
                if output != ended:
                    raise SoakFailed(f"{planned.order.order_id} is {ended}, and a load grouped anew tells {output}")
        for planned in again:
            await self._require_same(planned, self._book.endings[planned.number], "a load grouped anew")
        self._book.counts["orders of loads grouped anew" + (f", refused in {refused}" if refused else "")] += len(again)

    async def _begin(self, planned: PlannedOrder, kind: str) -> str:
        """Begin a second run; return which kind it became, since there may be no run that could be reset."""
        workflow_id = checkout_workflow_id(planned.order.order_id)
        saga = self._requests.saga(planned.order.order_id)
        while (
            run := await self._persist(lambda: self._requests.newest_run(saga))
        ) is not None and run.status is WorkflowExecutionStatus.RUNNING:
            # The repair of a sweep that read the order's row before its terminated run had written the ending.
            await self._sagas.ending(planned)
            self._book.counts["repairs of orders that had ended"] += 1
            await self._require_same(planned, self._book.endings[planned.number], "a repair that came late")
        if run is None:
            await self._persist(lambda: self._checkouts.start(planned.order))
            return "started beside its batch's"
        if kind == "reset":
            request = ResetWorkflowExecutionRequest(
                namespace=self._requests.client.namespace,
                workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run.run_id),
                reason="the soak resets it",
                workflow_task_finish_event_id=_FIRST_TASK_ENDS,
                request_id=f"soak-reset-{planned.order.order_id}",
            )
            await self._persist(lambda: self._requests.client.workflow_service.reset_workflow_execution(request))
            return "reset"
        await self._persist(lambda: self._start_anew(planned, workflow_id))
        return "after retention"

    async def _start_anew(self, planned: PlannedOrder, workflow_id: str) -> None:
        with suppress(WorkflowAlreadyStartedError):  # an answer was lost
            await self._requests.client.start_workflow(
                CHECKOUT_WORKFLOW,
                planned.order,
                id=workflow_id,
                task_queue=CHECKOUT_TASK_QUEUE,
                task_timeout=WORKFLOW_TASK,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            )

    @asynccontextmanager
    async def _refusing(self, orders: Iterable[PlannedOrder], step: str | None, seconds: float) -> AsyncIterator[None]:
        """Have Postgres refuse what asks for a step of these orders, for so long from now on."""
        if step is None:
            yield
            return
        files = [refusal(self._requests.harness.refused, planned.order.order_id, step) for planned in orders]
        for file in files:
            file.touch()
        lifting = asyncio.create_task(_lift(files, seconds))
        try:
            yield
        finally:
            await lifting

    async def _require_same(self, planned: PlannedOrder, status: str, what: str) -> None:
        row = await self._persist(lambda: self._requests.row(planned.order.order_id))
        if row is None or row["status"] != status:
            raise SoakFailed(f"{planned.order.order_id} was {status}; after {what} it is {row and row['status']}")


async def _lift(files: Iterable[Path], seconds: float) -> None:
    await asyncio.sleep(seconds)
    for file in files:
        file.unlink()
