"""The steps of many orders at once: a transaction for each, and for each order what its own step would have done.

Which orders a step refuses is decided here, one after the other in the batch's order, as if each had come by itself;
what is decided is written by a few statements, however many orders there are. Each order has its own fence rows with
its own results: of a batch and a saga of one of its orders one acts, and the other returns what that has stored.

Facts are read, decided on, and then read again with everything locked, in the sequence that setup.sql names: fence
rows, order rows, and the shared rows last. Where they have changed, all is rolled back and decided again.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from activities.batch import (
    CATALOGUE,
    LOCK_BALANCES,
    LOCK_STOCK,
    Changed,
    claim,
    describe,
    is_due,
    line_columns,
    lock_orders,
    outcome_of,
    read_due,
    read_orders,
    until_unchanged,
)
from activities.inventory import LineFacts, why_not_reserved
from activities.payments import why_not_paid
from activities.shipping import TRACKING_NUMBER, why_not_shipped
from activities.steps import workflow_run
from domain.bulk import StepInput, StepReport, unpack
from domain.model import CheckoutInput, OrderStatus

_ACCOUNTS = text("""
    SELECT account_id, currency FROM accounts
     WHERE account_id = ANY (CAST(:customers AS text[])) AND kind = 'customer'
""")
_CLAIM_RESERVE = text("""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, result)
    SELECT saga_id, 'reserve', 'done', true, fingerprint,
           jsonb_build_object('total_minor', total_minor, 'currency', currency)
      FROM unnest(CAST(:order_ids AS text[]), CAST(:fingerprints AS text[]),
                  CAST(:totals AS bigint[]), CAST(:currencies AS text[]))
           AS c (saga_id, fingerprint, total_minor, currency)
     ORDER BY saga_id
    ON CONFLICT DO NOTHING RETURNING saga_id
""")
_RESERVE = text("""
WITH lines AS (
    SELECT * FROM unnest(CAST(:line_ids AS text[]), CAST(:skus AS text[]), CAST(:quantities AS integer[]),
                         CAST(:prices AS bigint[])) AS l (order_id, sku, quantity, unit_price_minor)
), opened AS (
    INSERT INTO orders (order_id, customer, status, changed_by, fingerprint, total_minor, currency, carrier)
    SELECT order_id, customer, 'reserved', 'reserve', fingerprint, total_minor, currency, :carrier
      FROM unnest(CAST(:order_ids AS text[]), CAST(:customers AS text[]), CAST(:fingerprints AS text[]),
                  CAST(:totals AS bigint[]), CAST(:currencies AS text[]))
           AS c (order_id, customer, fingerprint, total_minor, currency)
), kept AS (
    INSERT INTO order_lines (order_id, sku, quantity, unit_price_minor)
    SELECT order_id, sku, quantity, unit_price_minor FROM lines
), held AS (
    INSERT INTO reservations (order_id, sku, quantity) SELECT order_id, sku, quantity FROM lines
)
UPDATE inventory i SET reserved = i.reserved + taken.quantity
  FROM (SELECT sku, sum(quantity) AS quantity FROM lines GROUP BY sku) taken WHERE i.sku = taken.sku
""")

_CLAIM_PAY = text("""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, result)
    SELECT order_id, 'pay', 'done', true, fingerprint,
           jsonb_build_object('transfer_id', 'capture/' || order_id, 'amount_minor', total_minor, 'currency', currency)
      FROM orders WHERE order_id = ANY (CAST(:order_ids AS text[])) AND status = 'reserved'
     ORDER BY order_id
    ON CONFLICT DO NOTHING RETURNING saga_id
""")
_PAY = text("""
WITH advanced AS (
    UPDATE orders SET status = 'paid', changed_by = 'pay' WHERE order_id = ANY (CAST(:order_ids AS text[]))
    RETURNING order_id, customer, total_minor, currency
), moved AS (
    INSERT INTO transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency)
    SELECT 'capture/' || order_id, order_id, 'capture', customer, 'shop', total_minor, currency FROM advanced
    RETURNING debit_account, amount_minor
)
UPDATE accounts a SET balance_minor = a.balance_minor - spent.amount_minor
  FROM (SELECT debit_account, sum(amount_minor) AS amount_minor FROM moved GROUP BY debit_account) spent
 WHERE a.account_id = spent.debit_account
