"""Every order by its id: in a saga of its own, in a batch, written by hand, or long forgotten by Temporal.

An order's own saga answers first. Where there is none, a worker is asked what the database has. Where the own saga was
never more than a request for an id that is somebody else's, the database has the order, and the saga has not.
"""

import contextlib
from dataclasses import dataclass, replace

from temporalio.service import RPCError, RPCStatusCode

from client import executions, lookup
from client.checkouts import Checkouts
from client.failures import NoAnswer, NoSuchOrder
from client.listing import TERMINATED
from domain.lookup import OrderRecord
from domain.model import ENDINGS, CheckoutStatus, OrderStatus
from domain.policies import checkout_workflow_id

_MOVING = frozenset({OrderStatus.RESERVED, OrderStatus.PAID})
_BY_HAND = "written by hand, and not begun yet: starter.py sweep starts its saga"
_LOST = "its workflow is gone: starter.py sweep undoes what it has done"


@dataclass(frozen=True)
class Found:
    """Where an order stands, and which workflow has its history; None where Temporal has none."""

    status: CheckoutStatus
    workflow_id: str | None


class Orders:
    """The orders of one task queue and the database behind it."""

    def __init__(self, checkouts: Checkouts) -> None:
        self._checkouts = checkouts
        self._client = checkouts.client
        self._task_queue = checkouts.task_queue

    async def find(self, order_id: str) -> Found:
        """Tell where an order stands.

        Raises:
            NoSuchOrder: neither Temporal nor the database knows it.
            NoAnswer: Temporal does not know it, and the database cannot be asked.
        """
        try:
            status = await self._checkouts.status(order_id)
        except NoSuchOrder:
            return await self._shown(await self._recorded(order_id))
        return await self._own_or_anothers(status)

    async def ended(self, status: CheckoutStatus) -> Found:
        """Tell where an order stands of which its own saga has just told the end."""
        return await self._own_or_anothers(status)

    async def _own_or_anothers(self, status: CheckoutStatus) -> Found:
        """Tell which is the truth: how the order's own saga stands, or what the database has under its id."""
        order_id = status.order_id
        own = Found(status, checkout_workflow_id(order_id))
        if status.total_minor is not None or status.status not in {
            OrderStatus.REJECTED,
            OrderStatus.CANCELLED,
            TERMINATED,
        }:
            return own
        # It has never held anything, as far as it knows: the id may be another order's.
        try:
            record = await lookup.find_order(self._client, self._task_queue, order_id)
        except NoAnswer:
            return own
        if record is None:
            return own
        if record.fingerprint is not None and not await self._checkouts.has_saga_with(order_id, record.fingerprint):
            return await self._shown(record)
        if status.status == TERMINATED and record.status in ENDINGS:
            return Found(_status(record, record.reason), own.workflow_id)
        return own

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

    async def _shown(self, record: OrderRecord) -> Found:
        """Show an order by its row, with the batch that carried it where Temporal still has that."""
        carrier = await self._run_of(record.carrier) if record.carrier else None
        if record.status in _MOVING and (carrier is None or not carrier.is_open):
            # The batch may have ended between the two looks, and the order with it, or in the hands of its own saga.
            if own := await self._own_of(record):
                return own
            now = await lookup.find_order(self._client, self._task_queue, record.order_id) or record
            if (now.status, now.updated_at) == (record.status, record.updated_at):
                lost = replace(_status(now, _LOST), status=TERMINATED)
                return Found(lost, carrier.workflow_id if carrier else None)
            record = now
        reason = record.reason or (_BY_HAND if record.status == OrderStatus.PENDING else None)
        return Found(_status(record, reason), carrier.workflow_id if carrier else None)

    async def _own_of(self, record: OrderRecord) -> Found | None:
        with contextlib.suppress(NoSuchOrder):
            status = await self._checkouts.status(record.order_id)
            if await self._checkouts.has_saga_with(record.order_id, record.fingerprint or ""):
                return Found(status, checkout_workflow_id(record.order_id))
        return None

    async def _run_of(self, workflow_id: str) -> executions.Execution | None:
        try:
            return await executions.describe(self._client, workflow_id)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return None


def _status(record: OrderRecord, reason: str | None) -> CheckoutStatus:
    return CheckoutStatus(
        record.order_id,
        "running" if record.status in _MOVING else record.status,
        reason,
        record.total_minor,
        record.currency,
        record.tracking_number,
        list(record.steps),
    )
