"""A provider of effects over HTTP on the loopback: idempotency keys, and faults that a test calls for."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Self

from sagafence.provider import Keeps


class Fault(Enum):
    ACTS_AND_500 = auto()
    """And the key remembers the 500."""
    FAILS_500 = auto()
    ACTS_AND_HANGS_UP = auto()
    LATE = auto()
    """The connection breaks; the request arrives when the test says so."""
    GATEWAY_503 = auto()
    """Somebody on the way answers 503; the request arrives when the test says so."""
    WAITS = auto()
    """The request is held, its connection open, until the test lets it go on."""
    ACTS_AND_WAITS = auto()
    """It acts, and the answer is held until the test lets it go."""
    REFUSES_402 = auto()
    REJECTS_401 = auto()
    REJECTS_429 = auto()
    IN_PROGRESS_409 = auto()
    NONE = auto()


Answer = tuple[int, dict[str, str], Any]


@dataclass
class HttpProvider:
    """What is in its books, what it was sent, and what it will do wrong next."""

    keeps: Keeps = Keeps.FIRST_ANSWERS
    marks_replays: bool = True
    void_blocks: bool = True
    is_shipped: bool = False
    """Then nothing can be reversed or voided any more."""
    things: dict[int, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, tuple[int, Any, Any]] = field(default_factory=dict)
    voided: set[str] = field(default_factory=set)
    reversal_keys: set[str] = field(default_factory=set)
    reversals: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    late: list[tuple[str, str, str, Any]] = field(default_factory=list)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    is_held: asyncio.Event = field(default_factory=asyncio.Event)
    before_each: Callable[[], Awaitable[None]] | None = None
    """Runs when a request arrives, before anything is done."""
    open: int = 0
    """How many requests are not answered yet."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.may_go_on.set()
        self._server.close()
        await self._server.wait_closed()

    @property
    def live(self) -> int:
        return sum(thing["live"] for thing in self.things.values())

    def sent(self, method: str) -> list[str]:
        """Give the keys under which requests of a kind came in."""
        return [key for kind, key in self.requests if kind == method]

    def arrive(self) -> Answer:
        """Let the oldest late request arrive."""
        return self._act(*self.late.pop(0))

    def forget_keys(self) -> None:
        self.keys.clear()
        self.reversal_keys.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            answer = await self._answer(*await _request(reader))
            if answer is not None:
                writer.write(_as_bytes(answer))
                await writer.drain()
        finally:
            self.open -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, method: str, path: str, key: str, body: Any) -> Answer | None:
        self.requests.append((method, key))
        if self.before_each is not None:
            await self.before_each()
        fault = self.faults.popleft() if self.faults and method != "GET" else Fault.NONE
        request = (method, path, key, body)
        if fault in {Fault.LATE, Fault.GATEWAY_503}:
            self.late.append(request)
            return None if fault is Fault.LATE else (503, {}, "nobody there")
        if fault is Fault.WAITS:
            await self._hold()
            fault = self.faults.popleft() if self.faults else Fault.NONE
        if key in self.keys and self.keeps is not Keeps.NOTHING and fault in _DECISIONS:
            fault = Fault.NONE  # it is decided already: the key answers
        if fault in _STATUS:
            return self._kept(key, body, _STATUS[fault])
        answer = self._act(*request)
        if fault is Fault.ACTS_AND_500:
            self.keys.pop(key, None)
            return self._kept(key, body, 500)
        if fault is Fault.ACTS_AND_WAITS:
            await self._hold()
        return None if fault is Fault.ACTS_AND_HANGS_UP else answer

    async def _hold(self) -> None:
        self.is_held.set()
        await self.may_go_on.wait()

    def _kept(self, key: str, body: Any, status: int) -> Answer:
        if status in {402, 500} and self.keeps is Keeps.FIRST_ANSWERS:
            self.keys[key] = (status, body, "no")
        return status, {}, "no"

    def _act(self, method: str, path: str, key: str, body: Any) -> Answer:
        if method == "POST" and path == "/voids":
            return self._void(body["key"])
        if method == "POST":
            return self._create(key, body)
        if method == "GET":
            found = [number for number, thing in self.things.items() if thing["live"] and thing["key"] == key]
            return (200, {}, found)
        return self._reverse(int(path.rpartition("/")[2]), key)

    def _create(self, key: str, body: Any) -> Answer:
        if key in self.voided:
            return 402, {}, "voided"
        if (kept := self.keys.get(key)) is not None and self.keeps is not Keeps.NOTHING:
            status, first_body, answer = kept
            if body != first_body:
                return 422, {}, "the key has other content"
            return status, {"Idempotent-Replayed": "true"} if self.marks_replays else {}, answer
        number = len(self.things) + 1
        self.things[number] = {"key": key, "live": True, "body": body}
        self.keys[key] = (201, body, {"id": number})
        return 201, {}, {"id": number}

    def _reverse(self, number: int, key: str) -> Answer:
        if self.is_shipped:
            return 410, {}, "gone"
        if key and key in self.reversal_keys:
            return 200, {"Idempotent-Replayed": "true"}, "reversed"
        self.reversal_keys.add(key)
        self.reversals += 1
        self.things[number]["live"] = False
        return 200, {}, "reversed"

    def _void(self, key: str) -> Answer:
        if self.is_shipped:
            return 410, {}, {"id": next(number for number, thing in self.things.items() if thing["key"] == key)}
        for thing in self.things.values():
            if thing["key"] == key:
                thing["live"] = False
        if self.void_blocks:
            self.voided.add(key)
        return 200, {}, "voided"


_DECISIONS = {Fault.REFUSES_402, Fault.FAILS_500, Fault.ACTS_AND_500}
_STATUS = {
    Fault.FAILS_500: 500,
    Fault.REFUSES_402: 402,
    Fault.REJECTS_401: 401,
    Fault.REJECTS_429: 429,
    Fault.IN_PROGRESS_409: 409,
}


async def _request(reader: asyncio.StreamReader) -> tuple[str, str, str, Any]:
    method, path, _ = (await reader.readline()).decode().split()
    headers = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return method, path, headers.get("idempotency-key", ""), json.loads(body or "null")


def _as_bytes(answer: Answer) -> bytes:
    status, headers, body = answer
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} .", f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def send(port: int, method: str, path: str, key: str, body: Any = None) -> Answer:
    """Send one request as a client does. Raises ConnectionError where no answer comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        content = json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: {key}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()
        status_line = (await reader.readline()).decode()
        if not status_line:
            raise ConnectionError("no answer")
        headers = {}
        while line := (await reader.readline()).decode().strip():
            name, _, value = line.partition(": ")
            headers[name] = value
        return int(status_line.split()[1]), headers, json.loads(await reader.read())
    finally:
        writer.close()
