"""The HTTP server: uvicorn, with limits for slow callers and long headers, and an end that waits for no stream."""

import asyncio
import re
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from http_api.services import Services

MOST_HEADER_BYTES = 16 * 1024
HEADER_SECONDS = 10.0
"""How long a request's line and headers may take from the connection's, or the last answer's, end on."""
READ_SECONDS = 30.0
"""How long a caller may leave unread what no longer fits into the buffers."""
_KEEP_ALIVE_SECONDS = 30
_MOST_CONNECTIONS = 4_000
_STREAMS_END_SECONDS = 2
"""Streams end at once; a caller who does not read holds up the end for no longer."""


# Java's client and curl offer a change to HTTP/2 with every request. httptools takes what follows such a header for
# the other protocol, and the request would have no body. No server has to accept the offer: it is not seen.
_OFFER = re.compile(rb"\nupgrade:", re.IGNORECASE)
_TOO_SLOW = "408 Request Timeout"
_TOO_LONG = "431 Request Header Fields Too Large"


class LimitedProtocol(HttpToolsProtocol):
    """Ends a connection whose headers come too slowly or are too long, or whose caller does not read.

    uvicorn has no limit for any of these.
    """

    _header_bytes = 0
    _in_headers = False
    _is_ending = False
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time."""
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop()
        self._read_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to headers."""
        if self._is_ending:
            return
        # A blank line begins no request, and ends uvicorn's own wait for one.
        if self._late is None and not self._is_answering():
            self._begin()
        if self._in_headers:
            self._header_bytes += len(data)
            data = _OFFER.sub(b"\nnot-taken:", data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MOST_HEADER_BYTES:
            self._end(_TOO_LONG)

    def on_message_begin(self) -> None:
        """Begin to count."""
        super().on_message_begin()
        if self._late is None:
            self._begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Leave out what follows a body: nobody needs it, and it has no end."""
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse headers that are too long, also where all came at once."""
        self._stop()
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MOST_HEADER_BYTES:
            self._end(_TOO_LONG)
            return
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """Give the caller time to read."""
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        self._read_on()
        super().resume_writing()

    def _read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _begin(self) -> None:
        self._in_headers, self._header_bytes = True, 0
        self._late = self.loop.call_later(HEADER_SECONDS, self._end, _TOO_SLOW)

    def _stop(self) -> None:
        self._in_headers = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self, status: str) -> None:
        self._stop()
        self._is_ending = True
        if self._is_answering():  # the request before this one: its answer is the last
            self.cycle.keep_alive = False
        elif not self.transport.is_closing():
            self.transport.write(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
            self.transport.close()


class Server(uvicorn.Server):
    """Ends streams before it waits for connections to close."""

    def __init__(self, app: Any, services: Services, *, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=LimitedProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_STREAMS_END_SECONDS,
                limit_concurrency=_MOST_CONNECTIONS,
            )
        )
        self._services = services

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop."""
        self._services.end()
        await super().shutdown(sockets)
