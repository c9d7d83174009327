"""A proxy in front of Temporal that asks who comes, as a real server does: by API key or by client certificate.

The dev server asks nobody. This speaks just enough HTTP/2 to answer one call with *unauthenticated* and to pass on the
others as they are.
"""

import asyncio
import contextlib
import ssl
from types import TracebackType
from typing import Self

_PREFACE = 24
_HEAD = 9
_DATA, _HEADERS, _RST_STREAM, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 8, 9
_END_STREAM_AND_HEADERS = 5
_CANCEL = (8).to_bytes(4)
# RFC 7541: ":status: 200" of the static table, and two literals that no table keeps.
_UNAUTHENTICATED = b"\x88" + b"".join(
    b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
    for name, value in (
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"16"),
        (b"grpc-message", b"who are you"),
    )
)
# The part of the Huffman code of RFC 7541 that "Bearer " and the tests' keys are made of.
_CODE = {
    **{char: (number, 5) for number, char in enumerate("012aceiost")},
    **{char: (0b010100 + number, 6) for number, char in enumerate(" %-./3456789=A_bdfghlmnpru")},
    "B": (0b1011101, 7),
}


def _huffman(text: str) -> bytes:
    bits = "".join(f"{code:0{length}b}" for code, length in (_CODE[char] for char in text))
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


class AuthProxy:
    """Lets calls through that have the right API key, and connections that have the right certificate."""

    def __init__(self, server: str, *, api_key: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._host, _, self._port = server.rpartition(":")
        self.api_key = api_key
        """The one that is right just now; none is asked for where it is empty."""
        self.tls = tls
        self.refused = 0
        """How many calls had no right key."""
        self.let_in = 0
        """How many connections have been made."""
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self._port_here = 0

    @property
    def address(self) -> str:
        return f"localhost:{self._port_here}"

    async def ask_for(self, *, api_key: str = "", tls: ssl.SSLContext | None = None) -> None:
        """Ask for another key or other certificates from now on; who is connected has to come again."""
        await self._stop()
        self.api_key, self.tls = api_key, tls
        await self._start()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port_here, ssl=self.tls)
        self._port_here = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.let_in += 1
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        self._writers += [writer, far_writer]
        refused: set[int] = set()
        for pump in (
            self._requests(reader, far_writer, writer, refused),
            self._answers(far_reader, writer, refused),
        ):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _requests(
        self,
        client: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        refused: set[int],
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            server.write(await client.readexactly(_PREFACE))
            while True:
                kind, stream, whole = await _read_frame(client)
                if kind == _HEADERS:
                    server.write(whole)  # passed on in any case, since both sides count on the same table of headers
                    if self.api_key and _huffman(f"Bearer {self.api_key}") not in whole:
                        self.refused += 1
                        refused.add(stream)
                        server.write(_frame(_RST_STREAM, 0, stream, _CANCEL))
                        back.write(_frame(_HEADERS, _END_STREAM_AND_HEADERS, stream, _UNAUTHENTICATED))
                elif stream in refused:
                    if kind == _DATA and (size := len(whole) - _HEAD):
                        back.write(_frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4)))
                else:
                    assert kind != _CONTINUATION
                    server.write(whole)
                await server.drain()
        server.close()

    async def _answers(self, server: asyncio.StreamReader, client: asyncio.StreamWriter, refused: set[int]) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                _, stream, whole = await _read_frame(server)
                if stream not in refused:
                    client.write(whole)
                    await client.drain()
        client.close()


async def _read_frame(source: asyncio.StreamReader) -> tuple[int, int, bytes]:
    head = await source.readexactly(_HEAD)
    payload = await source.readexactly(int.from_bytes(head[:3]))
    return head[3], int.from_bytes(head[5:9]) & 0x7FFFFFFF, head + payload
