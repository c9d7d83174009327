"""Strikes at a provider: what it hears, and what its caller is told. By hook, and by the proxy over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from sagafence.testing import Call, ProviderStrikes, Strike, provider_proxy


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    key: str


@dataclass(frozen=True)
class Answer:
    status: int
    text: str


@dataclass
class Provider:
    heard: list[Request] = field(default_factory=list)

    async def send(self, request: Request) -> Answer:
        self.heard.append(request)
        return Answer(200, f"answer {len(self.heard)}")


Send = Callable[[Request], Awaitable[Answer]]
CREATE = Request("POST", "/tenants", "k1")


def struck(provider: Provider) -> tuple[ProviderStrikes[Request, Answer], Send]:
    strikes: ProviderStrikes[Request, Answer] = ProviderStrikes(
        call=lambda request: Call(request.method, request.path, request.key),
        answer=Answer,
        rekey=lambda request, key: replace(request, key=key),
    )
    send = strikes.around(provider.send)
    return strikes, send


@pytest.mark.parametrize(
    ("kind", "status", "heard"),
    [
        (Strike.FAIL, 500, 0),
        (Strike.ACT_THEN_500, 500, 1),
        (Strike.IN_PROGRESS, 409, 0),
        (Strike.ACT_TWICE, 200, 2),
        (Strike.FORGET_KEY, 200, 1),
    ],
)
async def test_a_strike_changes_what_is_heard_and_answered_once(kind: Strike, status: int, heard: int) -> None:
    provider = Provider()
    strikes, send = struck(provider)
    made = strikes.strike(kind, match="POST /tenants")

    other = await send(Request("GET", "/tenants", "k0"))
    first = await send(CREATE)
    second = await send(CREATE)

    assert (other.status, first.status, second.status) == (200, status, 200)
    assert len(provider.heard) == 2 + heard
    assert made.hits == 1


async def test_the_second_answer_comes_back_where_a_request_is_heard_twice() -> None:
    strikes, send = struck(Provider())
    strikes.strike(Strike.ACT_TWICE)

    assert (await send(CREATE)).text == "answer 2"


async def test_a_forgotten_key_is_another_one_each_time() -> None:
    provider = Provider()
    strikes, send = struck(provider)
    strikes.strike(Strike.FORGET_KEY, times=2)

    for _ in range(3):
        await send(CREATE)

    assert len({request.key for request in provider.heard}) == 3
    assert provider.heard[-1] == CREATE


@pytest.mark.parametrize(("kind", "before"), [(Strike.ACT_THEN_SILENCE, 1), (Strike.SILENCE_THEN_ACT, 0)])
async def test_what_is_held_up_goes_on_when_it_is_let_go_though_nobody_waits_any_more(
    kind: Strike, before: int
) -> None:
    provider = Provider()
    strikes, send = struck(provider)
    made = strikes.strike(kind)

    waiting = asyncio.ensure_future(send(CREATE))
    await made.has_hit.wait()
    assert (len(provider.heard), strikes.held_up) == (before, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    made.let_go()
    await made.has_ended.wait()

    assert (len(provider.heard), strikes.held_up) == (1, 0)


async def test_an_answer_that_is_let_go_is_the_providers() -> None:
    strikes, send = struck(Provider())
    made = strikes.strike(Strike.ACT_THEN_SILENCE)

    waiting = asyncio.ensure_future(send(CREATE))
    await made.has_hit.wait()
    strikes.clear()

    assert (await waiting).text == "answer 1"


async def test_a_strike_ends_when_it_is_stopped_or_no_longer_wanted() -> None:
    strikes, send = struck(Provider())
    is_over = False
    stopped = strikes.strike(Strike.FAIL, match="POST", times=None)
    strikes.strike(Strike.FAIL, match=lambda call: call.key == "k2", times=None, unless=lambda: is_over)

    assert [(await send(CREATE)).status for _ in range(3)] == [500] * 3
    stopped.stop()
    assert [(await send(request)).status for request in (CREATE, replace(CREATE, key="k2"))] == [200, 500]
    is_over = True
    assert (await send(replace(CREATE, key="k2"))).status == 200


def test_a_key_is_not_forgotten_without_a_way_to_change_it() -> None:
    strikes: ProviderStrikes[Request, Answer] = ProviderStrikes(
        call=lambda request: Call(request.method, request.path), answer=Answer
    )

    with pytest.raises(ValueError, match="rekey"):
        strikes.strike(Strike.FORGET_KEY)


# The proxy -----------------------------------------------------------------------------------------------

SAID = b"HTTP/1.1 201 Created\r\nX-More: yes\r\nContent-Length: 4\r\n\r\nmade"
CHUNKED = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nma\r\n2;x=y\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.0 201 Created\r\n\r\nmade"
NO_BODY = b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n"


@dataclass
class Server:
    """A provider that gives one answer to everything."""

    answer: bytes
    heard: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), b": 0")
        self.heard.append(head + await reader.readexactly(int(length.partition(b": ")[2])))
        writer.write(self.answer)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def at_work(server: Server) -> AsyncIterator[str]:
    serving = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}"
    finally:
        serving.close()


async def ask(url: str, request: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await reader.read(-1)
    finally:
        writer.close()


POST = b"POST /tenants HTTP/1.1\r\nHost: me\r\nIdempotency-Key: k1\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize(
    ("said", "body"), [(SAID, b"made"), (CHUNKED, b"made"), (UNTIL_CLOSED, b"made"), (NO_BODY, b"")]
)
async def test_what_is_not_struck_is_passed_on_as_it_is(said: bytes, body: bytes) -> None:
    server = Server(said)
    async with at_work(server) as provider_url, provider_proxy(provider_url) as proxy:
        answer = await ask(proxy.url, POST)

    assert answer.startswith(said.split(b"\r\n")[0])
    assert answer.partition(b"\r\n\r\n")[2] == body
    [heard] = server.heard
    assert heard.startswith(b"POST /tenants HTTP/1.1\r\nIdempotency-Key: k1\r\n")
    assert f"Host: {provider_url.removeprefix('http://')}\r\n".encode() in heard
    assert heard.endswith(b"\r\n\r\nabc")
    assert proxy.calls == [Call("POST", "/tenants", "k1")]


async def test_a_request_with_a_chunked_body_is_passed_on_with_its_length() -> None:
    server = Server(SAID)
    async with at_work(server) as provider_url, provider_proxy(f"{provider_url}/v1") as proxy:
        await ask(proxy.url, b"POST /tenants HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    [heard] = server.heard
    assert heard.startswith(b"POST /v1/tenants HTTP/1.1\r\n")
    assert b"Content-Length: 3\r\n" in heard
    assert heard.endswith(b"\r\n\r\nabc")


async def asked_twice(provider_url: str) -> tuple[bytes, bytes]:
    async with provider_proxy(provider_url) as proxy:
        proxy.strike(Strike.ACT_THEN_500, match="POST /tenants")
        return await ask(proxy.url, POST), await ask(proxy.url, POST)


async def test_a_request_is_struck_on_its_way() -> None:
    server = Server(SAID)
    async with at_work(server) as provider_url:
        struck_answer, next_answer = await asked_twice(provider_url)

    assert struck_answer.startswith(b"HTTP/1.1 500 ")
    assert next_answer.startswith(b"HTTP/1.1 201 ")
    assert len(server.heard) == 2


async def test_a_forgotten_key_does_not_reach_the_provider() -> None:
    server = Server(SAID)
    async with at_work(server) as provider_url, provider_proxy(provider_url) as proxy:
        proxy.strike(Strike.FORGET_KEY)
        await ask(proxy.url, POST)

    assert b"Idempotency-Key: k1\r\n" not in server.heard[0]
    assert b"Idempotency-Key: k1-forgotten-1\r\n" in server.heard[0]


async def test_a_provider_that_cannot_be_reached_is_a_bad_gateway() -> None:
    async with at_work(Server(SAID)) as provider_url:
        pass
    async with provider_proxy(provider_url) as proxy:
        answer = await ask(proxy.url, POST)

    assert answer.startswith(b"HTTP/1.1 502 ")


async def test_a_late_request_acts_though_its_caller_has_gone() -> None:
    server = Server(SAID)
    async with at_work(server) as provider_url, provider_proxy(provider_url) as proxy:
        late = proxy.strike(Strike.SILENCE_THEN_ACT)
        asking = asyncio.ensure_future(ask(proxy.url, POST))
        await late.has_hit.wait()
        asking.cancel()
        await asyncio.wait([asking])
        assert server.heard == []
        late.let_go()
        await late.has_ended.wait()

    assert len(server.heard) == 1


async def test_an_address_that_is_no_http_server_is_refused() -> None:
    with pytest.raises(ValueError, match="not the address of an HTTP server"):
        async with provider_proxy("localhost:8070"):
            pass
