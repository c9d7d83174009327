"""The operator of the soak, who settles every order that is stuck."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from temporalio.client import WorkflowQueryFailedError
from temporalio.service import RPCError

from client.failures import NoSuchOrder, Refused
from domain.model import CheckoutStatus
from tests.soak.desk import PAUSE_SECONDS, Desk
from tests.soak.planned import PlannedOrder
from tests.soak.stage import AWAY, SoakFailed
from workflows.checkout import CheckoutWorkflow

_LOOK_SECONDS = 0.5
_ANSWER_WITHIN = timedelta(seconds=5)


class Operator:
    """Keeps an eye on the stuck orders, and does to each what the plan says."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._stuck: set[str] = set()
        self._vouched: dict[int, set[str]] = {}

    async def watch(self) -> None:
        """Keep in mind which orders are stuck. One that nobody has broken must not be."""
        while True:
            try:
                async with self._desk.stage.asking() as connection:
                    while True:
                        rows = await connection.fetch("SELECT order_id FROM orders WHERE status = 'stuck'")
                        self._stuck = {row["order_id"] for row in rows}
                        if groundless := [name for name in self._stuck if not self._desk.planned(name).broken]:
                            raise SoakFailed(f"stuck without a cause: {', '.join(sorted(groundless))}")
                        await asyncio.sleep(_LOOK_SECONDS)
            except AWAY:
                await asyncio.sleep(_LOOK_SECONDS)

    @asynccontextmanager
    async def tending(self, planned: PlannedOrder) -> AsyncIterator[None]:
        """Settle an order whenever it is stuck, as long as the block runs."""
        operating = asyncio.create_task(self._operate(planned)) if planned.broken else None
        try:
            yield
        finally:
            if operating is not None:
                operating.cancel()
                await asyncio.wait([operating])
                if not operating.cancelled() and (failure := operating.exception()):
                    raise failure

    async def vouched(self, planned: PlannedOrder, status: str, told: frozenset[str]) -> frozenset[str]:
        """Give the steps of an order that has ended which a person has settled by hand.

        Args:
            planned: the order.
            status: how it ended.
            told: what the end of its saga says.

        Raises:
            SoakFailed: the saga has accepted such a word, and forgotten it.
        """
        found = told
        if planned.broken and planned.remedy == "resolve" and status == "cancelled":
            # Such an ending says nothing else, and the answers to the operator may have been lost.
            found = await self._vouched_in_history(planned.order.order_id)
        if lost := self._vouched.pop(planned.number, set()) - found:
            raise SoakFailed(f"{planned.order.order_id}: accepted as resolved, and forgotten: {sorted(lost)}")
        return found

    async def _operate(self, planned: PlannedOrder) -> None:
        name = planned.order.order_id
        while True:
            if name not in self._stuck:
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            self._desk.book.stuck.add(planned.number)
            await asyncio.sleep(planned.remedy_after)
            if planned.remedy == "resolve":
                for step in planned.broken:
                    await self._resolve(planned, step)
            else:
                await self._desk.persist(lambda: self._desk.mend(name))
            await self._retry(name)
            self._stuck.discard(name)

    async def _resolve(self, planned: PlannedOrder, step: str) -> None:
        name = planned.order.order_id
        checkouts = self._desk.checkouts
        try:
            status = await self._desk.persist(lambda: checkouts.resolve(name, step, "settled by hand, slip 77"))
        except (Refused, NoSuchOrder):
            # Not stuck in this step; or an earlier request did it, whose answer was lost.
            status = await self._desk.persist(lambda: checkouts.status(name))
        if step in resolved(status):
            self._vouched.setdefault(planned.number, set()).add(step)
            self._desk.book.counts["steps resolved"] += 1

    async def _retry(self, order_id: str) -> None:
        try:
            await self._desk.persist(lambda: self._desk.checkouts.retry(order_id))
        except (Refused, NoSuchOrder):
            return  # it is not stuck any more
        self._desk.book.counts["retries asked for"] += 1

    async def _vouched_in_history(self, order_id: str) -> frozenset[str]:
        """Ask a closed saga that left no details which of its steps were resolved."""
        saga = self._desk.saga(order_id)
        while True:
            try:
                return resolved(await saga.query(CheckoutWorkflow.status, rpc_timeout=_ANSWER_WITHIN))
            except (RPCError, WorkflowQueryFailedError):
                await asyncio.sleep(PAUSE_SECONDS)


def resolved(status: CheckoutStatus) -> frozenset[str]:
    return frozenset(step.step for step in status.steps if step.state == "resolved")
