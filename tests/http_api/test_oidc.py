"""Access tokens of an OpenID provider: taken where its keys signed them for us, and never by their own word."""

import asyncio
import base64
import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from http_api.keys import Scope
from http_api.oidc import OpenIdProvider, ProviderAway
from tests.http_api.conftest import TEA, Api

AUDIENCE = "checkout"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_PUBLIC_PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class Provider:
    """An OpenID provider that has one key."""

    def __init__(self) -> None:
        self.issuer = ""
        self.says_issuer: str | None = None
        self.fetched: list[str] = []
        self.is_away = False


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.fetched.append(self.path)
            documents: dict[str, Any] = {
                "/.well-known/openid-configuration": {
                    "issuer": made.says_issuer or made.issuer,
                    "jwks_uri": f"{made.issuer}/keys",
                },
                "/keys": {"keys": [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key())) | {"kid": "1"}]},
            }
            self.send_response(503 if made.is_away else 200)
            self.end_headers()
            self.wfile.write(json.dumps(documents[self.path]).encode())

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.issuer = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def token(provider: Provider, key: Any = KEY, algorithm: str = "RS256", **claims: Any) -> str:
    now = {
        "iss": provider.issuer,
        "aud": AUDIENCE,
        "sub": "anna",
        "exp": 4_000_000_000,
        "scope": "checkout:read openid",
    }
    given = {name: value for name, value in (now | claims).items() if value is not None}
    return jwt.encode(given, key, algorithm, headers={"kid": "1"})


def by_hand(header: dict[str, str], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


async def test_a_token_opens_what_its_scopes_name(api: Api, provider: Provider) -> None:
    api.services.oidc = OpenIdProvider(provider.issuer, AUDIENCE)

    listed = await api.call("GET", "/v1/orders", key=token(provider))
    refused = await api.place(TEA, key=token(provider))
    placed = await api.place(TEA, key=token(provider, scope="checkout:buy", checkout_customers=["alice"]))
    other = await api.place(
        {**TEA, "customer": "bob"}, key=token(provider, scope="checkout:buy", checkout_customers="bob")
    )

    assert [answer.status_code for answer in (listed, refused, placed, other)] == [200, 403, 201, 403]
    assert provider.fetched.count("/keys") == 1
    assert (await api.call("GET", "/v1/orders")).status_code == 200  # API keys go on


async def test_a_token_names_its_holder(provider: Provider) -> None:
    oidc = OpenIdProvider(provider.issuer, AUDIENCE)

    found = await oidc.principal(token(provider, scope="checkout:buy checkout:operate checkout:own"))

    assert found is not None
    assert (found.caller, found.name, found.customers) == ("oidc:anna", "anna", None)
    assert found.scopes == {Scope.BUY, Scope.OPERATE}


@pytest.mark.parametrize("customers", [[["alice"]], [1, "alice"], [None], "alice", {"alice": 1}, 0, ["a\0"]])
async def test_customers_that_are_no_names_open_nothing_and_break_nothing(
    api: Api, provider: Provider, customers: Any
) -> None:
    api.services.oidc = OpenIdProvider(provider.issuer, AUDIENCE)

    listed = await api.call("GET", "/v1/orders", key=token(provider, checkout_customers=customers))

    assert (listed.status_code, listed.json()["orders"]) == (200, [])


async def test_what_the_provider_has_not_signed_for_us_is_refused(provider: Provider) -> None:
    oidc = OpenIdProvider(provider.issuer, AUDIENCE)
    claims = jwt.decode(token(provider), options={"verify_signature": False})
    public = base64.b64encode(_PUBLIC_PEM).decode()
    tokens = {
        "another key": token(provider, OTHER_KEY),
        "another audience": token(provider, aud="other"),
        "no audience": token(provider, aud=None),
        "another issuer": token(provider, iss="https://evil.test"),
        "too old": token(provider, exp=1),
        "for ever": token(provider, exp=None),
        "not yet": token(provider, nbf=4_000_000_000),
        "nobody": token(provider, sub=None),
        "no algorithm": by_hand({"alg": "none", "typ": "JWT", "kid": "1"}, claims),
        "the public key as a secret": jwt.encode(claims, public, "HS256", headers={"kid": "1"}),
        "another algorithm": token(provider, algorithm="RS384"),
        "an unknown key": jwt.encode(claims, KEY, "RS256", headers={"kid": "2"}),
        "no token": "x",
        "half a token": token(provider)[:-10],
        "lists without end": f"{base64.urlsafe_b64encode(b'[' * 6000).decode()}.e30.e30",
    }

    refused = {name: await oidc.principal(given) for name, given in tokens.items()}

    assert refused == dict.fromkeys(tokens)
    assert await oidc.principal(token(provider)) is not None


async def test_a_provider_that_is_away_is_no_refusal(
    api: Api, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    api.services.oidc = OpenIdProvider(provider.issuer, AUDIENCE)
    provider.is_away = True

    away = await api.call("GET", "/v1/orders", key=token(provider))
    provider.is_away = False
    back = await api.call("GET", "/v1/orders", key=token(provider))

    assert (away.status_code, away.json()["type"], back.status_code) == (503, "about:blank#cannot-authenticate", 200)
    assert "nobody can be authenticated: " in caplog.text


async def test_the_connection_of_a_failed_answer_is_closed(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    provider.is_away = True
    heard: list[HTTPError] = []
    fetch = urllib.request.urlopen

    def urlopen(*arguments: Any, **options: Any) -> Any:
        try:
            return fetch(*arguments, **options)
        except HTTPError as error:
            heard.append(error)
            raise

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ProviderAway, match="503"):
        await OpenIdProvider(provider.issuer, AUDIENCE).principal(token(provider))

    assert [error.closed for error in heard] == [True]


async def test_a_configuration_of_another_issuer_is_not_taken(provider: Provider) -> None:
    provider.says_issuer = "https://evil.test"

    with pytest.raises(ProviderAway, match="another issuer"):
        await OpenIdProvider(provider.issuer, AUDIENCE).principal(token(provider))


async def test_what_is_no_token_fetches_nothing(provider: Provider) -> None:
    oidc = OpenIdProvider(provider.issuer, AUDIENCE)

    assert await asyncio.gather(*(oidc.principal(given) for given in ("", "x", "a.b.c", "ck_k1_x"))) == [None] * 4
    assert provider.fetched == []
