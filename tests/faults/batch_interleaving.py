"""Interleavings of two batches that have the same order, its own saga's first step, and the undo of a cancelled batch.

Each is stepped as `interleaving` has it: up to its commit, and its commit. What is done together is three steps in one
transaction, so that a snapshot has all of them or none; each batch has a neighbour of its own, whom nothing may hurt.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from activities.batch_checkout import BatchCheckout
from activities.inventory import Inventory
from domain.bulk import DELEGATED, Outcome, StepInput, UnwindInput, pack
from domain.model import CheckoutInput, OrderLine, Step
from sagafence import DatabaseUnavailable, StepAlreadyCompensated
from tests.faults.interleaving import BUYER, COLUMNS, LINES, PAIRS, Play, Schedule, Stepper

BATCHES = ("batch", "batch'")
OPERATIONS = (*BATCHES, "reserve", "unwind")
_NEIGHBOURS = {"batch": ("buyer-002", "item-003"), "batch'": ("buyer-003", "item-004")}
_FENCES_AT = {
    "completed": dict.fromkeys(map(str, Step), "done"),
    "cancelled": {"reserve": "undone"},
    "reserved": {"reserve": "done"},
}
_PHASES = "SELECT step, phase FROM step_fence WHERE saga_id = $1"
_NEIGHBOUR = """
SELECT status, (SELECT count(*) FROM shipments WHERE order_id = $1),
       (SELECT count(*) FROM transfers WHERE order_id = $1) FROM orders WHERE order_id = $1
"""


class BatchInterleaving(Play):
    def __init__(self, stepper: Stepper, name: str, schedule: Schedule) -> None:
        super().__init__(stepper, CheckoutInput(name, BUYER, LINES), schedule)
        self._neighbours = {
            batch: CheckoutInput(f"{name}-{batch}", buyer, (OrderLine(sku, 1),))
            for batch, (buyer, sku) in _NEIGHBOURS.items()
        }

    async def _operation(self, name: str) -> Any:
        """Try again, as Temporal does, where the facts have changed too often."""
        while True:
            try:
                return await self._attempt(name, self._stepper.sessions[name].engine)
            except DatabaseUnavailable:
                await asyncio.sleep(0)

    def _attempt(self, name: str, engine: AsyncEngine) -> Awaitable[Any]:
        if name == "reserve":
            return Inventory(engine).reserve_inventory(self._order)
        if name == "unwind":
            asked = UnwindInput([pack(self._order)], ["called off"], ["cancelled"])
            return BatchCheckout(engine).unwind_orders(asked)
        orders = [self._neighbours[name], self._order]
        return BatchCheckout(engine).check_out_orders(StepInput(f"bulk-{name}", [pack(order) for order in orders]))

    async def _phases(self) -> dict[str, str]:
        rows = await self._stepper.director.fetch(_PHASES, self._order.order_id)
        return {row["step"]: row["phase"] for row in rows}

    async def _check_snapshot(self, before: asyncpg.Record) -> None:
        """Fences and effects agree, and three steps that are done together are there together."""
        async with self._stepper.director.transaction(isolation="repeatable_read"):
            now, phases = await self._stands(Step.RESERVE), await self._phases()
        done = {Step(step) for step, phase in phases.items() if phase == "done"}
        self._require(done in (set(), {Step.RESERVE}, set(Step)), f"done are {done}")
        for column in COLUMNS:
            change = sum(PAIRS[step].effect.get(column, 0) for step in done)
            self._require(
                now[column] == before[column] + change, f"{column} went from {before[column]} to {now[column]}: {done}"
            )

    async def _check_end(self) -> None:
        """All tell the same of the order, and the neighbours have what they wanted.

        It is completed, cancelled before anything was done, or its own saga has it, which goes on.
        """
        phases = await self._phases()
        status = await self._stepper.director.fetchval(
            "SELECT status FROM orders WHERE order_id = $1", self._order.order_id
        )
        self._require(status in _FENCES_AT, f"it ended as {status}")
        self._require(phases == _FENCES_AT.get(status), f"{status}, and its fences are {phases}")
        told = {name: self._told(name) for name in OPERATIONS}
        shown = DELEGATED if status == "reserved" else status
        self._require({told[name] for name in (*BATCHES, "unwind")} <= {shown, DELEGATED}, f"{status}, and {told}")
        self._require(told["unwind"] == shown, f"{status}, and {told}")
        self._require((told["reserve"] == "refused") is (status == "cancelled"), f"{status}, and {told}")
        for name, neighbour in self._neighbours.items():
            row = await self._stepper.director.fetchrow(_NEIGHBOUR, neighbour.order_id)
            self._require(tuple(row or ()) == ("completed", 1, 1), f"the neighbour in {name} has {row}")

    def _check_sequence(self) -> None:
        """What had ended before an operation began, it knows of."""
        for name, session in self._stepper.sessions.items():
            if "unwind" in session.came_after and self._told("unwind") == "cancelled":
                known = {"refused"} if name == "reserve" else {"cancelled"}
                self._require(self._told(name) in known, f"{name} came late and answered {self._told(name)}")

    def _told(self, name: str) -> str:
        answer = self._answers[name]
        if name in BATCHES and not isinstance(answer, BaseException):
            mine: Outcome = answer.unpacked()[1]
            return mine.status
        if name == "unwind" and not isinstance(answer, BaseException):
            return DELEGATED if answer.delegated else str(answer.ended[0].status)
        if isinstance(answer, StepAlreadyCompensated):
            return "refused"
        return repr(answer) if isinstance(answer, BaseException) else "done"
