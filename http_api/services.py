"""What the routes work with, and who calls them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from client.batcher import Batcher
from domain.text import tidy
from http_api.keys import KeyFile, KeysUnusable, Scope
from http_api.oidc import OpenIdProvider, ProviderAway
from http_api.principal import Principal, of_key
from http_api.problems import Problem, retry_seconds
from http_api.rates import Rates
from http_api.reads import Reads
from http_api.recent import RecentOrders
from http_api.tail import Tail
from http_api.temporal import Temporal

_log = logging.getLogger("checkout.api")

_BEARER = HTTPBearer(auto_error=False, description="An API key, or an access token of the OpenID provider.")
_MOST_TOKEN_CHARACTERS = 8_192


@dataclass
class Services:
    """The parts of one process."""

    reads: Reads
    tail: Tail
    temporal: Temporal
    keys: KeyFile
    oidc: OpenIdProvider | None
    rates: Rates
    batcher: Batcher | None = None
    """None gives each order a workflow of its own."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is about to end; see `end`."""
    recent: RecentOrders = field(default_factory=RecentOrders, init=False)
    """Those that were accepted here."""
    _limits: set[asyncio.Timeout] = field(default_factory=set, init=False)

    @asynccontextmanager
    async def waiting(self, seconds: float) -> AsyncIterator[None]:
        """Wait inside the block for so long at most, and no longer than the process runs; then raise TimeoutError."""
        async with asyncio.timeout(0 if self.stop.is_set() else seconds) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    def end(self) -> None:
        """Let nobody wait any longer: the process is about to end."""
        self.stop.set()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(0)


async def of_request(request: Request) -> Services:
    """Return the services of the app that a request came to. A coroutine: others are run in a thread, each time."""
    services: Services = request.app.state.services
    return services


Given = Annotated[Services, Depends(of_request)]


def may(*scopes: Scope) -> Callable[..., Coroutine[Any, Any, Principal]]:
    """Make the dependency of a route that needs one of these scopes: it returns who calls."""

    async def caller(
        services: Given, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> Principal:
        return await allowed(services, credentials.credentials if credentials else "", *scopes)

    return caller


async def allowed(services: Services, token: str, *scopes: Scope) -> Principal:
    """Return who calls with a token.

    Raises:
        Problem: nobody does, or who has none of these scopes, or too often; or it cannot be checked now.
    """
    principal = await _principal(services, token)
    if wait := services.rates.wait_seconds(principal.caller):
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too-many-requests",
            f"These are more requests than one caller may make. Wait {wait} s, then repeat this one.",
            retry_after=wait,
        )
    if not principal.scopes & set(scopes):
        needed = " or ".join(scope.value for scope in scopes)
        raise Problem(
            HTTPStatus.FORBIDDEN, "scope", f"This needs the scope {needed}, which the key of this request has not."
        )
    return principal


async def _principal(services: Services, token: str) -> Principal:
    if token and len(token) <= _MOST_TOKEN_CHARACTERS:
        try:
            if key := services.keys.find(token):
                return of_key(key)
            if services.oidc and (principal := await services.oidc.principal(token)):
                return principal
        except (KeysUnusable, ProviderAway) as error:
            _log.warning("nobody can be authenticated: %s", tidy(str(error)))
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "cannot-authenticate",
                "It cannot be checked now who calls: nothing was done. Repeat the request.",
                retry_after=retry_seconds(),
            ) from None
    raise Problem(
        HTTPStatus.UNAUTHORIZED,
        "unauthorized",
        "Send a header `Authorization: Bearer KEY` with a key that is in effect. Who runs this service can make one: "
        "docs/api.md says how.",
        headers={"WWW-Authenticate": "Bearer"},
    )


Buyer = Annotated[Principal, Depends(may(Scope.BUY))]
Reader = Annotated[Principal, Depends(may(Scope.READ, Scope.OPERATE))]
Operator = Annotated[Principal, Depends(may(Scope.OPERATE))]
