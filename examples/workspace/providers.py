"""The CRM and the billing service: what they can do, and how they say it over HTTP."""

from typing import Any

from httpx import AsyncClient, ConnectError, ConnectTimeout, Response

from examples.workspace.model import ProviderRefused
from sagafence import CallRejected, Keeps, KeyReused, Provider, Settles, StoredFailure

CRM = Provider("crm", Settles.BY_REPEATING, reversal_is_idempotent=True)
BILLING = Provider("billing", Settles.BY_VOIDING, keeps=Keeps.FIRST_ANSWERS)


async def post(http: AsyncClient, path: str, key: str, **content: str) -> Any:
    try:
        answer = await http.post(path, json=content, headers={"Idempotency-Key": key})
    except (ConnectError, ConnectTimeout) as error:
        raise CallRejected(f"no connection to the provider: {error!r}") from error  # nothing was sent
    return meaning(answer)


def meaning(answer: Response) -> Any:
    """Return what the provider did, or raise what its answer says about this call."""
    if answer.is_server_error and "Idempotent-Replayed" in answer.headers:
        raise StoredFailure(answer.text)
    said = said_in(answer)
    if answer.is_success:
        return said
    if answer.is_server_error or "error" not in said:
        answer.raise_for_status()  # a gateway's words, or a crash: it may have acted all the same
    if said["error"] == "key_reused":
        raise KeyReused(answer.text)
    if said["error"] == "in_progress" or answer.status_code in {400, 401, 429}:
        raise CallRejected(answer.text)
    raise ProviderRefused(answer.text)


def said_in(answer: Response) -> Any:
    return answer.json() if answer.content and "json" in answer.headers.get("Content-Type", "") else {}
