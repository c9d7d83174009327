"""What is written about an order as a whole: the end of an unwind, and what an operator does."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from activities.fence import FenceKey, resolve_once
from adapters.database import transaction
from domain.errors import DatabaseContradictsHistory, IdempotencyMismatch, InvalidInput
from domain.model import CheckoutInput, Ending, Step, UndoInput, id_is_taken

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

_HOW_IT_STANDS = """
    SELECT o.status, o.reason, s.tracking_number FROM orders o
      LEFT JOIN shipments s ON s.order_id = o.order_id AND s.state <> 'cancelled'
     WHERE o.order_id = :order_id
"""

_AS_IT_IS = text(_HOW_IT_STANDS)
_AFTER_CLOSE = text(f"WITH kept AS ({_KEEP_LINES}), closed AS ({_CLOSE_INCIDENT}) {_HOW_IT_STANDS}")
_AFTER_COMPLETE = text(f"WITH closed AS ({_CLOSE_INCIDENT}) {_HOW_IT_STANDS}")
_AFTER_PARK = text(f"WITH kept AS ({_KEEP_LINES}), opened AS ({_OPEN_INCIDENT}) {_HOW_IT_STANDS}")

_LOCK = text("""
    SELECT status, fingerprint, order_stays_completed(status, shipped_by, :by) AS stays_completed
      FROM orders WHERE order_id = :order_id FOR NO KEY UPDATE
""")

_CONTENT_BY_HAND = text("""
    SELECT o.customer, l.sku, l.quantity FROM orders o JOIN order_lines l USING (order_id)
     WHERE o.order_id = :order_id
""")

# A parcel that was handed over is the end of the matter, whatever undo could not be tried.
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

_WHAT_STANDS = text("""
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


CANCEL = "cancel"
"""Who takes an order back when a cancel was asked for; see order_stays_completed in setup.sql."""


@dataclass(frozen=True)
class OrderState:
    """How the order's row stands after an activity."""

    status: str
    reason: str | None = None
    tracking_number: str | None = None
    standing: list[str] = field(default_factory=list)
    """Steps whose effect still stands, earliest first: the order cannot be closed yet."""
    nothing_stands: bool = False
    """Known of an order that was to be parked: no step of it is in effect."""


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
    """What an operator did to an order, and why. The same note is kept once."""

    order: CheckoutInput
    reason: str
    step: str | None = None


def fence_key(order: CheckoutInput, step: Step) -> FenceKey:
    """Name a step of this order to the fence."""
    return FenceKey(order.order_id, step.value, order.fingerprint)


def line_arrays(order: CheckoutInput) -> dict[str, list[str] | list[int]]:
    """Give the lines as two arrays, in SKU order: one bind value each, however many lines."""
    return {
        "skus": [line.sku for line in order.lines],
        "quantities": [line.quantity for line in order.lines],
    }


class Locked(NamedTuple):
    """An order's row as it stands, and will stand until the transaction ends."""

    status: str
    stays_completed: bool
    """Whether nothing of it may be undone by whoever asked; see order_stays_completed in setup.sql."""


async def lock_order(connection: AsyncConnection, order: CheckoutInput, *, by: str | None = None) -> Locked | None:
    """Lock an order's row, after the fence's and before any other; None without a row.

    Statements that follow in the transaction see everything that was committed before the lock was granted.

    Args:
        connection: inside a transaction.
        order: whose row.
        by: who asks to undo it; see `taken_back_by`.

    Raises:
        IdempotencyMismatch: the row belongs to an order with other content.
    """
    row = (await connection.execute(_LOCK, {"order_id": order.order_id, "by": by})).one_or_none()
    if row is None:
        return None
    await require_same_content(connection, order, row.fingerprint)
    return Locked(row.status, row.stays_completed)


def is_asked_for(undo: UndoInput) -> bool:
    """Tell whether an undo comes from a cancel that somebody asked for; a repair and a refusal do not."""
    return undo.ending is Ending.CANCELLED and not undo.order.repair


def taken_back_by(undo: UndoInput) -> str:
    """Name who would take the order back where it is completed, as order_stays_completed in setup.sql compares it."""
    return CANCEL if is_asked_for(undo) else workflow_run()


def workflow_run() -> str:
    """Name the workflow run that this activity works for; empty outside of one."""
    return str(activity.info().workflow_run_id) if activity.in_activity() else ""


