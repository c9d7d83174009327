"""Bad days, between a client and a provider: the provider acts, and the client hears something else, or nothing.

    with FaultProxy(provider.url) as proxy:                     # clients use proxy.url
        proxy.strike(Fault.SAYS_500, "POST", "/tenants")        # the next such request
        ...
        proxy.deliver_late()                                    # what Fault.LATE has kept

It has threads of its own, so it works while a test blocks. A fault that is not counted in `struck` did not happen.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Self
from urllib.parse import urlsplit

from examples.workspace.provider.http import Handler, HttpServer

_PROVIDER_SECONDS = 60.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# Those of one hop (RFC 9110, 7.6.1), and those that each end writes itself.
_OWN_HEADERS = {"connection", "keep-alive", "host", "content-length", "server", "date", "transfer-encoding"}


class Fault(Enum):
    """What happens to one request."""

    CUT_BEFORE = "the connection breaks, the provider hears nothing"
    CUT_AFTER = "the provider acts, then the connection breaks"
    SAYS_500 = "the provider acts, the client hears 500"
    SAYS_503 = "the provider hears nothing, the client hears 503"
    SLOW = "request and answer arrive `slow_seconds` late"
    LATE = "the connection breaks at once; the request arrives when `deliver_late` says, or after `late_seconds`"
    TWICE = "the request arrives twice, the client hears the second answer"
    TWICE_AT_ONCE = "the request arrives twice at once, the client hears either answer"


@dataclass(frozen=True)
class _Request:
    method: str
    target: str
    headers: dict[str, str]
    content: bytes


@dataclass(frozen=True)
class _Heard:
    status: int
    headers: dict[str, str]
    content: bytes


@dataclass
class _Strike:
    fault: Fault
    method: str
    path: str
    times: int


class FaultProxy:
    """Hands requests on to a provider, and strikes those that it was told to.

    Args:
        provider_url: where the provider is; it need not be up.
        slow_seconds: how much later SLOW delivers.
        late_seconds: when LATE delivers by itself; never, when None.
    """

    def __init__(self, provider_url: str, *, slow_seconds: float = 0.5, late_seconds: float | None = None) -> None:
        self.slow_seconds = slow_seconds
        self.late_seconds = late_seconds
        self.struck: Counter[Fault] = Counter()
        self._provider = urlsplit(provider_url)
        self._lock = threading.Lock()
        self._strikes: list[_Strike] = []
        self._share, self._faults = 0.0, list(Fault)
        self._draw: random.Random | None = None
        self._late: list[_Request] = []
        self._acts: dict[Fault, Callable[[_Request], _Heard | None]] = {
            Fault.CUT_BEFORE: lambda _: None,
            Fault.CUT_AFTER: self._cut_after,
            Fault.SAYS_500: self._says_500,
            Fault.SAYS_503: lambda _: _no_answer(503),
            Fault.SLOW: self._slow,
            Fault.LATE: self._keep,
            Fault.TWICE: self._twice,
            Fault.TWICE_AT_ONCE: self._twice_at_once,
        }
        self._server = HttpServer(0, _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where clients find it."""
        return self._server.url

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        with self._lock:
            self._late.clear()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def strike(self, fault: Fault, method: str, path: str, *, times: int = 1) -> None:
        """Strike the next requests with this method whose path begins so."""
        with self._lock:
            self._strikes.append(_Strike(fault, method, path, times))

    def strike_at_random(self, share: float, seed: int, faults: Iterable[Fault] = Fault) -> None:
        """Strike this share of all requests, each with one of these faults, as `seed` draws them."""
        with self._lock:
            self._share, self._faults = share, list(faults)
            self._draw = random.Random(seed)

    def heal(self) -> None:
        """Strike no more. What LATE has kept stays kept."""
        with self._lock:
            self._strikes.clear()
            self._draw = None

    @property
    def kept(self) -> int:
        """How many requests LATE keeps."""
        return len(self._late)

    def deliver_late(self) -> list[int | None]:
        """Deliver all that LATE has kept, to nobody's ears; return what the provider answered, None for nothing."""
        with self._lock:
            late = list(self._late)
            self._late.clear()
        heard = [self._ask(request) for request in late]
        return [None if each is None else each.status for each in heard]

    def handle(self, request: _Request) -> _Heard | None:
        """Return what the client hears, or None: its connection breaks."""
        fault = self._choose(request)
        return self._ask(request) if fault is None else self._acts[fault](request)

    def _cut_after(self, request: _Request) -> None:
        self._ask(request)

    def _says_500(self, request: _Request) -> _Heard:
        self._ask(request)
        return _no_answer(500)

    def _slow(self, request: _Request) -> _Heard | None:
        time.sleep(self.slow_seconds)
        heard = self._ask(request)
        time.sleep(self.slow_seconds)
        return heard

    def _twice(self, request: _Request) -> _Heard | None:
        self._ask(request)
        return self._ask(request)

    def _twice_at_once(self, request: _Request) -> _Heard | None:
        twin = threading.Thread(target=self._ask, args=(request,))
        twin.start()
        heard = self._ask(request)
        twin.join()
        return heard

    def _choose(self, request: _Request) -> Fault | None:
        with self._lock:
            fault = self._told(request) or self._drawn()
            if fault is not None:
                self.struck[fault] += 1
            return fault

    def _told(self, request: _Request) -> Fault | None:
        for strike in self._strikes:
            if strike.method == request.method and request.target.startswith(strike.path):
                strike.times -= 1
                self._strikes = [each for each in self._strikes if each.times > 0]
                return strike.fault
        return None

    def _drawn(self) -> Fault | None:
        if self._draw is not None and self._draw.random() < self._share:
            return self._draw.choice(self._faults)
        return None

    def _keep(self, request: _Request) -> None:
        with self._lock:
            self._late.append(request)
        if self.late_seconds is not None:
            timer = threading.Timer(self.late_seconds, self._deliver, args=(request,))
            timer.daemon = True
            timer.start()

    def _deliver(self, request: _Request) -> None:
        with self._lock:
            if not any(each is request for each in self._late):
                return  # deliver_late was faster
            self._late = [each for each in self._late if each is not request]
        self._ask(request)

    def _ask(self, request: _Request) -> _Heard | None:
        """Hand the request on; None when there was no answer."""
        connection = http.client.HTTPConnection(self._provider.netloc, timeout=_PROVIDER_SECONDS)
        try:
            connection.request(request.method, request.target, request.content, request.headers)
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in _OWN_HEADERS}
            return _Heard(answer.status, headers, answer.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _no_answer(status: int) -> _Heard:
    return _Heard(status, {"Content-Type": "text/plain"}, b"not what the provider said")


def _handler(proxy: FaultProxy) -> type[Handler]:
    class Passing(Handler):
        def respond(self, content: bytes) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS}
            heard = proxy.handle(_Request(self.command, self.path, headers, content))
            if heard is None:
                self.close_connection = True
                # Nothing may be said, not even a proper goodbye: the client sees a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                self.connection.close()
            else:
                self.write(heard.status, heard.content, heard.headers)

    return Passing
