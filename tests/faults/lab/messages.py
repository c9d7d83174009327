"""What passes between a Postgres client and its server, cut into messages."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import cast

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Side(asyncio.Protocol):
    """One end of a connection: cuts what it hears into messages."""

    def __init__(self, hear: Callable[[bytes, bytes], None], lost: Callable[["Side"], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.gone = asyncio.Event()
        self.is_starting = False
        """A client's first messages have no type byte."""
        self._hear = hear
        self._lost = lost
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        for kind, message in self._messages():
            self._hear(kind, message)

    def _messages(self) -> Iterator[tuple[bytes, bytes]]:
        while True:
            head = 0 if self.is_starting else 1
            if len(self._unread) < head + 4:
                return
            (length,) = struct.unpack_from("!i", self._unread, head)
            end = head + length
            if len(self._unread) < end:
                return
            message, self._unread = self._unread[:end], self._unread[end:]
            yield message[:head], message

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it
        self.gone.set()
        self._lost(self)

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """End the connection so that the other end sees a reset, not an orderly close."""
        if self.transport is None or self.transport.is_closing():
            return
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


def bound_values(bind: bytes) -> tuple[bytes, list[bytes | None]]:
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
