"""A proxy in front of Postgres that understands what passes, and can stop a transaction at a chosen point of it.

    async with Proxy(postgres_port, recognise) as proxy:
        gate = proxy.hold("some work", Moment.EXECUTED)
        ...                     # clients connect to proxy.port
        await gate.reached()    # its statements have run, its transaction is open and cannot commit
        proxy.cut([gate.session])

`recognise` is shown every statement that is about to run, with its values, and names the work that its
transaction does, or says None. The proxy speaks protocol 3 without encryption, as the servers of the tests do.
"""

import asyncio
import struct
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self

from tests.faults.lab.messages import Side, bound_values

_PATIENCE_SECONDS = 60.0
_CANCEL_REQUEST = 80877102
_ENCRYPTION_REQUESTS = {80877103, 80877104}
_FLUSH = b"H\x00\x00\x00\x04"

Recognise = Callable[[str, Sequence[bytes | None]], Hashable | None]


class Moment(StrEnum):
    """Where in a transaction a gate stands."""

    EXECUTED = "executed"
    """Every statement has run; what would commit them has not reached the server."""
    COMMITTED = "committed"
    """The server has committed and answered; the client has not got the answer."""


class Gate:
    """Holds up the first transaction that does one work, at one moment. Later ones pass."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self._session: Session | None = None
        self._reached = asyncio.Event()
        self._is_open = False

    @property
    def session(self) -> "Session":
        """The connection that was held up."""
        assert self._session is not None, "nobody has come to the gate"
        return self._session

    async def reached(self) -> None:
        """Wait until a transaction stands before the gate."""
        await asyncio.wait_for(self._reached.wait(), _PATIENCE_SECONDS)

    def open(self) -> None:
        """Let it pass, or whoever comes later."""
        self._is_open = True
        if self._session is not None:
            self._session.go_on()

    def take(self, session: "Session") -> bool:
        """Claim the gate for a connection; False when it is open or taken."""
        if self._is_open or self._session is not None:
            return False
        self._session = session
        return True

    def stand(self) -> None:
        """Tell whoever waits that the transaction stands here, unless the gate was opened meanwhile."""
        self._reached.set()
        if self._is_open:
            self.session.go_on()


@dataclass(frozen=True)
class Errand:
    """One transaction that was recognised: what it worked on, and through which connection."""

    work: Hashable
    session: "Session"
    backend_pid: int


class Proxy:
    """Listens on 127.0.0.1:`port` and passes everything on to 127.0.0.1:`upstream_port`."""

    def __init__(self, upstream_port: int, recognise: Recognise = lambda _sql, _values: None) -> None:
        self.upstream_port = upstream_port
        self.recognise = recognise
        self.sessions: list[Session] = []
        """Every connection that was ever made, the oldest first."""
        self.errands: list[Errand] = []
        """Every transaction that was recognised, the oldest first."""
        self._gates: dict[tuple[Hashable, Moment], Gate] = {}
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where clients connect."""
        assert self._server is not None, "the proxy is not listening"
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def alive(self) -> list["Session"]:
        """The connections that stand on both sides."""
        return [session for session in self.sessions if session.is_alive]

    def hold(self, work: Hashable, moment: Moment) -> Gate:
        """Put up a gate for the next transaction that does this work."""
        gate = self._gates[work, moment] = Gate(moment)
        return gate

    def gate_for(self, work: Hashable, moment: Moment, session: "Session") -> Gate | None:
        """Give the gate that this transaction has to stop at, now its own."""
        gate = self._gates.get((work, moment))
        return gate if gate is not None and gate.take(session) else None

    def cut(self, sessions: Iterable["Session"] | None = None) -> list["Session"]:
        """Reset connections on both sides, all of them by default, and give those that stood until now."""
        standing = [session for session in (self.alive if sessions is None else list(sessions)) if session.is_alive]
        for session in standing:
            session.reset()
        return standing

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for session in self.sessions:
            session.reset()
        await asyncio.gather(*(session.closed() for session in self.sessions))
        await self._server.wait_closed()

    def _accept(self) -> asyncio.BaseProtocol:
        session = Session(self)
        self.sessions.append(session)
        return session.client


@dataclass
class _Passing:
    """The transaction that is under way on a connection."""

    work: Hashable | None = None
    gate: Gate | None = None
    is_executing: bool = False
    """Its statement was flushed to the server, and its Sync kept back."""
    is_answering: bool = False
    """What the server says is kept back."""
    is_held: bool = False
    kept_from_server: list[bytes] = field(default_factory=list)
    kept_from_client: list[bytes] = field(default_factory=list)


