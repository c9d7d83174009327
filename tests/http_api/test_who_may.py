"""Who may do what: every scope at every address, keys that are made and revoked, a rate for each caller."""

import json
import logging
import re
from itertools import combinations
from pathlib import Path

import httpx
import pytest

from devstack.stack import DevStack
from http_api.keys import KeyFile, KeysUnusable, Scope
from http_api.rates import Rates
from tests.conftest import Shop
from tests.http_api.conftest import TEA, Api, reader_url, serving
from tests.workflow.sagas import until_status

READ, BUY, OPERATE = {Scope.READ, Scope.OPERATE}, {Scope.BUY}, {Scope.OPERATE}
ADDRESSES = {
    ("POST", "/v1/orders"): BUY,
    ("GET", "/v1/orders"): READ,
    ("GET", "/v1/orders/{order_id}"): READ,
    ("GET", "/v1/orders/{order_id}/events"): READ,
    ("GET", "/v1/orders/{order_id}/stream"): READ,
    ("POST", "/v1/orders/{order_id}/cancel"): OPERATE,
    ("POST", "/v1/orders/{order_id}/retry"): OPERATE,
    ("POST", "/v1/orders/{order_id}/resolve"): OPERATE,
    ("GET", "/v1/audit"): READ,
    ("GET", "/v1/counts"): READ,
    ("POST", "/v1/audits"): OPERATE,
}
OPEN = {("GET", "/healthz"), ("GET", "/readyz")}
SCOPES = [frozenset(chosen) for count in range(4) for chosen in combinations(Scope, count)]