async def require_same_content(connection: AsyncConnection, order: CheckoutInput, fingerprint: str | None) -> None:
    """Compare an order with the row that has its id.

    Raises:
        IdempotencyMismatch: somebody else wants something else under this id.
    """
    if fingerprint is None:  # written by hand, and no saga has seen it yet
        rows = await connection.execute(_CONTENT_BY_HAND, {"order_id": order.order_id})
        found = {(row.customer, row.sku, row.quantity) for row in rows}
        is_same = found == {(order.customer, line.sku, line.quantity) for line in order.lines}
    else:
        is_same = fingerprint == order.fingerprint
    if not is_same:
        raise IdempotencyMismatch(f"{id_is_taken(order.order_id)}; choose another id")


def forgotten(order: CheckoutInput, step: Step) -> DatabaseContradictsHistory:
    """Say that a step of this saga is gone: it was committed before the next one was asked for."""
    return DatabaseContradictsHistory(
        f"step {step} of order {order.order_id} was done, and the database knows nothing of it; "
        f"{DatabaseContradictsHistory.question}"
    )


class Orders:
    """Activities that write an order's row and nothing else."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def close_order(self, undo: UndoInput) -> OrderState:
        """Write the ending of an unwound order, with what was asked for, and close its incident.

        An order that ended before keeps its ending; a repeat changes nothing. An order of which a step still
        stands, because an earlier run of its saga did more than this one knows of, is not closed: the answer
        names the steps.

        Raises:
            IdempotencyMismatch: the order id belongs to an order with other content.
        """
        order = undo.order
        async with transaction(self._engine) as connection:
            # Closing takes nothing back by itself: only a cancel reaches behind the completion.
            locked = await lock_order(connection, order, by=CANCEL if is_asked_for(undo) else None)
            found = await _what_stands(connection, order)
            if (steps := found.unreviewed or found.steps) and not (locked and locked.stays_completed):
                return replace(await _state(connection, order), standing=list(steps))
            await connection.execute(_CLOSE, _row(undo))
            await lock_order(connection, order)  # somebody else's order may have come while the row was missing
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

        Answers `completed` instead when the order stays completed, or when its parcel turns out to have been handed
        over. Where a step stands that is not among those that are stuck, because an earlier run of the saga did it,
        the order is not parked: the answer names the step, and undoing it may be what the others wait for.
        """
        order = park.undo.order
        async with transaction(self._engine) as connection:
            locked = await lock_order(connection, order, by=taken_back_by(park.undo))
            if locked is not None and locked.stays_completed:
                return await _state(connection, order)
            found = await _what_stands(connection, order)
            unknown = [step for step in found.steps if step not in park.steps]
            if unknown and not found.is_gone:
                return replace(await _state(connection, order), standing=unknown)
            await connection.execute(_PARK, {**_row(park.undo), "by": taken_back_by(park.undo)})
            await lock_order(connection, order)  # as in close_order
            incident = {"steps": park.steps, "cause": park.cause[:1000], "needs_review": park.needs_review}
            state = await _state(connection, order, _AFTER_PARK, **line_arrays(order), **incident)
            return replace(state, nothing_stands=not found.steps)

    @activity.defn
    async def resolve_step(self, note: OperatorNote) -> None:
        """Close a step's fence on an operator's word that it was settled by hand, and log who said why.

        From now on neither the step nor its undo will ever act for this order.

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
        """Log that an operator asked for another round of undos; from now on the order needs no review any more."""
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


async def _what_stands(connection: AsyncConnection, order: CheckoutInput) -> Row[Any]:
    """Give the steps in effect, earliest first, whether the parcel is gone, and the steps that wait for a review."""
    asked = {"order_id": order.order_id, "fingerprint": order.fingerprint, "all_steps": [step.value for step in Step]}
    return (await connection.execute(_WHAT_STANDS, asked)).one()


async def _state(
    connection: AsyncConnection,
    order: CheckoutInput,
    statement: TextClause = _AS_IT_IS,
    **asked: Any,
) -> OrderState:
    row = (await connection.execute(statement, {"order_id": order.order_id, **asked})).one()
    return OrderState(row.status, row.reason, row.tracking_number)


async def _note(connection: AsyncConnection, note: OperatorNote, event: str, reason: str) -> None:
    await connection.execute(_NOTE, {"order_id": note.order.order_id, "event": event, "reason": reason})
