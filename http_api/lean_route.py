"""A route that reads the usual request itself, which takes FastAPI as long as all that the order takes here.

What is unusual in any way is left to FastAPI's own reading, and so is all that can be wrong with a request: what is
accepted and what is answered stays as it is described.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import ValidationError

from http_api.keys import Scope
from http_api.models import NewOrder
from http_api.services import may, of_request

LONGEST_WAIT = 20
"""Seconds."""
KEY_PATTERN = r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$"
LONGEST_KEY = 255
_KEY = re.compile(KEY_PATTERN)
_WAIT = re.compile(rb"(?:wait=([0-9]{1,2}))?")
_BEARER = b"Bearer "
_READ = {b"authorization", b"content-type", b"idempotency-key"}
_buyer = may(Scope.BUY)


class Head(NamedTuple):
    """What the head of a usual request says."""

    token: str
    idempotency_key: str
    wait: int


class LeanRoute(APIRoute):
    """The route of an endpoint that takes an order, services, principal, key and how long to wait."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        by_fastapi, place = super().get_route_handler(), self.endpoint

        async def answer(request: Request) -> Response:
            head = head_of(request)
            if head is None:
                return await by_fastapi(request)
            try:
                order = NewOrder.model_validate_json(await request.body())
            except ValidationError:
                return await by_fastapi(request)
            services = await of_request(request)
            credentials = HTTPAuthorizationCredentials(scheme="Bearer", credentials=head.token)
            principal = await _buyer(services, credentials)
            response: Response = await place(order, services, principal, head.idempotency_key, head.wait)
            return response

        return answer


def head_of(request: Request) -> Head | None:
    """Read the head of a request; None where it has what most have not, or has something twice."""
    found: dict[bytes, bytes] = {}
    for name, value in request.scope["headers"]:
        if name in _READ:
            if name in found:
                return None
            found[name] = value
    query, token = _WAIT.fullmatch(request.scope["query_string"]), found.get(b"authorization", b"")
    key = found.get(b"idempotency-key", b"").decode("latin-1")
    if query is None or not token.startswith(_BEARER) or not (len(key) <= LONGEST_KEY and _KEY.fullmatch(key)):
        return None
    wait = int(query[1] or 0)
    if wait > LONGEST_WAIT or found.get(b"content-type") != b"application/json":
        return None
    return Head(token.removeprefix(_BEARER).decode("latin-1"), key, wait)