""")

_CLAIM_SHIP = text(f"""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, result)
    SELECT o.order_id, 'ship', 'done', true, o.fingerprint,
           jsonb_build_object('tracking_number',
                              {TRACKING_NUMBER},
                              'carrier', z.carrier, 'is_handed_over', z.hands_over_at_once)
      FROM orders o JOIN accounts a ON a.account_id = o.customer
      JOIN delivery_zones z ON z.zone = a.delivery_zone AND z.is_served
     WHERE o.order_id = ANY (CAST(:order_ids AS text[])) AND o.status = 'paid'
     ORDER BY o.order_id
    ON CONFLICT DO NOTHING RETURNING saga_id
""")  # noqa: S608 - put together from our own constants
_SHIP = text("""
WITH advanced AS (
    UPDATE orders SET status = 'completed', changed_by = 'ship', shipped_by = :run
     WHERE order_id = ANY (CAST(:order_ids AS text[]))
    RETURNING order_id, customer
), labelled AS (
    INSERT INTO shipments (order_id, tracking_number, carrier, zone, state, handed_over_at)
    SELECT f.saga_id, f.result ->> 'tracking_number', f.result ->> 'carrier', a.delivery_zone,
           CASE WHEN (f.result ->> 'is_handed_over')::boolean THEN 'handed_over' ELSE 'label' END,
           CASE WHEN (f.result ->> 'is_handed_over')::boolean THEN now() END
      FROM advanced JOIN step_fence f ON f.saga_id = advanced.order_id AND f.step = 'ship'
      JOIN accounts a ON a.account_id = advanced.customer
), consumed AS (
    UPDATE reservations r SET state = 'consumed' FROM advanced
     WHERE r.order_id = advanced.order_id AND r.state = 'held' RETURNING r.sku, r.quantity
), locked AS (
    SELECT i.sku, c.quantity FROM (SELECT sku, sum(quantity) AS quantity FROM consumed GROUP BY sku) c
      JOIN inventory i USING (sku) ORDER BY i.sku FOR NO KEY UPDATE OF i
)
UPDATE inventory i SET on_hand = i.on_hand - locked.quantity, reserved = i.reserved - locked.quantity
  FROM locked WHERE i.sku = locked.sku
""")


class Batches:
    """The steps of a batch, as activities."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def reserve_orders(self, asked: StepInput) -> StepReport:
        """Hold stock for every order that can have it, in the batch's order; refuse the others, each for its reason."""
        orders = _orders(asked)
        return await until_unchanged(self._engine, lambda connection: _reserve(connection, asked.carrier, orders))

    @activity.defn
    async def charge_orders(self, asked: StepInput) -> StepReport:
        """Capture the total of every order whose customer can pay it, in the batch's order."""
        orders = _orders(asked)
        return await until_unchanged(self._engine, lambda connection: _pay(connection, orders))

    @activity.defn
    async def ship_orders(self, asked: StepInput) -> StepReport:
        """Send every parcel whose zone is served. All orders that this does not refuse have ended."""
        orders = _orders(asked)
        return await until_unchanged(self._engine, lambda connection: _ship(connection, orders))


def _orders(asked: StepInput) -> dict[str, CheckoutInput]:
    return {order.order_id: order for order in map(unpack, asked.orders)}


class _Priced(NamedTuple):
    order: CheckoutInput
    total_minor: int
    currency: str


async def _reserve(connection: AsyncConnection, carrier: str, orders: dict[str, CheckoutInput]) -> StepReport:
    report = StepReport()
    known = await read_orders(connection, orders)
    new: list[CheckoutInput] = []
    for order in orders.values():
        if row := known.get(order.order_id):
            is_due(report, order, row)
        else:
            new.append(order)
    if not new:
        return report
    customers = list({order.customer for order in new})
    skus = sorted({line.sku for order in new for line in order.lines})
    found = await connection.execute(_ACCOUNTS, {"customers": customers})
    accounts = {row.account_id: row.currency for row in found}
    catalogue = {row.sku: row for row in await connection.execute(CATALOGUE, {"skus": skus})}
    priced_in = {sku: row.currency for sku, row in catalogue.items()}
    free = {sku: row.free for sku, row in catalogue.items()}
    accepted: dict[str, _Priced] = {}
    for order in new:
        lines = [
            LineFacts(line.sku, line.quantity, priced_in.get(line.sku), free.get(line.sku, 0)) for line in order.lines
        ]
        if refusal := why_not_reserved(order.customer, accounts.get(order.customer), lines):
            report.refused[order.order_id] = describe(refusal)
            continue
        for line in lines:
            free[line.sku] -= line.quantity
        total = sum(line.quantity * catalogue[line.sku].unit_price_minor for line in lines)
        accepted[order.order_id] = _Priced(order, total, catalogue[lines[0].sku].currency)
    await _write_reservations(connection, carrier, accepted, catalogue, report)
    return report


