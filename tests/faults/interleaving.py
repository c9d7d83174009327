"""One interleaving of {do, do', undo, undo'} on one order: performed, and everything that must hold checked."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from domain.errors import StepAlreadyCompensated
from domain.model import CheckoutInput, Ending, OrderLine, Step, UndoInput
from domain.undo import UndoOutcome, UndoResult
from tests.faults.stepwise import Stage

DOS = ("do", "do'")
UNDOS = ("undo", "undo'")
OPERATIONS = (*DOS, *UNDOS)
LINES = (OrderLine("item-001", 1), OrderLine("item-002", 2))
BUYER = "buyer-001"
_UNITS = 3
_TOTAL_MINOR = 107 + 2 * 114

Schedule = tuple[str, ...]


def interleavings() -> Iterator[Schedule]:
    """Give every sequence in which each operation occurs twice: first its statement, then its commit."""

    def go_on(so_far: Schedule) -> Iterator[Schedule]:
        if len(so_far) == 2 * len(OPERATIONS):
            yield so_far
        for name in OPERATIONS:
            if so_far.count(name) < 2:
                yield from go_on((*so_far, name))

    return go_on(())


@dataclass(frozen=True)
class Pair:
    """A step with its undo, and what the step changes while it stands."""

    before: tuple[Step, ...]
    do: Callable[[AsyncEngine, CheckoutInput], Awaitable[Any]]
    undo: Callable[[AsyncEngine, UndoInput], Awaitable[UndoResult]]
    effect: dict[str, int]
    rows: str
    """Counts the rows that the step ever wrote for order $1."""


PAIRS = {
    Step.RESERVE: Pair(
        (),
        lambda engine, order: Inventory(engine).reserve_inventory(order),
        lambda engine, undo: Inventory(engine).release_inventory(undo),
        {"held": _UNITS, "reserved": _UNITS},
        "SELECT count(*) FROM reservations WHERE order_id = $1",
    ),
    Step.PAY: Pair(
        (Step.RESERVE,),
        lambda engine, order: Payments(engine).charge_payment(order),
        lambda engine, undo: Payments(engine).refund_payment(undo),
        {"captured": _TOTAL_MINOR, "balance": -_TOTAL_MINOR},
        "SELECT count(*) FROM transfers WHERE order_id = $1",
    ),
    Step.SHIP: Pair(
        (Step.RESERVE, Step.PAY),
        lambda engine, order: Shipping(engine).ship_order(order),
        lambda engine, undo: Shipping(engine).cancel_shipment(undo),
        {"held": -_UNITS, "consumed": _UNITS, "reserved": -_UNITS, "on_hand": -_UNITS, "parcels": 1},
        "SELECT count(*) FROM shipments WHERE order_id = $1",
    ),
}

# Goods and money, as the order's own rows tell it and as the shared rows do: what a committed snapshot shows.
_STANDS = """
SELECT (SELECT coalesce(sum(quantity) FILTER (WHERE state = 'held'), 0) FROM reservations WHERE order_id = $1) AS held,
       (SELECT coalesce(sum(quantity) FILTER (WHERE state = 'consumed'), 0) FROM reservations WHERE order_id = $1)
           AS consumed,
       (SELECT coalesce(sum(CASE kind WHEN 'capture' THEN amount_minor ELSE -amount_minor END), 0)
          FROM transfers WHERE order_id = $1) AS captured,
       (SELECT count(*) FROM shipments WHERE order_id = $1 AND state <> 'cancelled') AS parcels,
       (SELECT sum(on_hand) FROM inventory WHERE sku IN ('item-001', 'item-002')) AS on_hand,
       (SELECT sum(reserved) FROM inventory WHERE sku IN ('item-001', 'item-002')) AS reserved,
       (SELECT balance_minor FROM accounts WHERE account_id = $3) AS balance,
       (SELECT phase FROM step_fence WHERE saga_id = $1 AND step = $2) AS phase,
       (SELECT had_effect FROM step_fence WHERE saga_id = $1 AND step = $2) AS had_effect
