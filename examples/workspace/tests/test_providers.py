"""What each answer of a provider means: the one place where an author has to think."""

import pytest
from httpx import (
    AsyncClient,
    ConnectError,
    ConnectTimeout,
    HTTPStatusError,
    MockTransport,
    ReadTimeout,
    Request,
    Response,
)

from examples.workspace.model import ProviderRefused
from examples.workspace.providers import meaning, post
from sagafence import CallRejected, KeyReused, StoredFailure

REPLAYED = {"Idempotent-Replayed": "true"}


def answer(status: int, error: str | None = None, **more: object) -> Response:
    words = {"text": "<h1>Bad gateway</h1>"} if error is None else {"json": {"error": error, "message": "so it is"}}
    return Response(status, request=Request("POST", "http://provider/tenants"), **words, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heard", "raised"),
    [
        (answer(402, "not_billable"), ProviderRefused),
        (answer(402, "not_billable", headers=REPLAYED), ProviderRefused),
        (answer(422, "forbidden_subdomain"), ProviderRefused),
        (answer(409, "voided"), ProviderRefused),
        (answer(409, "in_progress"), CallRejected),
        (answer(400, "malformed"), CallRejected),
        (answer(401, "who_are_you"), CallRejected),
        (answer(429, "too_many"), CallRejected),
        (answer(422, "key_reused"), KeyReused),
        (answer(500, "crashed"), HTTPStatusError),
        (answer(502), HTTPStatusError),
        (answer(404), HTTPStatusError),
        (answer(302), HTTPStatusError),
        (answer(500, "crashed", headers=REPLAYED), StoredFailure),
    ],
    ids=str,
)
def test_an_answer_means(heard: Response, raised: type[Exception]) -> None:
    with pytest.raises(Exception) as failure:  # noqa: PT011 - exactly this type, no subclass of it
        meaning(heard)

    assert type(failure.value) is raised


def test_a_success_is_what_it_says() -> None:
    assert meaning(Response(201, json={"id": 7})) == {"id": 7}
    assert meaning(Response(204)) == {}


@pytest.mark.parametrize(
    ("failed", "raised"),
    [
        (ConnectError("refused"), CallRejected),
        (ConnectTimeout("no answer"), CallRejected),
        (ReadTimeout("no answer"), ReadTimeout),
    ],
)
async def test_a_failed_connect_sent_nothing_and_a_lost_answer_is_unknown(
    failed: Exception, raised: type[Exception]
) -> None:
    def fail(_request: Request) -> Response:
        raise failed

    async with AsyncClient(transport=MockTransport(fail), base_url="http://provider") as http:
        with pytest.raises(raised):
            await post(http, "/tenants", "key", reference="ws-1")
