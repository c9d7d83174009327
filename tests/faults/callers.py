"""Callers of the checkout: many at once, over connections of their own, and what they may leave in the database."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from adapters.schema import tables
from adapters.temporal import DATA_CONVERTER
from client.batcher import Batcher
from client.batches import delegated_outcome
from client.checkouts import Checkouts
from domain.bulk import DELEGATED, UNKNOWN, Outcome
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.conftest import Database, Shop

PATIENCE_SECONDS = 100.0
# The last one is what the server says of a workflow that too many ask of at once.
_NO_ANSWER = frozenset(
    {
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.RESOURCE_EXHAUSTED,
    }
)
_AT_ONCE = 1_000

_T = TypeVar("_T")

# Everything that an order may have once at most.
_TRACES = """
SELECT o.status,
       (SELECT array_agg(event ORDER BY seq) FROM order_events e WHERE e.order_id = o.order_id) AS events,
       (SELECT count(*) FROM transfers t WHERE t.order_id = o.order_id AND t.kind = 'capture') AS captures,
       (SELECT count(*) FROM transfers t WHERE t.order_id = o.order_id AND t.kind = 'refund') AS refunds,
       (SELECT count(*) FROM shipments s WHERE s.order_id = o.order_id) AS parcels,
       (SELECT count(*) FROM step_fence f WHERE f.saga_id = o.order_id AND f.phase = 'done') AS done
  FROM orders o WHERE o.order_id = ANY ($1) ORDER BY o.order_id
"""
Traces = tuple[str, list[str], int, int, int, int]
COMPLETED_ONCE: Traces = ("completed", ["reserved", "paid", "completed"], 1, 0, 1, 3)


@dataclass(frozen=True)
class Answer:
    is_new: bool
    outcome: CheckoutStatus
    unanswered: int
    """How often the server left a start of this caller without an answer. Then its outcome is not known."""


def checkouts_of(shop: Shop, client: Client | None = None) -> Checkouts:
    return Checkouts(client or shop.client, shop.task_queue, "http://127.0.0.1")


async def ask_all(shop: Shop, orders: Sequence[CheckoutInput]) -> dict[str, list[Answer]]:
    """Let each entry of a list that has many of the same be a caller, a thousand at once over ten connections."""
    address = shop.client.service_client.config.target_host
    clients = await asyncio.gather(*(Client.connect(address, data_converter=DATA_CONVERTER) for _ in range(10)))
    desks = itertools.cycle([checkouts_of(shop, client) for client in clients])
    answers: dict[str, list[Answer]] = {}
    for first in range(0, len(orders), _AT_ONCE):
        callers = orders[first : first + _AT_ONCE]
        for order, answer in zip(
            callers, await asyncio.gather(*(ask(next(desks), order) for order in callers)), strict=True
        ):
            answers.setdefault(order.order_id, []).append(answer)
    return answers


async def ask(checkouts: Checkouts, order: CheckoutInput) -> Answer:
    """Start an order, as one of its callers, and wait for how it ends. Who gets no answer asks again."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        is_new, unanswered = await _answered(lambda: checkouts.start(order))
        outcome, _ = await _answered(lambda: checkouts.outcome(order.order_id, poll_every=PATIENCE_SECONDS))
        return Answer(is_new, outcome, unanswered)


class Door:
    """Orders go together, as the HTTP API has them go, and whoever gets no answer asks again, as its callers do."""

    def __init__(self, checkouts: Checkouts) -> None:
        self._checkouts = checkouts
        self._batcher = Batcher(lambda: checkouts)

    async def outcome(self, order: CheckoutInput) -> CheckoutStatus:
        """Place an order, and wait for how it ends."""
        while True:
            with self._batcher.seat(order) as (seat, _):
                found = await asyncio.shield(seat.ended)
            if found is not None and found.status == DELEGATED:
                found = (await _answered(lambda: delegated_outcome(self._checkouts, order)))[0]
            if found is not None and found.status != UNKNOWN:
                return _as_status(found)


def _as_status(outcome: Outcome) -> CheckoutStatus:
    return CheckoutStatus(
        outcome.order_id,
        outcome.status,
        outcome.reason,
        outcome.total_minor,
        outcome.currency,
        outcome.tracking_number,
    )


async def ends_either_way(shop: Shop, orders: Sequence[CheckoutInput]) -> list[CheckoutStatus]:
    """Place all orders at once, every other one through the door, and return how they end."""
    checkouts, door = checkouts_of(shop), Door(checkouts_of(shop))

    async def by_itself(order: CheckoutInput) -> CheckoutStatus:
        return (await ask(checkouts, order)).outcome

    ways = itertools.cycle([by_itself, door.outcome])
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await asyncio.gather(*(way(order) for way, order in zip(ways, orders, strict=False)))


async def _answered(request: Callable[[], Awaitable[_T]]) -> tuple[_T, int]:
    for unanswered in itertools.count():
        try:
            return await request(), unanswered
        except RPCError as error:
            if error.status not in _NO_ANSWER:
                raise
    raise AssertionError("unreachable")


async def traces(database: Database, *orders: CheckoutInput) -> list[Traces]:
    """List what each of these orders has done, in the sequence of their ids; see `COMPLETED_ONCE`."""
    rows = await database.fetch(_TRACES, [order.order_id for order in orders])
    return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in rows]


async def every_row(database: Database) -> dict[str, list[str]]:
    return {
        table: [row[0] for row in await database.fetch(f"SELECT t::text FROM {table} t ORDER BY 1")]
        for table in sorted(tables())
    }


async def is_known(shop: Shop, order: CheckoutInput) -> bool:
    try:
        await newest_run(shop, order)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


async def newest_run(shop: Shop, order: CheckoutInput) -> str:
    return (await shop.client.get_workflow_handle(checkout_workflow_id(order.order_id)).describe()).run_id
