"""The usual request to place an order, read without FastAPI, which takes longer for it than all the rest here.

What is unusual in any way is left to FastAPI, and so is all that can be wrong with a request: what is accepted and what
is answered stays as it is described.
"""

import re
from typing import NamedTuple

from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from http_api import problems
from http_api.edge import again
from http_api.keys import Scope
from http_api.models import NewOrder
from http_api.placing import KEY_PATTERN, LONGEST_KEY, LONGEST_WAIT, PATH, place_order
from http_api.services import Services, allowed

_KEY = re.compile(KEY_PATTERN)
_WAIT = re.compile(rb"(?:wait=([0-9]{1,2}))?")
_BEARER = b"Bearer "
_READ = {b"authorization", b"content-type", b"idempotency-key"}


class Head(NamedTuple):
    """What the head of a usual request says."""

    token: str
    idempotency_key: str
    wait: int


class LeanRoute:
    """Wraps the app, within the edge."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if (head := head_of(connection)) is None:
            await self._app(connection, receive, send)
            return
        body = (await receive())["body"]  # the edge has read it whole
        try:
            order = NewOrder.model_validate_json(body)
        except ValidationError:
            await self._app(connection, again(body, receive), send)
            return
        try:
            buyer = await allowed(self._services, head.token, Scope.BUY)
            response = await place_order(order, self._services, buyer, head.idempotency_key, head.wait)
        except Exception as error:
            problem = problems.of(error)
            await (problem or problems.internal()).response()(connection, receive, send)
            if problem is None:  # the server logs it with its traceback
                raise
        else:
            await response(connection, receive, send)


def head_of(connection: Connection) -> Head | None:
    """Read the head of a request; None where it has what most have not, or has something twice."""
    if connection["type"] != "http" or connection["method"] != "POST" or connection["path"] != PATH:
        return None
    found: dict[bytes, bytes] = {}
    for name, value in connection["headers"]:
        if name in _READ:
            if name in found:
                return None
            found[name] = value
    query, token = _WAIT.fullmatch(connection["query_string"]), found.get(b"authorization", b"")
    key = found.get(b"idempotency-key", b"").decode("latin-1")
    if query is None or not token.startswith(_BEARER) or not (len(key) <= LONGEST_KEY and _KEY.fullmatch(key)):
        return None
    wait = int(query[1] or 0)
    if wait > LONGEST_WAIT or found.get(b"content-type") != b"application/json":
        return None
    return Head(token.removeprefix(_BEARER).decode("latin-1"), key, wait)