class Session:
    """One client's connection and the server's end of it."""

    def __init__(self, proxy: Proxy) -> None:
        self.client = Side(self._hear_client, self._lose)
        self.client.is_starting = True
        self.server = Side(self._hear_server, self._lose)
        self.backend_pid = 0
        """The server process behind it; 0 until it has introduced itself, and for cancel requests."""
        self.was_reset = False
        """Whether it stood, and we cut it."""
        self._proxy = proxy
        self._connecting: asyncio.Task[None] | None = None
        self._statements: dict[bytes, str] = {}
        self._is_in_transaction = False
        self._passing = _Passing()

    @property
    def is_alive(self) -> bool:
        """Whether both sides stand and a backend serves it."""
        sides = (self.client, self.server)
        return self.backend_pid != 0 and all(side.transport and not side.gone.is_set() for side in sides)

    def go_on(self) -> None:
        """Pass on everything that was kept back."""
        passing = self._passing
        if not passing.is_held:
            return
        passing.gate, passing.is_held, passing.is_executing, passing.is_answering = None, False, False, False
        kept_from_client, passing.kept_from_client = passing.kept_from_client, []
        kept_from_server, passing.kept_from_server = passing.kept_from_server, []
        for message in kept_from_client:
            self._to_client(message)
        for message in kept_from_server:
            self._hear_client(message[:1], message)

    def reset(self) -> None:
        """Cut the connection on both sides."""
        self.was_reset = self.was_reset or self.is_alive
        if self._connecting is not None:
            self._connecting.cancel()
        self.client.reset()
        self.server.reset()

    async def closed(self) -> None:
        """Wait until both ends are gone."""
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
        for side in (self.client, self.server):
            if side.transport is not None:
                await side.gone.wait()

    # What the client says -------------------------------------------------------------------------------

    def _hear_client(self, kind: bytes, message: bytes) -> None:
        if not kind:
            self._begin(message)
        elif self._passing.is_held or self._passing.is_executing:
            self._passing.kept_from_server.append(message)
        elif kind == b"S" and self._passing.gate is not None and not self._is_in_transaction:
            self._hold_back_sync(message)
        elif kind == b"Q" and message[5:].upper().startswith(b"COMMIT"):
            self._hear_commit(message)
        else:
            if kind == b"P":
                name, sql, _ = message[5:].split(b"\0", 2)
                self._statements[name] = sql.decode()
            elif kind == b"B":
                self._hear_bind(message)
            self.server.write(message)

    def _begin(self, message: bytes) -> None:
        (code,) = struct.unpack_from("!i", message, 4)
        if code in _ENCRYPTION_REQUESTS:
            self.client.write(b"N")
            return
        self.client.is_starting = False
        # The first answer to a cancel request is its end; there is nothing to introduce.
        self._connecting = asyncio.ensure_future(self._connect(message))

    async def _connect(self, startup: bytes) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self.server, "127.0.0.1", self._proxy.upstream_port
            )
        except OSError:
            self.client.reset()
            return
        if self.client.gone.is_set():
            self.server.close()
        self.server.write(startup)

    def _hear_bind(self, message: bytes) -> None:
        statement, values = bound_values(message)
        work = self._proxy.recognise(self._statements.get(statement, ""), values)
        if work is None:
            return
        self._passing = _Passing(work)
        self._proxy.errands.append(Errand(work, self, self.backend_pid))
        if not self._is_in_transaction:
            self._passing.gate = self._find_gate()

    def _hold_back_sync(self, sync: bytes) -> None:
        passing = self._passing
        assert passing.gate is not None
        if passing.gate.moment is Moment.COMMITTED:
            passing.is_answering = True
            self.server.write(sync)
        else:
            # Without a Sync the implicit transaction stays open; a Flush makes the server answer all the same.
            passing.is_executing = passing.is_answering = True
            passing.kept_from_server.append(sync)
            self.server.write(_FLUSH)

    def _hear_commit(self, commit: bytes) -> None:
        passing = self._passing
        gate = passing.gate = self._find_gate() if passing.work is not None else None
        if gate is not None and gate.moment is Moment.EXECUTED:
            passing.is_held = True
            passing.kept_from_server.append(commit)
            passing.work = None  # it was stopped once; the commit itself must pass when it is heard again
            gate.stand()
            return
        passing.is_answering = gate is not None
        self.server.write(commit)

    def _find_gate(self) -> Gate | None:
        for moment in Moment:
            if gate := self._proxy.gate_for(self._passing.work, moment, self):
                return gate
        return None

    # What the server says -------------------------------------------------------------------------------

    def _hear_server(self, kind: bytes, message: bytes) -> None:
        passing = self._passing
        if kind == b"K":
            (self.backend_pid,) = struct.unpack_from("!i", message, 5)
        if passing.is_answering:
            passing.kept_from_client.append(message)
        else:
            self._to_client(message)
        gate = passing.gate
        if gate is None or not passing.is_answering or passing.is_held:
            return
        if kind == b"E":  # it failed, and has nothing to commit: no place to stand at
            passing.is_held = True
            self.go_on()
        elif kind == (b"C" if passing.is_executing else b"Z"):
            passing.is_held = True
            gate.stand()

    def _to_client(self, message: bytes) -> None:
        if message[:1] == b"Z":
            self._is_in_transaction = message[5:6] != b"I"
            if not self._is_in_transaction:
                self._passing = _Passing()
        self.client.write(message)

    # The end --------------------------------------------------------------------------------------------

    def _lose(self, side: Side) -> None:
        other = self.server if side is self.client else self.client
        if self._passing.is_answering or self._passing.is_held:
            # What was kept back is lost with the connection that it came from.
            other.reset()
        else:
            other.close()
