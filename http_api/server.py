"""The HTTP server: uvicorn, with limits for slow callers and long headers, and an end that waits for no stream.

What uvicorn would answer by itself, as plain text or not at all, `http_api/unseen.py` answers.
"""

import asyncio
import logging
import resource
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from http_api.problems import Problem
from http_api.services import Services
from http_api.unseen import last_answer, no_host, no_http, too_long, too_many, too_slow

MOST_HEADER_BYTES = 16 * 1024
HEADER_SECONDS = 10.0
"""How long a request's line and headers may take from the connection's, or the last answer's, end on."""
READ_SECONDS = 30.0
"""How long a caller may leave unread what no longer fits into the buffers."""
_KEEP_ALIVE_SECONDS = 30
MOST_CONNECTIONS = 4_000
_OTHER_FILES = 200
_STREAMS_END_SECONDS = 2
"""Streams end at once; a caller who does not read holds up the end for no longer."""
_log = logging.getLogger("checkout.api")

_ALIVE = b"/healthz"
"""Answered however many connections there are: who is busy must not be restarted for it."""


def allow_connections() -> None:
    """Have this process open as many files as it may have connections: a shell allows it a quarter of that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < wanted:
        _log.warning("the system allows %s open files; %s connections need %s", hard, MOST_CONNECTIONS, wanted)
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class LimitedProtocol(HttpToolsProtocol):
    """Ends a connection whose headers come too slowly or are too long, or whose caller does not read.

    uvicorn has no limit for any of these. Java's client and curl offer a change to HTTP/2 with every request: httptools
    takes what follows such headers for the other protocol, and the request would have no body. No server has to accept
    the offer: such a request is read once more, without it.
    """

    _header_bytes = 0
    _in_headers = False
    _is_ending = False
    _answering: RequestResponseCycle | None = None
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first request its time."""
        super().connection_made(transport)
        self._begin()
        if len(self.connections) > MOST_CONNECTIONS:
            self._have_room_made()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop()
        self._read_on()
        super().connection_lost(exc)
        if self._answering is not None:  # uvicorn tells the last request that came: a stream may be before it
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to headers."""
        if self._is_ending:
            return
        # A blank line begins no request, and ends uvicorn's own wait for one.
        if self._late is None and not self._is_answering():
            self._begin()
        if self._in_headers:
            self._header_bytes += len(data)
        self._unset_keepalive_if_required()
        self._read(data)
        if self._in_headers and self._header_bytes > MOST_HEADER_BYTES:
            self._end(too_long(MOST_HEADER_BYTES))

    def _read(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._has_offer():
                self._read_without_offer(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._end(no_http())

    def _has_offer(self) -> bool:
        return self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)

    def _read_without_offer(self, rest: bytes) -> None:
        head = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        head += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._read(b"\r\n".join([*head, b"", rest]))

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
        if self._is_ending:  # what came with it in one piece is not done: nobody would hear of it
            return
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MOST_HEADER_BYTES:
            self._end(too_long(MOST_HEADER_BYTES))
        elif self._has_offer():
            pass  # it is read once more, without the offer
        elif not self._names_its_host():
            self._end(no_host())
        else:
            is_full = max(len(self.connections), len(self.tasks)) >= MOST_CONNECTIONS and self.url != _ALIVE
            self.app = last_answer(too_many(MOST_CONNECTIONS)) if is_full else self.config.loaded_app
            super().on_headers_complete()

    def _names_its_host(self) -> bool:
        hosts = sum(name == b"host" for name, _ in self.headers)
        return hosts == 1 or (hosts == 0 and self.parser.get_http_version() == "1.0")  # RFC 9112, 3.2

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        """End a request, unless it is read once more."""
        if not self._has_offer():
            super().on_message_complete()

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

    def make_room(self) -> bool:
        """End a connection that asks for nothing; return whether this one was such."""
        if self._is_answering() or self._is_ending:
            return False
        self._end(too_many(MOST_CONNECTIONS))
        return True

    def _have_room_made(self) -> None:
        """Have another connection end: without files for more, nobody could ask for `_ALIVE`."""
        for each in self.connections:
            if isinstance(each, LimitedProtocol) and each is not self and each.make_room():
                return

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _begin(self) -> None:
        self._in_headers, self._header_bytes = True, 0
        self._late = self.loop.call_later(HEADER_SECONDS, lambda: self._end(too_slow(HEADER_SECONDS)))

    def _stop(self) -> None:
        self._in_headers = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self, problem: Problem) -> None:
        self._stop()
        self._is_ending = True
        if self._is_answering():  # the request before this one: its answer is the last
            self.cycle.keep_alive = False
        elif not self.transport.is_closing():
            answer = last_answer(problem)
            headers = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
            self.transport.write(b"".join([STATUS_LINE[answer.status_code], headers, b"\r\n", answer.body]))
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
            )
        )
        self._services = services

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop."""
        self._services.end()
        await super().shutdown(sockets)
