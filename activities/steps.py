"""What the steps of an order have in common: whose fence row it is, why a step was refused, and how it is undone.

A step is three things in a module of its own: the statement of its effect, which `do_once` runs behind the fence; the
statement that reads why there was none, with the function that names the refusal; and the statement of its undo.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from domain.errors import DatabaseContradictsHistory, OrderIdConflict
from domain.model import CheckoutInput, Ending, OrderStatus, Step, UndoInput, order_id_conflict
from sagafence import (
    CompensationImpossible,
    FenceKey,
    SagaError,
    StepAlreadyCompensated,
    Undoing,
    UndoOutcome,
    UndoResult,
    undo_once,
)

_STEPS = list(Step)
_DUE_AT = [OrderStatus.PENDING, OrderStatus.RESERVED, OrderStatus.PAID]
"""At which status of the order each step is due. An order without a row counts as pending."""

_LOCK = text("""
    SELECT status, fingerprint, order_stays_completed(status, shipped_by, :by) AS stays_completed
      FROM orders WHERE order_id = :order_id FOR NO KEY UPDATE
""")
_CONTENT_BY_HAND = text("""
    SELECT o.customer, l.sku, l.quantity FROM orders o JOIN order_lines l USING (order_id)
     WHERE o.order_id = :order_id
""")
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

CANCEL = "cancel"
"""Who takes an order back when a cancel was asked for; see order_stays_completed in setup.sql."""


# An order and its row -----------------------------------------------------------------------------------


def fence_key(order: CheckoutInput, step: Step) -> FenceKey:
    """Name a step of this order to the fence."""
    return FenceKey(order.order_id, step.value, order.fingerprint, OrderIdConflict)


def line_arrays(order: CheckoutInput) -> dict[str, list[str] | list[int]]:
    """Return the lines as two arrays, in SKU order: one bind value each, however many lines."""
    return {
        "skus": [line.sku for line in order.lines],
        "quantities": [line.quantity for line in order.lines],
    }


class Locked(NamedTuple):
    """An order's row, until the transaction ends."""

    status: str
    stays_completed: bool
    """Whether the caller may undo nothing of it; see order_stays_completed in setup.sql."""


async def lock_order(connection: AsyncConnection, order: CheckoutInput, *, by: str | None = None) -> Locked | None:
    """Lock an order's row, after the fence's and before any other; None without a row.

    Statements that follow in the transaction see everything that was committed before the lock was granted.
    `by` is who asks to undo the order; see `taken_back_by`.

    Raises:
        OrderIdConflict: the row belongs to an order with other content.
    """
    row = (await connection.execute(_LOCK, {"order_id": order.order_id, "by": by})).one_or_none()
    if row is None:
        return None
    await require_same_content(connection, order, row.fingerprint)
    return Locked(row.status, row.stays_completed)


async def require_same_content(connection: AsyncConnection, order: CheckoutInput, fingerprint: str | None) -> None:
    """Compare an order with the row that has its id.

    Raises:
        OrderIdConflict: the row belongs to an order with other content.
    """
    if fingerprint is None:  # written by hand, and no saga has taken it yet
        rows = await connection.execute(_CONTENT_BY_HAND, {"order_id": order.order_id})
        found = {(row.customer, row.sku, row.quantity) for row in rows}
        is_same = found == {(order.customer, line.sku, line.quantity) for line in order.lines}
    else:
        is_same = fingerprint == order.fingerprint
    if not is_same:
        raise OrderIdConflict(f"{order_id_conflict(order.order_id)}; choose another id")


def is_asked_for(undo: UndoInput) -> bool:
    """Return whether an undo comes from a cancel that was asked for; a repair and a refusal do not."""
    return undo.ending is Ending.CANCELLED and not undo.order.repair


def taken_back_by(undo: UndoInput) -> str:
    """Name who would take the order back where it is completed, as order_stays_completed in setup.sql compares it."""
    return CANCEL if is_asked_for(undo) else workflow_run()


def workflow_run() -> str:
    """Name the workflow run of this activity; empty outside of one."""
    return str(activity.info().workflow_run_id) if activity.in_activity() else ""


# Why a step was refused ---------------------------------------------------------------------------------

Refuse = Callable[[CheckoutInput, Sequence[Row[Any]]], SagaError | None]


