"""A small HTTP proxy on loopback, to put between a step and its provider: what arrives is passed on, or struck.

Have the step send its requests to the proxy's `url` inside the block:

    async with provider_proxy("http://127.0.0.1:8070") as proxy:
        proxy.strike(Strike.ACT_THEN_500, match="POST /tenants")
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from urllib.parse import urlsplit

from sagafence.testing.provider import Call, Match, ProviderStrikes, Strike, Struck

_LIMIT = 2**20
_PASSED_ON_ONCE = frozenset({"connection", "keep-alive", "proxy-connection", "te", "upgrade", "expect"})
"""Headers about one connection: each side has its own."""
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


@dataclass(frozen=True)
class Message:
    """A request or an answer: its first line, its headers and its body, as they came."""

    first_line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Return the value of a header."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def having(self, name: str, value: str) -> "Message":
        """Return the message with a header changed, or added."""
        others = tuple((key, old) for key, old in self.headers if key.lower() != name.lower())
        return replace(self, headers=(*others, (name, value)))

    def to_bytes(self) -> bytes:
        """Give it as it is sent."""
        lines = [self.first_line, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


class ProviderProxy:
    """Passes requests on to the provider, one connection for each."""

    def __init__(self, target_url: str, key_header: str) -> None:
        self._target = urlsplit(target_url)
        self._key_header = key_header
        if self._target.scheme not in {"http", "https"} or self._target.hostname is None:
            raise ValueError(f"{target_url} is not the address of an HTTP server: http://host:port")
        self.strikes: ProviderStrikes[Message, Message] = ProviderStrikes(
            call=lambda request: _call(request, key_header),
            answer=_made,
            rekey=lambda request, key: request.having(key_header, key),
        )
        self.url = ""
        """Where the steps send their requests to."""
        self.calls: list[Call] = []
        """Every request that arrived, struck or not."""

    def strike(
        self, kind: Strike, *, match: Match = "", times: int | None = 1, unless: Callable[[], bool] = lambda: False
    ) -> Struck:
        """Set up a strike; see `ProviderStrikes.strike`."""
        return self.strikes.strike(kind, match=match, times=times, unless=unless)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one request, one answer."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                request = await _read(reader)
                self.calls.append(_call(request, self._key_header))
                try:
                    answer = await self.strikes.around(self._pass_on)(request)
                except (OSError, asyncio.IncompleteReadError) as error:  # as a gateway says it
                    answer = _made(HTTPStatus.BAD_GATEWAY, f"the provider cannot be reached: {error}")
                writer.write(answer.having("Connection", "close").to_bytes())
                await writer.drain()
            finally:
                writer.close()

    async def _pass_on(self, request: Message) -> Message:
        is_secure = self._target.scheme == "https"
        port = self._target.port or (443 if is_secure else 80)
        reader, writer = await asyncio.open_connection(self._target.hostname, port, ssl=is_secure or None, limit=_LIMIT)
        try:
            method, path, version = request.first_line.split(" ")
            sent = replace(request, first_line=f"{method} {self._target.path.rstrip('/')}{path} {version}")
            sent = sent.having("Host", self._target.netloc).having("Connection", "close")
            writer.write(sent.to_bytes())
            await writer.drain()
            return await _read(reader, is_answer=True, has_no_body=method == "HEAD")
        finally:
            writer.close()


@asynccontextmanager
async def provider_proxy(target_url: str, *, key_header: str = "Idempotency-Key") -> AsyncIterator[ProviderProxy]:
    """Run a proxy in front of a provider inside the block.

    Args:
        target_url: the provider's address, `http://127.0.0.1:8070`.
        key_header: the header that carries the idempotency key.
    """
    proxy = ProviderProxy(target_url, key_header)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await proxy.serve(reader, writer)
        finally:
            serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_LIMIT)
    host, port = server.sockets[0].getsockname()
    proxy.url = f"http://{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.strikes.clear()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def _call(request: Message, key_header: str) -> Call:
    method, path, _ = request.first_line.split(" ")
    return Call(method, path, request.header(key_header))


def _made(status: int, text: str) -> Message:
    body = f"{text}\n".encode()
    headers = (("Content-Type", "text/plain"), ("Content-Length", str(len(body))))
    return Message(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", headers, body)


async def _read(reader: asyncio.StreamReader, *, is_answer: bool = False, has_no_body: bool = False) -> Message:
    """Read a message. Its body has its length in the end, however it was sent."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = tuple((name.strip(), value.strip()) for name, _, value in pairs)
    kept = tuple((name, value) for name, value in headers if name.lower() not in _PASSED_ON_ONCE)
    message = Message(head[0], kept)
    if has_no_body or (is_answer and int(head[0].split(" ")[1]) in _WITHOUT_BODY):
        return message
    if (message.header("transfer-encoding") or "").lower() == "chunked":
        body = await _chunks(reader)
        kept = tuple((name, value) for name, value in kept if name.lower() != "transfer-encoding")
        return replace(message, headers=kept, body=body).having("Content-Length", str(len(body)))
    if (length := message.header("content-length")) is not None:
        return replace(message, body=await reader.readexactly(int(length)))
    if is_answer:
        body = await reader.read(-1)
        return replace(message, body=body).having("Content-Length", str(len(body)))
    return message


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while (await reader.readuntil(b"\r\n")) != b"\r\n":
        pass  # trailers
    return body
