"""The HTTP API as a way in: customers who repeat a request with the same key until it is answered."""

from typing import Any, Self
from urllib.parse import quote

import httpx

from client.failures import NoSuchOrder, OrderIdConflict, Refused
from domain.model import CheckoutInput
from tests.soak.harness import Harness, SoakFailed

_LONGEST_WAIT = 3
"""Seconds. Every second customer asks to be told how the order ends."""
_TIMEOUT_SECONDS = 30


class Unanswered(TimeoutError):
    """The API is away, or says that it does not know: the request is repeated."""


class Door:
    """Calls of the API, each of which is safe to repeat."""

    def __init__(self, harness: Harness) -> None:
        headers = {"Authorization": f"Bearer {harness.api_key}"}
        self._http = httpx.AsyncClient(base_url=harness.api_url, headers=headers, timeout=_TIMEOUT_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def place(self, order: CheckoutInput, key: str, *, is_patient: bool) -> str:
        """Place an order and return its status, as its customer is told it.

        Raises:
            OrderIdConflict: another order has the id.
            Unanswered: nobody knows.
        """
        body = {
            "order_id": order.order_id,
            "customer": order.customer,
            "lines": [{"sku": line.sku, "quantity": line.quantity} for line in order.lines],
        }
        wait = _LONGEST_WAIT if is_patient else 0
        answer = await self._ask("POST", f"/v1/orders?wait={wait}", json=body, headers={"Idempotency-Key": key})
        if answer.status_code == 409:
            raise OrderIdConflict(answer.text)
        return _status(answer, 200, 201)

    async def cancel(self, order_id: str, reason: str) -> None:
        """Cancel an order.

        Raises:
            Refused, NoSuchOrder, Unanswered: as they say.
        """
        path = f"/v1/orders/{quote(order_id)}/cancel"
        answer = await self._ask("POST", path, json={"reason": reason})
        if answer.status_code == 409:
            raise Refused(answer.text)
        if answer.status_code == 404:
            raise NoSuchOrder(answer.text)
        if answer.status_code != 202:
            raise SoakFailed(f"{order_id}: a cancel was answered with {answer.status_code}: {answer.text}")

    async def status(self, order_id: str) -> str:
        """Read an order's status."""
        return _status(await self._ask("GET", f"/v1/orders/{quote(order_id)}"), 200)

    async def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise Unanswered(repr(error)) from None
        if answer.status_code == 503:
            raise Unanswered(answer.text)
        return answer


def _status(answer: httpx.Response, *expected: int) -> str:
    if answer.status_code not in expected:
        raise SoakFailed(f"{answer.request.url} was answered with {answer.status_code}: {answer.text}")
    return str(answer.json()["status"])
