"""What any caller may send: nothing is a 5xx, nothing holds a connection for long, every answer has its headers."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from http_api import edge, server
from tests.http_api.conftest import TEA, Api
from tests.workflow.sagas import until


async def raw(api: Api, *parts: bytes, pause: float = 0) -> bytes:
    """Send bytes, and return what comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    try:
        async with asyncio.timeout(20):
            answer = asyncio.create_task(reader.read())
            for part in parts:
                if not answer.done():
                    writer.write(part)
                    await asyncio.wait({answer}, timeout=pause)
            return await answer
    finally:
        writer.close()


async def until_ending(api: Api) -> None:
    """Wait until a connection takes no more requests."""

    async def is_ending() -> bool:
        return any(each._is_ending for each in api.server.server_state.connections)  # type: ignore[union-attr]

    await until(is_ending)


def problem_in(answer: bytes) -> tuple[int, str]:
    """Read the last answer of a connection: give its status and its kind of problem."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert (headers["content-type"], headers["connection"]) == ("application/problem+json", "close")
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    document = json.loads(body)
    assert document["detail"]
    return int(status_line.split()[1]), document["type"].removeprefix("about:blank#")


async def test_every_answer_forbids_foreign_scripts_and_caching(shared: Api) -> None:
    for path in ("/docs", "/v1/orders", "/nowhere", "/healthz"):
        headers = (await shared.call("GET", path)).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


async def test_no_script_stands_within_the_documentation(shared: Api) -> None:
    page = (await shared.http.get("/docs")).text

    assert page.count("<script") == page.count('<script src="/docs/')
    assert "http" not in page
    assert "style=" not in page


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_that_no_request_needs_is_refused(shared: Api, is_chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield b" " * 1024

    headers = {"Idempotency-Key": "x", "Content-Type": "application/json"}
    body = chunks() if is_chunked else b" " * 80 * 1024
    answer = await shared.call("POST", "/v1/orders", headers=headers, content=body)

    assert (answer.status_code, answer.json()["type"]) == (413, "about:blank#too-large")


async def test_the_largest_order_fits(shared: Api) -> None:
    lines = [{"sku": chr(0x1F300 + number) * 128, "quantity": 1000} for number in range(100)]

    answer = await shared.place({"customer": "😀" * 128, "order_id": "😁" * 128, "lines": lines})

    assert answer.status_code == 201, answer.text


async def test_a_body_that_does_not_come_is_not_waited_for(shared: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "BODY_SECONDS", 0.2)

    answer = await raw(shared, b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body-too-slow" in answer


@pytest.mark.parametrize("parts", [[b""], [b"GET / HTTP/1.1\r\n"], [b"GET / HTTP/1.1\r\n", *[b"x: y\r\n"] * 50]])
async def test_headers_that_do_not_come_are_not_waited_for(
    shared: Api, monkeypatch: pytest.MonkeyPatch, parts: list[bytes]
) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)

    answer = await raw(shared, *parts, pause=0.02)

    assert problem_in(answer) == (408, "headers-too-slow")


async def test_the_next_request_of_a_connection_gets_its_own_time(shared: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"

    answer = await raw(shared, request, request, b"GET /healthz HTTP/1.1\r\n", pause=0.1)

    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.count(b"HTTP/1.1 408 ") == 1


async def test_blank_lines_do_not_keep_a_connection(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)

    answer = await raw(api, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n", pause=0.1)

    assert answer.count(b"HTTP/1.1 408 ") == 1


async def test_a_slow_second_request_leaves_the_first_its_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    is_read = asyncio.Event()

    async def slow() -> tuple[list[object], int]:
        monkeypatch.setattr(server, "HEADER_SECONDS", 0.1)  # for the second: the headers of this one have come
        await is_read.wait()
        return [], 0

    monkeypatch.setattr(api.services.reads, "findings", slow)
    first = f"GET /v1/audit HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n\r\n".encode()

    answering = asyncio.create_task(raw(api, first, b"GET /v1/audit HTTP/1.1\r\n", pause=0.05))
    await until_ending(api)
    is_read.set()
    answer = await answering

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"is_clean" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_what_follows_a_body_is_no_header(api: Api) -> None:
    answer = await raw(
        api,
        f"POST /v1/orders HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\nconnection: close\r\n".encode()
        + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"2\r\n{}\r\n0\r\nidempotency-key: late\r\n\r\n",
    )

    assert b"about:blank#idempotency-key" in answer


@pytest.mark.parametrize("pause", [0, 0.2])
async def test_an_offer_of_another_protocol_costs_no_body(api: Api, pause: float) -> None:
    body = json.dumps(TEA).encode()
    head = (
        f"POST /v1/orders HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: {len(body)}\r\n"
        "Host: x\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\n"
        f"Authorization: Bearer {api.key}\r\nIdempotency-Key: once\r\nContent-Type: application/json\r\n\r\n"
    ).encode()
    last = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"

    answer = await raw(api, *([head, body, last] if pause else [head + body, last]), pause=pause)

    assert answer.startswith(b"HTTP/1.1 201 "), answer
    assert answer.count(b"HTTP/1.1 200 ") == 1


async def test_an_offer_of_another_protocol_is_seen_wherever_its_header_is_cut(shared: Api) -> None:
    line, body = b"Upgrade: h2c\r\n", b'{"customer": 7}'
    head = f"POST /v1/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {shared.key}\r\nIdempotency-Key: k\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: Upgrade, close\r\n"

    answers = await asyncio.gather(
        *(raw(shared, head.encode() + line[:cut], line[cut:] + b"\r\n" + body, pause=0.1) for cut in range(len(line)))
    )

    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 422 "] * len(line)
    assert all(b"/customer" in answer for answer in answers)  # the body has come


async def test_a_caller_who_does_not_read_is_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]), limit=1024)
    try:
        for _ in range(20):  # more than the buffers of two sockets hold
            writer.write(b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readline()

        async def is_cut_off() -> bool:
            return not api.server.server_state.connections

        await until(is_cut_off)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 5_000,
    ],
)
async def test_headers_that_no_request_needs_are_refused(shared: Api, head: bytes) -> None:
    answer = await raw(shared, head)

    assert problem_in(answer) == (431, "headers-too-large")


@pytest.mark.parametrize(
    "sent",
    [
        bytes.fromhex("16030100c8010000c40303"),  # how TLS begins
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"CONNECT elsewhere:443 HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "words", "a space before a colon", "two lengths", "CONNECT"],
)
async def test_what_is_no_http_is_answered_with_a_problem_too(shared: Api, sent: bytes) -> None:
    assert problem_in(await raw(shared, sent)) == (400, "no-http")


@pytest.mark.parametrize("hosts", [b"", b"host: x\r\nHost: y\r\n"], ids=["none", "two"])
async def test_a_request_names_its_host_once(shared: Api, hosts: bytes) -> None:
    ask = b"GET /healthz HTTP/1.1\r\n" + hosts + b"connection: close\r\n\r\n"

    assert problem_in(await raw(shared, ask)) == (400, "no-host")
    assert (await raw(shared, b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_body_without_end_behind_headers_without_end_gets_one_answer(shared: Api) -> None:
    head = b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nx: " + b"y" * 20_000 + b"\r\n\r\n"

    answer = await raw(shared, head + b"123456789")

    assert problem_in(answer) == (431, "headers-too-large")


async def test_what_comes_with_headers_that_are_refused_is_not_done(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would hear of it: the connection ends."""
    begun: list[str] = []
    begin = server.LimitedProtocol._start_asgi_task

    def noted(self: server.LimitedProtocol, cycle: Any, app: Any) -> None:
        begun.append(cycle.scope["method"])
        begin(self, cycle, app)

    monkeypatch.setattr(server.LimitedProtocol, "_start_asgi_task", noted)
    alive = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    too_long = b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 20_000 + b"\r\n\r\n"

    answer = await raw(api, alive, too_long + b"DELETE / HTTP/1.1\r\nhost: x\r\n\r\n", pause=0.2)

    assert begun == ["GET"]
    assert answer.count(b"HTTP/1.1 ") == 2
    assert problem_in(answer[answer.rindex(b"HTTP/1.1 ") :]) == (431, "headers-too-large")


