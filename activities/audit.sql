-- The audit: every query returns the rows that break its invariant, so a healthy database returns none.
--
-- Each check begins with a line "-- ID: what must hold". A* hold in every committed snapshot, whatever is
-- running. Q* hold for orders at rest: those whose status is an ending, or that have not moved for
-- :at_rest_after (an interval; '0' when nothing is running).
-- By hand: psql -v at_rest_after="'1 hour'" -f activities/audit.sql
--
-- Goods that a resolved shipment consumed stay consumed: the operator vouches for where they are as well.
--
-- The first column of each row names what is wrong: an order, a SKU or an account. A step that an operator
-- resolved is vouched for, with a reason in order_events, and is not counted against the order.

-- A1: what is on the shelf is what was there, plus deliveries, less what was shipped
SELECT i.sku AS subject, 'on hand ' || i.on_hand || ', accounted for ' || (i.initial + i.received - coalesce(r.consumed, 0)) AS detail
  FROM inventory i
  LEFT JOIN (SELECT sku, sum(quantity) AS consumed FROM reservations WHERE state = 'consumed' GROUP BY sku) r USING (sku)
 WHERE i.on_hand <> i.initial + i.received - coalesce(r.consumed, 0);

-- A2: the reserved counter is the sum of the held reservations
SELECT i.sku AS subject, 'reserved ' || i.reserved || ', held ' || coalesce(r.held, 0) AS detail
  FROM inventory i
  LEFT JOIN (SELECT sku, sum(quantity) AS held FROM reservations WHERE state = 'held' GROUP BY sku) r USING (sku)
 WHERE i.reserved <> coalesce(r.held, 0);

-- A3: nothing is oversold
SELECT sku AS subject, 'on hand ' || on_hand || ', reserved ' || reserved AS detail
  FROM inventory WHERE on_hand < 0 OR reserved < 0 OR reserved > on_hand;

-- A4: every balance is the sum of its transfers, and no transfer is malformed
SELECT a.account_id AS subject, 'balance ' || a.balance_minor || ', ledger ' || (coalesce(c.amount, 0) - coalesce(d.amount, 0)) AS detail
  FROM accounts a
  LEFT JOIN (SELECT credit_account AS account_id, sum(amount_minor) AS amount FROM transfers GROUP BY 1) c USING (account_id)
  LEFT JOIN (SELECT debit_account AS account_id, sum(amount_minor) AS amount FROM transfers GROUP BY 1) d USING (account_id)
 WHERE a.kind = 'customer' AND a.balance_minor <> coalesce(c.amount, 0) - coalesce(d.amount, 0)
UNION ALL
SELECT transfer_id, 'amount ' || amount_minor || ' from ' || debit_account || ' to ' || credit_account
  FROM transfers WHERE amount_minor <= 0 OR debit_account = credit_account;

-- A5: an order is captured at most once and refunded at most once
SELECT order_id AS subject, count(*) || ' × ' || kind AS detail
  FROM transfers WHERE order_id IS NOT NULL GROUP BY order_id, kind HAVING count(*) > 1;

-- A6: a capture is the order's total, and a refund is of a capture, in the same amount
SELECT c.order_id AS subject, 'captured ' || c.amount_minor || ', total ' || coalesce(o.total_minor::text, 'none') AS detail
  FROM transfers c LEFT JOIN orders o USING (order_id)
 WHERE c.kind = 'capture' AND c.amount_minor IS DISTINCT FROM o.total_minor
UNION ALL
SELECT r.order_id, 'refunded ' || r.amount_minor || ', captured ' || coalesce(c.amount_minor::text, 'nothing')
  FROM transfers r LEFT JOIN transfers c ON c.order_id = r.order_id AND c.kind = 'capture'
 WHERE r.kind = 'refund' AND (r.amount_minor IS DISTINCT FROM c.amount_minor OR r.credit_account IS DISTINCT FROM c.debit_account)
UNION ALL
SELECT o.order_id, 'total ' || o.total_minor || ', lines ' || coalesce(sum(l.quantity * l.unit_price_minor)::text, 'none')
  FROM orders o LEFT JOIN order_lines l USING (order_id)
 WHERE o.total_minor IS NOT NULL GROUP BY o.order_id, o.total_minor HAVING o.total_minor IS DISTINCT FROM sum(l.quantity * l.unit_price_minor);

