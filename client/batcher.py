"""Group commit: orders that come while others are under way wait for milliseconds, and share one workflow.

    batcher = Batcher(lambda: checkouts)
    with batcher.seat(order) as (seat, _):
        ended = await seat.ended

A batch costs Temporal and the worker about as much for one order as for fifty, so that few and large ones pay. Nothing
is kept here that is not in Temporal: who got no answer asks again, and the fences return what was done.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from temporalio.service import RPCError

from client import batch_runs
from client.checkouts import Checkouts
from client.failures import Full
from domain.bulk import BATCH_BYTES, Outcome, payload_bytes
from domain.model import CheckoutInput

_log = logging.getLogger("checkout.batcher")

_START_SECONDS = 5.0
"""How long Temporal may take to answer the start of a batch; the SDK would wait for half a minute."""


@dataclass(frozen=True)
class BatchPolicy:
    """When a batch starts; docs/performance.md has the measurements behind the numbers."""

    at_once: int = 2
    """How many are under way at most."""
    most: int = 250
    """How many orders each has at most."""
    crowd: int = 100
    """How many orders have to wait before another starts beside one."""
    quiet_seconds: float = 0.002
    """It starts when for so long no order has come and no batch has ended: who was answered may ask again."""
    longest_seconds: float = 0.015
    """It starts so soon at the latest, once it may."""
    room: int = 5_000
    """How many orders may wait."""


@dataclass(frozen=True)
class Ended:
    """How an order of a batch has ended."""

    outcome: Outcome
    workflow_id: str
    is_new: bool
    """Whether the batch was begun for this; one of the very same orders may have ended long ago."""


class Seat:
    """The place of an order, which all share who ask for the same one."""

    def __init__(self, order: CheckoutInput) -> None:
        self.order = order
        self.callers = 0
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[bool] = loop.create_future()
        """Whether Temporal has the batch."""
        self.ended: asyncio.Future[Ended | None] = loop.create_future()
        """None where that is not known: Temporal does not answer."""

    def give_up(self) -> None:
        """Answer those who still wait that nothing is known."""
        if not self.started.done():
            self.started.set_result(False)
        if not self.ended.done():
            self.ended.set_result(None)


class Batcher:
    """Puts the orders of one event loop into batches."""

    def __init__(self, checkouts: Callable[[], Checkouts], policy: BatchPolicy | None = None) -> None:
        self._checkouts = checkouts
        self._policy = policy or BatchPolicy()
        self._seats: dict[str, Seat] = {}
        self._waiting: dict[str, Seat] = {}
        """Those of the seats whose batch has not started."""
        self._under_way: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._has_changed = asyncio.Event()
        self._changed_at = float("-inf")

    @contextmanager
    def seat(self, order: CheckoutInput) -> Iterator[tuple[Seat | None, bool]]:
        """Yield an order's seat, and whether it is a new one; None where another order has one with its id.

        An order that nobody waits for any more when its batch starts is not in it; once in it, it goes on.

        Raises:
            Full: no room is left.
        """
        known = self._seats.get(order.order_id)
        if known and known.order.fingerprint != order.fingerprint:
            yield None, False
            return
        seat = known or self._place(order)
        seat.callers += 1
        try:
            yield seat, known is None
        finally:
            seat.callers -= 1
            if not seat.callers and self._waiting.get(order.order_id) is seat:
                del self._waiting[order.order_id], self._seats[order.order_id]

    def _place(self, order: CheckoutInput) -> Seat:
        if len(self._waiting) >= self._policy.room:
            raise Full(f"{self._policy.room} orders wait already")
        is_alone = not self._under_way and not self._waiting
        is_alone = is_alone and self._now() - self._changed_at > self._policy.longest_seconds
        seat = self._seats[order.order_id] = self._waiting[order.order_id] = Seat(order)
        self._change()
        if is_alone:
            self._start()
        elif self._starting is None:
            self._starting = asyncio.create_task(self._start_batches())
        return seat

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _change(self) -> None:
        self._changed_at = self._now()
        self._has_changed.set()

    async def _start_batches(self) -> None:
        """Start batches until no order waits."""
        while self._waiting:
            needed = min(self._policy.crowd, self._policy.most) if self._under_way else 1
            if len(self._under_way) >= self._policy.at_once or len(self._waiting) < needed:
                self._has_changed.clear()
                await self._has_changed.wait()
                continue
            await self._let_others_join()
            if self._waiting:
                self._start()
        self._starting = None

    async def _let_others_join(self) -> None:
        latest = self._now() + self._policy.longest_seconds
        while len(self._waiting) < self._policy.most:
            rest = min(self._changed_at + self._policy.quiet_seconds, latest) - self._now()
            if rest <= 0:
                return
            await asyncio.sleep(rest)

    def _start(self) -> None:
        seats: list[Seat] = []
        room = BATCH_BYTES
        for seat in list(islice(self._waiting.values(), self._policy.most)):
            room -= payload_bytes(seat.order)
            if room < 0 and seats:
                break
            seats.append(self._waiting.pop(seat.order.order_id))
        batch = asyncio.create_task(self._carry(seats))
        self._under_way.add(batch)
        batch.add_done_callback(self._land)

    def _land(self, batch: asyncio.Task[None]) -> None:
        self._under_way.discard(batch)
        self._change()

    async def _carry(self, seats: Sequence[Seat]) -> None:
        orders = [seat.order for seat in seats]
        checkouts = self._checkouts()
        try:
            async with asyncio.timeout(_START_SECONDS):
                is_new = await checkouts.begin_batch(orders)
            for seat in seats:
                seat.started.set_result(True)
            workflow_id = batch_runs.workflow_id(orders)
            for seat, outcome in zip(seats, await checkouts.batch_outcomes(orders), strict=True):
                seat.ended.set_result(Ended(outcome, workflow_id, is_new))
        except (RPCError, RuntimeError, TimeoutError) as error:  # a server that cannot be reached is a RuntimeError
            _log.warning("no answer from Temporal to a batch of %d orders: %s", len(seats), error)
        finally:
            for seat in seats:
                seat.give_up()
                del self._seats[seat.order.order_id]