"""


class Interleaving:
    def __init__(self, stage: Stage, step: Step, order: CheckoutInput, schedule: Schedule) -> None:
        self._stage = stage
        self._step = step
        self._pair = PAIRS[step]
        self._order = order
        self._schedule = schedule
        self._answers: dict[str, Any] = {}
        self.problems: list[str] = []

    def __str__(self) -> str:
        return f"{self._step}: {' '.join(self._schedule)}"

    @property
    def is_as_asked(self) -> bool:
        """Tell whether every commit happened when its turn came; otherwise blocking forbade the sequence."""
        return not self._stage.overdue

    async def run(self) -> None:
        """Perform the schedule. What must not be is in `problems` afterwards."""
        await self._stage.clear()
        before = await self._stands()
        begun: set[str] = set()
        for name in self._schedule:
            try:
                if name in begun:
                    await self._stage.commit(name)
                else:
                    begun.add(name)
                    await self._stage.begin(name, self._operation(name))
            except TimeoutError as error:
                raise AssertionError(f"{self} hangs: {self._stage.told()}") from error
            self._check_snapshot(before, await self._stands())
        self.problems += self._stage.premature
        self._answers = await self._stage.answers()
        self._check_end(await self._stands())
        self._check_undos()
        await self._check_tombstone()
        self._check_sequence()

    def happened(self) -> Counter[str]:
        """Say of each operation whom it waited for and what it answered."""
        told: Counter[str] = Counter()
        for name, session in self._stage.sessions.items():
            waited_for = {_kind(other) for other in session.waited_for} or {"nobody"}
            told.update(f"{_kind(name)} waited for {other}: {self._told(name)}" for other in waited_for)
        return told

    @property
    def _results(self) -> list[Any]:
        return [self._answers[name] for name in DOS if not isinstance(self._answers[name], BaseException)]

    def _operation(self, name: str) -> Awaitable[Any]:
        engine = self._stage.sessions[name].engine
        if name in DOS:
            return self._pair.do(engine, self._order)
        return self._pair.undo(engine, UndoInput(self._order, Ending.CANCELLED, "a reason"))

    async def _stands(self) -> asyncpg.Record:
        return await self._stage.director.fetchrow(
            _STANDS, self._order.order_id, self._step.value, self._order.customer
        )

    def _check_snapshot(self, before: asyncpg.Record, now: asyncpg.Record) -> None:
        """Fence and effect agree, and the effect is there once or not at all."""
        effect = self._pair.effect if now["phase"] == "done" else {}
        for column in ("held", "consumed", "captured", "parcels", "on_hand", "reserved", "balance"):
            self._require(
                now[column] == before[column] + effect.get(column, 0),
                f"{column} went from {before[column]} to {now[column]} while the fence says {now['phase']}",
            )

    def _check_end(self, now: asyncpg.Record) -> None:
        """The step is undone, and each do was answered with the one result or refused."""
        dos = [self._answers[name] for name in DOS]
        refused = [answer for answer in dos if isinstance(answer, StepAlreadyCompensated)]
        self._require(now["phase"] == "undone", f"in the end the fence says {now['phase']}")
        self._require(len(self._results) + len(refused) == 2, f"the dos answered {dos}")
        self._require(all(result == self._results[0] for result in self._results), f"two results: {dos}")
        self._require(now["had_effect"] == bool(self._results), f"had_effect {now['had_effect']}, but {dos}")

    def _check_undos(self) -> None:
        """One undo is the one that counted, and reports what there was to undo; the other came second."""
        undos = [self._answers[name] for name in UNDOS]
        counted = UndoOutcome.REVERSED if self._results else UndoOutcome.NOTHING_TO_UNDO
        outcomes = [getattr(answer, "outcome", None) for answer in undos]
        self._require(set(outcomes) == {counted, UndoOutcome.ALREADY_UNDONE}, f"the undos answered {undos}")
        stored = vars(self._results[0]) if self._results else {}
        self._require(all(getattr(answer, "stored", None) == stored for answer in undos), f"{undos} of {stored}")

    async def _check_tombstone(self) -> None:
        """A step that was never done has never written a row."""
        if not self._results:
            rows = await self._stage.director.fetchval(self._pair.rows, self._order.order_id)
            self._require(rows == 0, f"a tombstone, and {rows} rows of the step")

    def _check_sequence(self) -> None:
        """What had ended before an operation began, it knows of."""
        for name, session in self._stage.sessions.items():
            if session.came_after.isdisjoint(UNDOS):
                continue
            answer = self._answers[name]
            if name in DOS:
                self._require(isinstance(answer, StepAlreadyCompensated), f"{name} came late and answered {answer}")
            else:
                outcome = getattr(answer, "outcome", None)
                self._require(outcome == UndoOutcome.ALREADY_UNDONE, f"{name} came second and answered {answer}")

    def _told(self, name: str) -> str:
        answer = self._answers[name]
        if isinstance(answer, StepAlreadyCompensated):
            return "refused after a reversal" if self._results else "refused by a tombstone"
        return answer.outcome.value if isinstance(answer, UndoResult) else "done"

    def _require(self, holds: bool, told: str) -> None:
        if not holds:
            self.problems.append(told)


def _kind(name: str) -> str:
    return name.rstrip("'")