async def test_no_http_behind_a_request_leaves_it_its_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    is_read = asyncio.Event()

    async def slow() -> tuple[list[object], int]:
        await is_read.wait()
        return [], 0

    monkeypatch.setattr(api.services.reads, "findings", slow)
    first = f"GET /v1/audit HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {api.key}\r\n\r\n".encode()

    answering = asyncio.create_task(raw(api, first, b"\x16\x03\x01", pause=0.1))
    await until_ending(api)
    is_read.set()
    answer = await answering
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"is_clean" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_more_connections_than_there_may_be_are_told_when_to_come_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 1)

    refused = await api.place()
    alive = await api.call("GET", "/healthz")
    monkeypatch.undo()
    taken = await api.place()

    assert (refused.status_code, refused.json()["type"]) == (503, "about:blank#too-many-connections")
    assert 2 <= int(refused.headers["retry-after"]) <= 6
    assert (refused.headers["connection"], refused.headers["x-content-type-options"]) == ("close", "nosniff")
    assert (alive.status_code, taken.status_code) == (200, 201)


async def test_connections_that_ask_for_nothing_make_room(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 5)

    silent = [asyncio.create_task(raw(api)) for _ in range(6)]
    await asyncio.wait(silent, return_when=asyncio.FIRST_COMPLETED)
    alive = await api.call("GET", "/healthz")

    answered = [each.result() for each in silent if each.done()]
    assert {problem_in(answer) for answer in answered} == {(503, "too-many-connections")}
    assert alive.status_code == 200
    assert len(api.server.server_state.connections) <= 5
    for each in silent:
        each.cancel()
    await asyncio.wait(silent)


