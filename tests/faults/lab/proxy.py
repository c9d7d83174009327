"""The TCP proxy of all fault tests: between a client and a server it is slow, deaf, closed or cut on command.

    with Proxy(postgres_port) as proxy:      # clients connect to proxy.port
        proxy.slow(0.5, jitter=0.1)
        proxy.swallow(Way.TO_CLIENT)
        ...
        proxy.heal()
        assert proxy.counts.bytes_held

It has a thread and an event loop of its own, so it goes on while the test blocks; every method may be called from any
thread, at any time, and returns when the fault is in force.

A network that drops packets loses no byte of a TCP stream, it keeps them back until the sender's repetitions come
through. So a black hole holds bytes, and delivers them when it is healed, even those of a sender that has given up
meanwhile: that is how a statement arrives for which no client waits any more. A connection that begins inside the hole
is held as well; if its client has left by the time the hole closes, the server never hears of it. What it cannot show:
the client's own connect() succeeds at once, and waits afterwards.

In front of Postgres it can also hold a transaction at a chosen point:

    with Proxy(postgres_port, recognise=recognise) as proxy:
        gate = proxy.hold("some work", Moment.EXECUTED)
        await gate.reached()    # its statements have run, its transaction is open and cannot commit

`recognise` is shown every statement that is about to run, with its values, and names the work that its transaction
does, or returns None. It speaks protocol 3 without encryption, as the servers of the tests do.
"""

import asyncio
import contextlib
import enum
import random
import socket
import struct
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

_CHUNK_BYTES = 65_536
_QUEUED_CHUNKS = 1_000
_CALL_SECONDS = 30.0
_REACHED_SECONDS = 60.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ENCRYPTION_REQUESTS = {80877103, 80877104}
_FLUSH = b"H\x00\x00\x00\x04"

_T = TypeVar("_T")
_Queue = asyncio.Queue[tuple[float, bytes]]
Recognise = Callable[[str, Sequence[bytes | None]], Hashable | None]


class Way(enum.Enum):
    TO_SERVER = "to server"
    TO_CLIENT = "to client"


class Moment(enum.StrEnum):
    EXECUTED = "executed"
    """Every statement has run; what would commit them has not reached the server."""
    COMMITTED = "committed"
    """The server has committed and answered; the client has not got the answer."""


@dataclass(frozen=True)
class Counts:
    """What a proxy did since it was made: a fault that is not counted did not happen."""

    accepted: int = 0
    refused: int = 0
    reset: int = 0
    """Established connections that were cut with an RST."""
    connections_held: int = 0
    """New connections that ran into a black hole."""
    chunks_delayed: int = 0
    chunks_held: int = 0
    bytes_held: int = 0
    bytes_delivered: int = 0


class Gate:
    """Holds the first transaction that does one work, at one moment. Later ones pass."""

    def __init__(self, proxy: "Proxy", moment: Moment) -> None:
        self.moment = moment
        self.is_taken = False
        self._proxy = proxy
        self._is_reached = False
        self._opened = asyncio.Event()

    async def reached(self) -> None:
        async with asyncio.timeout(_REACHED_SECONDS):
            while not self._is_reached:
                await asyncio.sleep(0.005)

    def open(self) -> None:
        self._proxy.call(self._opened.set)

    def take(self) -> bool:
        if self._opened.is_set() or self.is_taken:
            return False
        self.is_taken = True
        return True

    async def stand(self, session: "Session") -> None:
        self._is_reached = True
        await session.until(self._opened)


