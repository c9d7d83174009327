"""Orders that have ended, with every row that the product would have left, written table by table for tests of plans.

The audit finds nothing in them, and the planner finds tables of a size that the product would take long to fill.
"""

import asyncpg

# Of twenty orders one was refused by its first step and one after its second; the others are completed. Ids are
# scattered, as those of the starter are.
_ORDERS = """
CREATE TEMP TABLE past AS
SELECT 'past-' || left(md5(n::text), 16) AS order_id,
       'buyer-' || lpad((1 + n % 100)::text, 3, '0') AS customer,
       CASE WHEN n > $orders THEN 'reserved' WHEN n % 20 = 0 THEN 'refused' WHEN n % 20 = 1 THEN 'undone'
            ELSE 'completed' END AS fate,
       CASE WHEN n > $orders THEN now() - interval '10 minutes' - (n - $orders) * interval '10 milliseconds'
            ELSE now() - interval '2 hours' - ($orders - n) * interval '100 milliseconds' END AS at
  FROM generate_series(1, $orders + $unfinished) AS n;
ANALYZE past;
CREATE TEMP TABLE past_lines AS
SELECT order_id, fate, sku, 1 AS quantity, unit_price_minor
  FROM past, LATERAL (VALUES (0), (37)) AS line (offset_by),
       LATERAL (SELECT 'item-' || lpad((1 + (right(customer, 3)::integer + offset_by) % 100)::text, 3, '0') AS sku) AS s
  JOIN products USING (sku);
CREATE TEMP TABLE past_totals AS
SELECT order_id, sum(quantity * unit_price_minor)::bigint AS total_minor FROM past_lines GROUP BY order_id;
ANALYZE past_lines, past_totals;

INSERT INTO orders (order_id, customer, status, changed_by, reason, ending, fingerprint, total_minor, currency,
                    event_seq, created_at, updated_at)
SELECT order_id, customer, CASE fate WHEN 'completed' THEN fate WHEN 'reserved' THEN fate ELSE 'rejected' END,
       CASE fate WHEN 'completed' THEN 'ship' WHEN 'reserved' THEN 'reserve' ELSE 'close' END,
       CASE WHEN fate IN ('refused', 'undone') THEN 'OutOfStock: made up' END,
       CASE WHEN fate IN ('refused', 'undone') THEN 'rejected' END,
       md5(order_id), CASE WHEN fate <> 'refused' THEN total_minor END, CASE WHEN fate <> 'refused' THEN 'EUR' END,
       CASE fate WHEN 'refused' THEN 1 WHEN 'reserved' THEN 1 ELSE 3 END, at, at
  FROM past JOIN past_totals USING (order_id) ORDER BY at;

INSERT INTO order_lines (order_id, sku, quantity, unit_price_minor)
SELECT order_id, sku, quantity, CASE WHEN fate <> 'refused' THEN unit_price_minor END FROM past_lines;

INSERT INTO reservations (order_id, sku, quantity, state)
SELECT order_id, sku, quantity,
       CASE fate WHEN 'completed' THEN 'consumed' WHEN 'undone' THEN 'released' ELSE 'held' END
  FROM past_lines WHERE fate <> 'refused';

INSERT INTO transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency, created_at)
SELECT 'capture/' || order_id, order_id, 'capture', customer, 'shop', total_minor, 'EUR', at
  FROM past JOIN past_totals USING (order_id) WHERE fate = 'completed';

INSERT INTO shipments (order_id, tracking_number, carrier, zone, state, created_at, handed_over_at)
SELECT order_id, 'PX' || md5(order_id), 'Bike Courier', 'city', 'handed_over', at, at
  FROM past WHERE fate = 'completed';

INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, result, created_at, updated_at)
SELECT order_id, step, CASE fate WHEN 'completed' THEN 'done' WHEN 'reserved' THEN 'done' ELSE 'undone' END,
       fate <> 'refused' AND (fate <> 'undone' OR step = 'reserve'), md5(order_id),
       CASE WHEN fate <> 'refused' AND (fate <> 'undone' OR step = 'reserve')
            THEN jsonb_build_object('total_minor', total_minor, 'currency', 'EUR') END, at, at
  FROM past JOIN past_totals USING (order_id), LATERAL (VALUES ('reserve'), ('pay'), ('ship')) AS s (step)
 WHERE fate = 'completed' OR step = 'reserve' OR (fate = 'undone' AND step = 'pay');

INSERT INTO order_events (txid, order_id, seq, event, previous_status, status, changed_by, reason, at)
SELECT '3'::xid8, order_id, seq, status, previous, status, by, NULL, at
  FROM past, LATERAL (
    SELECT * FROM (VALUES
        ('completed', 1, NULL, 'reserved', 'reserve'), ('completed', 2, 'reserved', 'paid', 'pay'),
        ('completed', 3, 'paid', 'completed', 'ship'),
        ('undone', 1, NULL, 'reserved', 'reserve'), ('undone', 2, 'reserved', 'unwinding', 'undo-reserve'),
        ('undone', 3, 'unwinding', 'rejected', 'close'),
        ('refused', 1, NULL, 'rejected', 'close'), ('reserved', 1, NULL, 'reserved', 'reserve')
    ) AS e (of_fate, seq, previous, status, by) WHERE of_fate = fate) AS e;

UPDATE inventory i SET on_hand = on_hand - consumed, reserved = reserved + held FROM (
    SELECT sku, coalesce(sum(quantity) FILTER (WHERE state = 'consumed'), 0) AS consumed,
           coalesce(sum(quantity) FILTER (WHERE state = 'held'), 0) AS held FROM reservations GROUP BY sku
) AS r WHERE r.sku = i.sku;
UPDATE accounts a SET balance_minor = balance_minor - paid FROM (
    SELECT debit_account, sum(amount_minor) AS paid FROM transfers WHERE kind = 'capture' GROUP BY 1
) AS t WHERE t.debit_account = a.account_id;
"""


async def write_ended_orders(url: str, orders: int, *, unfinished: int) -> None:
    """Write orders that ended two hours ago and before, and some that hold their stock without progress.

    Args:
        url: the database, as the superuser, for asyncpg: triggers and foreign keys would take most of the time.
        orders: that have ended.
        unfinished: reserved ten minutes ago and before, and nothing since.
    """
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        await connection.execute(_ORDERS.replace("$orders", str(orders)).replace("$unfinished", str(unfinished)))
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()
