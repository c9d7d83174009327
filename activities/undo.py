"""Undoing one step of an order: what every undo asks before it reverses anything."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from activities.fence import Undoing, undo_once
from activities.orders import fence_key, lock_order, taken_back_by
from domain.errors import CompensationImpossible, DatabaseContradictsHistory
from domain.model import OrderStatus, Step, UndoInput
from domain.undo import UndoOutcome, UndoResult

_BEGIN_UNWIND = text("""
    UPDATE orders SET status = 'unwinding', changed_by = :changed_by,
           taken_back_by = CASE WHEN status = 'completed' THEN :by ELSE taken_back_by END,
           reason = coalesce(reason, :reason), ending = coalesce(ending, :ending)
     WHERE order_id = :order_id AND status IN ('pending', 'reserved', 'paid', 'completed', 'stuck')
""")
_SHIPMENT_IN_EFFECT = text("""
    SELECT EXISTS (SELECT FROM step_fence WHERE saga_id = :order_id AND step = 'ship' AND phase = 'done')
""")
_STORED_SHIPMENT = text("""
    SELECT result FROM step_fence WHERE saga_id = :order_id AND step = 'ship' AND result IS NOT NULL
""")
_NEEDS_REVIEW = text("""
    SELECT cause FROM incidents WHERE order_id = :order_id AND closed_at IS NULL AND needs_review
""")

Work = Callable[[AsyncConnection], Awaitable[None]]
Question = Callable[[AsyncConnection], Awaitable[bool]]


class _Irrevocable(Exception):
    """There is no way back: rolls the undo's transaction back, fence row included."""

    def __init__(self, stored: dict[str, Any]) -> None:
        super().__init__()
        self.stored = stored


async def undo_step(
    engine: AsyncEngine, undo: UndoInput, step: Step, reverse: Work, *, is_irrevocable: Question | None = None
) -> UndoResult:
    """Undo a step in one transaction; answer `IRREVOCABLE`, and change nothing, where there is no way back.

    There is none for an order that stays completed (setup.sql, order_stays_completed), whatever step is asked about.

    Args:
        engine: where the fence and the effect live.
        undo: whose order, and why.
        step: the step that is undone.
        reverse: takes the effect back. Called where there is one, with the fence and the order's row locked.
        is_irrevocable: tells whether the effect is past its point of no return. Called under the same conditions.

    Raises:
        CompensationImpossible: the shipment has to be undone first.
        DatabaseContradictsHistory: an operator has to review the order first.
        IdempotencyMismatch: the id belongs to an order with other content.
    """
    try:
        async with undo_once(engine, fence_key(undo.order, step)) as undoing:
            await _require_undoable(undoing, undo, step, is_irrevocable)
            await undoing.connection.execute(
                _BEGIN_UNWIND,
                {
                    "order_id": undo.order.order_id,
                    "changed_by": f"undo {step.value}",
                    "by": taken_back_by(undo),
                    "reason": undo.reason,
                    "ending": undo.ending.value,
                },
            )
            if undoing.had_effect:
                await reverse(undoing.connection)
    except _Irrevocable as irrevocable:
        return UndoResult(UndoOutcome.IRREVOCABLE, irrevocable.stored)
    return undoing.result()


async def _require_undoable(undoing: Undoing, undo: UndoInput, step: Step, is_irrevocable: Question | None) -> None:
    connection = undoing.connection
    locked = await lock_order(connection, undo.order, by=taken_back_by(undo))
    if locked is not None and locked.stays_completed:
        found = await connection.execute(_STORED_SHIPMENT, {"order_id": undo.order.order_id})
        raise _Irrevocable(found.scalar_one_or_none() or {})
    if locked is not None and locked.status == OrderStatus.STUCK:
        await _refuse_before_review(connection, undo)
    if undoing.had_effect and is_irrevocable is not None and await is_irrevocable(connection):
        raise _Irrevocable(undoing.stored)
    if undoing.had_effect and step is not Step.SHIP:
        await _refuse_while_shipped(connection, undo, step)


async def _refuse_before_review(connection: AsyncConnection, undo: UndoInput) -> None:
    asked = {"order_id": undo.order.order_id}
    if cause := (await connection.execute(_NEEDS_REVIEW, asked)).scalar_one_or_none():
        raise DatabaseContradictsHistory(cause.removeprefix(f"{DatabaseContradictsHistory.__name__}: "))


async def _refuse_while_shipped(connection: AsyncConnection, undo: UndoInput, step: Step) -> None:
    # With the order's row locked no shipment can appear from here on.
    order_id = undo.order.order_id
    if (await connection.execute(_SHIPMENT_IN_EFFECT, {"order_id": order_id})).scalar_one():
        raise CompensationImpossible(
            f"the undo of {step} of order {order_id} must wait: its shipment still stands; settle step ship first"
        )
