"""Follows orders that are sagas of their own: starts them, does to each what the plan wants done, waits for its end."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.service import RPCError, RPCStatusCode

from client.failures import OtherContent
from domain.model import CheckoutStatus
from tests.soak.book import Ended
from tests.soak.desk import PAUSE_SECONDS, Desk
from tests.soak.interruptions import interrupt
from tests.soak.model import ENDINGS, NEVER_BEGUN
from tests.soak.operators import Operator, resolved
from tests.soak.planned import PlannedOrder
from tests.soak.stage import SoakFailed

FORGOTTEN_SECONDS = 15.0
"""How long a terminated order that nobody has seen in the database may still turn up there: longer than any
attempt lives."""


class Sagas:
    def __init__(self, desk: Desk, operator: Operator) -> None:
        self._desk = desk
        self._operator = operator
        self._accepted_cancels: set[int] = set()
        self._usual_seconds = 1.0

    async def begin(self, planned: PlannedOrder) -> None:
        if planned.is_by_hand:
            await self._desk.persist(lambda: self._desk.insert(planned.order))
        else:
            await self._desk.persist(lambda: self._desk.checkouts.start(planned.order))

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
            is_asked = await self._desk.persist(lambda: self._was_asked(planned))
        self._desk.book.end(planned, ended, is_cancel_accepted=is_asked)

    async def ending(self, planned: PlannedOrder) -> Ended:
        """Wait for the last run of an order's saga to close; have it mended or repaired on the way."""
        runs_lost = 0
        async with self._operator.tending(planned):
            while (ended := await self._close(planned)) is None:
                runs_lost += 1
                if (ended := await self._until_repaired(planned)) is not None:
                    break
        vouched = await self._operator.vouched(planned, ended.status, ended.vouched)
        return Ended(ended.status, ended.reason, vouched, runs_lost)

    # What is done to an order ---------------------------------------------------------------------------

    def _acts(self, planned: PlannedOrder) -> list[Coroutine[Any, Any, None]]:
        again = [self._start_again(planned)] if planned.second_start else []
        return again + ([self._interrupt(planned)] if planned.interruption else [])

    async def _start_again(self, planned: PlannedOrder) -> None:
        order = planned.other if planned.second_start == "other" else planned.order
        try:
            is_new = await self._desk.persist(lambda: self._desk.checkouts.start(order))
        except OtherContent:
            self._desk.book.counts["starts with other content, refused"] += 1
            if planned.second_start == "same":
                raise SoakFailed(f"{order.order_id}: the same order was refused as another") from None
            return
        if is_new or planned.second_start == "other":
            raise SoakFailed(f"{order.order_id}: a second start was accepted (new: {is_new})")
        self._desk.book.counts["starts of the same order, joined"] += 1

    async def _interrupt(self, planned: PlannedOrder) -> None:
        assert planned.interruption is not None
        name, kind = planned.order.order_id, planned.interruption.kind
        await asyncio.sleep(planned.interruption.after * self._usual_seconds)
        said = await interrupt(
            kind, self._desk.saga(name), lambda: self._desk.checkouts.cancel(name, "the customer has changed her mind")
        )
        self._desk.book.counts[f"{kind} {said}"] += 1
        if kind != "terminate" and said == "accepted":
            self._accepted_cancels.add(planned.number)
        if planned.starts_again and said == "accepted":
            is_new = await self._desk.persist(lambda: self._desk.checkouts.start(planned.order))
            self._desk.book.counts[f"starts after a termination, {'a new run' if is_new else 'joined a repair'}"] += 1

    async def _was_asked(self, planned: PlannedOrder) -> bool:
        """Tell whether a cancel came while the run was open: Temporal says yes to one that comes after its end, too."""
        if planned.interruption is None or planned.interruption.kind != "cancel":
            return True
        asked = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED
        events = self._desk.saga(planned.order.order_id).fetch_history_events()
        return any([event.event_type == asked async for event in events])

    # Endings --------------------------------------------------------------------------------------------

    async def _close(self, planned: PlannedOrder) -> Ended | None:
        """Wait for the end of the newest run; None when it was terminated."""
        while True:
            try:
                status = await self._desk.saga(planned.order.order_id).result()
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
            row = await self._desk.persist(lambda: self._desk.row(name))
            run = await self._desk.persist(lambda: self._desk.newest_run(self._desk.saga(name)))
            if run is not None and run.status is not WorkflowExecutionStatus.TERMINATED:
                return None
            if row is not None and row["status"] in ENDINGS:
                return Ended(row["status"], row["reason"] or "")
            unseen_since = None if row else unseen_since or loop.time()
            if unseen_since and loop.time() - unseen_since > FORGOTTEN_SECONDS:
                return Ended(NEVER_BEGUN)
            await asyncio.sleep(PAUSE_SECONDS)


def _ended(cause: BaseException) -> Ended | None:
    """Read how a run ended from its failure; None when it was terminated."""
    if isinstance(cause, TerminatedError):
        return None
    if isinstance(cause, CancelledError):
        return Ended("cancelled")
    if isinstance(cause, ApplicationError) and cause.details:
        status: CheckoutStatus = value_to_type(CheckoutStatus, cause.details[0])
        return Ended(status.status, status.reason or "", resolved(status))
    raise SoakFailed(f"a saga ended in a way of its own: {cause!r}")
