"""Group commit: one transaction that decides on many new orders, and writes all that their steps would have written.

A completed order has its three fence rows, its three events and the rows of each step, as its own saga would have left
them. A refused one has had no effect, so that there is nothing to undo: its fence rows are tombstones.

Facts are read, decided on, and then written with everything locked, in the sequence that setup.sql names. Where they
have changed, fences and constraints refuse it: all is rolled back and decided again.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from activities.batch import CATALOGUE, LOCK_BALANCES, LOCK_STOCK, Changed, line_columns
from activities.batch_decisions import Decision, decide
from activities.batch_known import known_outcomes
from activities.shipping import TRACKING_NUMBER
from activities.steps import workflow_run
from domain.bulk import Outcome
from domain.model import CheckoutInput, Ending, OrderStatus, Step
from sagafence import sqlstate

_LOCK_NOT_AVAILABLE = "55P03"

# Many times what another batch holds a row for, and less than callers of the API wait for: all of a batch wait for one.
_LIMIT_WAITING = text("SELECT set_config('lock_timeout', '300ms', true)")
_BUYERS = text("""
    SELECT a.account_id, a.currency, a.balance_minor, a.delivery_zone, coalesce(z.is_served, false) AS is_served
      FROM accounts a LEFT JOIN delivery_zones z ON z.zone = a.delivery_zone
     WHERE a.account_id = ANY (CAST(:customers AS text[])) AND a.kind = 'customer'
""")

# Without a zone an order does not complete: its steps are shut, as far as the one that refused it.
_FENCES = text(f"""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, result)
    SELECT o.order_id, s.step, CASE WHEN o.zone IS NULL THEN 'undone' ELSE 'done' END, o.zone IS NOT NULL,
           o.fingerprint,
           CASE WHEN o.zone IS NULL THEN NULL
                WHEN s.step = 'reserve' THEN jsonb_build_object('total_minor', o.total_minor, 'currency', o.currency)
                WHEN s.step = 'pay' THEN jsonb_build_object('transfer_id', 'capture/' || o.order_id,
                                                            'amount_minor', o.total_minor, 'currency', o.currency)
                ELSE jsonb_build_object('tracking_number', {TRACKING_NUMBER}, 'carrier', z.carrier,
                                        'is_handed_over', z.hands_over_at_once) END
      FROM unnest(CAST(:order_ids AS text[]), CAST(:fingerprints AS text[]), CAST(:totals AS bigint[]),
                  CAST(:currencies AS text[]), CAST(:zones AS text[]), CAST(:steps AS integer[]))
           AS o (order_id, fingerprint, total_minor, currency, zone, steps)
      JOIN (VALUES (1, 'reserve'), (2, 'pay'), (3, 'ship')) AS s (place, step) ON s.place <= o.steps
      LEFT JOIN delivery_zones z ON z.zone = o.zone
     WHERE o.zone IS NULL OR z.is_served
     ORDER BY o.order_id, s.step
    ON CONFLICT DO NOTHING RETURNING saga_id, result ->> 'tracking_number' AS tracking_number
""")  # noqa: S608 - put together from our own constants
_ORDERS = text("""
    INSERT INTO orders (order_id, customer, status, changed_by, reason, ending, fingerprint, total_minor, currency,
                        batch_workflow_id, shipped_by)
    SELECT order_id, customer,
           coalesce(ending, 'completed'), CASE WHEN ending IS NULL THEN 'ship' ELSE 'close' END,
           reason, ending, fingerprint, total_minor, currency,
           :batch_workflow_id, CASE WHEN ending IS NULL THEN :run END
      FROM unnest(CAST(:order_ids AS text[]), CAST(:customers AS text[]), CAST(:reasons AS text[]),
                  CAST(:endings AS text[]), CAST(:fingerprints AS text[]), CAST(:totals AS bigint[]),
                  CAST(:currencies AS text[]))
           AS o (order_id, customer, reason, ending, fingerprint, total_minor, currency)
