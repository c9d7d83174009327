"""What is written about an order as a whole: the end of an unwind, and what an operator does."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from activities.steps import CANCEL, fence_key, is_asked_for, line_arrays, lock_order, taken_back_by
from domain.model import CheckoutInput, Step, UndoInput
from sagafence import InvalidInput, resolve_once, transaction

_CLOSE = text("""
    INSERT INTO orders (order_id, customer, status, changed_by, reason, ending, fingerprint)
    VALUES (:order_id, :customer, :ending, 'close', :reason, :ending, :fingerprint)
    ON CONFLICT (order_id) DO UPDATE
       SET status = coalesce(orders.ending, excluded.ending), changed_by = 'close',
           reason = coalesce(orders.reason, excluded.reason), ending = coalesce(orders.ending, excluded.ending)
     WHERE orders.status IN ('pending', 'unwinding', 'stuck')
""")

_COMPLETE = text("""
    UPDATE orders SET status = 'completed', changed_by = 'handed over', reason = NULL, ending = NULL,
           taken_back_by = NULL
     WHERE order_id = :order_id AND status = 'stuck'
""")

# What follows the order's own row is one statement: over a slow link each round trip counts (decision 22).
_KEEP_LINES = """
    INSERT INTO order_lines (order_id, sku, quantity)
    SELECT :order_id, sku, quantity
      FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS integer[])) AS wanted (sku, quantity)
    ON CONFLICT DO NOTHING
"""

_CLOSE_INCIDENT = """
    UPDATE incidents SET closed_at = now(), resolution = :resolution
     WHERE order_id = :order_id AND closed_at IS NULL
"""

_OPEN_INCIDENT = """
    INSERT INTO incidents (order_id, steps, cause, needs_review)
    SELECT order_id, CAST(:steps AS text[]), :cause, :needs_review
      FROM orders WHERE order_id = :order_id AND status = 'stuck'
    ON CONFLICT (order_id) WHERE closed_at IS NULL DO UPDATE
       SET steps = excluded.steps, cause = excluded.cause,
           needs_review = incidents.needs_review OR excluded.needs_review
"""

_STATE = """
    SELECT o.status, o.reason, s.tracking_number FROM orders o
      LEFT JOIN shipments s ON s.order_id = o.order_id AND s.state <> 'cancelled'
     WHERE o.order_id = :order_id
"""

_STATE_ALONE = text(_STATE)
_AFTER_CLOSE = text(f"WITH kept AS ({_KEEP_LINES}), closed AS ({_CLOSE_INCIDENT}) {_STATE}")
_AFTER_COMPLETE = text(f"WITH closed AS ({_CLOSE_INCIDENT}) {_STATE}")
_AFTER_PARK = text(f"WITH kept AS ({_KEEP_LINES}), opened AS ({_OPEN_INCIDENT}) {_STATE}")

# A parcel that was handed over completes the order, whatever undo could not be tried.
_PARK = text("""
    INSERT INTO orders (order_id, customer, status, changed_by, reason, ending, fingerprint)
    VALUES (:order_id, :customer, 'stuck', 'park', :reason, :ending, :fingerprint)
    ON CONFLICT (order_id) DO UPDATE
       SET status = 'stuck', changed_by = 'park',
           taken_back_by = CASE WHEN orders.status = 'completed' THEN :by ELSE orders.taken_back_by END,
           reason = coalesce(orders.reason, excluded.reason), ending = coalesce(orders.ending, excluded.ending)
     WHERE orders.status NOT IN ('rejected', 'cancelled') AND NOT EXISTS (
           SELECT FROM shipments s WHERE s.order_id = orders.order_id AND s.state = 'handed_over')
""")

_NOTE = text("SELECT public.note_on_order(:order_id, :event, :reason)")

_IN_EFFECT = text("""
    SELECT ARRAY (SELECT step FROM step_fence
                   WHERE saga_id = :order_id AND fingerprint = :fingerprint AND phase = 'done'
                   ORDER BY created_at, step) AS steps,
           EXISTS (SELECT FROM shipments WHERE order_id = :order_id AND state = 'handed_over') AS is_gone,
           ARRAY (SELECT step FROM unnest(CAST(:all_steps AS text[])) AS step
                   WHERE EXISTS (SELECT FROM incidents i
                                  WHERE i.order_id = :order_id AND i.closed_at IS NULL AND i.needs_review)
                     AND NOT EXISTS (SELECT FROM step_fence f
                                      WHERE f.saga_id = :order_id AND f.step = step.step AND f.phase <> 'done')
           ) AS unreviewed
""")

_REVIEWED = text("""
    UPDATE incidents SET needs_review = false WHERE order_id = :order_id AND closed_at IS NULL AND needs_review
""")


@dataclass(frozen=True)
class OrderState:
    """The order's row after an activity."""

    earlier_names: ClassVar[Mapping[str, str]] = {"standing": "active_steps", "nothing_stands": "nothing_active"}

    status: str
    reason: str | None = None
    tracking_number: str | None = None
    active_steps: list[str] = field(default_factory=list)
    """Steps in effect, earliest first: the order cannot be closed yet."""
    nothing_active: bool = False
    """Only set by parking: no step of the order is in effect."""


@dataclass(frozen=True)
class ParkInput:
    """Which undos keep failing, and what the first of them said."""

    undo: UndoInput
    steps: list[str]
    cause: str
    needs_review: bool = False
    """Whether nothing is undone, by this run or any other, until an operator has asked for it."""


