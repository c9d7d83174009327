"""Around every request: how its path is read, how long its body may take, what every answer has."""

import asyncio
from collections import Counter
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from http_api.problems import Fault, Problem, invalid, stopped
from http_api.shown import ENCODED_SLASH

MOST_BODY_BYTES = 64 * 1024
"""An order of a hundred lines with the longest ids has 54 kB at most."""
_DROPPED_BYTES = 1024 * 1024
BODY_SECONDS = 10.0

# No script, style or picture that this server does not have itself, and none within a page.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Edge:
    """Wraps the app.

    A slash that is encoded in a path is part of an order's id, and no separator. A body is read here, whole, before
    anything else: one that is too long, or comes too slowly, gets no further.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        scope["path"] = _path(scope["raw_path"])
        try:
            try:
                _require_each_parameter_once(scope["query_string"])
                body = await _body(receive)
            except ClientDisconnect:
                return
            except Problem as problem:
                await problem.response()(scope, receive, send_with_headers)
                return
            await self._app(scope, again(body, receive), send_with_headers)
        except asyncio.CancelledError:  # the process ends, and waits no longer: uvicorn itself would answer 500
            if is_begun:
                raise
            await stopped().response()(scope, receive, send_with_headers)


class HeadAsGet:
    """Wraps the app, within the edge: a HEAD is a GET whose answer ends with its headers, a stream's too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        is_over = asyncio.Event()

        async def send_head(message: Message) -> None:
            if is_over.is_set():
                return
            if message["type"] == "http.response.body":
                message = {**message, "more_body": False}
                is_over.set()
            await send(message)

        async def leave() -> Message:
            await is_over.wait()
            return {"type": "http.disconnect"}

        # The server still has the other method, and sends no body.
        await self._app({**scope, "method": "GET"}, again(b"", leave), send_head)


def again(read: bytes, receive: Receive) -> Receive:
    """Give the app a body that was read before it."""
    body: bytes | None = read

    async def receive_again() -> Message:
        nonlocal body
        if body is None:
            return await receive()  # the caller's leaving
        message = {"type": "http.request", "body": body, "more_body": False}
        body = None
        return message

    return receive_again


def _require_each_parameter_once(query: bytes) -> None:
    """Refuse a parameter that is there twice: which of the two counts, nobody could know."""
    names = Counter(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise invalid(*(Fault(pointer=name, detail="it is there more than once") for name in twice[:20]))


def _path(raw: bytes) -> str:
    slash = "".join(f"%{byte:02X}" for byte in ENCODED_SLASH.encode())
    path = raw.decode("ascii", errors="replace")
    return unquote(path.replace("%2F", slash).replace("%2f", slash), errors="replace")


def _too_large() -> Problem:
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too-large",
        f"The body has more than {MOST_BODY_BYTES} bytes, which no request needs: split it.",
        headers={"Connection": "close"},
    )


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                # A caller who is cut off while sending sees no answer: a little more is read, and dropped.
                if len(body) > _DROPPED_BYTES or (len(body) > MOST_BODY_BYTES and not message.get("more_body", False)):
                    raise _too_large()
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT,
            "body-too-slow",
            f"The body did not come within {BODY_SECONDS:g} s. Repeat the request.",
            headers={"Connection": "close"},
        ) from None
