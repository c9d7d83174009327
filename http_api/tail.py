"""One poll of Postgres for all streams of this process: it wakes those whose order has a new event.

It only wakes them. Each stream reads its events by their numbers, so that none is lost or doubled whatever the poll
sees. NOTIFY within the steps' transactions would cost half of their commits per second, or more (docs/decisions.md).
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from http_api.reads import Reads
from sagafence import SagaError

POLL_SECONDS = 0.2
_AFTER_A_FAILURE_SECONDS = 1.0

_log = logging.getLogger("checkout.api")


class Watch:
    """A caller's stream, and its interest in one order."""

    def __init__(self, order_id: str, caller: str, seen: int) -> None:
        self.order_id = order_id
        self.caller = caller
        self.seen = seen
        """The number of the newest event that the stream has."""
        self.changed = asyncio.Event()


class Tail:
    """The poll, and the streams that it wakes."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._watches: set[Watch] = set()
        self._is_watched = asyncio.Event()

    @property
    def count(self) -> int:
        """How many streams are open."""
        return len(self._watches)

    def count_of(self, caller: str) -> int:
        """How many of them a caller has."""
        return sum(watch.caller == caller for watch in self._watches)

    @contextmanager
    def watching(self, watch: Watch) -> Iterator[None]:
        """Watch inside the block."""
        self._watches.add(watch)
        self._is_watched.set()
        try:
            yield
        finally:
            self._watches.discard(watch)

    async def run(self) -> None:
        """Poll while there are streams, until cancelled."""
        is_away = False
        while True:
            if not self._watches:
                self._is_watched.clear()
                await self._is_watched.wait()
            try:
                newest = await self._reads.newest_events(list({watch.order_id for watch in self._watches}))
            except SagaError as error:
                if not is_away:
                    _log.warning("streams wait for the database: %s", error)
                is_away = True
                await asyncio.sleep(_AFTER_A_FAILURE_SECONDS)
                continue
            is_away = False
            for watch in self._watches:
                if newest.get(watch.order_id, 0) > watch.seen:
                    watch.changed.set()
            await asyncio.sleep(POLL_SECONDS)
