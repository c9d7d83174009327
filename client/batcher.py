"""Group commit: orders that come while others are under way wait for milliseconds, and share one workflow.

    batcher = Batcher(lambda: checkouts)
    with batcher.seat(order) as (seat, _):
        outcome = await asyncio.shield(seat.ended)

A batch costs Temporal and the worker about as much for one order as for fifty, so that few and large ones pay. Nothing
is kept here that is not in Temporal: who got no answer asks again, and the fences return what was done.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile

from temporalio.service import RPCError

from client import batch_runs
from client.checkouts import Checkouts
from client.failures import Full
from domain.bulk import Outcome, Room
from domain.model import CheckoutInput

_log = logging.getLogger("checkout.batcher")

_START_SECONDS = 5.0
"""How long Temporal may take to answer the start of a batch; the SDK would wait for half a minute."""
_END_SECONDS = 5.0
"""How long a batch is waited for: a hundred times what it takes. Then another may start; this one goes on."""


@dataclass(frozen=True)
class BatchPolicy:
    """When a batch starts; docs/performance.md has the measurements behind the numbers."""

    at_once: int = 2
    """How many are under way at most."""
    most: int = 250
    """How many orders each has at most."""
    crowd: int = 100
    """Another starts beside one that is under way when so many orders wait, or as many as that one has."""
    longest_beside_seconds: float = 0.05
    """Or when the first has waited for so long: that one may be slow."""
    quiet_seconds: float = 0.002
    """It starts when for so long no order has come and no batch has ended: who was answered may ask again."""
    longest_seconds: float = 0.015
    """It starts so soon at the latest, once it may."""
    room: int = 2_000
    """How many orders may wait."""


class Seat:
    """The place of an order, which all share who ask for the same one."""

    def __init__(self, order: CheckoutInput) -> None:
        self.order = order
        self.callers = 0
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        self.started: asyncio.Future[str | None] = loop.create_future()
        """The workflow that Temporal has now; None where it does not answer."""
        self.ended: asyncio.Future[Outcome | None] = loop.create_future()
        """How the order has ended; None where that is not known: Temporal does not answer, or the batch is slow."""

    def give_up(self) -> None:
        """Answer those who still wait that nothing is known."""
        for future in (self.started, self.ended):
            if not future.done():
                future.set_result(None)


class Batcher:
    """Puts the orders of one event loop into batches."""

    def __init__(self, checkouts: Callable[[], Checkouts], policy: BatchPolicy | None = None) -> None:
        self._checkouts = checkouts
        self._policy = policy or BatchPolicy()
        self._seats: dict[str, Seat] = {}
        self._waiting: dict[str, Seat] = {}
        """Those of the seats whose batch has not started, the first that came first."""
        self._under_way: dict[asyncio.Task[None], int] = {}
        """The batches, each with how many orders it has."""
        self._starting: asyncio.Task[None] | None = None
        self._has_changed = asyncio.Event()
        self._changed_at = self._ended_at = float("-inf")

    @contextmanager
    def seat(self, order: CheckoutInput) -> Iterator[tuple[Seat, bool]]:
        """Yield the seat of an order's id, and whether it is a new one. Another order may have it: compare the content.

        An order that nobody waits for any more when its batch starts is not in it; once in it, it goes on.

        Raises:
            Full: no room is left.
        """
        known = self._seats.get(order.order_id)
        seat = known or self._place(order)
        seat.callers += 1
        try:
            yield seat, known is None
        finally:
            seat.callers -= 1
            if not seat.callers and self.is_waiting(seat):
                del self._waiting[order.order_id], self._seats[order.order_id]

    def is_waiting(self, seat: Seat) -> bool:
        """Return whether an order is in no batch yet, so that it is in none when its callers have gone."""
        return self._waiting.get(seat.order.order_id) is seat

    def has_ended_within(self, seconds: float) -> bool:
        """Return whether a batch has ended lately: those that wait move on."""
        return self._now() - self._ended_at <= seconds

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
            if (rest := self._seconds_until_one_may_start()) > 0:
                self._has_changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._has_changed.wait(), rest)
                continue
            await self._let_others_join()
            if self._waiting:
                self._start()
        self._starting = None

    def _seconds_until_one_may_start(self) -> float:
        policy = self._policy
        if not self._under_way:
            return 0
        if len(self._under_way) >= policy.at_once:
            return _END_SECONDS
        if len(self._waiting) >= min(policy.crowd, *self._under_way.values()):
            return 0
        first = next(iter(self._waiting.values()))
        return first.since + policy.longest_beside_seconds - self._now()

    async def _let_others_join(self) -> None:
        latest = self._now() + self._policy.longest_seconds
        while len(self._waiting) < self._policy.most:
            rest = min(self._changed_at + self._policy.quiet_seconds, latest) - self._now()
            if rest <= 0:
                return
            await asyncio.sleep(rest)

    def _start(self) -> None:
        room = Room(self._policy.most)
        seats = list(takewhile(lambda seat: room.take(seat.order), self._waiting.values()))
        for seat in seats:
            del self._waiting[seat.order.order_id]
        batch = asyncio.create_task(self._run(seats))
        self._under_way[batch] = len(seats)
        batch.add_done_callback(self._end)

    def _end(self, batch: asyncio.Task[None]) -> None:
        del self._under_way[batch]
        self._change()

    async def _run(self, seats: Sequence[Seat]) -> None:
        orders, workflow_id = [seat.order for seat in seats], batch_runs.new_id()
        try:
            checkouts = self._checkouts()
            async with asyncio.timeout(_START_SECONDS):
                await batch_runs.begin(checkouts.client, checkouts.task_queue, orders, workflow_id)
            for seat in seats:
                seat.started.set_result(workflow_id)
            async with asyncio.timeout(_END_SECONDS):
                outcomes = await batch_runs.outcomes(checkouts.client, orders, workflow_id)
            for seat, outcome in zip(seats, outcomes, strict=True):
                seat.ended.set_result(outcome)
            self._ended_at = self._now()
        except (RPCError, RuntimeError, TimeoutError) as error:  # a server that cannot be reached is a RuntimeError
            _log.warning("no answer of the batch %s with %d orders: %s", workflow_id, len(seats), repr(error))
        except Exception:  # noqa: BLE001 - the seats are given up, and the next batch is tried
            _log.exception("the batch %s cannot be followed", workflow_id)
        finally:
            for seat in seats:
                seat.give_up()
                del self._seats[seat.order.order_id]