""")
# The lines of a refused order have no price, and it holds nothing. The stock of the others is consumed at once: it was
# never held for another transaction to see. The accounts and the stock are locked already.
_EFFECTS = text("""
WITH lines AS (
    SELECT * FROM unnest(CAST(:line_ids AS text[]), CAST(:skus AS text[]), CAST(:quantities AS integer[]),
                         CAST(:prices AS bigint[])) AS l (order_id, sku, quantity, unit_price_minor)
), kept AS (
    INSERT INTO order_lines (order_id, sku, quantity, unit_price_minor)
    SELECT order_id, sku, quantity, unit_price_minor FROM lines
), consumed AS (
    INSERT INTO reservations (order_id, sku, quantity, state)
    SELECT order_id, sku, quantity, 'consumed' FROM lines WHERE unit_price_minor IS NOT NULL
    RETURNING sku, quantity
), moved AS (
    INSERT INTO transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency)
    SELECT 'capture/' || order_id, order_id, 'capture', customer, 'shop', total_minor, currency
      FROM orders WHERE order_id = ANY (CAST(:completed AS text[]))
    RETURNING debit_account, amount_minor
), labelled AS (
    INSERT INTO shipments (order_id, tracking_number, carrier, zone, state, handed_over_at)
    SELECT p.order_id, f.result ->> 'tracking_number', f.result ->> 'carrier', p.zone,
           CASE WHEN (f.result ->> 'is_handed_over')::boolean THEN 'handed_over' ELSE 'label' END,
           CASE WHEN (f.result ->> 'is_handed_over')::boolean THEN now() END
      FROM unnest(CAST(:completed AS text[]), CAST(:parcel_zones AS text[])) AS p (order_id, zone)
      JOIN step_fence f ON f.saga_id = p.order_id AND f.step = 'ship'
), debited AS (
    UPDATE accounts a SET balance_minor = a.balance_minor - spent.amount_minor
      FROM (SELECT debit_account, sum(amount_minor) AS amount_minor FROM moved GROUP BY debit_account) spent
     WHERE a.account_id = spent.debit_account
)
UPDATE inventory i SET on_hand = i.on_hand - gone.quantity
  FROM (SELECT sku, sum(quantity) AS quantity FROM consumed GROUP BY sku) gone WHERE i.sku = gone.sku
