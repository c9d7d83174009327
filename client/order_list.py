"""A list of orders: those with a saga from Temporal's visibility, the others from the database through a worker."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from client import executions, lookup
from client.checkouts import Checkouts
from client.executions import Execution
from client.failures import NoAnswer, NoSuchOrder
from client.listing import QUERIES, TERMINATED, Listed, listed
from client.orders import MAY_BE_ANOTHERS, MOVING, Orders, as_shown
from domain.lookup import PAGE, LookupInput, OrderRecord
from domain.model import ENDINGS, OrderStatus
from domain.policies import checkout_workflow_id

PENDING = OrderStatus.PENDING.value
LISTABLE = (*QUERIES, PENDING)
"""The statuses that a list can be filtered by: those of sagas, and that of an order by hand without a saga."""

_ANSWERED_WITHIN_SECONDS = 3.0
_LOOKED_UP_AT_ONCE = 20
# The statuses in the database that a list shows as one.
_RECORDED_AS: dict[str, Sequence[str]] = {
    "running": [OrderStatus.RESERVED, OrderStatus.PAID, OrderStatus.UNWINDING],
    TERMINATED: [OrderStatus.RESERVED, OrderStatus.PAID],
}


@dataclass
class Listing:
    """Orders, newest first, each with the id of the workflow that has its history; None where Temporal has none."""

    rows: list[tuple[Listed, str | None]] = field(default_factory=list)
    note: str = ""
    """What is not among them, and why."""


async def list_orders(checkouts: Checkouts, status: str | None, limit: int) -> Listing:
    """List the newest orders up to a limit; without a worker, only those that have a saga.

    Both sides are read up to the limit: what is beyond it in both is older.
    """
    listing = Listing()
    if status != PENDING:
        listing.rows = [(order, checkout_workflow_id(order.order_id)) async for order in checkouts.list(status, limit)]
    try:
        records, is_cut = await _recorded(checkouts, status, limit)
    except NoAnswer as problem:
        listing.note = f"orders that came in batches or by hand are not listed: {problem}"
        return listing
    known = {order.order_id: order.status for order, _ in listing.rows}
    unsure = [record for record in records if _needs_lookup(record, known.get(record.order_id))]
    others = {row[0].order_id: row for row in await _Others(checkouts, status).among(unsure)}
    rows = [row for row in listing.rows if row[0].order_id not in others]
    listing.rows = sorted([*rows, *others.values()], key=lambda row: row[0].started_at, reverse=True)[:limit]
    if is_cut and len(listing.rows) < limit:
        listing.note = "older orders that came in batches or by hand were not looked at"
    return listing


async def _recorded(checkouts: Checkouts, status: str | None, limit: int) -> tuple[list[OrderRecord], bool]:
    statuses = [str(each) for each in _RECORDED_AS.get(status, [status])] if status else []
    records: list[OrderRecord] = []
    before = 0
    while True:
        asked = LookupInput(statuses=statuses, limit=min(PAGE, limit - len(records)), before=before)
        answer = await lookup.look_up(checkouts.client, checkouts.task_queue, asked, within=_ANSWERED_WITHIN_SECONDS)
        records += answer.orders
        before = answer.next_before
        if not before or len(records) >= limit:
            return records, answer.is_cut


class _Others:
    """The orders of the database that visibility does not list, or lists by another order's saga."""

    def __init__(self, checkouts: Checkouts, status: str | None) -> None:
        self._checkouts = checkouts
        self._orders = Orders(checkouts)
        self._status = status
        self._turn = asyncio.Semaphore(_LOOKED_UP_AT_ONCE)
        self._batches: dict[str, Execution | None] = {}

    async def among(self, records: Iterable[OrderRecord]) -> list[tuple[Listed, str | None]]:
        records = list(records)
        batches = list({record.batch_workflow_id for record in records if record.batch_workflow_id})
        found = await asyncio.gather(*(self._in_turn(batch) for batch in batches))
        self._batches = dict(zip(batches, found, strict=True))
        rows = await asyncio.gather(*map(self._row, records))
        return [row for row in rows if row is not None and self._status in {None, row[0].status, _wider(row[0].status)}]

    async def _in_turn(self, workflow_id: str) -> Execution | None:
        async with self._turn:
            return await self._orders.run_of(workflow_id)

    async def _row(self, record: OrderRecord) -> tuple[Listed, str | None] | None:
        async with self._turn:
            own = checkout_workflow_id(record.order_id)
            try:
                run = await executions.of_order(self._checkouts.client, record.order_id)
            except NoSuchOrder:
                run = None
            if run is not None and await self._orders.is_own(record):
                return listed(record.order_id, run), own
            batch = self._batches.get(record.batch_workflow_id or "")
            status, place = as_shown(record.status), batch.workflow_id if batch else None
            if record.status in MOVING and (batch is None or not batch.is_open):
                found = await self._orders.shown(record)
                status, place = found.status.status, found.workflow_id
            return _listed(record, status), place


def _needs_lookup(record: OrderRecord, listed_as: str | None) -> bool:
    """Return whether visibility does not list an order, or lists it by a saga that may be another order's."""
    return listed_as is None or (listed_as in MAY_BE_ANOTHERS and listed_as != as_shown(record.status))


def _wider(status: str) -> str:
    """Name the other status that an order is listed under: one that is being undone is running, too."""
    return "running" if status == OrderStatus.UNWINDING else status


def _listed(record: OrderRecord, status: str) -> Listed:
    ended = datetime.fromisoformat(record.updated_at) if record.status in ENDINGS else None
    return Listed(record.order_id, status, None, datetime.fromisoformat(record.created_at), ended)
