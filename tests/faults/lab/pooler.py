"""What PgBouncer does to a client, as far as a client can see: a stand-in, since no package has the real one.

    async with Pooler(postgres_port, mode="session") as pooler:
        ...     # clients connect to pooler.port

It refuses the start-up parameters that PgBouncer refuses, in its words and with its code; invents the process id that
a client is told; and passes on only the reports that PgBouncer passes on. In mode "session" each client has a session
of its own. In mode "transaction" all share one, each for a transaction. In mode "statement" that is all the same, and
a transaction that is begun is refused.
"""

import asyncio
import contextlib
import itertools
import struct
from typing import Literal, Self

Mode = Literal["session", "transaction", "statement"]

_CLIENT_MAY_SAY = {"user", "database", "application_name", "client_encoding", "DateStyle", "TimeZone", "replication"}
_SERVER_MAY_SAY = {
    *("server_version", "server_encoding", "client_encoding", "application_name", "DateStyle", "TimeZone"),
    *("standard_conforming_strings", "integer_datetimes", "IntervalStyle", "is_superuser", "session_authorization"),
}
_ENCRYPTION_REQUESTS = {80877103, 80877104}

# How the answer ends to a query and to the end of a series, and to a flush after a statement was described.
_ANSWER_ENDS = {b"Q": b"Z", b"S": b"Z", b"H": b"TnE"}

Message = tuple[bytes, bytes]


class Pooler:
    """Listens on 127.0.0.1:`port`; takes its sessions from 127.0.0.1:`server_port`."""

    def __init__(self, server_port: int, *, mode: Mode = "session") -> None:
        self.server_port = server_port
        self.mode = mode
        self.refused: list[str] = []
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._invented = itertools.count(1_000_001)
        self._shared: _Session | None = None
        self._turn = asyncio.Lock()

    @property
    def port(self) -> int:
        assert self._server is not None, "the pooler is not listening"
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        if self._shared is not None:
            self._shared.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = await _start_of(reader, writer)
        if unknown := sorted(set(start) - _CLIENT_MAY_SAY):
            self.refused += unknown
            writer.write(_error(f"unsupported startup parameter: {unknown[0]}"))
            await writer.drain()
            return
        if self.mode == "session":
            session = await _Session.open(self.server_port, start)
            try:
                self._greet(writer, session)
                await asyncio.gather(_pass_all(reader, session.writer), _pass_all(session.reader, writer))
            finally:
                session.close()
            return
        async with self._turn:
            self._shared = self._shared or await _Session.open(self.server_port, start)
        self._greet(writer, self._shared)
        while await self._lend(self._shared, reader, writer):
            pass

    def _greet(self, writer: asyncio.StreamWriter, session: "_Session") -> None:
        key = _packed(b"K", struct.pack("!ii", next(self._invented), 42))
        writer.write(_packed(b"R", struct.pack("!i", 0)) + session.reports + key + _packed(b"Z", b"I"))

    async def _lend(self, session: "_Session", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Let a client have the session for one transaction. False when it has left."""
        message = await _message(reader)
        async with self._turn:
            while message[0] != b"X":
                if self.mode == "statement" and message[1].upper().startswith(b"BEGIN"):
                    writer.write(_error("transaction blocks not allowed in statement pooling mode"))
                    await writer.drain()
                    return False
                session.writer.write(_packed(*message))
                if (until := _ANSWER_ENDS.get(message[0])) and await session.answer(writer, until) == b"I":
                    return True
                message = await _message(reader)
        return False


class _Session:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.reports = b""

    @classmethod
    async def open(cls, port: int, start: dict[str, str]) -> Self:
        session = cls(*await asyncio.open_connection("127.0.0.1", port))
        said = b"".join(f"{name}\0{value}\0".encode() for name, value in start.items()) + b"\0"
        session.writer.write(struct.pack("!ii", len(said) + 8, 196608) + said)
        while (message := await _message(session.reader))[0] != b"Z":
            if message[0] == b"S" and message[1].split(b"\0")[0].decode() in _SERVER_MAY_SAY:
                session.reports += _packed(*message)
        return session

    async def answer(self, writer: asyncio.StreamWriter, until: bytes) -> bytes:
        """Pass an answer on, up to one of these messages, and return the state of the transaction if that says it."""
        while True:
            message = await _message(self.reader)
            writer.write(_packed(*message))
            if message[0] in until:
                await writer.drain()
                return message[1] if message[0] == b"Z" else b""

    def close(self) -> None:
        self.writer.close()


async def _start_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, str]:
    while True:
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        body = await reader.readexactly(length - 4)
        if struct.unpack("!i", body[:4])[0] not in _ENCRYPTION_REQUESTS:
            words = body[4:].decode().split("\0")[:-2]
            return dict(zip(words[::2], words[1::2], strict=True))
        writer.write(b"N")


async def _pass_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass every message on, but a report of what a client is not told."""
    try:
        while True:
            kind, body = await _message(reader)
            if kind == b"S" and body and body.split(b"\0")[0].decode() not in _SERVER_MAY_SAY:
                continue
            writer.write(_packed(kind, body))
            await writer.drain()
    finally:
        writer.close()


async def _message(reader: asyncio.StreamReader) -> Message:
    kind = await reader.readexactly(1)
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    return kind, await reader.readexactly(length - 4)


def _packed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _error(text: str) -> bytes:
    return _packed(b"E", f"SFATAL\0C08P01\0M{text}\0\0".encode())
