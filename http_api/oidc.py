"""Access tokens of an OpenID provider, accepted beside API keys.

A token's `scope` names what its holder may do, as `checkout:buy`, `checkout:read` and `checkout:operate`; a claim
`checkout_customers`, a list, restricts it to these customers.
"""

import asyncio
import json
import logging
import urllib.error
import urllib.request
from typing import Any

import jwt

from domain.identifiers import is_identifier
from http_api.keys import Scope
from http_api.principal import Principal

# Pinned: what a token says of its own algorithm is the attacker's word. Only signatures by public keys, so that no
# token can be made with what the provider publishes.
_ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
_SCOPES = {f"checkout:{scope.value}": scope for scope in Scope}
_LEEWAY_SECONDS = 30
_FETCH_SECONDS = 5
_MOST_BYTES = 1_000_000

_log = logging.getLogger("checkout.api")


class ProviderAway(Exception):
    """The provider's keys cannot be had now, so no token can be checked."""


class OpenIdProvider:
    """The provider of one issuer. Its keys are fetched when a token needs one, and kept."""

    def __init__(self, issuer: str, audience: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys: jwt.PyJWKClient | None = None

    async def principal(self, token: str) -> Principal | None:
        """Return whose token it is; None where it is not valid.

        Raises:
            ProviderAway: it cannot be checked.
        """
        try:
            claims = await asyncio.to_thread(self._claims, token)
        except jwt.PyJWKClientConnectionError as error:
            raise ProviderAway(str(error)) from None
        except (OSError, ValueError) as error:
            raise ProviderAway(f"{type(error).__name__}: {error}") from None
        except (jwt.PyJWTError, RecursionError) as error:  # lists within lists are no token
            _log.info("a token was refused: %s", type(error).__name__)
            return None
        return _principal(claims)

    def _claims(self, token: str) -> dict[str, Any]:
        jwt.get_unverified_header(token)  # before anything is fetched for what is no token
        if self._keys is None:
            self._keys = jwt.PyJWKClient(self._keys_url(), timeout=_FETCH_SECONDS)
        key = self._keys.get_signing_key_from_jwt(token)
        return jwt.decode(
            token,
            key,
            algorithms=_ALGORITHMS,
            issuer=self._issuer,
            audience=self._audience,
            leeway=_LEEWAY_SECONDS,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )

    def _keys_url(self) -> str:
        where = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            with urllib.request.urlopen(where, timeout=_FETCH_SECONDS) as answer:  # noqa: S310 - the settings' own URL
                document = json.loads(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            raise
        if document.get("issuer") != self._issuer:
            raise ValueError(f"{where} is of another issuer")
        return str(document["jwks_uri"])


def _principal(claims: dict[str, Any]) -> Principal:
    granted = str(claims.get("scope", "")).split()
    customers = claims.get("checkout_customers")
    return Principal(
        caller=f"oidc:{claims['sub']}",
        name=str(claims["sub"]),
        scopes=frozenset(_SCOPES[name] for name in granted if name in _SCOPES),
        # What is there and no list restricts to nothing, and what is no name is nobody.
        customers=None if customers is None else frozenset(_names(customers)),
    )


def _names(claim: Any) -> list[str]:
    return [each for each in claim if is_identifier(each)] if isinstance(claim, list) else []
