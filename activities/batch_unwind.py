"""The undo of many orders at once: one transaction leaves what the undos and the closing of each would have left."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from activities.batch import Changed, is_due, line_columns, lock_orders, outcome_of, read_orders, until_unchanged
from domain.bulk import StepReport, UnwindInput, unpack
from domain.model import ENDINGS, CheckoutInput, OrderStatus, Step
from sagafence import limited_refusals

_STEPS = list(Step)
_DONE = {OrderStatus.RESERVED: Step.RESERVE, OrderStatus.PAID: Step.PAY}
"""The last step of an order at this status."""

_CLOSE_FENCES = text("""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint)
    SELECT saga_id, step, 'undone', false, fingerprint
      FROM unnest(CAST(:saga_ids AS text[]), CAST(:steps AS text[]), CAST(:fingerprints AS text[]))
           AS t (saga_id, step, fingerprint)
     ORDER BY saga_id, step
    ON CONFLICT (saga_id, step) DO UPDATE SET phase = 'undone', updated_at = now()
     WHERE step_fence.phase = 'done' AND step_fence.fingerprint = excluded.fingerprint
    RETURNING saga_id, step, had_effect
""")

_UNWIND = text("""
WITH begun AS (
    UPDATE orders o SET status = 'unwinding', changed_by = 'undo ' || u.last_step,
           reason = coalesce(o.reason, u.reason), ending = coalesce(o.ending, u.ending)
      FROM unnest(CAST(:order_ids AS text[]), CAST(:last_steps AS text[]), CAST(:reasons AS text[]),
                  CAST(:endings AS text[])) AS u (order_id, last_step, reason, ending)
     WHERE o.order_id = u.order_id
), moved AS (
    INSERT INTO transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency)
    SELECT 'refund/' || order_id, order_id, 'refund', credit_account, debit_account, amount_minor, currency
      FROM transfers WHERE order_id = ANY (CAST(:paid AS text[])) AND kind = 'capture'
    RETURNING credit_account, amount_minor
), owed AS (
    SELECT a.account_id, m.amount_minor
      FROM (SELECT credit_account, sum(amount_minor) AS amount_minor FROM moved GROUP BY credit_account) m
      JOIN accounts a ON a.account_id = m.credit_account ORDER BY a.account_id FOR NO KEY UPDATE OF a
), refunded AS (
    UPDATE accounts a SET balance_minor = a.balance_minor + owed.amount_minor
      FROM owed WHERE a.account_id = owed.account_id RETURNING a.account_id
), released AS (
    UPDATE reservations SET state = 'released'
     WHERE order_id = ANY (CAST(:reserved AS text[])) AND state = 'held' RETURNING sku, quantity
), locked AS (
    SELECT i.sku, r.quantity
      FROM (SELECT sku, sum(quantity) AS quantity FROM released GROUP BY sku) r JOIN inventory i USING (sku)
     WHERE (SELECT count(*) FROM refunded) >= 0  -- the accounts come before the stock
     ORDER BY i.sku FOR NO KEY UPDATE OF i
)
UPDATE inventory i SET reserved = i.reserved - locked.quantity FROM locked WHERE i.sku = locked.sku
""")

_CLOSE = text("""
WITH closed AS (
    INSERT INTO orders (order_id, customer, status, changed_by, reason, ending, fingerprint, carrier)
    SELECT order_id, customer, ending, 'close', reason, ending, fingerprint, :carrier
      FROM unnest(CAST(:order_ids AS text[]), CAST(:customers AS text[]), CAST(:reasons AS text[]),
                  CAST(:endings AS text[]), CAST(:fingerprints AS text[]))
           AS c (order_id, customer, reason, ending, fingerprint)
    ON CONFLICT (order_id) DO UPDATE SET status = orders.ending, changed_by = 'close'
     WHERE orders.status = 'unwinding'
)
INSERT INTO order_lines (order_id, sku, quantity)
SELECT order_id, sku, quantity
  FROM unnest(CAST(:line_ids AS text[]), CAST(:skus AS text[]), CAST(:quantities AS integer[]))
       AS l (order_id, sku, quantity)
ON CONFLICT DO NOTHING
""")


class _Due(NamedTuple):
    order: CheckoutInput
    last_step: Step
    reason: str
    ending: str


class BatchUnwind:
    """The activity that undoes orders of a batch."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def unwind_orders(self, asked: UnwindInput) -> StepReport:
        """Undo orders and write their endings. An order that has ended meanwhile keeps its ending.

        All that was done is undone, also where a later step than the one named was done.
        """
        async with limited_refusals():
            return await until_unchanged(self._engine, lambda connection: _unwind(connection, asked))


async def _unwind(connection: AsyncConnection, asked: UnwindInput) -> StepReport:
    report = StepReport()
    known = await read_orders(connection, [packed["order_id"] for packed in asked.orders])
    due: list[_Due] = []
    for packed, failed_step, reason, ending in zip(
        asked.orders, asked.failed_steps, asked.reasons, asked.endings, strict=True
    ):
        order, row = unpack(packed), known.get(packed["order_id"])
        if row is None or is_due(report, order, row):
            # Another run of the batch, or a lost workflow task, may have done more than this one knows of.
            last = max(Step(failed_step), _DONE[row.status] if row else Step.RESERVE, key=_STEPS.index)
            due.append(_Due(order, last, reason, ending))
    if not due:
        return report
    had_effect = await _close_fences(connection, due)
    orders = [each.order for each in due]
    order_ids = [order.order_id for order in orders]
    await lock_orders(connection, {order_id: known[order_id].status for order_id in order_ids if order_id in known})
    endings = {
        "order_ids": order_ids,
        "reasons": [each.reason for each in due],
        "endings": [each.ending for each in due],
    }
    await connection.execute(
        _UNWIND,
        {
            **endings,
            "last_steps": [each.last_step for each in due],
            "paid": [order_id for order_id, step in had_effect if step == Step.PAY],
            "reserved": [order_id for order_id, step in had_effect if step == Step.RESERVE],
        },
    )
    await connection.execute(
        _CLOSE,
        {
            **endings,
            **line_columns(orders),
            "customers": [order.customer for order in orders],
            "fingerprints": [order.fingerprint for order in orders],
            "carrier": activity.info().workflow_id if activity.in_activity() else None,
        },
    )
    ended = await read_orders(connection, order_ids)
    for order in orders:
        row = ended[order.order_id]
        if row.fingerprint != order.fingerprint or row.status not in ENDINGS:
            raise Changed("whose order it is: its id had no row before")
        report.ended.append(outcome_of(row))
    return report


async def _close_fences(connection: AsyncConnection, due: Iterable[_Due]) -> set[tuple[str, str]]:
    """Close each order's fences up to its last step, and return which of the steps had an effect."""
    closed = [(each.order, step) for each in due for step in _STEPS[: _STEPS.index(each.last_step) + 1]]
    rows: Any = await connection.execute(
        _CLOSE_FENCES,
        {
            "saga_ids": [order.order_id for order, _ in closed],
            "steps": [step for _, step in closed],
            "fingerprints": [order.fingerprint for order, _ in closed],
        },
    )
    had_effect = {(row.saga_id, row.step) for row in rows if row.had_effect}
    if any(step == Step.SHIP for _, step in had_effect):
        raise Changed("the status of an order: it was shipped")
    return had_effect