-- A7: no live parcel is unpaid or refunded
SELECT s.order_id AS subject, 'shipment ' || s.state || CASE WHEN c.order_id IS NULL THEN ', not paid' ELSE ', refunded' END AS detail
  FROM shipments s
  LEFT JOIN transfers c ON c.order_id = s.order_id AND c.kind = 'capture'
  LEFT JOIN transfers r ON r.order_id = s.order_id AND r.kind = 'refund'
  LEFT JOIN step_fence f ON f.saga_id = s.order_id AND f.step = 'ship'
 WHERE s.state <> 'cancelled' AND f.phase IS DISTINCT FROM 'resolved' AND (c.order_id IS NULL OR r.order_id IS NOT NULL);

-- A8: where an order holds stock, it holds exactly its lines
SELECT coalesce(l.order_id, r.order_id) AS subject,
       coalesce(l.sku, r.sku) || ': ordered ' || coalesce(l.quantity, 0) || ', reserved ' || coalesce(r.quantity, 0) AS detail
  FROM (SELECT * FROM order_lines WHERE order_id IN (SELECT order_id FROM reservations)) l
  FULL JOIN reservations r ON r.order_id = l.order_id AND r.sku = l.sku
 WHERE l.quantity IS DISTINCT FROM r.quantity;

-- A9: a step is done exactly while its effect exists
SELECT coalesce(f.saga_id, e.order_id) AS subject,
       coalesce(f.step, e.step) || ': fence ' || coalesce(f.phase, 'missing') || ', effect ' || CASE WHEN e.order_id IS NULL THEN 'missing' ELSE 'exists' END AS detail
  FROM (SELECT * FROM step_fence WHERE phase = 'done') f
  FULL JOIN (
      SELECT order_id, 'reserve' AS step, CASE WHEN bool_and(state <> 'held') THEN 'ship' ELSE 'reserve' END AS vouched_by
        FROM reservations WHERE state <> 'released' GROUP BY order_id
      UNION ALL
      SELECT c.order_id, 'pay', 'pay' FROM transfers c WHERE c.kind = 'capture'
         AND NOT EXISTS (SELECT FROM transfers r WHERE r.order_id = c.order_id AND r.kind = 'refund')
      UNION ALL
      SELECT order_id, 'ship', 'ship' FROM shipments WHERE state <> 'cancelled'
  ) e ON e.order_id = f.saga_id AND e.step = f.step
  LEFT JOIN step_fence v ON v.saga_id = e.order_id AND v.step IN (e.step, e.vouched_by) AND v.phase = 'resolved'
 WHERE (f.saga_id IS NULL OR e.order_id IS NULL) AND v.saga_id IS NULL;

-- A10: a step with a tombstone never had an effect
SELECT f.saga_id AS subject, f.step || ' has a tombstone and an effect' AS detail
  FROM step_fence f
 WHERE f.phase = 'undone' AND NOT f.had_effect AND CASE f.step
       WHEN 'reserve' THEN EXISTS (SELECT FROM reservations r WHERE r.order_id = f.saga_id)
       WHEN 'pay'     THEN EXISTS (SELECT FROM transfers t WHERE t.order_id = f.saga_id)
       WHEN 'ship'    THEN EXISTS (SELECT FROM shipments s WHERE s.order_id = f.saga_id) END;

-- A11: every status change is legal and logged, without a gap, and endings absorb
SELECT order_id AS subject, 'event ' || seq || ': ' || coalesce(before, 'new') || ' -> ' || status AS detail
  FROM (SELECT order_id, seq, previous_status, status, event,
               lag(status) OVER w AS before, row_number() OVER w AS expected_seq
          FROM order_events WINDOW w AS (PARTITION BY order_id ORDER BY seq)) e
 WHERE seq <> expected_seq OR previous_status IS DISTINCT FROM before
    OR (event = status AND NOT order_may_move(before, status))
UNION ALL
SELECT o.order_id, 'is ' || o.status || ', its log ends with ' || coalesce(e.status, 'nothing')
  FROM orders o LEFT JOIN order_events e ON e.order_id = o.order_id AND e.seq = o.event_seq
 WHERE e.status IS DISTINCT FROM o.status;

-- A12: all money that came in was approved, and nothing was approved that did not
SELECT coalesce(d.subject, a.subject) AS subject,
       'deposited ' || coalesce(d.amount, 0) || ' ' || coalesce(d.currency, a.currency) || ', approved ' || coalesce(a.amount, 0) AS detail
  FROM (SELECT credit_account AS subject, currency, sum(amount_minor) AS amount FROM transfers WHERE kind = 'deposit' GROUP BY 1, 2) d
  FULL JOIN (SELECT subject, currency, sum(amount) AS amount FROM approvals WHERE kind = 'deposit' GROUP BY 1, 2) a
       ON a.subject = d.subject AND a.currency = d.currency
 WHERE coalesce(d.amount, 0) <> coalesce(a.amount, 0);

