"""Follows orders that come in batches: loads each batch as a bulk load does, and waits for the end of each order."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import asyncpg
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.service import RPCError

from client.batches import delegated_outcome
from client.failures import OrderIdConflict
from domain.bulk import DELEGATED, ORDER_ID_CONFLICT, UNKNOWN, Outcome, digest
from domain.model import CheckoutInput, OrderStatus
from domain.policies import bulk_workflow_id
from tests.soak.book import Ended
from tests.soak.harness import SoakFailed
from tests.soak.injector import FaultInjector
from tests.soak.model import ENDINGS, NEVER_BEGUN
from tests.soak.plan import PlannedBatch, PlannedOrder
from tests.soak.requests import PAUSE_SECONDS, Operator, Requests, interrupt
from tests.soak.sagas import FORGOTTEN_SECONDS, Sagas

WAYS = {
    DELEGATED: "batch, then a saga of its own",
    ORDER_ID_CONFLICT: "batch, came too late",
    UNKNOWN: "batch, terminated",
}
"""What the report calls the way of an order, by what its batch reported of it; all others went through in the batch."""


class Loads:
    def __init__(self, requests: Requests, operator: Operator, sagas: Sagas, injector: FaultInjector) -> None:
        self._requests = requests
        self._book, self._checkouts, self._persist = requests.book, requests.checkouts, requests.persist
        self._operator = operator
        self._sagas = sagas
        self._injector = injector
        self._usual_seconds = 1.0

    async def process(self, batch: PlannedBatch, orders: Sequence[PlannedOrder]) -> list[Outcome]:
        """Have a batch processed, with all that the plan wants done to it meanwhile; return what was reported."""
        for planned in orders:
            if planned.is_by_hand:
                await self._persist(lambda planned=planned: self._requests.insert(planned.order))  # type: ignore[misc]
        content = [planned.order for planned in orders]
        self._injector.batch_begins()
        try:
            async with asyncio.TaskGroup() as acts:
                acts.create_task(self._reach(batch))
                twin = acts.create_task(self._processed(content)) if batch.has_twin else None
                if batch.interruption is not None:
                    acts.create_task(self._interrupt(batch, content))
                if batch.overlap:
                    acts.create_task(self._processed(overlapping(batch, orders)))
                for planned in orders:
                    if planned.second_start and planned.number not in batch.overlapping:
                        acts.create_task(self._start_too(planned))
                outcomes = await self._all_told(batch, content)
        finally:
            self._injector.batch_ends()
        if twin is not None and twin.result() != outcomes:
            raise SoakFailed(f"two callers of the batch of {content[0].order_id} were told different outcomes")
        return outcomes

    async def follow(self, planned: PlannedOrder, outcome: Outcome) -> None:
        """Follow an order that a batch has reported to its end, and record it."""
        self._book.ways[WAYS.get(outcome.status, "batch")] += 1
        if planned.is_contested or outcome.status in {UNKNOWN, ORDER_ID_CONFLICT}:
            await self._settle(planned, outcome)
        elif outcome.status == DELEGATED:
            self._book.end(planned, await self._sagas.ending(planned))
        elif outcome.status in ENDINGS:
            self._book.end(planned, Ended(outcome.status, outcome.reason or ""))
        else:
            raise SoakFailed(f"a batch tells of {planned.order.order_id} that it is {outcome.status}")

    async def _all_told(self, batch: PlannedBatch, content: Sequence[CheckoutInput]) -> list[Outcome]:
        """Load a batch; once more, as the plan says, where it was ended from outside."""
        begun = time.monotonic()
        outcomes = await self._processed(content)
        if batch.interruption is None:
            self._usual_seconds += 0.2 * (time.monotonic() - begun - self._usual_seconds)
        if outcomes[0].status == UNKNOWN:
            if batch.interruption is None or batch.interruption.kind != "terminate":
                raise SoakFailed(f"a batch was ended, and nobody did it: {outcomes[0]}")
            if batch.starts_again:
                self._book.counts["batches loaded again"] += 1
                outcomes = await self._processed(content)
        return outcomes

    async def _processed(self, content: Sequence[CheckoutInput]) -> list[Outcome]:
        return list(await self._persist(lambda: self._checkouts.process(content)))

    async def _reach(self, batch: PlannedBatch) -> None:
        """Reach the batch's numbers one after the other while it runs: their faults come in the midst of it."""
        for number in batch.numbers:
            await self._injector.reach(number)
            await asyncio.sleep(self._usual_seconds / batch.size)

    async def _interrupt(self, batch: PlannedBatch, content: Sequence[CheckoutInput]) -> None:
        assert batch.interruption is not None
        await asyncio.sleep(batch.interruption.after * self._usual_seconds)
        handle = self._requests.client.get_workflow_handle(bulk_workflow_id(digest(content)))
        said = await interrupt(batch.interruption.kind, handle)
        self._book.counts[f"{batch.interruption.kind} of a batch {said}"] += 1

    async def _start_too(self, planned: PlannedOrder) -> None:
        """Start an order of the batch as a saga of its own, at an instant that follows from its number."""
        await asyncio.sleep(planned.number % 13 / 10 * self._usual_seconds)
        order = planned.other if planned.second_start == "other" else planned.order
        try:
            is_new = await self._persist(lambda: self._checkouts.start(order))
        except OrderIdConflict:
            if planned.second_start == "same":
                raise SoakFailed(f"{order.order_id}: the same order was refused as another") from None
            said = "refused"
        else:
            said = "beside its batch" if is_new else "joined"
        self._book.counts[f"starts of a batch's order, {planned.second_start} content, {said}"] += 1

    async def _settle(self, planned: PlannedOrder, outcome: Outcome) -> None:
        """Wait until an order has ended whichever workflow is at work on it, and record its ending."""
        async with self._operator.tending(planned):
            if outcome.status == DELEGATED and planned.second_start == "other":
                outcome = await self._processed_on(planned)
            row = await self._at_rest(planned)
        output, stands = outcome.status, row["status"] if row else None
        if output in ENDINGS and output != stands:
            raise SoakFailed(f"{planned.order.order_id}: a load tells that it is {output}, the database has {stands}")
        if row is None:
            self._book.end(planned, Ended(NEVER_BEGUN))
            return
        if planned.second_start == "other" and row["fingerprint"] == planned.other.fingerprint:
            if output not in {DELEGATED, ORDER_ID_CONFLICT, UNKNOWN}:
                raise SoakFailed(f"{planned.order.order_id}: another order has its id, and a load tells {outcome}")
            self._book.taken.add(planned.number)
            planned = replace(planned, order=planned.other)
        elif output == ORDER_ID_CONFLICT:
            raise SoakFailed(f"{planned.order.order_id}: a load tells that its id is taken, and it is its own")
        elif row["fingerprint"] != planned.order.fingerprint and not (
            planned.is_by_hand and row["fingerprint"] is None
        ):
            raise SoakFailed(f"{planned.order.order_id} has a content that nobody asked for")
        self._book.end(planned, Ended(row["status"], row["reason"] or ""))

    async def _processed_on(self, planned: PlannedOrder) -> Outcome:
        """Follow an order that was handed over as a bulk load does: the saga that it finds may be a stranger's."""
        while True:
            outcome = await self._persist(lambda: delegated_outcome(self._checkouts, planned.order))
            if outcome.status != OrderStatus.STUCK:
                return outcome
            await asyncio.sleep(PAUSE_SECONDS)

    async def _at_rest(self, planned: PlannedOrder) -> asyncpg.Record | None:
        """Wait until an order has ended and no saga of its own is open; None when nothing of it ever turns up."""
        name = planned.order.order_id
        saga = self._requests.saga(name)
        unseen_since: float | None = None
        while True:
            run = await self._persist(lambda: self._requests.newest_run(saga))
            if run is not None and run.status is WorkflowExecutionStatus.RUNNING:
                with contextlib.suppress(WorkflowFailureError, RPCError):
                    await saga.result()
                continue
            row = await self._persist(lambda: self._requests.row(name))
            if row is not None and row["status"] in ENDINGS:
                return row
            unseen_since = None if row else unseen_since or time.monotonic()
            if unseen_since and time.monotonic() - unseen_since > FORGOTTEN_SECONDS:
                return None
            await asyncio.sleep(PAUSE_SECONDS)


def overlapping(batch: PlannedBatch, orders: Sequence[PlannedOrder]) -> list[CheckoutInput]:
    """Give the content of the second batch, of orders that are in the first one, too: some with other content."""
    return [
        planned.other if planned.second_start == "other" else planned.order
        for planned in orders
        if planned.number in batch.overlapping
    ]