async def refusal(
    order: CheckoutInput, step: Step, facts: TextClause, refuse: Refuse, connection: AsyncConnection
) -> SagaError | None:
    """Find why a step had no effect; None where nothing prevents it any more.

    `facts` reads the rows to decide on, each with the order's `status` and `fingerprint`, null without one. `refuse`
    names the business refusal in them; it is called where the step is due.

    Raises:
        OrderIdConflict: the id belongs to an order with other content.
    """
    asked = {"order_id": order.order_id, "customer": order.customer, **line_arrays(order)}
    rows = (await connection.execute(facts, asked)).all()
    status = rows[0].status if rows else None
    if status is not None:
        await require_same_content(connection, order, rows[0].fingerprint)
    found, number = status or OrderStatus.PENDING, _STEPS.index(step)
    if found in _DUE_AT[:number]:
        # It was committed before this one was asked for.
        return DatabaseContradictsHistory(
            f"step {_STEPS[number - 1]} of order {order.order_id} was done, and the database knows nothing of it; "
            f"{DatabaseContradictsHistory.question}"
        )
    if found != _DUE_AT[number]:
        return StepAlreadyCompensated(f"order {order.order_id} is already {found}; it is too late to {step} it")
    return refuse(order, rows)


# How a step is undone -----------------------------------------------------------------------------------


class _Irrevocable(Exception):
    """The effect cannot be undone any more. Rolls the undo's transaction back, fence row included."""

    def __init__(self, stored: dict[str, Any]) -> None:
        super().__init__("the effect cannot be undone any more")
        self.stored = stored


async def undo_step(
    engine: AsyncEngine, undo: UndoInput, step: Step, reverse: TextClause, *, is_irrevocable: TextClause | None = None
) -> UndoResult:
    """Undo a step in one transaction; return `IRREVOCABLE`, and change nothing, where that is not possible any more.

    It is not for an order that stays completed (setup.sql, order_stays_completed), whichever step is asked about.
    Where there is an effect, and with the fence row and the order's row locked, `is_irrevocable` returns true if it
    cannot be undone any more, and `reverse` undoes it.

    Raises:
        CompensationImpossible: the shipment has to be undone first.
        DatabaseContradictsHistory: an operator has to review the order first.
        OrderIdConflict: the id belongs to an order with other content.
    """
    asked = {"order_id": undo.order.order_id}
    try:
        async with undo_once(engine, fence_key(undo.order, step)) as undoing:
            await _require_undoable(undoing, undo, step, is_irrevocable)
            await undoing.connection.execute(
                _BEGIN_UNWIND,
                {
                    **asked,
                    "changed_by": f"undo {step.value}",
                    "by": taken_back_by(undo),
                    "reason": undo.reason,
                    "ending": undo.ending.value,
                },
            )
            if undoing.had_effect:
                await undoing.connection.execute(reverse, asked)
    except _Irrevocable as irrevocable:
        return UndoResult(UndoOutcome.IRREVOCABLE, irrevocable.stored)
    return undoing.result()


async def _require_undoable(undoing: Undoing, undo: UndoInput, step: Step, is_irrevocable: TextClause | None) -> None:
    connection, asked = undoing.connection, {"order_id": undo.order.order_id}
    locked = await lock_order(connection, undo.order, by=taken_back_by(undo))
    if locked is not None and locked.stays_completed:
        found = await connection.execute(_STORED_SHIPMENT, asked)
        raise _Irrevocable(found.scalar_one_or_none() or {})
    is_stuck = locked is not None and locked.status == OrderStatus.STUCK
    if is_stuck and (cause := (await connection.execute(_NEEDS_REVIEW, asked)).scalar_one_or_none()):
        raise DatabaseContradictsHistory(cause.removeprefix(f"{DatabaseContradictsHistory.__name__}: "))
    if not undoing.had_effect:
        return
    if is_irrevocable is not None and (await connection.execute(is_irrevocable, asked)).scalar_one_or_none():
        raise _Irrevocable(undoing.stored)
    # With the order's row locked no shipment can appear from here on.
    if step is not Step.SHIP and (await connection.execute(_SHIPMENT_IN_EFFECT, asked)).scalar_one():
        raise CompensationImpossible(
            f"the undo of {step} of order {undo.order.order_id} must wait: its shipment is in effect; "
            f"undo or resolve step ship first"
        )
