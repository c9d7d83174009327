"""Requests to any order by its id: with a saga of its own, in a batch, inserted by hand, or past Temporal's retention.

An order's own saga answers first. Where there is none, a worker looks the order up in the database. A saga of that id
may also be a refused request of another order: then the database has the order, and the saga has not.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from temporalio.service import RPCError, RPCStatusCode

from client import executions, lookup
from client.checkouts import Checkouts
from client.failures import NoAnswer, NoSuchOrder, Refused
from client.listing import TERMINATED
from domain.bulk import CancelOrder
from domain.lookup import OrderRecord
from domain.model import ENDINGS, CheckoutInput, CheckoutStatus, Ending, OrderStatus, who_and_why
from domain.policies import checkout_workflow_id
from domain.text import tidy
from sagafence import InvalidInput

MOVING = frozenset({OrderStatus.RESERVED, OrderStatus.PAID})
"""The statuses of an order that a workflow must be processing."""
MAY_BE_ANOTHERS = frozenset({OrderStatus.REJECTED, OrderStatus.CANCELLED, TERMINATED})
"""How a saga ends that asked for the id of another order."""
_BY_HAND = "inserted by hand, and not started yet: starter.py sweep starts its saga"
_IN_BATCH = "its batch has not given it to a saga of its own yet: repeat the request"
_LOST = "its workflow is gone: starter.py sweep undoes what it has done"


@dataclass(frozen=True)
class Found:
    """An order's status, and the id of the workflow that has its history; None where Temporal has none."""

    status: CheckoutStatus
    workflow_id: str | None


_Wait = Callable[[], Awaitable[Found]]


class _Moved(Refused):
    """Another workflow has taken the order over meanwhile: repeat the request. The message is for the second time."""