async def _write_reservations(
    connection: AsyncConnection,
    carrier: str,
    accepted: dict[str, _Priced],
    catalogue: dict[str, Row[Any]],
    report: StepReport,
) -> None:
    orders = {order_id: priced.order for order_id, priced in accepted.items()}
    claimed = await claim(connection, _CLAIM_RESERVE, _columns(accepted.values()), orders, report)
    taken = [accepted[order_id] for order_id in claimed]
    lines = line_columns(priced.order for priced in taken)
    wanted: Counter[str] = Counter()
    for sku, quantity in zip(lines["skus"], lines["quantities"], strict=True):
        wanted[sku] += quantity
    stock = {row.sku: row.free for row in await connection.execute(LOCK_STOCK, {"skus": list(wanted)})}
    if any(stock.get(sku, 0) < quantity for sku, quantity in wanted.items()):
        raise Changed("the stock")
    await connection.execute(
        _RESERVE,
        {
            **_columns(taken),
            **lines,
            "customers": [priced.order.customer for priced in taken],
            "carrier": carrier,
            "prices": [catalogue[sku].unit_price_minor for sku in lines["skus"]],
        },
    )


def _columns(accepted: Iterable[_Priced]) -> dict[str, list[Any]]:
    rows = list(accepted)
    return {
        "order_ids": [row.order.order_id for row in rows],
        "fingerprints": [row.order.fingerprint for row in rows],
        "totals": [row.total_minor for row in rows],
        "currencies": [row.currency for row in rows],
    }


async def _pay(connection: AsyncConnection, orders: dict[str, CheckoutInput]) -> StepReport:
    report = StepReport()
    due = await read_due(connection, report, orders, [OrderStatus.PENDING])
    left_over = {row.customer: row.balance_minor for row in due}
    bills: dict[str, Row[Any]] = {}
    for row in due:
        if row.status == OrderStatus.PAID:  # by an earlier attempt
            continue
        if refusal := why_not_paid(row.customer, left_over[row.customer], row.total_minor, row.currency):
            report.refused[row.order_id] = describe(refusal)
            continue
        left_over[row.customer] -= row.total_minor
        bills[row.order_id] = row
    claimed = await claim(connection, _CLAIM_PAY, {"order_ids": list(bills)}, orders, report)
    await lock_orders(connection, dict.fromkeys(claimed, OrderStatus.RESERVED))
    spent: Counter[str] = Counter()
    for order_id in claimed:
        spent[bills[order_id].customer] += bills[order_id].total_minor
    found = await connection.execute(LOCK_BALANCES, {"customers": list(spent)})
    balances = {row.account_id: row.balance_minor for row in found}
    if any(balances.get(customer, 0) < amount for customer, amount in spent.items()):
        raise Changed("the balance of a customer")
    await connection.execute(_PAY, {"order_ids": claimed})
    return report


async def _ship(connection: AsyncConnection, orders: dict[str, CheckoutInput]) -> StepReport:
    report = StepReport()
    parcels: list[str] = []
    for row in await read_due(connection, report, orders, [OrderStatus.PENDING, OrderStatus.RESERVED]):
        if refusal := why_not_shipped(row.customer, row.delivery_zone, is_served=row.is_served):
            report.refused[row.order_id] = describe(refusal)
        else:
            parcels.append(row.order_id)
    sent = await claim(connection, _CLAIM_SHIP, {"order_ids": parcels}, orders, report)
    await lock_orders(connection, dict.fromkeys(sent, OrderStatus.PAID))
    await connection.execute(_SHIP, {"order_ids": sent, "run": workflow_run()})
    ended = await read_orders(connection, sent)
    report.ended.extend(outcome_of(ended[order_id]) for order_id in sent)
    return report