async def test_every_address_is_in_the_matrix(shared: Api) -> None:
    described = (await shared.http.get("/openapi.json")).json()["paths"]

    found = {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert found == set(ADDRESSES) | OPEN
    for (method, path), scopes in ADDRESSES.items():
        named = described[path][method.lower()]["x-scope"]
        assert set(named.split(", ")) == {scope.value for scope in scopes}, (method, path)


async def test_each_scope_opens_its_addresses_and_no_other(shared: Api) -> None:
    keys = {scopes: shared.key_for(*scopes) for scopes in SCOPES}
    for (method, path), allowed in ADDRESSES.items():
        for scopes, key in keys.items():
            # Who may is asked before what is asked for: an audit that is malformed is not begun.
            answer = await shared.call(method, f"{path.format(order_id='nobody')}?wait=malformed", key=key)
            is_refused = answer.status_code == 403
            assert is_refused == (not scopes & allowed), (method, path, scopes, answer.text)
            if is_refused:
                assert answer.json()["type"] == "about:blank#scope"


async def test_a_key_for_some_customers_asks_nothing_of_anothers_order_and_does_not_learn_that_it_is_there(
    api: Api, shop: Shop
) -> None:
    key = api.key_for(*Scope, customers=("nemo",))
    order_id, nobody = (await api.place(TEA)).json()["order_id"], "o-nobody"
    bodies = {"cancel": {"reason": "x"}, "retry": {"reason": "x"}, "resolve": {"reason": "x", "step": "pay"}}

    async with shop.working():
        for method, path in ADDRESSES:
            if "{order_id}" not in path:
                continue
            body = bodies.get(path.rpartition("/")[2])
            answers = [
                await api.call(method, path.format(order_id=each), key=key, json=body) for each in (order_id, nobody)
            ]
            assert [answer.status_code for answer in answers] == [404, 404], path
            assert answers[0].text.replace(order_id, nobody) == answers[1].text
        await until_status(shop, shop.order(order_id=order_id), "completed")


async def test_an_audit_is_for_keys_of_all_customers(api: Api) -> None:
    key = api.key_for(*Scope, customers=("nemo",))

    answers = [await api.call("GET", "/v1/audit", key=key), await api.call("POST", "/v1/audits", key=key)]

    assert [(answer.status_code, answer.json()["type"]) for answer in answers] == [(403, "about:blank#customer")] * 2


@pytest.mark.parametrize("shown", ["x", "ck_", "ck__", "ck_k00000000_x", "ck_{id}_", "ck_{id}_x", "xx_{id}_{token}"])
async def test_what_is_no_key_opens_nothing(shared: Api, shown: str) -> None:
    _, key_id, token = shared.key.split("_", 2)
    for method, path in ADDRESSES:
        answer = await shared.call(method, path.format(order_id="nobody"), key=shown.format(id=key_id, token=token))
        assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer"), (method, path)


async def test_without_a_header_nothing_is_open_but_health_and_documentation(shared: Api) -> None:
    for method, path in ADDRESSES:
        assert (await shared.http.request(method, path.format(order_id="nobody"))).status_code == 401, (method, path)
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/docs/begin.js", "/docs/assets/swagger-ui.css"):
        assert (await shared.http.get(path)).status_code == 200, path


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_load_balancer_may_ask_for_no_body(shared: Api, path: str) -> None:
    answer = await shared.http.head(path)

    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_revoked_key_opens_nothing_from_the_next_request_on(shared: Api) -> None:
    key = shared.key_for(Scope.READ)
    before = await shared.call("GET", "/v1/orders", key=key)

    assert shared.keys.revoke(key.split("_")[1])

    after = await shared.call("GET", "/v1/orders", key=key)
    assert (before.status_code, after.status_code) == (200, 401)


async def test_keys_that_cannot_be_read_let_nobody_in_and_are_no_refusal(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.json"
    kept = file.read_text()
    file.write_text("{")

    answer = await api.call("GET", "/v1/orders")
    file.write_text(kept)

    assert (answer.status_code, answer.json()["type"]) == (503, "about:blank#cannot-authenticate")
    assert f"nobody can be authenticated: the API keys in {file} cannot be read: " in caplog.text
    assert (await api.call("GET", "/v1/orders")).status_code == 200
    file.unlink()
    assert (await api.call("GET", "/v1/orders")).status_code == 401


async def test_a_caller_who_asks_too_often_is_told_when_to_come_back_and_others_are_not(
    shop: Shop, stack: DevStack, tmp_path: Path
) -> None:
    async with serving(shop.client, shop.task_queue, reader_url(stack, shop), tmp_path) as api:
        api.services.rates = Rates(0.5, clock=lambda: 0.0)  # however long the first one takes
        first, second = [await api.call("GET", "/v1/audit") for _ in range(2)]
        other = await api.call("GET", "/v1/audit", key=api.key_for(Scope.READ))

    assert [first.status_code, second.status_code, other.status_code] == [200, 429, 200]
    assert (second.headers["retry-after"], second.json()["type"]) == ("2", "about:blank#too-many-requests")


def test_a_caller_may_use_what_they_have_saved_and_no_more_than_two_seconds_of_it() -> None:
    now = 0.0
    rates = Rates(10, clock=lambda: now)

    assert [rates.wait_seconds("a") for _ in range(20)] == [0] * 20
    assert rates.wait_seconds("a") == 1
    now = 0.1
    assert (rates.wait_seconds("a"), rates.wait_seconds("a")) == (0, 1)
    now = 1_000.0
    assert [rates.wait_seconds("a") for _ in range(21)] == [0] * 20 + [1]


async def test_no_key_is_in_a_log_or_an_error(shared: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = shared.key.split("_", 2)[2]

    answers = [
        await shared.call("GET", "/v1/orders", key=f"{shared.key}x"),
        await shared.call("POST", "/v1/orders", json=TEA),
        await shared.http.get("/v1/orders", headers={"Authorization": f"Basic {shared.key}"}),
    ]

    of_the_caller = ("httpx", "httpcore")
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith(of_the_caller)]
    assert [answer.status_code for answer in answers] == [401, 400, 401]
    assert secret not in "\n".join([*logged, *(answer.text for answer in answers)])


# The file of keys -----------------------------------------------------------------------------------------


def test_a_key_is_kept_hashed_in_a_file_for_us_alone(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")

    secret = keys.create("shop", (Scope.BUY,), ("alice",))

    assert re.fullmatch(r"ck_k[0-9a-f]{8}_[A-Za-z0-9_-]{43}", secret)
    text = (tmp_path / "keys.json").read_text()
    assert secret.split("_", 2)[2] not in text
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    found = KeyFile(tmp_path / "keys.json").find(secret)
    assert found is not None
    assert (found.name, found.scopes, found.customers) == ("shop", ("buy",), ("alice",))


def test_what_is_in_the_file_stays_when_a_key_is_made_or_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first, second = (KeyFile(file).create(name, (Scope.READ,), None) for name in ("a", "b"))
    assert KeyFile(file).revoke(first.split("_")[1])
    assert not KeyFile(file).revoke("k00000000")

    keys = KeyFile(file)
    assert [key.name for key in keys.all().values()] == ["a", "b"]
    assert (keys.find(first), keys.find(second) is not None) == (None, True)


@pytest.mark.parametrize("content", ["", "[]", '{"keys": [{}]}', '{"keys": [{"scopes": ["own"]}]}', "\0"])
def test_a_file_of_keys_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)

    with pytest.raises(KeysUnusable, match="cannot be read"):
        KeyFile(file).all()
    with pytest.raises(KeysUnusable):
        KeyFile(file).create("shop", (Scope.BUY,), None)
    assert file.read_text() == content


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", 5),
        ("sha256", "é"),
        ("name", 5),
        ("customers", [5]),
        ("customers", "alice"),
        ("scopes", "buy"),
        ("revoked_at", False),
        ("revoked", "2026-11-29"),
    ],
)
def test_a_key_that_was_edited_into_something_else_lets_nobody_in(tmp_path: Path, field: str, value: object) -> None:
    file = tmp_path / "keys.json"
    secret = KeyFile(file).create("shop", (Scope.BUY,), None)
    document = json.loads(file.read_text())
    document["keys"][0][field] = value
    file.write_text(json.dumps(document))

    with pytest.raises(KeysUnusable, match="cannot be read"):
        KeyFile(file).find(secret)


async def test_no_other_site_may_call(shared: Api) -> None:
    preflight = await shared.http.options(
        "/v1/orders", headers={"Origin": "https://evil.test", "Access-Control-Request-Method": "POST"}
    )
    answer: httpx.Response = await shared.call("GET", "/v1/orders", headers={"Origin": "https://evil.test"})

    assert preflight.status_code == 405
    assert not [name for name in (*preflight.headers, *answer.headers) if name.startswith("access-control")]
