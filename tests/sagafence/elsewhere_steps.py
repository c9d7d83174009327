"""Steps at a provider over HTTP: a room here, a tenant there, a bill as the pivot, and a mail after it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio.common import RetryPolicy

from sagafence import (
    ActivityPolicy,
    CallRejected,
    Key,
    KeyReused,
    Known,
    Provider,
    Refusal,
    SagaSteps,
    Seen,
    Settles,
    Stands,
    StoredFailure,
    external,
    local,
)
from tests.sagafence.http_provider import HttpProvider, send

CRM = Provider("crm", Settles.BY_REPEATING, reversal_is_idempotent=True)
BILLING = Provider("billing", Settles.BY_VOIDING)
MAIL = Provider("mail", Settles.BY_REPEATING)
QUICK = ActivityPolicy(
    timedelta(seconds=5), None, RetryPolicy(initial_interval=timedelta(milliseconds=20), maximum_attempts=3)
)


class Refused(Refusal):
    """The provider's final no."""


class NoAnswer(Exception):
    """An answer that says nothing."""


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    order_id: str
    size: int


class OrderSteps(SagaSteps):
    """One provider for each kind of step; `ports` says where it is."""

    def __init__(self, crm: HttpProvider, billing: HttpProvider, mail: HttpProvider) -> None:
        self._crm, self._billing, self._mail = crm, billing, mail

    @local("room", undo_policy=QUICK)
    async def book(self, tx: AsyncConnection, order: Order) -> int:
        """Take a room."""
        made = text("INSERT INTO effects (saga_id, step) VALUES (:saga, 'room') RETURNING number")
        number: int = (await tx.execute(made, {"saga": order.order_id})).scalar_one()
        return number

    @book.undo
    async def give_back(self, tx: AsyncConnection, _order: Order, done: int) -> None:
        """Give it back."""
        await tx.execute(text("DELETE FROM effects WHERE number = :number"), {"number": done})

    @external("tenant", CRM, policy=QUICK, undo_policy=QUICK)
    async def create(self, key: Key, order: Order) -> int:
        """Create a tenant."""
        return await _post(self._crm, key, order)

    @create.undo
    async def delete(self, key: Key, _order: Order, seen: Seen[int]) -> None:
        """Delete it."""
        assert isinstance(seen, Known)
        await _checked(await send(self._crm.port, "DELETE", f"/things/{seen.result}", key.undo))

    @external.pivot("bill", BILLING, policy=QUICK, undo_policy=QUICK)
    async def bill(self, key: Key, order: Order) -> int:
        """Charge for it."""
        return await _post(self._billing, key, order)

    @bill.undo
    async def void(self, key: Key, _order: Order, _seen: Seen[int]) -> Stands[int] | None:
        """Void the key."""
        status, _, body = await send(self._billing.port, "POST", "/voids", "", {"key": str(key)})
        if status == 410:
            return Stands(body["id"])
        await _checked((status, {}, body))
        return None

    @external.forward("mail", MAIL, policy=QUICK)
    async def write(self, key: Key, order: Order) -> int:
        """Say so."""
        return await _post(self._mail, key, order)


async def _post(http: HttpProvider, key: Key, order: Order) -> int:
    number: int = (await _checked(await send(http.port, "POST", "/things", key, {"size": order.size})))["id"]
    return number


async def _checked(answer: tuple[int, dict[str, str], Any]) -> Any:
    status, headers, body = answer
    if status < 300:
        return body
    if status == 402:
        raise Refused(str(body))
    if status in {401, 409, 429}:
        raise CallRejected(str(status))
    if status == 422:
        raise KeyReused(str(status))
    if headers.get("Idempotent-Replayed"):
        raise StoredFailure(str(status))
    raise NoAnswer(str(status))
