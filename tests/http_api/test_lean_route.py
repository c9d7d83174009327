"""The usual request to place an order is read without FastAPI, and answered as FastAPI would have it answered."""

import json
import uuid
from typing import Any

import pytest
from starlette.types import Scope

from http_api import keys, placing
from http_api.lean_route import Head, head_of
from tests.http_api.conftest import TEA, Api

USUAL = {"authorization": "Bearer key", "idempotency-key": "once", "content-type": "application/json"}


def request(
    query: str = "", *, path: str = "/v1/orders", method: str = "POST", **headers: str | list[str] | None
) -> Scope:
    given: dict[str, Any] = USUAL | {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = [
        (name.encode(), each.encode("latin-1"))
        for name, value in given.items()
        for each in (value if isinstance(value, list) else [value])
        if each is not None
    ]
    return {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": pairs}


def test_the_head_of_a_usual_request_is_read() -> None:
    assert head_of(request()) == Head("key", "once", 0)
    assert head_of(request("wait=20", idempotency_key="a b")) == Head("key", "a b", 20)


@pytest.mark.parametrize(
    "odd",
    [
        request(method="GET"),
        request(path="/v1/orders/"),
        request("wait=21"),
        request("wait=1&own_workflow=true"),
        request("wait=1&wait=2"),
        request("wait=+1"),
        request("wait="),
        request(authorization="Basic key"),
        request(authorization=None),
        request(authorization=["Bearer one", "Bearer two"]),
        request(idempotency_key=None),
        request(idempotency_key=""),
        request(idempotency_key=" a"),
        request(idempotency_key="a\xe9"),
        request(idempotency_key="x" * 256),
        request(idempotency_key=["one", "two"]),
        request(content_type="text/plain"),
        request(content_type=None),
    ],
)
def test_what_most_requests_do_not_have_is_left_to_fastapi(odd: Scope) -> None:
    assert head_of(odd) is None


def test_a_key_may_be_as_long_as_it_is_described() -> None:
    assert head_of(request(idempotency_key="x" * 255)) is not None


async def test_a_usual_request_needs_a_key_that_may_buy(shared: Api) -> None:
    key = shared.key_for(keys.Scope.READ, keys.Scope.OPERATE)
    answers = [await shared.place(TEA, key=each) for each in (key, "ck_none", "ck")]

    assert [answer.status_code for answer in answers] == [403, 401, 401]


_BODIES: list[Any] = [
    TEA,
    {**TEA, "order_id": None},
    {**TEA, "lines": [{"sku": "tea-mug", "quantity": 1.0}]},
    {**TEA, "lines": [{"sku": "tea-mug", "quantity": "1"}]},
    {**TEA, "lines": [{"sku": "tea-mug", "quantity": True}]},
    {**TEA, "lines": [{"sku": "tea-mug", "quantity": 10**30}]},
    {**TEA, "lines": []},
    {**TEA, "customer": "\ud800"},
    {**TEA, "customer": ""},
    {**TEA, "price": 1},
    [],
    None,
]


@pytest.mark.parametrize("body", _BODIES, ids=str)
@pytest.mark.parametrize("raw", ["as it is", "with NaN", "twice the same name", "in UTF-16"])
async def test_a_body_is_answered_alike_whoever_reads_it(shared: Api, body: Any, raw: str) -> None:
    content = json.dumps(body).encode()
    if raw == "with NaN":
        content = content.replace(b'"quantity": 1', b'"quantity": NaN')
    elif raw == "twice the same name":
        content = content.replace(b'"customer"', b'"customer": "bob", "customer"')
    elif raw == "in UTF-16":
        content = content.decode().encode("utf-16")

    answers = [
        await shared.call(
            "POST",
            "/v1/orders",
            headers={"Idempotency-Key": uuid.uuid4().hex, "Content-Type": content_type},
            content=content,
        )
        for content_type in ("application/json", "application/json; charset=utf-8")
    ]

    assert answers[0].status_code == answers[1].status_code
    documents = [{**answer.json(), "order_id": None, "links": None} for answer in answers]
    assert documents[0] == documents[1]


@pytest.mark.parametrize("path", ["the short one", "FastAPI's"])
async def test_a_fault_of_the_service_is_answered_and_logged_alike(
    shared: Api, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a fault of ours")

    monkeypatch.setattr(placing, "order_id_for", broken)

    answer = await shared.call(
        "POST",
        f"/v1/orders{'' if path == 'the short one' else '?own_workflow=true'}",
        headers={"Idempotency-Key": uuid.uuid4().hex},
        json=TEA,
    )

    assert (answer.status_code, answer.json()["type"]) == (500, "about:blank#internal")
    assert "content-security-policy" in answer.headers
    assert "a fault of ours" in caplog.text
