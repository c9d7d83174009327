"""Waiting for an order's end while the server has more to do than it can."""

import asyncio
from typing import cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from client.checkouts import Checkouts
from client.executions import Execution
from domain.model import CheckoutStatus


class Busy(Checkouts):
    """Its server answers no question before the order has ended."""

    def __init__(self, status: RPCStatusCode) -> None:
        super().__init__(cast("Client", None), "checkout", "")
        self._status = status
        self._has_ended = asyncio.Event()
        self.questions = 0

    async def _result(self, order_id: str) -> CheckoutStatus:
        await self._has_ended.wait()
        return CheckoutStatus(order_id, "completed")

    async def _describe(self, _order_id: str) -> Execution:
        self.questions += 1
        if self.questions == 3:
            self._has_ended.set()
        raise RPCError("Timeout expired", self._status, b"")


@pytest.mark.parametrize(
    "status", [RPCStatusCode.CANCELLED, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.RESOURCE_EXHAUSTED]
)
async def test_a_question_that_a_busy_server_leaves_open_does_not_end_the_wait(status: RPCStatusCode) -> None:
    checkouts = Busy(status)

    outcome = await asyncio.wait_for(checkouts.outcome("one", poll_every=0.001), 10)

    assert outcome.status == "completed"
    assert checkouts.questions == 3


async def test_a_server_that_refuses_the_question_ends_the_wait() -> None:
    with pytest.raises(RPCError, match="Timeout expired"):
        await asyncio.wait_for(Busy(RPCStatusCode.PERMISSION_DENIED).outcome("one", poll_every=0.001), 10)
