"""A bulk load: the orders of a file, batch by batch, each with its outcome in a file."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from client.checkouts import Checkouts
from client.listing import TERMINATED
from client.orders_file import Entry
from client.outcomes import MALFORMED, OutcomeFile
from domain.bulk import HANDED_OVER, OTHER_CONTENT, UNKNOWN, Outcome, payload_bytes
from domain.errors import IdempotencyMismatch
from domain.model import CheckoutInput, id_is_taken

_FOLLOWED_AT_ONCE = 50
_LOOK_SECONDS = 30.0
# Well below what the server takes as one value (2 MB), and what it warns of (512 KB).
_BATCH_BYTES = 400_000


@dataclass
class BulkReport:
    """What came of a bulk load."""

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    """How many orders ended how, in this run of the load."""
    skipped: int = 0
    """Orders whose outcome an earlier run of the load has written down."""

    @property
    def per_second(self) -> float:
        """Orders with an outcome, per second."""
        return self.outcomes.total() / self.seconds if self.seconds else 0.0


class BulkLoad:
    """Carries orders through Temporal in batches; never touches the database.

    Orders are begun in the file's order, so many batches at once. An id that comes twice is asked for twice, the
    second time when the first has ended: it then has the first one's outcome, or is another order under a taken id.
    """

    def __init__(
        self,
        checkouts: Checkouts,
        outcomes: OutcomeFile,
        *,
        batch_size: int,
        at_once: int,
        on_done: Callable[[int], None],
    ) -> None:
        self._checkouts = checkouts
        self._outcomes = outcomes
        self._batch_size = batch_size
        self._turns = asyncio.Semaphore(at_once)
        self._on_done = on_done
        self._under_way: dict[str, asyncio.Event] = {}
        self._report = BulkReport()

    async def run(self, entries: Iterable[Entry]) -> BulkReport:
        """Carry every order that has no outcome yet."""
        begun = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as carrying:
                async for batch in self._batches(entries):
                    await self._turns.acquire()
                    over = asyncio.Event()
                    self._under_way.update((entry.order_id, over) for entry in batch)
                    carrying.create_task(self._carry(batch, over))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others were cancelled, or failed of the same
        self._report.seconds = time.perf_counter() - begun
        return self._report

    async def _batches(self, entries: Iterable[Entry]) -> AsyncIterator[list[Entry]]:
        batch: dict[str, Entry] = {}
        size = 0
        for entry in entries:
            if entry.order is None:
                self._write(entry, Outcome(entry.order_id, MALFORMED, entry.problem))
                self._on_done(entry.lines)
                continue
            if self._outcomes.is_settled(entry.order):
                self._report.skipped += 1
                self._on_done(entry.lines)
                continue
            more = payload_bytes(entry.order)
            if entry.order_id in batch or len(batch) == self._batch_size or (batch and size + more > _BATCH_BYTES):
                yield list(batch.values())
                batch, size = {}, 0
            if earlier := self._under_way.get(entry.order_id):
                await earlier.wait()
            batch[entry.order_id] = entry
            size += more
        if batch:
            yield list(batch.values())

    async def _carry(self, batch: list[Entry], over: asyncio.Event) -> None:
        try:
            asked = [entry.order for entry in batch if entry.order is not None]
            outcomes = await self._checkouts.carry(asked)
            following = asyncio.Semaphore(_FOLLOWED_AT_ONCE)
            outcomes = await asyncio.gather(
                *(self._followed(order, told, following) for order, told in zip(asked, outcomes, strict=True))
            )
            for entry, outcome in zip(batch, outcomes, strict=True):
                self._write(entry, outcome)
            self._outcomes.flush()
            self._on_done(sum(entry.lines for entry in batch))
        finally:
            self._turns.release()
            for entry in batch:
                self._under_way.pop(entry.order_id, None)
            over.set()

    async def _followed(self, order: CheckoutInput, outcome: Outcome, turn: asyncio.Semaphore) -> Outcome:
        if outcome.status != HANDED_OVER:
            return outcome
        async with turn:
            return await carried_on(self._checkouts, order)

    def _write(self, entry: Entry, outcome: Outcome) -> None:
        self._outcomes.add(entry.line, outcome, entry.order)
        self._report.outcomes[outcome.status] += 1


async def carried_on(checkouts: Checkouts, order: CheckoutInput) -> Outcome:
    """Wait for the end of an order that its batch has handed over to a saga of its own.

    The saga that has the id may be of other content, started before the hand-over. How that one ends says nothing of
    this order; whose the id is, the database can tell a batch by then. Or such a saga has ended, and this order's own
    finds the id taken. Its own that somebody has ended before we came is begun anew, and followed.
    """
    outcome = Outcome(order.order_id, HANDED_OVER)
    for is_last in (False, True):
        if await checkouts.is_gone(order.order_id) and await checkouts.has_saga_of(order):
            await checkouts.start(order)
        status = await checkouts.outcome(order.order_id, look_every=_LOOK_SECONDS)
        if await checkouts.has_saga_of(order):
            if (status.reason or "").startswith(f"{IdempotencyMismatch.__name__}: "):
                return Outcome(order.order_id, OTHER_CONTENT, id_is_taken(order.order_id))
            return Outcome(
                order.order_id,
                UNKNOWN if status.status == TERMINATED else status.status,
                status.reason,
                status.total_minor,
                status.currency,
                status.tracking_number,
            )
        if not is_last:
            [outcome] = await checkouts.carry([order])
        if outcome.status != HANDED_OVER:
            return outcome
    return Outcome(order.order_id, UNKNOWN, id_is_taken(order.order_id))
