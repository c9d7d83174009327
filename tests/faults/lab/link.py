"""A TCP link between a worker and a server that can be made slow, deaf, closed or cut while it carries traffic.

    with Link(postgres_port) as link:      # clients connect to link.port
        link.slow(0.5, jitter=0.1)
        link.swallow(Way.TO_CLIENT)
        ...
        link.heal()
        assert link.counts.bytes_held

It has a thread and an event loop of its own, so it goes on while whoever drives it blocks; every method may be
called from any thread, at any time, and returns when the fault is in force.

What a black hole is: a network that drops packets loses no byte of a TCP stream, it keeps them back until the
sender's repetitions come through. So bytes are held, and delivered when the link heals, even those of a sender
that has given up meanwhile: that is how a statement arrives which nobody waits for any more. A connection that
begins inside the hole is held as well; if its client has left by the time the hole closes, the server never
hears of it. What the relay cannot show: the client's own connect() succeeds at once, and waits afterwards.
"""

import asyncio
import contextlib
import enum
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

_CHUNK_BYTES = 65_536
_QUEUED_CHUNKS = 1_000
_CALL_SECONDS = 30.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_T = TypeVar("_T")


class Way(enum.Enum):
    """A direction of a link."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


@dataclass(frozen=True)
class Counts:
    """What a link did since it was made: a fault that is not counted did not happen."""

    accepted: int = 0
    """Connections that were let in."""
    refused: int = 0
    """New connections that were turned away."""
    reset: int = 0
    """Carried connections that were cut with an RST."""
    connections_held: int = 0
    """New connections that ran into a black hole."""
    chunks_delayed: int = 0
    bytes_delayed: int = 0
    chunks_held: int = 0
    bytes_held: int = 0
    bytes_delivered: int = 0


class Link:
    """A relay from 127.0.0.1:`port` to 127.0.0.1:`server_port`, without a fault at first.

    Args:
        server_port: where the server listens; it need not be up.
        seed: of the jitter.
    """

    def __init__(self, server_port: int, *, seed: int = 0) -> None:
        self._server_port = server_port
        self._draw = random.Random(seed)
        self._counts = Counts()
        self._delay, self._jitter = 0.0, 0.0
        self._is_refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._carried: dict[asyncio.Task[None], _Connection] = {}
        self._passable: dict[Way, asyncio.Event] = {}
        self._server: asyncio.Server | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen on a free port, which stays the same for the life of the link."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_CALL_SECONDS)

    def stop(self) -> None:
        """Reset what is carried and stop listening. Safe to repeat."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_CALL_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_SECONDS)
        self._loop.close()

    # Faults: each stays in force, beside the others, until `heal` -----------------------------------------

    def slow(self, seconds: float, *, jitter: float = 0.0) -> None:
        """Deliver every chunk so much later, in each direction, give or take `jitter`; the order is kept."""

        def set_delay() -> None:
            self._delay, self._jitter = seconds, jitter

        self._call(set_delay)

    def swallow(self, *ways: Way) -> None:
        """Open a black hole in these directions, or in both when none is named. Nobody is told."""

        def close() -> None:
            for way in ways or Way:
                self._passable[way].clear()

        self._call(close)

    def refuse(self) -> None:
        """Turn new connections away: each is reset before a byte of it was read."""

        def set_refusing() -> None:
            self._is_refusing = True

        self._call(set_refusing)

    def heal(self) -> None:
        """Take every fault away. What was held is delivered now."""

        def mend() -> None:
            self._delay, self._jitter, self._is_refusing = 0.0, 0.0, False
            for passable in self._passable.values():
                passable.set()

        self._call(mend)

    def lead_to(self, server_port: int) -> None:
        """Take new connections to another server, as a name that moves does. Those that are carried stay."""

        def redirect() -> None:
            self._server_port = server_port

        self._call(redirect)

    def reset(self) -> int:
        """Cut every connection that is carried now, with an RST to both ends; tell how many that were."""

        def cut() -> int:
            cut_now = list(self._carried.items())
            for task, connection in cut_now:
                connection.reset()
                task.cancel()
            self._count(reset=len(cut_now))
            return len(cut_now)

        return self._call(cut)

    @property
    def counts(self) -> Counts:
        """What it did so far."""
        return self._call(lambda: self._counts)

    @property
    def carried(self) -> int:
        """How many connections it carries now."""
        return self._call(lambda: len(self._carried))

    @property
    def has_departed(self) -> bool:
        """Whether somebody it still carries has hung up: a client that left a black hole."""
        return self._call(lambda: any(connection.client_left for connection in self._carried.values()))

    # Inside the loop ------------------------------------------------------------------------------------

    def _call(self, act: Callable[[], _T]) -> _T:
        async def acting() -> _T:
            return act()

        return asyncio.run_coroutine_threadsafe(acting(), self._loop).result(_CALL_SECONDS)

    async def _listen(self) -> None:
        self._passable = {way: asyncio.Event() for way in Way}
        for passable in self._passable.values():
            passable.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._carried)
        for task, connection in self._carried.items():
            connection.reset()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            self._count(refused=1)
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._count(accepted=1)
        connection = self._carried[task] = _Connection(self, reader, writer)
        try:
            # Cancelled by `reset` and `stop` alone, which have nobody else to tell.
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await connection.carry(self._server_port)
        finally:
            connection.reset()
            del self._carried[task]

    def _count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + n for name, n in more.items()})

    def _due(self) -> float:
        """Draw when a chunk that was read now may be delivered."""
        return self._loop.time() + max(0.0, self._delay + self._draw.uniform(-self._jitter, self._jitter))

    async def _pass_through(self, way: Way, data: bytes, due: float) -> None:
        """Return when these bytes may go on."""
        wait = due - self._loop.time()
        if wait > 0:
            self._count(chunks_delayed=1, bytes_delayed=len(data))
            await asyncio.sleep(wait)
        if not self._passable[way].is_set():
            self._count(chunks_held=1, bytes_held=len(data))
            await self._passable[way].wait()
        self._count(bytes_delivered=len(data))