-- A13: all stock that came in was approved, and nothing was approved that did not
SELECT coalesce(i.sku, a.subject) AS subject,
       'initial and received ' || coalesce(i.initial + i.received, 0) || ', approved ' || coalesce(a.amount, 0) AS detail
  FROM inventory i
  FULL JOIN (SELECT subject, sum(amount) AS amount FROM approvals WHERE kind = 'delivery' GROUP BY 1) a ON a.subject = i.sku
 WHERE coalesce(i.initial + i.received, 0) <> coalesce(a.amount, 0);

-- Q1: every order at rest has reached an ending, or is stuck
SELECT order_id AS subject, 'is ' || status || ' since ' || updated_at AS detail
  FROM orders
 WHERE status IN ('pending', 'reserved', 'paid', 'unwinding') AND updated_at <= now() - CAST(:at_rest_after AS interval);

-- Q2: an order that has ended holds no stock
SELECT r.order_id AS subject, r.quantity || ' × ' || r.sku || ' still held' AS detail
  FROM reservations r JOIN orders o USING (order_id)
  LEFT JOIN step_fence f ON f.saga_id = r.order_id AND f.step = 'reserve'
 WHERE r.state = 'held' AND o.status IN ('completed', 'rejected', 'cancelled') AND f.phase IS DISTINCT FROM 'resolved';

-- Q3: a completed order was captured and shipped, and not refunded
SELECT o.order_id AS subject,
       CASE WHEN c.order_id IS NULL THEN 'not captured' WHEN r.order_id IS NOT NULL THEN 'refunded' ELSE 'not shipped' END AS detail
  FROM orders o
  LEFT JOIN transfers c ON c.order_id = o.order_id AND c.kind = 'capture'
  LEFT JOIN transfers r ON r.order_id = o.order_id AND r.kind = 'refund'
  LEFT JOIN shipments s ON s.order_id = o.order_id AND s.state <> 'cancelled'
 WHERE o.status = 'completed' AND (c.order_id IS NULL OR r.order_id IS NOT NULL OR s.order_id IS NULL);

-- Q4: a rejected or cancelled order has no net effect
SELECT o.order_id AS subject, f.step || ' is in effect' AS detail
  FROM orders o JOIN step_fence f ON f.saga_id = o.order_id AND f.phase = 'done'
 WHERE o.status IN ('rejected', 'cancelled')
UNION ALL
SELECT o.order_id, 'the effect of ' || e.step || ' still exists'
  FROM orders o JOIN (
      SELECT order_id, 'reserve' AS step, CASE WHEN bool_and(state <> 'held') THEN 'ship' ELSE 'reserve' END AS vouched_by
        FROM reservations WHERE state <> 'released' GROUP BY order_id
      UNION ALL
      SELECT c.order_id, 'pay', 'pay' FROM transfers c WHERE c.kind = 'capture'
         AND NOT EXISTS (SELECT FROM transfers r WHERE r.order_id = c.order_id AND r.kind = 'refund')
      UNION ALL
      SELECT order_id, 'ship', 'ship' FROM shipments WHERE state <> 'cancelled'
  ) e USING (order_id)
  LEFT JOIN step_fence f ON f.saga_id = e.order_id AND f.step = e.step
 WHERE o.status IN ('rejected', 'cancelled') AND f.phase IS DISTINCT FROM 'done' AND NOT EXISTS (
       SELECT FROM step_fence v
        WHERE v.saga_id = e.order_id AND v.step IN (e.step, e.vouched_by) AND v.phase = 'resolved');

-- Q7: a stuck order has one open incident, no other order has one, and its other steps are undone
SELECT o.order_id AS subject, 'is stuck without an open incident' AS detail
  FROM orders o WHERE o.status = 'stuck' AND NOT EXISTS (
       SELECT FROM incidents i WHERE i.order_id = o.order_id AND i.closed_at IS NULL)
UNION ALL
SELECT i.order_id, 'has an open incident and is ' || o.status
  FROM incidents i JOIN orders o USING (order_id)
 WHERE i.closed_at IS NULL AND o.status IN ('completed', 'rejected', 'cancelled')
UNION ALL
SELECT o.order_id, 'is stuck in ' || array_to_string(i.steps, ', ') || ', but ' || f.step || ' is in effect too'
  FROM orders o JOIN incidents i ON i.order_id = o.order_id AND i.closed_at IS NULL
  JOIN step_fence f ON f.saga_id = o.order_id AND f.phase = 'done'
 WHERE o.status = 'stuck' AND f.step <> ALL (i.steps);