class Orders:
    """The orders of one task queue and the database behind it."""

    def __init__(self, checkouts: Checkouts) -> None:
        self._checkouts = checkouts
        self._client = checkouts.client
        self._task_queue = checkouts.task_queue

    async def find(self, order_id: str) -> Found:
        """Return the status of an order.

        Raises:
            NoSuchOrder: neither Temporal nor the database knows it.
            NoAnswer: Temporal does not know it, and the database cannot be asked.
        """
        try:
            status = await self._checkouts.status(order_id)
        except NoSuchOrder:
            return await self.shown(await self._recorded(order_id))
        return await self._own_or_anothers(status)

    async def cancel(self, order_id: str, reason: str, by: str) -> Found:
        """Cancel an order, whichever workflow processes it, and wait for the result.

        A repeat with the same reason joins the first request, whatever its result.

        Raises:
            NoSuchOrder, NoAnswer: as for `find`.
            Refused, NotKnownYet: as for `Checkouts.cancel`.
        """
        request = CancelOrder(order_id, reason, by)
        try:
            return await (await self._request_cancel(request))()
        except _Moved:
            return await (await self._request_cancel(request))()

    async def request_cancel(self, order_id: str, reason: str, by: str) -> None:
        """Request the same, and return once the request is accepted. Raises as `cancel` does."""
        request = CancelOrder(order_id, reason, by)
        try:
            await self._request_cancel(request)
        except _Moved:
            await self._request_cancel(request)

    async def retry(self, order_id: str, reason: str, by: str) -> CheckoutStatus:
        """Retry the failed undos of a stuck order; see `Checkouts.retry`."""
        async with self._to_fix(order_id):
            return await self._checkouts.retry(order_id, reason, by)

    async def request_retry(self, order_id: str, reason: str, by: str) -> CheckoutStatus | None:
        """Request the same; see `Checkouts.request_retry`."""
        async with self._to_fix(order_id):
            return await self._checkouts.request_retry(order_id, reason, by)

    async def resolve(self, order_id: str, step: str, reason: str, by: str) -> CheckoutStatus:
        """Count a stuck step as undone; see `Checkouts.resolve`."""
        async with self._to_fix(order_id):
            return await self._checkouts.resolve(order_id, step, reason, by)

    async def request_resolve(self, order_id: str, step: str, reason: str, by: str) -> CheckoutStatus | None:
        """Request the same; see `Checkouts.request_resolve`."""
        async with self._to_fix(order_id):
            return await self._checkouts.request_resolve(order_id, step, reason, by)

    # Cancelling -----------------------------------------------------------------------------------------

    async def _request_cancel(self, request: CancelOrder) -> _Wait:
        """Request a cancel of whichever workflow processes the order; return what waits for the result."""
        order_id = request.order_id
        try:
            await self._checkouts.cancel(order_id, request.reason, request.by)
        except NoSuchOrder:
            return await self._request_recorded(await self._recorded(order_id), request)
        except Refused:
            if another := await self._another_than(await self._checkouts.status(order_id)):
                return await self._request_recorded(another, request)
            if not await self._is_undone_for(request):
                raise
        return lambda: self._cancelled(request)

    async def _cancelled(self, request: CancelOrder) -> Found:
        status = await self._checkouts.outcome(request.order_id)
        if another := await self._another_than(status):
            return await (await self._request_recorded(another, request))()
        return Found(status, checkout_workflow_id(request.order_id))

    async def _request_recorded(self, record: OrderRecord, request: CancelOrder) -> _Wait:
        """Request a cancel of an order that has no saga of its own."""
        if record.status == OrderStatus.PENDING:
            await self._undo_by_hand(record, request)
            return lambda: self._undone_by_hand(record)
        if record.status in ENDINGS:
            raise Refused(f"order {record.order_id} is {record.status} already")
        batch = await self.run_of(record.batch_workflow_id) if record.batch_workflow_id else None
        why = _IN_BATCH if batch and batch.is_open else _LOST
        raise _Moved(f"order {record.order_id} is {as_shown(record.status)}, and {why}")

    async def _undo_by_hand(self, record: OrderRecord, request: CancelOrder) -> None:
        """Start a saga that undoes an order which has none; against a sweep, the workflow id decides which is first."""
        try:
            order = CheckoutInput(
                record.order_id,
                record.customer,
                tuple(record.lines),
                repair=True,
                reason=_why(request),
                ending=Ending.CANCELLED,
            )
        except InvalidInput as problem:
            raise Refused(f"no saga can take order {record.order_id}, nor undo it: {problem.message}") from None
        if not await self._checkouts.undo(order):
            raise _Moved(f"order {record.order_id} has just been started")

    async def _undone_by_hand(self, record: OrderRecord) -> Found:
        return Found(await self._checkouts.outcome(record.order_id), checkout_workflow_id(record.order_id))

    async def _is_undone_for(self, request: CancelOrder) -> bool:
        """Return whether the order's own saga was started to undo it for this very request."""
        order = await executions.order_of(self._client, checkout_workflow_id(request.order_id))
        return order is not None and order.repair and order.reason == _why(request)

    @contextlib.asynccontextmanager
    async def _to_fix(self, order_id: str) -> AsyncIterator[None]:
        """Refuse what is asked inside the block of an order that has no saga of its own."""
        try:
            yield
        except NoSuchOrder:
            raise await self._nothing_to_fix(order_id) from None

    async def _nothing_to_fix(self, order_id: str) -> Refused:
        record = await self._recorded(order_id)
        if record.status == OrderStatus.STUCK:
            return Refused(f"order {order_id} is stuck, and its workflow is gone: starter.py sweep starts another one")
        return Refused(
            f"order {order_id} is {as_shown(record.status)}, not stuck: there is nothing to retry or resolve"
        )

    # Status --------------------------------------------------------------------------------------------

    async def _own_or_anothers(self, status: CheckoutStatus) -> Found:
        own = Found(status, checkout_workflow_id(status.order_id))
        if (record := await self._record_beside(status)) is None:
            return own
        if not await self.is_own(record):
            return await self.shown(record)
        if status.status == TERMINATED and record.status in ENDINGS:
            return Found(_status(record, record.reason), own.workflow_id)
        return own

    async def _another_than(self, status: CheckoutStatus) -> OrderRecord | None:
        """Return the order that has the id, where the saga of that id is another order's refused request."""
        record = await self._record_beside(status)
        return None if record is None or await self.is_own(record) else record

    async def _record_beside(self, status: CheckoutStatus) -> OrderRecord | None:
        """Look up an order whose saga has ended without holding anything; without an answer, None."""
        if status.total_minor is None and status.status in MAY_BE_ANOTHERS:
            with contextlib.suppress(NoAnswer):
                return await lookup.find_order(self._client, self._task_queue, status.order_id)
        return None

    async def is_own(self, record: OrderRecord) -> bool:
        """Return whether an order is the one that the saga of its id was started with."""
        return record.fingerprint is None or await self._checkouts.has_saga_with(record.order_id, record.fingerprint)

    async def _recorded(self, order_id: str) -> OrderRecord:
        try:
            record = await lookup.find_order(self._client, self._task_queue, order_id)
        except NoAnswer as problem:
            raise NoAnswer(f"order {order_id} has no saga of its own, and {problem}") from None
        if record is None:
            raise NoSuchOrder(
                f"there is no order {order_id}: neither Temporal nor the database knows it; "
                "starter.py list shows those that there are"
            )
        return record

    async def shown(self, record: OrderRecord) -> Found:
        """Return an order by its row, with the batch that processed it where Temporal still has that."""
        batch = await self.run_of(record.batch_workflow_id) if record.batch_workflow_id else None
        workflow_id = batch.workflow_id if batch else None
        if record.status in MOVING and (batch is None or not batch.is_open):
            # The batch may have ended between the two lookups, with the order or having delegated it.
            with contextlib.suppress(NoSuchOrder):
                status = await self._checkouts.status(record.order_id)
                if await self.is_own(record):
                    return Found(status, checkout_workflow_id(record.order_id))
            now = await lookup.find_order(self._client, self._task_queue, record.order_id) or record
            if (now.status, now.updated_at) == (record.status, record.updated_at):
                return Found(replace(_status(now, _LOST), status=TERMINATED), workflow_id)
            record = now
        reason = record.reason or (_BY_HAND if record.status == OrderStatus.PENDING else None)
        return Found(_status(record, reason), workflow_id)

    async def run_of(self, workflow_id: str) -> executions.Execution | None:
        """Look up a workflow's newest run; None where Temporal has none."""
        try:
            return await executions.describe(self._client, workflow_id)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return None


def _why(request: CancelOrder) -> str:
    """Word the reason of a cancel as the sagas and batches do."""
    return tidy(f"cancelled: {who_and_why(request.by, request.reason)}")


def as_shown(status: str) -> str:
    """Name a status of `orders.status` as a saga would name it."""
    return "running" if status in MOVING else status


def _status(record: OrderRecord, reason: str | None) -> CheckoutStatus:
    return CheckoutStatus(
        record.order_id,
        as_shown(record.status),
        reason,
        record.total_minor,
        record.currency,
        record.tracking_number,
        list(record.steps),
    )