class _Connection:
    """One client, and the server's side of it once that is reached."""

    def __init__(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._reader = reader
        self._writers = [writer]
        self.client_left = False

    async def carry(self, server_port: int) -> None:
        """Carry until both ends have closed or one has broken."""
        from_client: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)
        hearing = asyncio.create_task(self._hear(self._reader, from_client, is_client=True))
        try:
            passable = self._link._passable[Way.TO_SERVER]
            if not passable.is_set():
                self._link._count(connections_held=1)
                await passable.wait()
                if self.client_left:
                    return
            reader, writer = await asyncio.open_connection("127.0.0.1", server_port)
            self._writers.append(writer)
            from_server: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)
            await _all_or_none(
                hearing,
                asyncio.create_task(self._hear(reader, from_server)),
                asyncio.create_task(self._tell(Way.TO_SERVER, from_client, writer)),
                asyncio.create_task(self._tell(Way.TO_CLIENT, from_server, self._writers[0])),
            )
            for each in self._writers:
                each.close()
        finally:
            hearing.cancel()

    def reset(self) -> None:
        """Cut both sides, if they are open."""
        for writer in self._writers:
            _reset(writer)

    async def _hear(
        self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]], *, is_client: bool = False
    ) -> None:
        """Read with the time at which each chunk is due; no bytes stand for the end."""
        data = b"more"
        while data:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = b""
            if is_client and not data:
                self.client_left = True
            await queue.put((self._link._due(), data))

    async def _tell(self, way: Way, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await queue.get()
            await self._link._pass_through(way, data, due)
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


async def _all_or_none(*tasks: asyncio.Task[None]) -> None:
    """Wait for all; when one fails, or we are cancelled, cancel the others and wait for those, too."""
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    if writer.transport.is_closing():
        return
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