async def test_who_is_still_sending_when_the_process_ends_is_told_so() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    nothing: Any = None
    scope = {"type": "http", "method": "POST", "raw_path": b"/v1/orders", "query_string": b"", "headers": []}
    answering = asyncio.create_task(edge.Edge(nothing)(scope, receive, send))
    await asyncio.sleep(0)
    answering.cancel()
    await answering

    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["type"] == "about:blank#not-known"


@pytest.mark.parametrize(
    "path", ["/v1/orders/%", "/v1/orders/%ff", "/v1/orders/%00", "/v1/orders/a%2fb", "/v1/orders/..%2f..", "//", "/%2F"]
)
async def test_a_strange_path_is_not_found(shared: Api, path: str) -> None:
    answer = await raw(
        shared,
        f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {shared.key}\r\nconnection: close\r\n\r\n".encode(),
    )

    assert answer.startswith(b"HTTP/1.1 404 "), answer


async def test_a_parameter_that_is_there_twice_is_refused(shared: Api) -> None:
    answer = await shared.call("GET", "/v1/orders?limit=1&status=stuck&limit=2")

    assert (answer.status_code, [fault["pointer"] for fault in answer.json()["errors"]]) == (422, ["limit"])


async def test_a_method_that_an_address_does_not_take_is_named_with_those_that_it_takes(shared: Api) -> None:
    answer = await shared.call("PUT", "/v1/orders", json=TEA)

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


async def test_what_can_be_read_answers_a_head_with_the_headers_alone(api: Api) -> None:
    order_id = (await api.place(TEA)).json()["order_id"]
    order = f"/v1/orders/{order_id}"
    for path in (order, f"{order}/events", "/v1/orders", "/v1/counts", "/v1/audit", "/readyz", "/docs", "/ui"):
        full, head = await api.call("GET", path), await api.call("HEAD", path)
        assert (head.status_code, head.content) == (full.status_code, b""), path
        assert head.headers["content-length"] == str(len(full.content)), path
        assert head.headers["content-type"] == full.headers["content-type"], path
    stream = await api.call("HEAD", f"{order}/stream")
    assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert (await api.call("HEAD", f"{order}/cancel")).status_code == 405
    assert (await api.call("HEAD", "/v1/orders/nobody")).status_code == 404

    async def is_closed() -> bool:
        return api.services.tail.count == 0

    await until(is_closed)


async def test_a_fault_of_ours_is_a_problem_without_its_traceback(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_arguments: object) -> None:
        raise KeyError("internal detail")

    monkeypatch.setattr(api.services.reads, "page", broken)

    answer = await api.call("GET", "/v1/orders")

    assert (answer.status_code, answer.json()["type"]) == (500, "about:blank#internal")
    assert "internal detail" not in answer.text
