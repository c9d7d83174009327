"""Starts the planned orders, does to each what the plan wants done, and follows each to its end.

An order costs one start and one long poll for its close event; a slot is free again when its order has ended,
or when it waits for a sweep or for the operator.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import asyncpg
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowQueryFailedError
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.service import RPCError, RPCStatusCode

from client.checkouts import Checkouts
from client.failures import NoSuchOrder, NoWorker, OtherContent, Refused
from domain.model import CheckoutInput, CheckoutStatus, OrderLine
from domain.policies import checkout_workflow_id
from tests.soak.book import Book, Ended
from tests.soak.catalogue import PLENTY
from tests.soak.model import ENDINGS, NEVER_BEGUN
from tests.soak.nemesis import Nemesis
from tests.soak.plan import Plan, PlannedOrder
from tests.soak.stage import AWAY, SoakFailed, Stage
from workflows.checkout import CheckoutWorkflow

_T = TypeVar("_T")
_UNREACHABLE = (RPCError, NoWorker, TimeoutError)
_PAUSE_SECONDS = 0.5
_LOOK_SECONDS = 0.5
_ANSWER_WITHIN = timedelta(seconds=5)
_SLOT_SECONDS = 5.0
_FORGOTTEN_SECONDS = 15.0
"""How long a terminated order that nobody has seen in the database may still turn up there: longer than any
attempt lives."""


class Driver:
    """The customers and the operator."""

    def __init__(self, stage: Stage, plan: Plan, client: Client, book: Book, nemesis: Nemesis) -> None:
        self._stage = stage
        self._plan = plan
        self._client = client
        self._checkouts: Checkouts = stage.checkouts(client)
        self._book = book
        self._nemesis = nemesis
        self._stuck: set[str] = set()
        self._accepted_cancels: set[int] = set()
        self._vouched: dict[int, set[str]] = {}
        self._aside: set[asyncio.Task[None]] = set()
        self._usual_seconds = 1.0
        self.open: set[int] = set()

    async def run(self, concurrency: int) -> None:
        """Carry every order to its end, so many at once."""
        numbers = iter(range(self._plan.orders))
        async with asyncio.TaskGroup() as watch:
            watching = watch.create_task(self._watch_stuck())
            async with asyncio.TaskGroup() as slots:
                slots.create_task(self._restock())
                for _ in range(concurrency):
                    slots.create_task(self._slot(numbers, slots))
            watching.cancel()

    async def _slot(self, numbers: Iterator[int], group: asyncio.TaskGroup) -> None:
        for number in numbers:
            await self._nemesis.reach(number)
            planned = self._plan.order(number)
            self.open.add(number)
            await self._begin(planned)
            self._book.acknowledged.add(number)
            following = group.create_task(self._follow(planned))
            # Who waits for a sweep or for the operator does not hold a slot meanwhile.
            waits_for_people = planned.broken or planned.is_by_hand or planned.interruption
            await asyncio.wait([following], timeout=_SLOT_SECONDS if waits_for_people else None)

    async def _follow(self, planned: PlannedOrder) -> None:
        begun = time.monotonic()
        acts = [asyncio.create_task(act) for act in self._acts(planned)]
        ended = await self._ending(planned)
        if planned.kind == "plain" and not acts:
            self._usual_seconds += 0.1 * (time.monotonic() - begun - self._usual_seconds)
        for act in acts:
            await act
        vouched = ended.vouched
        if planned.broken and planned.remedy == "resolve" and ended.status == "cancelled":
            # Such an ending says nothing else, and the answers to the operator may have been lost.
            vouched = await self._vouched_in_history(planned.order.order_id)
        if lost := self._vouched.pop(planned.number, set()) - vouched:
            raise SoakFailed(f"{planned.order.order_id}: accepted as resolved, and forgotten: {sorted(lost)}")
        ended = Ended(ended.status, ended.reason, vouched, ended.runs_lost)
        is_asked = planned.number in self._accepted_cancels
        if is_asked and ended.status == "completed" and planned.can_be_recalled:
            is_asked = await self._persist(lambda: self._was_asked(planned))
        self._book.end(planned, ended, is_cancel_accepted=is_asked)
        self.open.discard(planned.number)
        if self._book.problems:
            raise SoakFailed("; ".join(self._book.problems))

    async def _was_asked(self, planned: PlannedOrder) -> bool:
        """Tell whether a cancel came while the run was open: Temporal says yes to one that comes after its end, too."""
        if planned.interruption is None or planned.interruption.kind != "cancel":
            return True
        handle = self._client.get_workflow_handle(checkout_workflow_id(planned.order.order_id))
        asked = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED
        return any([event.event_type == asked async for event in handle.fetch_history_events()])

    # Starting -------------------------------------------------------------------------------------------

    async def _begin(self, planned: PlannedOrder) -> None:
        """Hand an order in, again until somebody has said yes."""
        if planned.is_by_hand:
            await self._persist(lambda: self._insert(planned.order))
        else:
            await self._persist(lambda: self._checkouts.start(planned.order))

    async def _insert(self, order: CheckoutInput) -> None:
        """Write an order as a person would who has psql and no starter."""
        async with self._stage.asking() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO orders (order_id, customer) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                order.order_id,
                order.customer,
            )
            await connection.executemany(
                "INSERT INTO order_lines (order_id, sku, quantity) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                [(order.order_id, line.sku, line.quantity) for line in order.lines],
            )

    async def _start_again(self, planned: PlannedOrder) -> None:
        order = planned.order
        if planned.second_start == "other":
            order = CheckoutInput(order.order_id, order.customer, (*order.lines, OrderLine(PLENTY[0], 7)))
        try:
            is_new = await self._persist(lambda: self._checkouts.start(order))
        except OtherContent:
            self._book.counts["starts with other content, refused"] += 1
            if planned.second_start == "same":
                raise SoakFailed(f"{order.order_id}: the same order was refused as another") from None
            return
        if is_new or planned.second_start == "other":
            raise SoakFailed(f"{order.order_id}: a second start was accepted (new: {is_new})")
        self._book.counts["starts of the same order, joined"] += 1

    async def _persist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Try until the server has answered. Whatever is tried has to be safe to repeat."""
        while True:
            try:
                return await attempt()
            except (*_UNREACHABLE, *AWAY):
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from None  # an update's client may tell it as something else
                self._book.counts["requests repeated"] += 1
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _restock(self) -> None:
        """Take deliveries in, each once, whatever happens to its answer."""
        for at, sku, units in self._plan.restocks():
            while not self._book.acknowledged or max(self._book.acknowledged) < at:
                await asyncio.sleep(_PAUSE_SECONDS)
            await self._persist(lambda at=at, sku=sku, units=units: self._deliver(at, sku, units))  # type: ignore[misc]
            self._book.model.restock(sku, units)

    async def _deliver(self, number: int, sku: str, units: int) -> None:
        async with self._stage.asking() as connection:
            await connection.execute(
                "WITH once AS (INSERT INTO soak.restocked VALUES ($1) ON CONFLICT DO NOTHING RETURNING number)"
                " UPDATE inventory SET received = received + $3, on_hand = on_hand + $3 FROM once WHERE sku = $2",
                number,
                sku,
                units,
            )

    # What is done to an order ---------------------------------------------------------------------------

    def _acts(self, planned: PlannedOrder) -> list[Coroutine[Any, Any, None]]:
        again = [self._start_again(planned)] if planned.second_start else []
        return again + ([self._interrupt(planned)] if planned.interruption else [])

    async def _interrupt(self, planned: PlannedOrder) -> None:
        assert planned.interruption is not None
        kind = planned.interruption.kind
        await asyncio.sleep(planned.interruption.after * self._usual_seconds)
        handle = self._client.get_workflow_handle(checkout_workflow_id(planned.order.order_id))
        said = "accepted"
        try:
            if kind == "update":
                await self._checkouts.cancel(planned.order.order_id, "the customer has changed her mind")
            elif kind == "cancel":
                await handle.cancel(reason="the customer has changed her mind")
            else:
                await handle.terminate(reason="somebody has pulled the plug")
        except (Refused, NoSuchOrder):
            said = "refused"
        except _UNREACHABLE as error:
            is_over = isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND
            said = "refused" if is_over else "unanswered"
        self._book.counts[f"{kind} {said}"] += 1
        if kind != "terminate" and said == "accepted":
            self._accepted_cancels.add(planned.number)

    # Endings --------------------------------------------------------------------------------------------

    async def _ending(self, planned: PlannedOrder) -> Ended:
        """Wait for the order's last run to close; have it mended or repaired on the way."""
        runs_lost = 0
        operating = asyncio.create_task(self._operate(planned)) if planned.broken else None
        try:
            while True:
                ended = await self._close(planned)
                if ended is not None:
                    return Ended(ended.status, ended.reason, ended.vouched, runs_lost)
                runs_lost += 1
                if (ended := await self._until_repaired(planned)) is not None:
                    return Ended(ended.status, ended.reason, runs_lost=runs_lost)
        finally:
            if operating is not None:
                operating.cancel()
                await asyncio.wait([operating])
                if not operating.cancelled() and (failure := operating.exception()):
                    raise failure

    async def _close(self, planned: PlannedOrder) -> Ended | None:
        """Wait for the end of the newest run; None when it was terminated."""
        handle = self._client.get_workflow_handle_for(
            CheckoutWorkflow.run, checkout_workflow_id(planned.order.order_id)
        )
        while True:
            try:
                status = await handle.result()
            except WorkflowFailureError as failure:
                return _ended(failure.cause)
            except RPCError as error:
                # Not found: written by hand, and no sweep has seen it yet.
                if error.status is RPCStatusCode.NOT_FOUND and not planned.is_by_hand:
                    raise SoakFailed(
                        f"{planned.order.order_id} was acknowledged, and Temporal has no such run"
                    ) from None
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return Ended(status.status, status.reason or "", _resolved(status))

    async def _until_repaired(self, planned: PlannedOrder) -> Ended | None:
        """Wait until a terminated order has ended in the database, by its last deed or by a sweep's.

        None when there is a newer run to ask. An order that its run had ended before it was terminated has none.
        """
        name = planned.order.order_id
        loop = asyncio.get_running_loop()
        unseen_since: float | None = None
        while True:
            row = await self._persist(lambda: self._row(name))
            if row is not None and row["status"] in ENDINGS:
                is_last = await self._persist(lambda: self._is_terminated(name))
                return Ended(row["status"], row["reason"] or "") if is_last else None
            unseen_since = None if row else unseen_since or loop.time()
            if unseen_since and loop.time() - unseen_since > _FORGOTTEN_SECONDS:
                return Ended(NEVER_BEGUN)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _row(self, order_id: str) -> asyncpg.Record | None:
        async with self._stage.asking() as connection:
            return await connection.fetchrow("SELECT status, reason FROM orders WHERE order_id = $1", order_id)

    async def _is_terminated(self, order_id: str) -> bool:
        description = await self._client.get_workflow_handle(checkout_workflow_id(order_id)).describe()
        return description.status is WorkflowExecutionStatus.TERMINATED

    async def _vouched_in_history(self, order_id: str) -> frozenset[str]:
        """Ask a closed saga that left no details which of its steps were resolved."""
        saga = self._client.get_workflow_handle_for(CheckoutWorkflow.run, checkout_workflow_id(order_id))
        while True:
            try:
                return _resolved(await saga.query(CheckoutWorkflow.status, rpc_timeout=_ANSWER_WITHIN))
            except (RPCError, WorkflowQueryFailedError):
                await asyncio.sleep(_PAUSE_SECONDS)

    # The operator ---------------------------------------------------------------------------------------

    async def _watch_stuck(self) -> None:
        """Keep in mind which orders are stuck. One that nobody has broken must not be."""
        while True:
            try:
                async with self._stage.asking() as connection:
                    while True:
                        rows = await connection.fetch("SELECT order_id FROM orders WHERE status = 'stuck'")
                        self._stuck = {row["order_id"] for row in rows}
                        if groundless := [name for name in self._stuck if not self._planned(name).broken]:
                            raise SoakFailed(f"stuck without a cause: {', '.join(sorted(groundless))}")
                        await asyncio.sleep(_LOOK_SECONDS)
            except AWAY:
                await asyncio.sleep(_LOOK_SECONDS)

    def _planned(self, order_id: str) -> PlannedOrder:
        return self._plan.order(self._plan.number_of(order_id))

    async def _operate(self, planned: PlannedOrder) -> None:
        """Settle an order whenever it is stuck, as the plan says."""
        name = planned.order.order_id
        while True:
            if name not in self._stuck:
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            self._book.stuck.add(planned.number)
            await asyncio.sleep(planned.remedy_after)
            if planned.remedy == "resolve":
                for step in planned.broken:
                    await self._resolve(planned, step)
            else:
                await self._persist(lambda: self._mend(name))
            await self._retry(name)
            self._stuck.discard(name)

    async def _resolve(self, planned: PlannedOrder, step: str) -> None:
        name = planned.order.order_id
        try:
            status = await self._persist(lambda: self._checkouts.resolve(name, step, "settled by hand, slip 77"))
        except (Refused, NoSuchOrder):
            # Not stuck in this step; or an earlier request did it, whose answer was lost.
            status = await self._persist(lambda: self._checkouts.status(name))
        if step in _resolved(status):
            self._vouched.setdefault(planned.number, set()).add(step)
            self._book.counts["steps resolved"] += 1

    async def _retry(self, order_id: str) -> None:
        try:
            await self._persist(lambda: self._checkouts.retry(order_id))
        except (Refused, NoSuchOrder):
            return  # it is not stuck any more
        self._book.counts["retries asked for"] += 1

    async def _mend(self, order_id: str) -> None:
        async with self._stage.asking() as connection:
            await connection.execute("DELETE FROM soak.broken WHERE order_id = $1", order_id)


def _resolved(status: CheckoutStatus) -> frozenset[str]:
    return frozenset(step.step for step in status.steps if step.state == "resolved")


def _ended(cause: BaseException) -> Ended | None:
    """Read how a run ended from its failure; None when it was terminated."""
    if isinstance(cause, TerminatedError):
        return None
    if isinstance(cause, CancelledError):
        return Ended("cancelled")
    if isinstance(cause, ApplicationError) and cause.details:
        status: CheckoutStatus = value_to_type(CheckoutStatus, cause.details[0])
        return Ended(status.status, status.reason or "", _resolved(status))
    raise SoakFailed(f"a saga ended in a way of its own: {cause!r}")
