"""One order as the database has it: its row, its lines, its steps as its own saga would show them, its incident."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.lookup import OrderRecord
from domain.model import OrderLine, Step, StepView, format_money, lines_summary

_STEPS = [step.value for step in Step]

_ORDERS = text("""
    SELECT o.order_id, o.customer, o.status, o.reason, o.total_minor, o.currency, o.batch_workflow_id, o.fingerprint,
           o.created_at, o.updated_at, s.tracking_number, i.steps AS stuck_steps, i.cause,
           i.opened_at, i.needs_review,
           ARRAY (SELECT sku FROM order_lines l WHERE l.order_id = o.order_id ORDER BY sku) AS skus,
           ARRAY (SELECT quantity FROM order_lines l WHERE l.order_id = o.order_id ORDER BY sku) AS quantities
      FROM orders o
      LEFT JOIN shipments s ON s.order_id = o.order_id AND s.state <> 'cancelled'
      LEFT JOIN incidents i ON i.order_id = o.order_id AND i.closed_at IS NULL
     WHERE o.order_id = ANY (CAST(:order_ids AS text[]))
""")
_FENCES = text("""
    SELECT saga_id, step, phase, had_effect, result ->> 'transfer_id' AS transfer_id,
           result ->> 'tracking_number' AS tracking_number, result ->> 'carrier' AS parcel_carrier
      FROM step_fence WHERE saga_id = ANY (CAST(:order_ids AS text[]))
""")


@dataclass(frozen=True)
class FoundOrder:
    """An order, and its open incident."""

    record: OrderRecord
    row: Row[Any]
    """With `stuck_steps`, `cause`, `opened_at` and `needs_review` of the open incident; None without one."""


async def find_order(snapshot: AsyncConnection, order_id: str) -> FoundOrder | None:
    """Read an order within a transaction that sees one committed state."""
    return (await find_orders(snapshot, [order_id])).get(order_id)


async def find_orders(snapshot: AsyncConnection, order_ids: Sequence[str]) -> dict[str, FoundOrder]:
    """Read those of many orders that there are, by order id."""
    asked = {"order_ids": list(order_ids)}
    rows = (await snapshot.execute(_ORDERS, asked)).all()
    if not rows:
        return {}
    fences: dict[str, dict[str, Row[Any]]] = {row.order_id: {} for row in rows}
    for fence in await snapshot.execute(_FENCES, asked):
        if fence.saga_id in fences:
            fences[fence.saga_id][fence.step] = fence
    return {row.order_id: _found(row, fences[row.order_id]) for row in rows}


def _found(row: Row[Any], fences: Mapping[str, Row[Any]]) -> FoundOrder:
    lines = [OrderLine(sku, quantity) for sku, quantity in zip(row.skus, row.quantities, strict=True)]
    steps = _steps(row, lines, fences)
    found = record(row, tracking_number=row.tracking_number, customer=row.customer, lines=lines, steps=steps)
    return FoundOrder(found, row)


def record(row: Row[Any], **details: Any) -> OrderRecord:
    """Make the record of a row of `orders`, with more details as given."""
    return OrderRecord(
        row.order_id,
        row.status,
        row.reason,
        row.total_minor,
        row.currency,
        batch_workflow_id=row.batch_workflow_id,
        fingerprint=row.fingerprint,
        created_at=row.created_at.isoformat(),
        updated_at=row.updated_at.isoformat(),
        **details,
    )


def _steps(row: Row[Any], lines: Sequence[OrderLine], fences: Mapping[str, Row[Any]]) -> list[StepView]:
    """Return each step that has a fence row as its own saga would show it."""
    stuck = row.stuck_steps or []
    shown: list[StepView] = []
    for step in _STEPS:
        fence = fences.get(step)
        if step in stuck and (fence is None or fence.phase == "done"):
            shown.append(StepView(step, "stuck", row.cause))
        elif fence is not None:
            state = fence.phase if fence.had_effect or fence.phase == "resolved" else "nothing to undo"
            shown.append(StepView(step, state, _detail(row, lines, fence) if fence.had_effect else ""))
    return shown


def _detail(row: Row[Any], lines: Sequence[OrderLine], fence: Row[Any]) -> str:
    if fence.step == Step.RESERVE:
        return f"{lines_summary(lines)}: {format_money(row.total_minor, row.currency)}" if row.total_minor else ""
    return fence.transfer_id or "" if fence.step == Step.PAY else f"{fence.tracking_number}, {fence.parcel_carrier}"