""")


class LockTimeout(Exception):
    """A row that the batch needs has been locked by others for too long. Rolls the transaction back."""


async def check_out(
    connection: AsyncConnection, batch_workflow_id: str, orders: Sequence[CheckoutInput]
) -> list[Outcome]:
    """Complete or reject every new order, and return how each has ended.

    `DELEGATED` are those that are under way, or were undone before they were done: whoever does that goes on.

    Raises:
        Changed: the facts have changed since they were read.
        LockTimeout: others keep a row locked.
    """
    async with _short_waits(connection):
        outcomes, new = await known_outcomes(connection, orders)
        return outcomes + (await _check_out(connection, batch_workflow_id, new) if new else [])


@asynccontextmanager
async def _short_waits(connection: AsyncConnection) -> AsyncIterator[None]:
    try:
        await connection.execute(_LIMIT_WAITING)
        yield
    except DBAPIError as error:
        if sqlstate(error) == _LOCK_NOT_AVAILABLE:
            raise LockTimeout("a row that it needs is locked by another transaction") from None
        raise


def names_in(orders: Sequence[CheckoutInput]) -> dict[str, list[str]]:
    """Return whose the orders are and of what, as bind values."""
    return {
        "customers": sorted({order.customer for order in orders}),
        "skus": sorted({line.sku for order in orders for line in order.lines}),
    }


async def end_unbegun(
    connection: AsyncConnection, batch_workflow_id: str | None, undos: Mapping[CheckoutInput, tuple[str, Ending]]
) -> list[Outcome]:
    """End orders that nothing was done for, each for its reason, and return how each order has ended.

    `DELEGATED` are those that a saga of theirs has begun: it has to be asked.

    Raises:
        Changed: something was done for one of them since it was looked for.
        LockTimeout: others keep a row locked.
    """
    async with _short_waits(connection):
        outcomes, new = await known_outcomes(connection, list(undos))
        decisions = [
            Decision(order, reason=undos[order][0], ending=undos[order][1], last_step=Step.RESERVE) for order in new
        ]
        return outcomes + (await _write(connection, batch_workflow_id, decisions, {}) if new else [])


async def _check_out(
    connection: AsyncConnection, batch_workflow_id: str, orders: Sequence[CheckoutInput]
) -> list[Outcome]:
    names = names_in(orders)
    buyers = {row.account_id: row for row in await connection.execute(_BUYERS, names)}
    catalogue = {row.sku: row for row in await connection.execute(CATALOGUE, names)}
    return await _write(connection, batch_workflow_id, decide(orders, buyers, catalogue), catalogue)


async def _write(
    connection: AsyncConnection,
    batch_workflow_id: str | None,
    decisions: Sequence[Decision],
    catalogue: Mapping[str, Row[Any]],
) -> list[Outcome]:
    columns = _columns(decisions)
    tracking = await _write_fences(connection, decisions, columns)
    await connection.execute(_ORDERS, {**columns, "batch_workflow_id": batch_workflow_id, "run": workflow_run()})
    completed = [each for each in decisions if each.ending is None]
    await _lock(connection, [each.order for each in completed])
    prices = {
        (each.order.order_id, line.sku): catalogue[line.sku].unit_price_minor
        for each in completed
        for line in each.order.lines
    }
    lines = line_columns(each.order for each in decisions)
    await connection.execute(
        _EFFECTS,
        {
            **lines,
            "prices": [prices.get(line) for line in zip(lines["line_ids"], lines["skus"], strict=True)],
            "completed": [each.order.order_id for each in completed],
            "parcel_zones": [each.zone for each in completed],
        },
    )
    return [_outcome(each, tracking) for each in decisions]


def _columns(decisions: Sequence[Decision]) -> dict[str, list[Any]]:
    return {
        "order_ids": [each.order.order_id for each in decisions],
        "customers": [each.order.customer for each in decisions],
        "fingerprints": [each.order.fingerprint for each in decisions],
        "totals": [each.total_minor for each in decisions],
        "currencies": [each.currency for each in decisions],
        "zones": [each.zone for each in decisions],
        "reasons": [each.reason for each in decisions],
        "endings": [each.ending for each in decisions],
        "steps": [len(each.steps) for each in decisions],
    }


async def _write_fences(
    connection: AsyncConnection, decisions: Sequence[Decision], columns: Mapping[str, list[Any]]
) -> Mapping[str, str]:
    """Write all fence rows, and return the tracking number of each order that completes.

    Raises:
        Changed: another saga was first with one of them, or a zone is no longer served.
    """
    written = (await connection.execute(_FENCES, columns)).all()
    if len(written) < sum(len(each.steps) for each in decisions):
        raise Changed("whose order it is, or where it can be sent")
    return {row.saga_id: row.tracking_number for row in written if row.tracking_number}


async def _lock(connection: AsyncConnection, orders: Sequence[CheckoutInput]) -> None:
    """Lock the accounts and the stock of orders. What has gone since it was read, their constraints refuse."""
    names = names_in(orders)
    await connection.execute(LOCK_BALANCES, names)
    await connection.execute(LOCK_STOCK, names)


def _outcome(decision: Decision, tracking: Mapping[str, str]) -> Outcome:
    order_id = decision.order.order_id
    if decision.ending is not None:
        return Outcome(order_id, decision.ending.value, decision.reason)
    return Outcome(
        order_id, OrderStatus.COMPLETED.value, None, decision.total_minor, decision.currency, tracking[order_id]
    )
