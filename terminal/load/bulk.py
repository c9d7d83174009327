"""A bulk load: the orders of a file, batch by batch, each with its outcome in another file."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from client.batches import delegated_outcome
from client.checkouts import Checkouts
from client.failures import ExitStatus
from domain.bulk import DELEGATED, ORDER_ID_CONFLICT, UNKNOWN, Outcome, Room
from domain.model import CheckoutInput, OrderStatus
from domain.text import on_one_line
from terminal import view
from terminal.load.orders_file import Entry
from terminal.load.outcomes import MALFORMED, OutcomeFile

_FOLLOWED_AT_ONCE = 50
_GRACE_SECONDS = 10.0
_READ_AT_ONCE = 1_000


class Stop(StrEnum):
    """Why a load starts no more batches before the end of its file."""

    INTERRUPTED = "interrupted"
    LATE = "out of time"
    FAILED = "failed"


@dataclass
class BulkReport:
    """The result of a bulk load."""

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    """How many orders ended how, in this run of the load."""
    skipped: int = 0
    """Orders whose outcome an earlier run of the load has written."""
    line: int = 0
    """How far the file was read."""
    under_way: int = 0
    """Orders that were started and have no outcome yet: they go on in Temporal."""
    stopped: Stop | None = None
    failure: BaseException | None = None
    """The cause, where it failed."""

    @property
    def per_second(self) -> float:
        """Orders with an outcome, per second."""
        return self.outcomes.total() / self.seconds if self.seconds else 0.0


class BulkLoad:
    """Processes orders in batches, through Temporal alone.

    Batches are started in the file's order, a limited number at once. An id that comes twice is requested twice, the
    second time when the first has ended: it then gets the first one's outcome, or is another order under a taken id.
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
        self._running: set[asyncio.Task[None]] = set()
        self._stopped, self._left = asyncio.Event(), asyncio.Event()
        self._report = BulkReport()

    def stop(self, why: Stop) -> None:
        """Start no more batches. Those under way get ten seconds; when out of time or interrupted again, none.

        Their outcomes until then are written. They go on in Temporal, and the next load joins them.
        """
        if self._stopped.is_set() or why is Stop.LATE:
            self._left.set()
        elif why is Stop.INTERRUPTED:
            asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._left.set)
        self._report.stopped = self._report.stopped or why
        self._stopped.set()

    async def run(self, entries: Iterable[Entry]) -> BulkReport:
        """Process every order that has no outcome yet. A failure is in the report, with all that was done before."""
        begun = time.perf_counter()
        reading = asyncio.create_task(self._read(entries))
        stopped, left = asyncio.create_task(self._stopped.wait()), asyncio.create_task(self._left.wait())
        try:
            await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            [failure] = await asyncio.gather(reading, return_exceptions=True)
            if isinstance(failure, Exception):
                self._fail(failure)
            while self._running and not left.done():
                await asyncio.wait({*self._running, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*self._running, reading, stopped, left):
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        self._report.seconds = time.perf_counter() - begun
        return self._report

    def _fail(self, failure: BaseException) -> None:
        self._report.failure = self._report.failure or failure
        if not self._stopped.is_set():
            self.stop(Stop.FAILED)

    async def _read(self, entries: Iterable[Entry]) -> None:
        async for batch in self._batches(entries):
            await self._turns.acquire()
            if self._stopped.is_set():
                return
            over = asyncio.Event()
            self._under_way.update((entry.order_id, over) for entry in batch)
            task = asyncio.create_task(self._process(batch, over))
            self._running.add(task)
            self._report.under_way += len(batch)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is not None and not self._left.is_set():
            self._fail(failure)
        self._turns.release()

    async def _batches(self, entries: Iterable[Entry]) -> AsyncIterator[list[Entry]]:
        batch: dict[str, Entry] = {}
        room = Room(self._batch_size)
        for number, entry in enumerate(entries, start=1):
            if number % _READ_AT_ONCE == 0:
                await asyncio.sleep(0)  # so that a file whose orders all have outcomes can be interrupted too
            self._report.line = entry.line
            if entry.order is None:
                self._write(entry, Outcome(entry.order_id, MALFORMED, entry.problem))
                self._on_done(entry.lines)
                continue
            if self._outcomes.is_settled(entry.order):
                self._report.skipped += 1
                self._on_done(entry.lines)
                continue
            if entry.order_id in batch or not room.take(entry.order):
                yield list(batch.values())
                batch, room = {}, Room(self._batch_size)
                room.take(entry.order)
            if earlier := self._under_way.get(entry.order_id):
                await earlier.wait()
            batch[entry.order_id] = entry
        if batch:
            yield list(batch.values())

    async def _process(self, batch: list[Entry], over: asyncio.Event) -> None:
        try:
            asked = [(entry, entry.order) for entry in batch if entry.order is not None]
            outcomes = await self._checkouts.process([order for _, order in asked])
            results = list(zip(asked, outcomes, strict=True))
            # What is known is written first: the rest may take long, and the load may stop before.
            self._finish((entry, outcome) for (entry, _), outcome in results if outcome.status != DELEGATED)
            following = asyncio.Semaphore(_FOLLOWED_AT_ONCE)
            followed = (self._follow(*each, following) for each, outcome in results if outcome.status == DELEGATED)
            for failure in await asyncio.gather(*followed, return_exceptions=True):
                if failure is not None:
                    raise failure
        finally:
            for entry in batch:
                self._under_way.pop(entry.order_id, None)
            over.set()

    async def _follow(self, entry: Entry, order: CheckoutInput, turn: asyncio.Semaphore) -> None:
        async with turn:
            self._finish([(entry, await delegated_outcome(self._checkouts, order))])

    def _finish(self, results: Iterable[tuple[Entry, Outcome]]) -> None:
        for entry, outcome in results:
            self._write(entry, outcome)
            self._report.under_way -= 1
            self._on_done(entry.lines)
        self._outcomes.flush()

    def _write(self, entry: Entry, outcome: Outcome) -> None:
        self._outcomes.add(entry.line, outcome, entry.order)
        self._report.outcomes[outcome.status] += 1


def print_bulk(report: BulkReport, into: Path, *, as_json: bool) -> int:
    """Print the result of a bulk load, and return the exit status for the worst of it."""
    if as_json:
        view.print_json(
            {
                "orders": report.outcomes.total(),
                "skipped": report.skipped,
                "seconds": round(report.seconds, 3),
                "per_second": round(report.per_second, 1),
                "outcomes": report.outcomes,
                "outcome_file": str(into),
                "stopped": report.stopped,
                "under_way": report.under_way,
            }
        )
    else:
        view.console.print(view.rate(f"{report.outcomes.total()} orders: {report.seconds:.1f} s, ", report.per_second))
        view.console.print(f"outcome  {view.counts(report.outcomes)}")
        if report.skipped:
            view.console.print(f"skipped  {report.skipped} that had an outcome already")
        view.console.print(f"each order's outcome is in {on_one_line(str(into))}")
    if report.stopped:
        view.errors.print(
            f"{report.stopped}, at line {report.line}: {report.outcomes.total() + report.skipped} orders have their "
            f"outcome in {on_one_line(str(into))}, {report.under_way} are under way and go on; the same command goes "
            "on from there"
        )
        return ExitStatus.INTERRUPTED if report.stopped is Stop.INTERRUPTED else ExitStatus.UNREACHABLE
    if report.outcomes[UNKNOWN]:
        return ExitStatus.UNREACHABLE
    if report.outcomes[OrderStatus.STUCK]:
        return ExitStatus.STUCK
    return (
        ExitStatus.USAGE if report.outcomes[MALFORMED] or report.outcomes[ORDER_ID_CONFLICT] else ExitStatus.COMPLETED
    )