@dataclass(frozen=True)
class Errand:
    work: Hashable
    backend_pid: int


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`server_port`, without a fault at first.

    Args:
        server_port: where the server listens; it need not be up.
        seed: of the jitter.
        recognise: makes it read what passes to Postgres.
    """

    def __init__(self, server_port: int, *, seed: int = 0, recognise: Recognise | None = None) -> None:
        self.port = 0
        self.recognise = recognise
        self.errands: list[Errand] = []
        self._server_port = server_port
        self._draw = random.Random(seed)
        self._counts = Counts()
        self._delay, self._jitter = 0.0, 0.0
        self._is_refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._open: dict[asyncio.Task[None], Session] = {}
        self._gates: dict[tuple[Hashable, Moment], Gate] = {}
        self.passable = {way: asyncio.Event() for way in Way}
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen on a free port, which stays the same for the life of the proxy."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_CALL_SECONDS)

    def stop(self) -> None:
        """Reset every connection and stop listening. Safe to repeat."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_CALL_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_SECONDS)
        self._loop.close()

    def slow(self, seconds: float, *, jitter: float = 0.0) -> None:
        """Deliver every chunk so much later, in each direction, give or take `jitter`; the order is kept."""
        self._delay, self._jitter = seconds, jitter

    def swallow(self, *ways: Way) -> None:
        """Open a black hole in these directions, or in both when none is named."""
        for way in ways or Way:
            self.call(self.passable[way].clear)

    def refuse(self) -> None:
        """Reset each new connection before a byte of it was read."""
        self._is_refusing = True

    def heal(self) -> None:
        """Take every fault away. What was held is delivered now."""
        self._delay, self._jitter, self._is_refusing = 0.0, 0.0, False
        for passable in self.passable.values():
            self.call(passable.set)

    def lead_to(self, server_port: int) -> None:
        """Take new connections to another server, as a name that moves does. Those that are open stay."""
        self._server_port = server_port

    def reset(self, sessions: Sequence["Session"] | None = None) -> int:
        """Cut these open connections, or all of them, with an RST to both ends; return how many that were."""

        def cut() -> int:
            chosen = [one for one in self._open.items() if sessions is None or one[1] in sessions]
            for task, session in chosen:
                session.was_reset = session.is_alive
                session.reset()
                task.cancel()
            self.count(reset=len(chosen))
            return len(chosen)

        return self.call(cut)

    def hold(self, work: Hashable, moment: Moment) -> Gate:
        """Put up a gate for the next transaction that does this work."""
        gate = self._gates[work, moment] = Gate(self, moment)
        return gate

    @property
    def counts(self) -> Counts:
        return self.call(lambda: self._counts)

    @property
    def connections(self) -> int:
        return self.call(lambda: len(self._open))

    @property
    def alive(self) -> list["Session"]:
        """The connections to Postgres that a server process serves."""
        return self.call(lambda: [session for session in self._open.values() if session.is_alive])

    @property
    def has_departed(self) -> bool:
        """Whether a client has hung up whose connection is still open: one that left a black hole."""
        return self.call(lambda: any(session.client_left for session in self._open.values()))

    def call(self, act: Callable[[], _T]) -> _T:
        async def acting() -> _T:
            return act()

        return asyncio.run_coroutine_threadsafe(acting(), self._loop).result(_CALL_SECONDS)

    async def _listen(self) -> None:
        for passable in self.passable.values():
            passable.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._open)
        for task, session in self._open.items():
            session.reset()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            self.count(refused=1)
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self.count(accepted=1)
        session = self._open[task] = Session(self, reader, writer)
        try:
            # Cancelled by `reset` and `stop` alone.
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await session.run(self._server_port)
        finally:
            session.reset()
            session.is_closed = True
            del self._open[task]

    def count(self, **more: int) -> None:
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + n for name, n in more.items()})

    def due(self) -> float:
        """Draw when a chunk that was read now may be delivered."""
        return self._loop.time() + max(0.0, self._delay + self._draw.uniform(-self._jitter, self._jitter))

    async def may_pass(self, way: Way, data: bytes, due: float) -> None:
        """Return when these bytes may go on."""
        wait = due - self._loop.time()
        if wait > 0:
            self.count(chunks_delayed=1)
            await asyncio.sleep(wait)
        if not self.passable[way].is_set():
            self.count(chunks_held=1, bytes_held=len(data))
            await self.passable[way].wait()
        self.count(bytes_delivered=len(data))

    def gate_for(self, work: Hashable) -> Gate | None:
        gates = (self._gates.get((work, moment)) for moment in Moment)
        return next((gate for gate in gates if gate is not None and gate.take()), None)