@dataclass(frozen=True)
class OperatorNote:
    """What an operator did to an order, and why. The same note is logged once."""

    order: CheckoutInput
    reason: str
    step: str | None = None


class Orders:
    """Activities that write an order's row and nothing else."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def close_order(self, undo: UndoInput) -> OrderState:
        """Write the ending of an unwound order, with what was asked for, and close its incident.

        An order that ended before keeps its ending; a repeat changes nothing. An order of which a step is in effect,
        because an earlier run of its saga did more than this one knows of, is not closed: the answer names the steps.

        Raises:
            OrderIdConflict: the order id belongs to an order with other content.
        """
        order = undo.order
        async with transaction(self._engine) as connection:
            # It stays completed unless a cancel was asked for. The run that shipped it may take it back too, and has
            # done so by its undos before it closes it.
            locked = await lock_order(connection, order, by=CANCEL if is_asked_for(undo) else None)
            found = await _in_effect(connection, order)
            if (steps := found.unreviewed or found.steps) and not (locked and locked.stays_completed):
                return replace(await _state(connection, order), active_steps=list(steps))
            await connection.execute(_CLOSE, _row(undo))
            await lock_order(connection, order)  # another order may have taken the id meanwhile
            resolution = "every undo was done or resolved"
            return await _state(connection, order, _AFTER_CLOSE, **line_arrays(order), resolution=resolution)

    @activity.defn
    async def complete_order(self, order: CheckoutInput) -> OrderState:
        """Write that an order is completed after all, because its parcel was handed over, and close its incident."""
        async with transaction(self._engine) as connection:
            await lock_order(connection, order)
            await connection.execute(_COMPLETE, {"order_id": order.order_id})
            resolution = "the parcel was handed over: completed"
            return await _state(connection, order, _AFTER_COMPLETE, resolution=resolution)

    @activity.defn
    async def park_order(self, park: ParkInput) -> OrderState:
        """Mark an order as stuck and open its incident, or bring the open one up to date.

        Returns `completed` instead when the order stays completed, or when its parcel turns out to have been handed
        over. Where a step is in effect that is not among the stuck ones, because an earlier run of the saga did it,
        the order is not parked: the answer names the step, and undoing it may be what the others wait for.
        """
        order = park.undo.order
        async with transaction(self._engine) as connection:
            locked = await lock_order(connection, order, by=taken_back_by(park.undo))
            if locked is not None and locked.stays_completed:
                return await _state(connection, order)
            found = await _in_effect(connection, order)
            unknown = [step for step in found.steps if step not in park.steps]
            if unknown and not found.is_gone:
                return replace(await _state(connection, order), active_steps=unknown)
            await connection.execute(_PARK, {**_row(park.undo), "by": taken_back_by(park.undo)})
            await lock_order(connection, order)  # as in close_order
            incident = {"steps": park.steps, "cause": park.cause[:1000], "needs_review": park.needs_review}
            state = await _state(connection, order, _AFTER_PARK, **line_arrays(order), **incident)
            return replace(state, nothing_active=not found.steps)

    @activity.defn
    async def resolve_step(self, note: OperatorNote) -> None:
        """Close a step's fence on an operator's word that it was resolved by hand, and log who says so and why.

        From now on neither the step nor its undo has any effect for this order.

        Raises:
            StepAlreadyCompensated: the step was undone meanwhile. Nothing is logged.
        """
        if note.step is None:
            raise InvalidInput("resolve_step needs a step")
        key = fence_key(note.order, Step(note.step))
        async with transaction(self._engine) as connection:
            await resolve_once(connection, key)
            await lock_order(connection, note.order)
            await _note(connection, note, "step_resolved", f"{note.step}: {note.reason}")

    @activity.defn
    async def note_retry(self, note: OperatorNote) -> None:
        """Log that an operator asked for another round of undos; the order needs no review any more."""
        async with transaction(self._engine) as connection:
            await lock_order(connection, note.order)
            await connection.execute(_REVIEWED, {"order_id": note.order.order_id})
            await _note(connection, note, "retry_requested", note.reason)


def _row(undo: UndoInput) -> dict[str, str]:
    return {
        "order_id": undo.order.order_id,
        "customer": undo.order.customer,
        "reason": undo.reason,
        "ending": undo.ending.value,
        "fingerprint": undo.order.fingerprint,
    }


async def _in_effect(connection: AsyncConnection, order: CheckoutInput) -> Row[Any]:
    """Return the steps in effect, earliest first, whether the parcel is gone, and the steps that wait for a review."""
    asked = {"order_id": order.order_id, "fingerprint": order.fingerprint, "all_steps": [step.value for step in Step]}
    return (await connection.execute(_IN_EFFECT, asked)).one()


async def _state(
    connection: AsyncConnection,
    order: CheckoutInput,
    statement: TextClause = _STATE_ALONE,
    **asked: Any,
) -> OrderState:
    row = (await connection.execute(statement, {"order_id": order.order_id, **asked})).one()
    return OrderState(row.status, row.reason, row.tracking_number)


async def _note(connection: AsyncConnection, note: OperatorNote, event: str, reason: str) -> None:
    await connection.execute(_NOTE, {"order_id": note.order.order_id, "event": event, "reason": reason})
