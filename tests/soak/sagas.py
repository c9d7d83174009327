"""Follows orders that are sagas of their own: starts them, does to each what the plan wants done, waits for its end.

Second runs of orders that have ended: whatever they meet, the order stays as it ended, and as it was told.

A run of its own for an order that its batch has brought; another run after the last one has closed, as after Temporal's
retention; a reset; a load that is grouped anew. Many of them find that Postgres refuses their statements for a while,
so that they give up in reserve, pay or ship and unwind, which is nothing that completed orders may be touched by.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from client.failures import OrderIdConflict
from domain.bulk import DELEGATED
from domain.model import CheckoutStatus
from domain.policies import CHECKOUT_TASK_QUEUE, CHECKOUT_WORKFLOW, WORKFLOW_TASK, checkout_workflow_id
from tests.soak.book import Ended
from tests.soak.harness import SoakFailed
from tests.soak.model import ENDINGS, NEVER_BEGUN
from tests.soak.plan import PlannedBatch, PlannedOrder, regrouped
from tests.soak.requests import PAUSE_SECONDS, Operator, Requests, interrupt, resolved
from tests.soak.worker import refusal

FORGOTTEN_SECONDS = 15.0
"""How long a terminated order that is not in the database may still turn up there: longer than any
attempt lives."""


class Sagas:
    def __init__(self, requests: Requests, operator: Operator) -> None:
        self._requests = requests
        self._book, self._checkouts, self._persist = requests.book, requests.checkouts, requests.persist
        self._operator = operator
        self._accepted_cancels: set[int] = set()
        self._usual_seconds = 1.0

    async def begin(self, planned: PlannedOrder) -> None:
        if planned.is_by_hand:
            await self._persist(lambda: self._requests.insert(planned.order))
        else:
            await self._persist(lambda: self._checkouts.start(planned.order))

    async def follow(self, planned: PlannedOrder) -> None:
        begun = time.monotonic()
        acts = [asyncio.create_task(act) for act in self._acts(planned)]
        ended = await self.ending(planned)
        if planned.kind == "plain" and not acts:
            self._usual_seconds += 0.1 * (time.monotonic() - begun - self._usual_seconds)
        for act in acts:
            await act
        is_asked = planned.number in self._accepted_cancels
        if is_asked and ended.status == "completed" and planned.can_be_recalled:
            is_asked = await self._persist(lambda: self._was_asked(planned))
        self._book.end(planned, ended, is_cancel_accepted=is_asked)

    async def ending(self, planned: PlannedOrder) -> Ended:
        """Wait for the last run of an order's saga to close; have it fixed or repaired on the way."""
        runs_lost = 0
        async with self._operator.tending(planned):
            while (ended := await self._close(planned)) is None:
                runs_lost += 1
                if (ended := await self._until_repaired(planned)) is not None:
                    break
        vouched = await self._operator.vouched(planned, ended.status, ended.vouched)
        return Ended(ended.status, ended.reason, vouched, runs_lost)

    def _acts(self, planned: PlannedOrder) -> list[Coroutine[Any, Any, None]]:
        again = [self._start_again(planned)] if planned.second_start else []
        return again + ([self._interrupt(planned)] if planned.interruption else [])

    async def _start_again(self, planned: PlannedOrder) -> None:
        order = planned.other if planned.second_start == "other" else planned.order
        try:
            is_new = await self._persist(lambda: self._checkouts.start(order))
        except OrderIdConflict:
            self._book.counts["starts with other content, refused"] += 1
            if planned.second_start == "same":
                raise SoakFailed(f"{order.order_id}: the same order was refused as another") from None
            return
        if is_new or planned.second_start == "other":
            raise SoakFailed(f"{order.order_id}: a second start was accepted (new: {is_new})")
        self._book.counts["starts of the same order, joined"] += 1

    async def _interrupt(self, planned: PlannedOrder) -> None:
        assert planned.interruption is not None
        name, kind = planned.order.order_id, planned.interruption.kind
        await asyncio.sleep(planned.interruption.after * self._usual_seconds)
        said = await interrupt(
            kind,
            self._requests.saga(name),
            lambda: self._checkouts.cancel(name, "the customer has changed her mind"),
        )
        self._book.counts[f"{kind} {said}"] += 1
        if kind != "terminate" and said == "accepted":
            self._accepted_cancels.add(planned.number)
        if planned.starts_again and said == "accepted":
            is_new = await self._persist(lambda: self._checkouts.start(planned.order))
            self._book.counts[f"starts after a termination, {'a new run' if is_new else 'joined a repair'}"] += 1

    async def _was_asked(self, planned: PlannedOrder) -> bool:
        """Whether a cancel came while the run was open: Temporal says yes to one that comes after its end, too."""
        if planned.interruption is None or planned.interruption.kind != "cancel":
            return True
        asked = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED
        events = self._requests.saga(planned.order.order_id).fetch_history_events()
        return any([event.event_type == asked async for event in events])

    async def _close(self, planned: PlannedOrder) -> Ended | None:
        while True:
            try:
                status = await self._requests.saga(planned.order.order_id).result()
            except WorkflowFailureError as failure:
                return _ended(failure.cause)
            except RPCError as error:
                # Not found: written by hand, and no sweep has seen it yet.
                if error.status is RPCStatusCode.NOT_FOUND and not planned.is_by_hand:
                    raise SoakFailed(
                        f"{planned.order.order_id} was acknowledged, and Temporal has no such run"
                    ) from None
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return Ended(status.status, status.reason or "", resolved(status))

    async def _until_repaired(self, planned: PlannedOrder) -> Ended | None:
        """Wait until a terminated order has ended in the database, by its last deed or by a sweep's.

        None when there is a newer run to ask. An order that its run had ended before it was terminated has none.
        """
        name = planned.order.order_id
        loop = asyncio.get_running_loop()
        unseen_since: float | None = None
        while True:
            row = await self._persist(lambda: self._requests.row(name))
            run = await self._persist(lambda: self._requests.newest_run(self._requests.saga(name)))
            if run is not None and run.status is not WorkflowExecutionStatus.TERMINATED:
                return None
            if row is not None and row["status"] in ENDINGS:
                return Ended(row["status"], row["reason"] or "")
            unseen_since = None if row else unseen_since or loop.time()
            if unseen_since and loop.time() - unseen_since > FORGOTTEN_SECONDS:
                return Ended(NEVER_BEGUN)
            await asyncio.sleep(PAUSE_SECONDS)


def _ended(cause: BaseException) -> Ended | None:
    if isinstance(cause, TerminatedError):
        return None
    if isinstance(cause, CancelledError):
        return Ended("cancelled")
    if isinstance(cause, ApplicationError) and cause.details:
        status: CheckoutStatus = value_to_type(CheckoutStatus, cause.details[0])
        return Ended(status.status, status.reason or "", resolved(status))
    raise SoakFailed(f"a saga ended in a way of its own: {cause!r}")


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