class Session:
    """One client's connection, and the server's end of it once that is reached."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.client_left = False
        self.was_reset = False
        """Whether a server process served it when it was cut."""
        self.backend_pid = 0
        """The Postgres process behind it; 0 until that has introduced itself, and for cancel requests."""
        self.gone = asyncio.Event()
        self.is_closed = False
        self._proxy = proxy
        self._reader = reader
        self._client = writer
        self._server: asyncio.StreamWriter | None = None
        self._unread = dict.fromkeys(Way, b"")
        self._is_starting = True
        self._statements: dict[bytes, str] = {}
        self._is_in_transaction = False
        self._work: Hashable | None = None
        self._gate: Gate | None = None
        self._kept: list[bytes] = []
        """What the server has answered, and the client does not get before `_kept_until` and the gate."""
        self._kept_until = b""
        self._released = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        return self.backend_pid != 0 and not self.gone.is_set()

    async def run(self, server_port: int) -> None:
        from_client: _Queue = asyncio.Queue(_QUEUED_CHUNKS)
        hearing = asyncio.create_task(self._hear(self._reader, from_client, is_client=True))
        try:
            passable = self._proxy.passable[Way.TO_SERVER]
            if not passable.is_set():
                self._proxy.count(connections_held=1)
                await passable.wait()
                if self.client_left:
                    return
            reader, self._server = await asyncio.open_connection("127.0.0.1", server_port)
            from_server: _Queue = asyncio.Queue(_QUEUED_CHUNKS)
            await _all_or_none(
                hearing,
                asyncio.create_task(self._hear(reader, from_server)),
                asyncio.create_task(self._forward(Way.TO_SERVER, from_client, self._server)),
                asyncio.create_task(self._forward(Way.TO_CLIENT, from_server, self._client)),
            )
            for each in (self._client, self._server):
                each.close()
        finally:
            hearing.cancel()

    def reset(self) -> None:
        self.gone.set()
        for writer in filter(None, (self._client, self._server)):
            _reset(writer)

    async def until(self, event: asyncio.Event) -> None:
        """Wait for it. What is kept back meanwhile is lost with a connection that breaks."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.gone.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not event.is_set():
            raise ConnectionResetError

    async def _hear(self, reader: asyncio.StreamReader, queue: _Queue, *, is_client: bool = False) -> None:
        """Read with the time at which each chunk is due; no bytes stand for the end."""
        data = b"more"
        while data:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = b""
            if not data:
                self.client_left = self.client_left or is_client
                self.gone.set()
            await queue.put((self._proxy.due(), data))

    async def _forward(self, way: Way, queue: _Queue, writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await queue.get()
            await self._proxy.may_pass(way, data, due)
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            if self._proxy.recognise is None:
                writer.write(data)
            else:
                await self._read_postgres(way, data)
            await writer.drain()

    async def _read_postgres(self, way: Way, data: bytes) -> None:
        self._unread[way] += data
        for message in self._messages(way):
            if way is Way.TO_CLIENT:
                await self._from_server(message[:1], message)
            elif self._is_starting:
                self._start(message)
            else:
                await self._from_client(message[:1], message)

    def _messages(self, way: Way) -> Iterator[bytes]:
        while True:
            # A client's first messages have no type byte.
            head = 0 if way is Way.TO_SERVER and self._is_starting else 1
            unread = self._unread[way]
            if len(unread) < head + 4:
                return
            (length,) = struct.unpack_from("!i", unread, head)
            if len(unread) < head + length:
                return
            self._unread[way] = unread[head + length :]
            yield unread[: head + length]

    def _start(self, message: bytes) -> None:
        (code,) = struct.unpack_from("!i", message, 4)
        if code in _ENCRYPTION_REQUESTS:
            self._client.write(b"N")
        else:
            self._is_starting = False
            self._to_server(message)

    async def _from_client(self, kind: bytes, message: bytes) -> None:
        if kind == b"P":
            name, sql, _ = message[5:].split(b"\0", 2)
            self._statements[name] = sql.decode()
        elif kind == b"B":
            self._hear_bind(message)
        elif kind == b"S" and self._gate is not None and not self._is_in_transaction:
            await self._hold_statement(self._gate)
        elif kind == b"Q" and message[5:].upper().startswith(b"COMMIT") and self._work is not None:
            await self._hold_commit(self._proxy.gate_for(self._work))
        self._to_server(message)

    def _hear_bind(self, message: bytes) -> None:
        statement, values = _bound_values(message)
        assert self._proxy.recognise is not None
        work = self._proxy.recognise(self._statements.get(statement, ""), values)
        if work is not None:
            self._work = work
            self._proxy.errands.append(Errand(work, self.backend_pid))
            self._gate = None if self._is_in_transaction else self._proxy.gate_for(work)

    async def _hold_statement(self, gate: Gate) -> None:
        """Hold a single statement, which its Sync commits."""
        if gate.moment is Moment.COMMITTED:
            self._kept_until = b"Z"
            return
        # Without a Sync the implicit transaction stays open; a Flush makes the server answer all the same.
        self._kept_until = b"C"
        self._released.clear()
        self._to_server(_FLUSH)
        await self.until(self._released)

    async def _hold_commit(self, gate: Gate | None) -> None:
        if gate is None:
            return
        if gate.moment is Moment.EXECUTED:
            await gate.stand(self)
        else:
            self._gate, self._kept_until = gate, b"Z"

    async def _from_server(self, kind: bytes, message: bytes) -> None:
        if kind == b"K":
            (self.backend_pid,) = struct.unpack_from("!i", message, 5)
        if not self._kept_until:
            self._to_client(message)
            return
        self._kept.append(message)
        if kind == self._kept_until:
            assert self._gate is not None
            await self._gate.stand(self)
        elif kind != b"E":  # what has failed has nothing to commit, and passes
            return
        kept, self._kept, self._kept_until, self._gate = self._kept, [], b"", None
        for one in kept:
            self._to_client(one)
        self._released.set()

    def _to_client(self, message: bytes) -> None:
        if message[:1] == b"Z":
            self._is_in_transaction = message[5:6] != b"I"
            if not self._is_in_transaction:
                self._work = self._gate = None
        self._client.write(message)

    def _to_server(self, message: bytes) -> None:
        assert self._server is not None
        self._server.write(message)


def _bound_values(bind: bytes) -> tuple[bytes, list[bytes | None]]:
    """Read a Bind message: the name of its statement and the values."""
    _portal, statement, rest = bind[5:].split(b"\0", 2)
    (formats,) = struct.unpack_from("!h", rest)
    at = 2 + 2 * formats
    (count,) = struct.unpack_from("!h", rest, at)
    at += 2
    values: list[bytes | None] = []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", rest, at)
        at += 4
        values.append(None if length < 0 else rest[at : at + length])
        at += max(length, 0)
    return statement, values


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
