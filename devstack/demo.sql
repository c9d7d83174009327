-- A catalogue to try the checkout with: products, stock, where parcels go, and customers with money. For demonstrations
-- and tests alone: it makes money out of nothing. Run it after setup.sql, as its owner, as often as you like:
--
--       psql -d checkout -f devstack/demo.sql

\set ON_ERROR_STOP on
\set SHOW_CONTEXT never

BEGIN;

SET LOCAL search_path = public, pg_temp;

-- A second run adds what is missing and changes nothing that is there.
INSERT INTO products (sku, name, unit_price_minor) VALUES
    ('tea-mug',  'Tea mug, stoneware', 1200),
    ('poster',   'Poster, A2',         1700),
    ('notebook', 'Notebook, dotted',    950),
    ('lamp',     'Desk lamp',          8900),
    ('last-one', 'The last of its kind', 4200),
    ('bag',      'Canvas bag',         2200),
    ('bottle',   'Water bottle',       1600),
    ('cap',      'Cap, one size',      1900),
    ('game',     'Board game',         3400),
    ('kite',     'Kite, two lines',    2700),
    ('pen',      'Fountain pen',       4500),
    ('scarf',    'Scarf, wool',        3100)
ON CONFLICT DO NOTHING;
INSERT INTO products (sku, name, unit_price_minor)
    SELECT 'item-' || lpad(n::text, 3, '0'), 'Item ' || n, 100 + 7 * n FROM generate_series(1, 100) AS n
ON CONFLICT DO NOTHING;

-- Stock and money are approved as they come in, or the audit finds them.
WITH stocked AS (
    INSERT INTO inventory (sku, initial, on_hand)
    SELECT sku, quantity, quantity FROM (
        VALUES ('tea-mug', 1000), ('poster', 1000), ('notebook', 1000), ('lamp', 20), ('last-one', 1), ('bag', 50),
               ('bottle', 50), ('cap', 50), ('game', 50), ('kite', 50), ('pen', 50), ('scarf', 50)
        UNION ALL
        SELECT 'item-' || lpad(n::text, 3, '0'), 1000000 FROM generate_series(1, 100) AS n
    ) AS stock (sku, quantity)
    ON CONFLICT DO NOTHING RETURNING sku, initial
)
INSERT INTO approvals (kind, subject, amount, reason) SELECT 'delivery', sku, initial, 'demo.sql' FROM stocked;

INSERT INTO delivery_zones (zone, carrier, is_served, hands_over_at_once) VALUES
    ('city',     'Bike Courier', true,  true),
    ('country',  'Yellow Post',  true,  false),
    ('overseas', 'Slow Boat',    true,  false),
    ('atlantis', 'Submarine',    false, false)
ON CONFLICT DO NOTHING;

-- A customer is opened together with the deposit that explains the balance.
WITH people (account_id, name, deposit, zone) AS (
    VALUES ('alice', 'Alice, in town',                 100000, 'city'),
           ('bob',   'Bob, who is nearly broke',          500, 'city'),
           ('carol', 'Carol, in the country',          100000, 'country'),
           ('dave',  'Dave, overseas',                 100000, 'overseas'),
           ('erin',  'Erin, in town',                   20000, 'city'),
           ('frank', 'Frank, in town',                  20000, 'city'),
           ('grace', 'Grace, in the country',           20000, 'country'),
           ('heidi', 'Heidi, in town',                  20000, 'city'),
           ('ivan',  'Ivan, in town',                   20000, 'city'),
           ('judy',  'Judy, overseas',                  20000, 'overseas'),
           ('mallory', 'Mallory, where nobody delivers', 20000, 'atlantis'),
           ('nemo',  'Nemo, where nobody delivers',     20000, 'atlantis')
    UNION ALL
    SELECT 'buyer-' || lpad(n::text, 3, '0'), 'Buyer ' || n, 1000000000, 'city' FROM generate_series(1, 100) AS n
), opened AS (
    INSERT INTO accounts (account_id, kind, name, balance_minor, delivery_zone)
    SELECT account_id, 'customer', name, deposit, zone FROM people
    ON CONFLICT DO NOTHING RETURNING account_id, balance_minor
), deposited AS (
    INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency)
    SELECT 'deposit/' || account_id, 'deposit', 'bank', account_id, balance_minor, 'EUR' FROM opened
    RETURNING credit_account, amount_minor
)
INSERT INTO approvals (kind, subject, amount, currency, reason)
SELECT 'deposit', credit_account, amount_minor, 'EUR', 'demo.sql' FROM deposited;

COMMIT;
