"""Follows orders that are sagas of their own: starts them, does to each what the plan wants done, waits for its end."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.service import RPCError, RPCStatusCode

from client.failures import OrderIdConflict
from domain.model import CheckoutInput, CheckoutStatus
from tests.soak.book import Ended
from tests.soak.harness import SoakFailed
from tests.soak.model import ENDINGS, NEVER_BEGUN
from tests.soak.plan import PlannedOrder
from tests.soak.requests import PAUSE_SECONDS, Operator, Requests, interrupt, resolved

FORGOTTEN_SECONDS = 15.0
"""How long a terminated order that is not in the database may still turn up there: longer than any
attempt lives."""

_SHOWN_SECONDS = 60.0
"""How long Postgres may be away, or a repeat's saga be at work."""


class Sagas:
    def __init__(self, requests: Requests, operator: Operator) -> None:
        self._requests = requests
        self._book, self._checkouts, self._persist = requests.book, requests.checkouts, requests.persist
        self._operator = operator
        self._accepted_cancels: set[int] = set()
        self._told: dict[int, str] = {}
        """How an order has ended, where that was the answer to its customer's request."""
        self._accepted_by: dict[int, int] = {}
        """Which process of the API has accepted an order."""
        self._usual_seconds = 1.0

    async def begin(self, planned: PlannedOrder) -> None:
        if planned.is_through_door:
            status = await self._placed(planned, planned.order)
            self._accepted_by[planned.number] = self._requests.harness.api.pid
            if status in ENDINGS:
                self._told[planned.number] = status
        elif planned.is_by_hand:
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
        if planned.number in self._book.rivals:
            planned, ended = await self._first_of_two(planned)
        is_asked = planned.number in self._accepted_cancels
        if is_asked and ended.status == "completed" and planned.can_be_recalled:
            is_asked = await self._persist(lambda: self._was_asked(planned))
        self._book.end(planned, ended, is_cancel_accepted=is_asked)
        if planned.is_through_door:
            self._book.ways["HTTP, " + ("in a batch" if ended.is_in_a_batch else "then a saga of its own")] += 1
            await self._require_told(planned, ended.status)
        else:
            self._book.ways["a saga of its own"] += 1

    async def _placed(self, planned: PlannedOrder, order: CheckoutInput) -> str:
        """Place an order over HTTP: the same one under the same key, and another one as another customer would."""
        key = order.order_id if order == planned.order else f"{order.order_id}/other"
        is_patient = planned.number % 2 == 0
        return await self._persist(lambda: self._requests.door.place(order, key, is_patient=is_patient))

    async def _require_told(self, planned: PlannedOrder, status: str) -> None:
        told = self._told.pop(planned.number, status)
        # A label that was cancelled afterwards: the request was accepted once it was told.
        if told != status and not (planned.interruption and status == "cancelled"):
            raise SoakFailed(f"{planned.order.order_id} was told to be {told}, and has ended as {status}")
        deadline = time.monotonic() + _SHOWN_SECONDS
        while (read := await self._persist(lambda: self._requests.door.status(planned.order.order_id))) != status:
            # With Postgres away all that the API knows may be a repeat's saga, which is under way.
            if read not in {"running", "unwinding"} or time.monotonic() > deadline:
                raise SoakFailed(f"{planned.order.order_id} has ended as {status}, and the API shows {read}")
            await asyncio.sleep(PAUSE_SECONDS)

    async def ending(self, planned: PlannedOrder) -> Ended:
        """Wait for the last run of an order's saga to close; have it fixed or repaired on the way."""
        runs_lost = 0
        async with self._operator.tending(planned):
            while (ended := await self._close(planned)) is None:
                runs_lost += 1
                if (ended := await self._until_repaired(planned)) is not None:
                    break
        vouched = await self._operator.vouched(planned, ended.status, ended.vouched)
        return replace(ended, vouched=vouched, runs_lost=runs_lost)

    def _acts(self, planned: PlannedOrder) -> list[Coroutine[Any, Any, None]]:
        again = [self._start_again(planned)] if planned.second_start else []
        return again + ([self._interrupt(planned)] if planned.interruption else [])

    async def _start_again(self, planned: PlannedOrder) -> None:
        order = planned.other if planned.second_start == "other" else planned.order
        try:
            is_new = await self._begun_again(planned, order)
        except OrderIdConflict:
            self._book.counts["starts with other content, refused"] += 1
            if planned.second_start == "same":
                raise SoakFailed(f"{order.order_id}: the same order was refused as another") from None
            return
        # A process that was restarted knows no more what the last one has accepted (docs/api.md).
        is_restarted = self._accepted_by.get(planned.number, pid := self._requests.harness.api.pid) != pid
        if planned.second_start == "other" and is_restarted:
            self._book.rivals.add(planned.number)
            self._book.counts["orders of one id, both accepted"] += 1
            return
        if is_new or planned.second_start == "other":
            raise SoakFailed(f"{order.order_id}: a second start was accepted (new: {is_new})")
        self._book.counts["starts of the same order, joined"] += 1

    async def _begun_again(self, planned: PlannedOrder, order: CheckoutInput) -> bool:
        if not planned.is_through_door:
            return await self._persist(lambda: self._checkouts.start(order))
        await self._placed(planned, order)
        return False

    async def _interrupt(self, planned: PlannedOrder) -> None:
        assert planned.interruption is not None
        name, kind = planned.order.order_id, planned.interruption.kind
        canceller = self._requests.door if planned.is_through_door else self._checkouts
        await asyncio.sleep(planned.interruption.after * self._usual_seconds)
        said = await interrupt(
            kind,
            self._requests.saga(name),
            lambda: canceller.cancel(name, "the customer has changed her mind"),
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
                is_not_found = error.status is RPCStatusCode.NOT_FOUND
                if is_not_found and planned.is_through_door:
                    row = await self._persist(lambda: self._requests.row(planned.order.order_id))
                    if row is not None and row["status"] in ENDINGS:
                        return Ended(row["status"], row["reason"] or "", is_in_a_batch=True)
                # Not found: written by hand, and no sweep has seen it yet.
                elif is_not_found and not planned.is_by_hand:
                    raise SoakFailed(
                        f"{planned.order.order_id} was acknowledged, and Temporal has no such run"
                    ) from None
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return Ended(status.status, status.reason or "", resolved(status))

    async def _first_of_two(self, planned: PlannedOrder) -> tuple[PlannedOrder, Ended]:
        """Wait until one of two orders of an id has ended, and return which one has it, and how it has ended."""
        name = planned.order.order_id
        while True:
            row = await self._persist(lambda: self._requests.row(name))
            if row is not None and row["status"] in ENDINGS:
                if row["fingerprint"] == planned.other.fingerprint:
                    self._book.taken.add(planned.number)
                    planned = replace(planned, order=planned.other)
                return planned, Ended(row["status"], row["reason"] or "", is_in_a_batch=True)
            await asyncio.sleep(PAUSE_SECONDS)

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
