-- The checkout's database: the whole schema, and nothing to sell (devstack/demo.sql has a catalogue to try with).
--
--   Run it as the owner of an empty or an existing database, as often as you like:
--       psql -d checkout -f setup.sql          (by hand)
--       make up                                (does it for you)
--   No superuser is needed. It makes four roles and their settings, which takes CREATEROLE; where the owner may not,
--   it says what an administrator has to run first. PostgreSQL 15 to 18; all of it lives in schema `public`.
--
-- How an order is stored. A row in `orders` is what a customer asked for; `order_lines` says how many of
-- what. Three steps move it forward, each in one transaction with its fence row:
--     reserve   stock is held            inventory.reserved, reservations
--     pay       money is captured        accounts.balance_minor, transfers
--     ship      a parcel leaves          inventory.on_hand, shipments
-- Each step has an undo that restores what it changed. `step_fence` holds one row per order and step: the
-- first attempt to insert it wins, and every later one reads the stored answer. An undo that finds nothing
-- to undo leaves a row all the same (a tombstone), which refuses a forward step that arrives late.
--
-- Locks are always taken in the same sequence: fence row, order row, the step's own rows, and the shared
-- stock rows last and in SKU order. Two transactions that keep to it cannot deadlock.
--
-- Money is integer minor units (cents). Instants carry a zone and come from this server's clock.
-- Constraint names are public: the service turns a violation into a refusal by its name.
-- Owned by `checkout_owner`, used by `checkout`, which may append to the ledger but never change it: see Roles.

\set ON_ERROR_STOP on
-- An error is one line, and a hint where there is one.
\set SHOW_CONTEXT never

BEGIN;

-- One more with each release that changes this file. A worker refuses a database with a lower one.
SET LOCAL checkout.schema_version = 6;

-- Independent of the caller's search_path.
SET LOCAL search_path = public, pg_temp;

-- Two runs of this file at once take turns.
SELECT pg_advisory_xact_lock(hashtext('checkout setup.sql'));

-- This file waits for no lock longer than a step does: it gives up first, and can be run again.
SET LOCAL lock_timeout = '1s';

DO $$
DECLARE
    present integer;
BEGIN
    IF current_setting('server_version_num')::integer < 150000 THEN
        RAISE EXCEPTION 'PostgreSQL % is too old: this needs 15 or newer', current_setting('server_version');
    END IF;
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'this database keeps text in %, and a reason may have characters that it does not know',
                        current_setting('server_encoding')
            USING HINT = 'Make one with: createdb --template=template0 --encoding=UTF8 checkout';
    END IF;
    IF to_regnamespace('public') IS NULL THEN
        RAISE EXCEPTION 'this database has no schema public' USING HINT = 'Run: CREATE SCHEMA public';
    END IF;
    IF to_regclass('public.schema_version') IS NOT NULL THEN
        SELECT version INTO present FROM public.schema_version;
        IF present > current_setting('checkout.schema_version')::integer THEN
            RAISE EXCEPTION 'this database has schema version %, and this file makes version %: it would take it back',
                            present, current_setting('checkout.schema_version')
                USING HINT = 'Run the setup.sql of the newest release that has run here.';
        END IF;
    END IF;
END $$;

-- For an index or a trigger: their own IF NOT EXISTS and OR REPLACE check only after they have waited for every open
-- transaction that writes to the table, and all others wait behind them.
CREATE OR REPLACE PROCEDURE pg_temp.create_once(statement text) LANGUAGE plpgsql AS $$
DECLARE
    -- Of the table in public alone: elsewhere in the database there may be another one of that name.
    target regclass := 'public.' || substring(statement FROM ' ON (\w+)');
    name text := substring(statement FROM '(?:INDEX|TRIGGER) (\w+)');
    -- What the catalogue would say of it, as far as an index's columns.
    wanted text := split_part(regexp_replace(statement, '\s+', ' ', 'g'), ' WHERE ', 1);
    found text;
    is_alive boolean;
BEGIN
    IF statement ~ '^CREATE TRIGGER' THEN
        SELECT replace(pg_get_triggerdef(t.oid), 'public.', ''), t.tgenabled IN ('O', 'A') INTO found, is_alive
          FROM pg_trigger t WHERE t.tgrelid = target AND t.tgname = name AND NOT t.tgisinternal;
        IF found IS DISTINCT FROM wanted OR NOT is_alive THEN
            EXECUTE replace(statement, 'CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER');
        END IF;
        RETURN;
    END IF;
    SELECT replace(replace(pg_get_indexdef(i.indexrelid), 'public.', ''), ' USING btree', ''), i.indisvalid
      INTO found, is_alive
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = target AND c.relname = name;
    IF found IS NULL THEN
        EXECUTE statement;
    ELSIF NOT (is_alive AND starts_with(found, wanted)) THEN
        RAISE EXCEPTION 'index % is %: it is not what this file makes', name,
                        CASE WHEN is_alive THEN found ELSE 'invalid' END
            USING HINT = format('Run DROP INDEX CONCURRENTLY public.%I, and this file again.', name);
    END IF;
END $$;

-- For a column that came later: ADD COLUMN IF NOT EXISTS waits in the same way.
CREATE OR REPLACE PROCEDURE pg_temp.add_column_once(table_name text, column_name text, definition text)
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = ('public.' || table_name)::regclass
                      AND attname = column_name AND NOT attisdropped) THEN
        EXECUTE format('ALTER TABLE public.%I ADD COLUMN %I %s', table_name, column_name, definition);
    END IF;
END $$;

-- For a constraint that has changed, or came later, as pg_get_constraintdef writes it. Existing rows are validated after
-- this transaction has ended (at the end of this file): until then every access to the table waits.
CREATE OR REPLACE PROCEDURE pg_temp.constrain_once(table_name text, name text, definition text)
LANGUAGE plpgsql AS $$
DECLARE
    found text;
BEGIN
    SELECT replace(replace(pg_get_constraintdef(oid), ' NOT VALID', ''), 'public.', '') INTO found
      FROM pg_constraint WHERE conrelid = ('public.' || table_name)::regclass AND conname = name;
    IF found IS DISTINCT FROM definition THEN
        EXECUTE format('ALTER TABLE public.%I DROP CONSTRAINT IF EXISTS %I, ADD CONSTRAINT %I %s NOT VALID',
                       table_name, name, name, definition);
    END IF;
END $$;

-- Roles -------------------------------------------------------------------------------------------------

--   checkout_owner     owns all of this; it has no login, and the role that runs this file is a member of it
--   checkout           the worker: what steps and undos change, and nothing else
--   checkout_reader    reads everything, changes nothing
--   checkout_operator  an operator with psql: products, prices, customers, zones, orders by hand, deposits, deliveries
-- Give each of the last three a password where the server asks for one:  ALTER ROLE checkout PASSWORD '…'.
-- The worker may have four fifths of the server's sessions, so that operators can still log in; another limit stays.
--
-- Settings of the worker.
-- The timeouts are nested on purpose: waiting for a lock ends before the statement. A step is one statement, and ends
-- before its attempt times out (5 s); an undo is a transaction of a few, and ends before its own attempt does (10 s).
-- Ten round trips fit into it even when each takes most of a second: where none fits, no undo would ever commit.
-- An attempt that has timed out ends soon after, and until then the fence keeps it harmless.
-- transaction_timeout is 17's: below that, the service ends such a transaction itself (adapters/database.py).
-- A server busy with a statement notices within a second that its client was killed.
-- A plan that was made while a table was small is kept while it grows, until the table is analyzed: a step, which reads
-- a few keys, must not read all of it until then.
DO $$
DECLARE
    settings CONSTANT text[] := ARRAY[
        'search_path=public',
        'lock_timeout=1500ms',
        'statement_timeout=3s',
        'transaction_timeout=9s',
        'idle_in_transaction_session_timeout=5s',
        'client_connection_check_interval=1s',
        'enable_seqscan=off'
    ];
    connections CONSTANT integer := greatest(current_setting('max_connections')::integer * 4 / 5, 1);
    is_superuser CONSTANT boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
    -- Membership is not enough from 16 on: it may be without the right to give the owner something.
    to_be_owner CONSTANT text := CASE WHEN current_setting('server_version_num')::integer < 160000
                                      THEN 'MEMBER' ELSE 'SET' END;
    statements text[];
    statement text;
BEGIN
    SELECT coalesce(array_agg(format('CREATE ROLE %I %s', name, attributes)), '{}') INTO statements
      FROM (VALUES ('checkout_owner', 'NOLOGIN'), ('checkout', 'LOGIN CONNECTION LIMIT ' || connections),
                   ('checkout_reader', 'LOGIN'), ('checkout_operator', 'LOGIN')) AS wanted (name, attributes)
     WHERE to_regrole(name) IS NULL;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'checkout' AND rolconnlimit = -1) THEN
        statements := statements || ('ALTER ROLE checkout CONNECTION LIMIT ' || connections);
    END IF;
    IF NOT is_superuser AND (to_regrole('checkout_owner') IS NULL
                             OR NOT pg_has_role(to_regrole('checkout_owner')::oid, to_be_owner)) THEN
        statements := statements || format('GRANT checkout_owner TO %I', current_user);
    END IF;
    SELECT statements || coalesce(array_agg(format('ALTER ROLE checkout SET %I = %L', known.name, split_part(each, '=', 2))), '{}')
      INTO statements
      FROM unnest(settings) AS each JOIN pg_settings known ON known.name = split_part(each, '=', 1)
     WHERE NOT EXISTS (
           SELECT FROM pg_db_role_setting s
            WHERE s.setrole = to_regrole('checkout') AND s.setdatabase = 0 AND each = ANY (s.setconfig));
    FOREACH statement IN ARRAY statements LOOP
        FOR attempt IN 1..20 LOOP
            BEGIN
                EXECUTE statement;
                EXIT;
            -- A role belongs to the whole server: another of its databases is being set up right now.
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN EXIT;
                WHEN internal_error THEN
                    IF attempt = 20 THEN RAISE; END IF;
                    PERFORM pg_sleep(0.05);
            END;
        END LOOP;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION '% may not make or change the checkout''s roles: %', current_user, SQLERRM
        USING HINT = 'Have an administrator run this, and then this file again: ' || array_to_string(statements, '; ') || ';';
END $$;

-- The database and the schema are for these roles alone. Each is checked first: where nothing has to be done, nothing
-- is written, and an owner of the schema alone gets no warning about the database.
DO $$
DECLARE
    rights CONSTANT text := '
        SELECT grantee, privilege_type FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault(''d'', d.datdba)))
         WHERE d.datname = current_database() AND grantee <> d.datdba
        UNION ALL
        SELECT grantee, privilege_type FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault(''n'', n.nspowner)))
         WHERE n.nspname = ''public''';
    wanted CONSTANT text := '
        SELECT to_regrole(name)::oid, right_ FROM (VALUES
            (''checkout_owner'', ''USAGE''), (''checkout_owner'', ''CREATE''),
            (''checkout'', ''CONNECT''), (''checkout'', ''USAGE''),
            (''checkout_reader'', ''CONNECT''), (''checkout_reader'', ''USAGE''),
            (''checkout_operator'', ''CONNECT''), (''checkout_operator'', ''USAGE'')) AS w (name, right_)';
    is_done boolean;
BEGIN
    EXECUTE format('SELECT NOT EXISTS (%s EXCEPT (%s)) AND NOT EXISTS (SELECT FROM (%s) AS r WHERE grantee = 0)',
                   wanted, rights, rights) INTO is_done;
    IF is_done THEN RETURN; END IF;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO checkout, checkout_reader, checkout_operator', current_database());
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    GRANT USAGE ON SCHEMA public TO checkout, checkout_reader, checkout_operator;
    GRANT USAGE, CREATE ON SCHEMA public TO checkout_owner;
    EXECUTE format('SELECT NOT EXISTS (%s EXCEPT (%s)) AND NOT EXISTS (SELECT FROM (%s) AS r WHERE grantee = 0)',
                   wanted, rights, rights) INTO is_done;
    IF NOT is_done THEN
        RAISE WARNING '% may not decide who gets into database % or its schema public, and others than the checkout''s roles may',
                      current_user, current_database()
            USING HINT = format('Have the owner of both, or an administrator, run this: REVOKE ALL ON DATABASE %1$I FROM PUBLIC; '
                                'GRANT CONNECT ON DATABASE %1$I TO checkout, checkout_reader, checkout_operator; '
                                'GRANT CONNECT, TEMP ON DATABASE %1$I TO %2$I; '
                                'REVOKE ALL ON SCHEMA public FROM PUBLIC; '
                                'GRANT USAGE ON SCHEMA public TO checkout, checkout_reader, checkout_operator; '
                                'GRANT USAGE, CREATE ON SCHEMA public TO checkout_owner;', current_database(), current_user);
    END IF;
END $$;

-- What an earlier version made belongs to the role that ran it. Each of these locks its table for an instant.
DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('ALTER TABLE public.%I OWNER TO checkout_owner', relname) FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relowner <> 'checkout_owner'::regrole
           AND relname IN ('schema_version', 'currencies', 'products', 'inventory', 'delivery_zones', 'accounts', 'transfers',
                           'orders', 'order_lines', 'reservations', 'shipments', 'step_fence', 'order_events', 'incidents',
                           'audit_events')
        UNION ALL
        SELECT format('ALTER FUNCTION %s OWNER TO checkout_owner', oid::regprocedure) FROM pg_proc
         WHERE pronamespace = 'public'::regnamespace AND proowner <> 'checkout_owner'::regrole
           AND proname IN ('order_may_move', 'order_stays_completed', 'orders_move', 'orders_log_move')
    LOOP
        EXECUTE statement;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION '% does not own what is there already: %', current_user, SQLERRM
        USING HINT = 'Run this file as the owner of the tables, or as an administrator.';
END $$;

-- All that follows is made by the owner, and so is the owner's.
GRANT EXECUTE ON PROCEDURE pg_temp.create_once, pg_temp.add_column_once, pg_temp.constrain_once TO checkout_owner;
SET LOCAL ROLE checkout_owner;

-- Which version of this file ran last. One row.
CREATE TABLE IF NOT EXISTS schema_version (
    is_the_row boolean PRIMARY KEY DEFAULT true,
    version    integer NOT NULL,
    CONSTRAINT schema_version_is_one_row CHECK (is_the_row)
);
INSERT INTO schema_version AS present (version) VALUES (current_setting('checkout.schema_version')::integer)
    ON CONFLICT (is_the_row) DO UPDATE SET version = excluded.version WHERE present.version < excluded.version;

-- What can be an order's id, a customer or a SKU: domain/identifiers.py describes it, a test compares the two. The
-- ranges are listed, because regular expressions know classes of characters by the collation, Unicode by its version.
CREATE OR REPLACE FUNCTION is_identifier(value text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT char_length(value) BETWEEN 1 AND 128 AND value NOT LIKE ' %' AND value NOT LIKE '% '
           AND value COLLATE "C" !~ '[\u0001-\u001F\u007F-\u00A0\u00AD\u0600-\u0605\u061C\u06DD\u070F\u0890-\u0891\u08E2\u1680\u180E\u2000-\u200F\u2028-\u202F\u205F-\u206F\u3000\uD800-\uF8FF\uFDD0-\uFDEF\uFEFF\uFFF0-\uFFFB\uFFFE-\uFFFF\U000110BD\U000110CD\U00013430-\U0001343F\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U0001FFFE-\U0001FFFF\U0002FFFE-\U0002FFFF\U0003FFFE-\U0003FFFF\U0004FFFE-\U0004FFFF\U0005FFFE-\U0005FFFF\U0006FFFE-\U0006FFFF\U0007FFFE-\U0007FFFF\U0008FFFE-\U0008FFFF\U0009FFFE-\U0009FFFF\U000AFFFE-\U000AFFFF\U000BFFFE-\U000BFFFF\U000CFFFE-\U000CFFFF\U000DFFFE-\U000DFFFF\U000E0000-\U000E00FF\U000E01F0-\U000E0FFF\U000EFFFE-\U0010FFFF\u05C8-\u05C9\u0897\u1ACF-\u1AF0\U000105C9\U000105D2\U000105DA\U000105E4\U00010D69-\U00010D6D\U00010ECB-\U00010ECF\U00010EF0-\U00010EFB\U00010EFD-\U00010EFF\U00011382-\U00011385\U0001138B\U0001138E\U00011390-\U00011391\U000113B8\U000113BB\U000113C2\U000113C5\U000113C7-\U000113C9\U000113CE-\U000113D0\U00011F41-\U00011F42\U0001611E-\U00016129\U0001612F\U00016D63\U00016D67-\U00016D6A\U0001D127-\U0001D128\U0001D250-\U0001D252\U0001D25B-\U0001D25C\U0001D25F\U0001D280-\U0001D281\U0001E08F\U0001E4EC-\U0001E4EF\U0001E5EE-\U0001E5EF\U0001E6E3\U0001E6E6\U0001E6EE-\U0001E6EF\U0001E6F5]'
           AND value IS NFC NORMALIZED
$$;

-- Catalogue ---------------------------------------------------------------------------------------------

-- ISO 4217: which currencies there are, and how many decimals their amounts have. `python -m tests.record_currencies`
-- writes these rows. What the standard has withdrawn since stays until the shop deletes it.
CREATE TABLE IF NOT EXISTS currencies (
    code        text     PRIMARY KEY,
    minor_units smallint NOT NULL,
    CONSTRAINT currencies_code_is_iso CHECK (code ~ '^[A-Z]{3}$'),
    CONSTRAINT currencies_minor_units_in_range CHECK (minor_units BETWEEN 0 AND 4)
);
INSERT INTO currencies (code, minor_units) VALUES
    ('AED', 2), ('AFN', 2), ('ALL', 2), ('AMD', 2), ('AOA', 2), ('ARS', 2), ('AUD', 2), ('AWG', 2), ('AZN', 2),
    ('BAM', 2), ('BBD', 2), ('BDT', 2), ('BHD', 3), ('BIF', 0), ('BMD', 2), ('BND', 2), ('BOB', 2), ('BOV', 2),
    ('BRL', 2), ('BSD', 2), ('BTN', 2), ('BWP', 2), ('BYN', 2), ('BZD', 2), ('CAD', 2), ('CDF', 2), ('CHE', 2),
    ('CHF', 2), ('CHW', 2), ('CLF', 4), ('CLP', 0), ('CNY', 2), ('COP', 2), ('COU', 2), ('CRC', 2), ('CUP', 2),
    ('CVE', 2), ('CZK', 2), ('DJF', 0), ('DKK', 2), ('DOP', 2), ('DZD', 2), ('EGP', 2), ('ERN', 2), ('ETB', 2),
    ('EUR', 2), ('FJD', 2), ('FKP', 2), ('GBP', 2), ('GEL', 2), ('GHS', 2), ('GIP', 2), ('GMD', 2), ('GNF', 0),
    ('GTQ', 2), ('GYD', 2), ('HKD', 2), ('HNL', 2), ('HTG', 2), ('HUF', 2), ('IDR', 2), ('ILS', 2), ('INR', 2),
    ('IQD', 3), ('IRR', 2), ('ISK', 0), ('JMD', 2), ('JOD', 3), ('JPY', 0), ('KES', 2), ('KGS', 2), ('KHR', 2),
    ('KMF', 0), ('KPW', 2), ('KRW', 0), ('KWD', 3), ('KYD', 2), ('KZT', 2), ('LAK', 2), ('LBP', 2), ('LKR', 2),
    ('LRD', 2), ('LSL', 2), ('LYD', 3), ('MAD', 2), ('MDL', 2), ('MGA', 2), ('MKD', 2), ('MMK', 2), ('MNT', 2),
    ('MOP', 2), ('MRU', 2), ('MUR', 2), ('MVR', 2), ('MWK', 2), ('MXN', 2), ('MXV', 2), ('MYR', 2), ('MZN', 2),
    ('NAD', 2), ('NGN', 2), ('NIO', 2), ('NOK', 2), ('NPR', 2), ('NZD', 2), ('OMR', 3), ('PAB', 2), ('PEN', 2),
    ('PGK', 2), ('PHP', 2), ('PKR', 2), ('PLN', 2), ('PYG', 0), ('QAR', 2), ('RON', 2), ('RSD', 2), ('RUB', 2),
    ('RWF', 0), ('SAR', 2), ('SBD', 2), ('SCR', 2), ('SDG', 2), ('SEK', 2), ('SGD', 2), ('SHP', 2), ('SLE', 2),
    ('SOS', 2), ('SRD', 2), ('SSP', 2), ('STN', 2), ('SVC', 2), ('SYP', 2), ('SZL', 2), ('THB', 2), ('TJS', 2),
    ('TMT', 2), ('TND', 3), ('TOP', 2), ('TRY', 2), ('TTD', 2), ('TWD', 2), ('TZS', 2), ('UAH', 2), ('UGX', 0),
    ('USD', 2), ('USN', 2), ('UYI', 0), ('UYU', 2), ('UYW', 4), ('UZS', 2), ('VED', 2), ('VES', 2), ('VND', 0),
    ('VUV', 0), ('WST', 2), ('XAD', 2), ('XAF', 0), ('XCD', 2), ('XCG', 2), ('XOF', 0), ('XPF', 0), ('YER', 2),
    ('ZAR', 2), ('ZMW', 2), ('ZWG', 2)
ON CONFLICT DO NOTHING;

-- What is sold, at the price the server charges. Rows do not change while orders refer to them.
CREATE TABLE IF NOT EXISTS products (
    sku              text   PRIMARY KEY,
    name             text   NOT NULL,
    unit_price_minor bigint NOT NULL,
    currency         text   NOT NULL DEFAULT 'EUR',
    CONSTRAINT products_sku_is_printable CHECK (is_identifier(sku)),
    -- Nothing is free; a house has a price in rupiah and in dong; 100 lines of 1 000 units fit into a total.
    CONSTRAINT products_price_in_range CHECK (unit_price_minor BETWEEN 1 AND 10000000000000),
    CONSTRAINT products_currency_is_iso CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT products_currency_is_known FOREIGN KEY (currency) REFERENCES currencies
);

-- How much there is. `on_hand` is on the shelf, `reserved` is the part of it that open orders hold; free
-- stock is the difference. Hot rows: half-empty pages and no second index keep their updates in place.
CREATE TABLE IF NOT EXISTS inventory (
    sku      text   PRIMARY KEY REFERENCES products,
    initial  bigint NOT NULL DEFAULT 0,  -- on the shelf when counting began
    received bigint NOT NULL DEFAULT 0,  -- delivered since
    on_hand  bigint NOT NULL,
    reserved bigint NOT NULL DEFAULT 0,
    -- No more is reserved than is on hand: the guard that refuses an oversell.
    CONSTRAINT inventory_never_oversold CHECK (reserved <= on_hand),
    CONSTRAINT inventory_never_negative CHECK (on_hand >= 0 AND reserved >= 0 AND initial >= 0 AND received >= 0)
) WITH (fillfactor = 50);

-- Where parcels go. A zone that is missing here, or not served, cannot be delivered to.
CREATE TABLE IF NOT EXISTS delivery_zones (
    zone       text    PRIMARY KEY,
    carrier    text    NOT NULL,
    is_served  boolean NOT NULL DEFAULT true,
    -- A courier takes the parcel with the label: from then on it is irrevocable. Elsewhere the label waits
    -- for a collection and can still be cancelled.
    hands_over_at_once boolean NOT NULL DEFAULT true
);

-- Money -------------------------------------------------------------------------------------------------

-- Customers, with the balance they can spend, and the two house accounts `bank` and `shop`. A house account
-- has no running balance: it would be the one row that every payment of the day waits for. Sum its transfers.
CREATE TABLE IF NOT EXISTS accounts (
    account_id    text   PRIMARY KEY,
    kind          text   NOT NULL,
    name          text   NOT NULL,
    balance_minor bigint          DEFAULT 0, -- a customer is opened with nothing
    currency      text   NOT NULL DEFAULT 'EUR',
    delivery_zone text,
    CONSTRAINT accounts_id_is_printable CHECK (is_identifier(account_id)),
    CONSTRAINT accounts_kind_is_known CHECK (kind IN ('customer', 'house')),
    -- Exactly the customers carry a balance.
    CONSTRAINT accounts_balance_is_a_customers CHECK ((balance_minor IS NOT NULL) = (kind = 'customer')),
    -- No balance falls below zero: the guard that declines a payment.
    CONSTRAINT accounts_never_overdrawn CHECK (balance_minor >= 0),
    CONSTRAINT accounts_currency_is_iso CHECK (currency ~ '^[A-Z]{3}$'),
    -- An order and its transfers have the currency of what was sold. A foreign key there would have each order lock this row.
    CONSTRAINT accounts_currency_is_known FOREIGN KEY (currency) REFERENCES currencies
) WITH (fillfactor = 50);

-- A database from before customers were opened with nothing.
DO $$ BEGIN
    IF NOT (SELECT atthasdef FROM pg_attribute WHERE attrelid = 'public.accounts'::regclass AND attname = 'balance_minor') THEN
        ALTER TABLE public.accounts ALTER COLUMN balance_minor SET DEFAULT 0;
    END IF;
END $$;

-- The ledger: one row moves one amount from one account (debit) to another (credit), so an unbalanced entry
-- cannot be written down. Rows are only ever added.
CREATE TABLE IF NOT EXISTS transfers (
    transfer_id    text        PRIMARY KEY,
    order_id       text,
    kind           text        NOT NULL,
    debit_account  text        NOT NULL REFERENCES accounts,
    credit_account text        NOT NULL REFERENCES accounts,
    amount_minor   bigint      NOT NULL,
    currency       text        NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT transfers_kind_is_known CHECK (kind IN ('deposit', 'capture', 'refund')),
    CONSTRAINT transfers_amount_is_positive CHECK (amount_minor > 0),
    CONSTRAINT transfers_between_two_accounts CHECK (debit_account <> credit_account),
    -- A deposit comes from the bank, a capture goes to the shop, a refund comes back from it.
    CONSTRAINT transfers_sides_fit_the_kind CHECK (
        CASE kind WHEN 'deposit' THEN debit_account = 'bank' AND order_id IS NULL
                  WHEN 'capture' THEN credit_account = 'shop' AND order_id IS NOT NULL
                  WHEN 'refund'  THEN debit_account = 'shop' AND order_id IS NOT NULL END)
);
-- At most one capture and one refund per order.
CALL pg_temp.create_once('CREATE UNIQUE INDEX transfers_once_per_order ON transfers (order_id, kind) WHERE order_id IS NOT NULL');
CALL pg_temp.create_once('CREATE INDEX transfers_by_debit ON transfers (debit_account)');
CALL pg_temp.create_once('CREATE INDEX transfers_by_credit ON transfers (credit_account)');

-- Orders ------------------------------------------------------------------------------------------------

-- What was asked for, and its status. Neither the customer nor a SKU is a foreign key: a refused order
-- keeps what was asked, even when we know neither. Written by the first step, or by hand as `pending`
-- (order_id, customer and lines, in one transaction, are enough; `starter.py sweep` then starts its saga).
CREATE TABLE IF NOT EXISTS orders (
    order_id    text        PRIMARY KEY,
    customer    text        NOT NULL,
    status      text        NOT NULL DEFAULT 'pending',
    changed_by  text        NOT NULL DEFAULT 'accept', -- the step or undo that set the status
    reason      text,                                  -- why it was refused, cancelled or parked
    ending      text,                                  -- where an unwind is heading: rejected or cancelled
    fingerprint text,                                  -- of customer and lines; null until a saga has seen it
    total_minor bigint,                                -- priced by the server in reserve
    currency    text,
    event_seq   integer     NOT NULL DEFAULT 0,        -- number of its newest row in order_events
    batch_workflow_id text,                            -- of the batch that brought it; null: its own saga did
    shipped_by  text,                                  -- the workflow run that completed it
    taken_back_by text,                                -- who took it back from completed: `cancel`, or that same run
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT orders_id_is_printable CHECK (is_identifier(order_id)),
    CONSTRAINT orders_customer_is_printable CHECK (is_identifier(customer)),
    CONSTRAINT orders_status_is_known CHECK (status IN (
        'pending',    -- accepted by hand, no step has run
        'reserved',   -- stock is held
        'paid',       -- and the money is captured
        'completed',  -- and the parcel is on its way: the good ending
        'unwinding',  -- at least one undo has run
        'stuck',      -- an undo keeps failing; an operator is needed (see incidents)
        'rejected',   -- ended: refused for a business reason, nothing kept
        'cancelled'   -- ended: asked for, nothing kept
    )),
    CONSTRAINT orders_ending_is_known CHECK (ending IN ('rejected', 'cancelled')),
    CONSTRAINT orders_reason_is_bounded CHECK (length(reason) <= 1000),
    CONSTRAINT orders_total_is_positive CHECK (total_minor > 0),
    -- An order that holds stock or money knows its price.
    CONSTRAINT orders_priced_when_reserved CHECK (
        status NOT IN ('reserved', 'paid', 'completed') OR (total_minor IS NOT NULL AND currency IS NOT NULL))
) WITH (fillfactor = 70);
-- A database from before there were batches, or from before a completed order had its shipping run. Checked first:
-- the statement would wait for every open write.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.orders'::regclass AND attname = 'carrier') THEN
        ALTER TABLE public.orders RENAME COLUMN carrier TO batch_workflow_id;  -- its name until version 6
    END IF;
END $$;
CALL pg_temp.add_column_once('orders', 'batch_workflow_id', 'text');
CALL pg_temp.add_column_once('orders', 'shipped_by', 'text');
CALL pg_temp.add_column_once('orders', 'taken_back_by', 'text');
-- The sweep reads this, and only what is unfinished, page by page: thousands of orders that one statement wrote have one
-- instant. An index without their ids, of an earlier version, is dropped.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('public.orders_unfinished') AND indnatts = 1) THEN
        DROP INDEX public.orders_unfinished;
    END IF;
END $$;
CALL pg_temp.create_once($$CREATE INDEX orders_unfinished ON orders (updated_at, order_id)
    WHERE status IN ('pending', 'reserved', 'paid', 'unwinding', 'stuck')$$);

-- The API's lists, the newest first: a page costs the same however many orders there are. On a large table make them
-- before, with CREATE INDEX CONCURRENTLY: docs/upgrades.md.
CALL pg_temp.create_once('CREATE INDEX orders_by_status ON orders (status, created_at, order_id)');
CALL pg_temp.create_once('CREATE INDEX orders_by_customer ON orders (customer, status, created_at, order_id)');

CREATE TABLE IF NOT EXISTS order_lines (
    order_id         text    NOT NULL REFERENCES orders,
    sku              text    NOT NULL,
    quantity         integer NOT NULL,
    unit_price_minor bigint,  -- frozen by reserve; null while nobody has priced it
    PRIMARY KEY (order_id, sku),
    CONSTRAINT order_lines_sku_is_printable CHECK (is_identifier(sku)),
    CONSTRAINT order_lines_quantity_in_range CHECK (quantity BETWEEN 1 AND 1000)
);

-- Stock that an order has a claim on.
CREATE TABLE IF NOT EXISTS reservations (
    order_id text    NOT NULL REFERENCES orders,
    sku      text    NOT NULL REFERENCES products,
    quantity integer NOT NULL,
    state    text    NOT NULL DEFAULT 'held',
    PRIMARY KEY (order_id, sku),
    CONSTRAINT reservations_quantity_is_positive CHECK (quantity > 0),
    CONSTRAINT reservations_state_is_known CHECK (state IN (
        'held',      -- counted in inventory.reserved
        'consumed',  -- shipped: gone from inventory.on_hand
        'released'   -- given back
    ))
);
CALL pg_temp.create_once($$CREATE INDEX reservations_by_sku ON reservations (sku) WHERE state <> 'released'$$);

-- At most one parcel per order.
CREATE TABLE IF NOT EXISTS shipments (
    order_id        text        PRIMARY KEY REFERENCES orders,
    tracking_number text        NOT NULL UNIQUE,
    carrier         text        NOT NULL,
    zone            text        NOT NULL,
    state           text        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    handed_over_at  timestamptz,
    CONSTRAINT shipments_state_is_known CHECK (state IN (
        'label',        -- waits for the carrier; can be cancelled
        'handed_over',  -- irrevocable: the point of no return
        'cancelled'
    )),
    CONSTRAINT shipments_handed_over_has_an_instant CHECK ((state = 'handed_over') = (handed_over_at IS NOT NULL))
);

-- The fence ---------------------------------------------------------------------------------------------

-- One row per saga and step, written in the transaction of its effect; here the saga's id is the order's.
-- No foreign key: a tombstone may come before its order.
CREATE TABLE IF NOT EXISTS step_fence (
    saga_id     text        NOT NULL,
    step        text        NOT NULL,
    phase       text        NOT NULL,
    had_effect  boolean     NOT NULL,  -- false: a tombstone, its step never ran and never will
    fingerprint text        NOT NULL,  -- of the request; the same key with another one is refused
    result      jsonb,                 -- what the first attempt answered, and every later one repeats
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (saga_id, step),
    CONSTRAINT step_fence_phase_is_known CHECK (phase IN (
        'done',     -- the step's effect stands
        'undone',   -- it was reversed, or there was none
        'resolved'  -- an operator vouches that it was settled by hand
    )),
    CONSTRAINT step_fence_done_had_effect CHECK (phase <> 'done' OR (had_effect AND result IS NOT NULL))
) WITH (fillfactor = 70);

-- Events and incidents ------------------------------------------------------------------------------------

-- Every change of an order's status and every act of an operator, numbered per order without a gap, written
-- in the transaction of the change. saga.log is made from it. `txid` lets a reader of the events know
-- which rows can no longer be overtaken by a transaction that began earlier and commits later.
CREATE TABLE IF NOT EXISTS order_events (
    event_id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    txid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    order_id        text        NOT NULL REFERENCES orders,
    seq             integer     NOT NULL,
    event           text        NOT NULL,  -- the new status, or retry_requested / step_resolved
    previous_status text,                  -- null for the first
    status          text        NOT NULL,
    changed_by      text        NOT NULL,
    reason          text,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT order_events_numbered_once UNIQUE (order_id, seq)
);
CALL pg_temp.create_once('CREATE INDEX order_events_in_commit_order ON order_events (txid, event_id)');

-- An order that is stuck, until an operator or a later retry has resolved it.
CREATE TABLE IF NOT EXISTS incidents (
    incident_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    text        NOT NULL REFERENCES orders,
    steps       text[]      NOT NULL,  -- whose undo keeps failing
    cause       text        NOT NULL,  -- what the undo said
    opened_at   timestamptz NOT NULL DEFAULT now(),
    closed_at   timestamptz,
    resolution  text,
    needs_review boolean    NOT NULL DEFAULT false,  -- nothing is undone until an operator has asked for it
    CONSTRAINT incidents_name_a_step CHECK (cardinality(steps) > 0),
    CONSTRAINT incidents_closed_with_a_resolution CHECK ((closed_at IS NULL) = (resolution IS NULL))
);
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.incidents'::regclass
                      AND attname = 'needs_review' AND NOT attisdropped) THEN
        CALL pg_temp.add_column_once('incidents', 'needs_review', 'boolean NOT NULL DEFAULT false');
        -- An order that an earlier version parked for a review keeps it.
        UPDATE public.incidents SET needs_review = true
         WHERE closed_at IS NULL AND cause LIKE 'DatabaseContradictsHistory: %';
    END IF;
END $$;
-- One order has one open incident at most.
CALL pg_temp.create_once('CREATE UNIQUE INDEX incidents_one_open_per_order ON incidents (order_id) WHERE closed_at IS NULL');

-- What the audit found wrong, and when that was over, one row each. saga.log has it between the orders' events, so both
-- number theirs from one sequence.
CREATE TABLE IF NOT EXISTS audit_events (
    event_id bigint      PRIMARY KEY DEFAULT nextval(pg_get_serial_sequence('public.order_events', 'event_id')),
    txid     xid8        NOT NULL DEFAULT pg_current_xact_id(),
    check_id text        NOT NULL,  -- of activities/audit.sql
    subject  text        NOT NULL,  -- the order, SKU or account that is wrong
    event    text        NOT NULL,
    detail   text        NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT audit_events_event_is_known CHECK (event IN ('violated', 'cleared'))
);
CALL pg_temp.create_once('CREATE INDEX audit_events_in_commit_order ON audit_events (txid, event_id)');

-- A database of an earlier version: its ids were of a stricter kind, its prices lower, its currencies any three letters.
CALL pg_temp.constrain_once('orders', 'orders_id_is_printable', 'CHECK (is_identifier(order_id))');
CALL pg_temp.constrain_once('orders', 'orders_customer_is_printable', 'CHECK (is_identifier(customer))');
CALL pg_temp.constrain_once('order_lines', 'order_lines_sku_is_printable', 'CHECK (is_identifier(sku))');
CALL pg_temp.constrain_once('products', 'products_sku_is_printable', 'CHECK (is_identifier(sku))');
CALL pg_temp.constrain_once('accounts', 'accounts_id_is_printable', 'CHECK (is_identifier(account_id))');
CALL pg_temp.constrain_once('products', 'products_price_in_range',
    $$CHECK (((unit_price_minor >= 1) AND (unit_price_minor <= '10000000000000'::bigint)))$$);
CALL pg_temp.constrain_once('products', 'products_currency_is_known',
    'FOREIGN KEY (currency) REFERENCES currencies(code)');
CALL pg_temp.constrain_once('accounts', 'accounts_currency_is_known',
    'FOREIGN KEY (currency) REFERENCES currencies(code)');

-- The state machine -------------------------------------------------------------------------------------

-- Which status may follow which. `rejected` and `cancelled` absorb; `completed` does so once the parcel is
-- handed over. Before that its label can be cancelled, or, if that keeps failing, the order be parked, where
-- order_stays_completed allows it.
CREATE OR REPLACE FUNCTION order_may_move(previous text, next text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE coalesce(previous, 'new')
        WHEN 'new'       THEN next IN ('pending', 'reserved', 'rejected', 'cancelled', 'stuck')
        WHEN 'pending'   THEN next IN ('reserved', 'unwinding', 'rejected', 'cancelled', 'stuck')
        WHEN 'reserved'  THEN next IN ('paid', 'unwinding', 'stuck')
        WHEN 'paid'      THEN next IN ('completed', 'unwinding', 'stuck')
        WHEN 'completed' THEN next IN ('unwinding', 'stuck')
        WHEN 'unwinding' THEN next IN ('rejected', 'cancelled', 'stuck')
        WHEN 'stuck'     THEN next IN ('unwinding', 'rejected', 'cancelled', 'completed')
        ELSE false END
$$;

-- Whether a completed order stays completed: unless a cancel was requested (`cancel`), or the workflow run that shipped it
-- takes it back itself. The steps' undos call it before they begin; the trigger below calls it at every move.
CREATE OR REPLACE FUNCTION order_stays_completed(status text, shipped_by text, taken_back_by text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT status = 'completed' AND coalesce(taken_back_by <> 'cancel', true)
           AND coalesce(taken_back_by <> shipped_by, true)
$$;

-- Refuses an illegal move and numbers a legal one. An update that leaves the status as it is passes.
CREATE OR REPLACE FUNCTION orders_move() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- All three moves at once, behind all three fences.
    IF TG_OP = 'INSERT' AND NEW.status = 'completed' AND 3 = (
           SELECT count(*) FROM public.step_fence f WHERE f.saga_id = NEW.order_id AND f.phase = 'done') THEN
        NEW.event_seq := 3;
    ELSIF TG_OP = 'INSERT' THEN
        IF NOT public.order_may_move(NULL, NEW.status) THEN
            RAISE EXCEPTION 'order % cannot begin as %', NEW.order_id, NEW.status
                USING ERRCODE = '23514', CONSTRAINT = 'orders_moves_are_legal', TABLE = 'orders';
        END IF;
        NEW.event_seq := 1;
    ELSIF NEW.status <> OLD.status THEN
        IF NOT public.order_may_move(OLD.status, NEW.status)
           OR public.order_stays_completed(OLD.status, OLD.shipped_by, NEW.taken_back_by)
           OR (OLD.status = 'completed' AND EXISTS (
                   SELECT FROM public.shipments s WHERE s.order_id = NEW.order_id AND s.state = 'handed_over')) THEN
            RAISE EXCEPTION 'order % cannot move from % to %', NEW.order_id, OLD.status, NEW.status
                USING ERRCODE = '23514', CONSTRAINT = 'orders_moves_are_legal', TABLE = 'orders';
        END IF;
        NEW.event_seq := OLD.event_seq + 1;
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END $$;

-- Writes the event of every move: of the service, the sweep or an operator with psql. As the owner, since none of them
-- may write an event.
CREATE OR REPLACE FUNCTION orders_log_move() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' AND NEW.status = 'completed' THEN
        INSERT INTO public.order_events (order_id, seq, event, previous_status, status, changed_by)
        VALUES (NEW.order_id, 1, 'reserved', NULL, 'reserved', 'reserve'),
               (NEW.order_id, 2, 'paid', 'reserved', 'paid', 'pay'),
               (NEW.order_id, 3, 'completed', 'paid', 'completed', NEW.changed_by);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO public.order_events (order_id, seq, event, previous_status, status, changed_by, reason)
        VALUES (NEW.order_id, NEW.event_seq, NEW.status, NULL, NEW.status, NEW.changed_by, NEW.reason);
    ELSIF NEW.status <> OLD.status THEN
        INSERT INTO public.order_events (order_id, seq, event, previous_status, status, changed_by, reason)
        VALUES (NEW.order_id, NEW.event_seq, NEW.status, OLD.status, NEW.status, NEW.changed_by, NEW.reason);
    END IF;
    RETURN NULL;
END $$;

-- Writes the event of an operator's request that moves nothing, once per reason. The worker's only way to write an event
-- of its own.
CREATE OR REPLACE FUNCTION note_on_order(noted_order text, noted_event text, noted_reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF noted_event IS NULL OR noted_event NOT IN ('retry_requested', 'step_resolved') THEN
        RAISE EXCEPTION '% is no event of a person', coalesce(noted_event, 'nothing') USING ERRCODE = '22023';
    END IF;
    WITH numbered AS (
        UPDATE public.orders o SET event_seq = o.event_seq + 1
         WHERE o.order_id = noted_order AND NOT EXISTS (
               SELECT FROM public.order_events e
                WHERE e.order_id = noted_order AND e.event = noted_event AND e.reason = noted_reason)
        RETURNING o.event_seq, o.status
    )
    INSERT INTO public.order_events (order_id, seq, event, previous_status, status, changed_by, reason)
    SELECT noted_order, event_seq, noted_event, status, status, 'operator', noted_reason FROM numbered;
END $$;

-- Only an operator deposits money, never a step. The trigger is for deposits alone: a capture or a refund costs nothing.
CREATE OR REPLACE FUNCTION transfers_refuse_deposit() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT pg_has_role(current_user, 'checkout_owner', 'MEMBER') THEN
        RAISE EXCEPTION 'permission denied: role % may not write a deposit', current_user USING ERRCODE = '42501';
    END IF;
    RETURN NEW;
END $$;

CALL pg_temp.create_once('CREATE TRIGGER orders_move BEFORE INSERT OR UPDATE OF status ON orders
    FOR EACH ROW EXECUTE FUNCTION orders_move()');
CALL pg_temp.create_once('CREATE TRIGGER orders_log_move AFTER INSERT OR UPDATE OF status ON orders
    FOR EACH ROW EXECUTE FUNCTION orders_log_move()');
CALL pg_temp.create_once($$CREATE TRIGGER transfers_refuse_deposit BEFORE INSERT ON transfers
    FOR EACH ROW WHEN ((new.kind = 'deposit'::text)) EXECUTE FUNCTION transfers_refuse_deposit()$$);

-- Rights ------------------------------------------------------------------------------------------------

-- Begins with none: what an earlier version or an operator granted on the owner's tables, sequences and functions goes.
DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('REVOKE ALL ON %s %s FROM PUBLIC, checkout, checkout_reader, checkout_operator',
                      CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, oid::regclass)
          FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relowner = 'checkout_owner'::regrole
           AND relkind IN ('r', 'p', 'v', 'S')
        UNION ALL
        SELECT format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, checkout, checkout_reader, checkout_operator',
                      oid::regprocedure)
          FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proowner = 'checkout_owner'::regrole
    LOOP
        EXECUTE statement;
    END LOOP;
END $$;

GRANT SELECT ON currencies, products, inventory, delivery_zones, accounts, transfers, orders, order_lines, reservations,
             shipments, step_fence, order_events, incidents, audit_events, schema_version
             TO checkout, checkout_reader, checkout_operator;
-- The audit calls it, and so does the trigger on orders.
GRANT EXECUTE ON FUNCTION order_may_move TO checkout, checkout_reader, checkout_operator;
-- Constraints call it as the role that writes.
GRANT EXECUTE ON FUNCTION is_identifier TO checkout, checkout_operator;

-- The worker. Deposits are refused by their trigger; events are written by the owner's functions.
GRANT INSERT ON orders, order_lines, reservations, transfers, shipments, step_fence, incidents TO checkout;
GRANT INSERT (check_id, subject, event, detail) ON audit_events TO checkout;
GRANT UPDATE (on_hand, reserved) ON inventory TO checkout;
GRANT UPDATE (balance_minor) ON accounts TO checkout;
GRANT UPDATE (status, changed_by, reason, ending, fingerprint, total_minor, currency, updated_at,
              shipped_by, taken_back_by) ON orders TO checkout;
GRANT UPDATE (unit_price_minor) ON order_lines TO checkout;
GRANT UPDATE (state) ON reservations TO checkout;
GRANT UPDATE (state, handed_over_at) ON shipments TO checkout;
GRANT UPDATE (phase, updated_at) ON step_fence TO checkout;
GRANT UPDATE (steps, cause, closed_at, resolution, needs_review) ON incidents TO checkout;
GRANT EXECUTE ON FUNCTION order_stays_completed, note_on_order TO checkout;
DO $$ BEGIN
    EXECUTE format('GRANT USAGE ON SEQUENCE %s TO checkout', pg_get_serial_sequence('public.order_events', 'event_id'));
END $$;

-- The operator. A customer is opened with no money, and an order by hand as pending: other columns keep their defaults.
GRANT INSERT (sku, name, unit_price_minor, currency), UPDATE (name, unit_price_minor, currency)
    ON products TO checkout_operator;
GRANT INSERT (zone, carrier, is_served, hands_over_at_once), UPDATE (carrier, is_served, hands_over_at_once)
    ON delivery_zones TO checkout_operator;
GRANT INSERT (account_id, kind, name, currency, delivery_zone), UPDATE (name, delivery_zone)
    ON accounts TO checkout_operator;
GRANT INSERT (order_id, customer) ON orders TO checkout_operator;
GRANT INSERT (order_id, sku, quantity) ON order_lines TO checkout_operator;

-- The house's accounts -----------------------------------------------------------------------------------

-- No products and no customers: those are the shop's (devstack/demo.sql has some to try with).
INSERT INTO accounts (account_id, kind, name, balance_minor, delivery_zone) VALUES
    ('bank', 'house', 'Where customers'' money comes from', NULL, NULL),
    ('shop', 'house', 'What customers have paid', NULL, NULL)
ON CONFLICT DO NOTHING;

COMMIT;

-- What constrain_once has made holds for new rows; now existing rows are validated, beside open writes.
BEGIN;

SET LOCAL search_path TO public, pg_temp;
SELECT pg_advisory_xact_lock(hashtext('checkout setup.sql'));
SET LOCAL lock_timeout TO '1s';
SET LOCAL ROLE checkout_owner;

DO $$
DECLARE
    unseen record;
BEGIN
    FOR unseen IN
        SELECT c.conrelid::regclass AS of, c.conname AS name
          FROM pg_constraint c JOIN unnest(ARRAY[
                   'orders_id_is_printable', 'orders_customer_is_printable', 'order_lines_sku_is_printable',
                   'products_sku_is_printable', 'accounts_id_is_printable', 'products_price_in_range',
                   'products_currency_is_known', 'accounts_currency_is_known'
               ]) AS ours ON ours = c.conname
         WHERE c.connamespace = 'public'::regnamespace AND NOT c.convalidated
         ORDER BY c.conname
    LOOP
        BEGIN
            EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', unseen.of, unseen.name);
        EXCEPTION WHEN integrity_constraint_violation THEN
            RAISE WARNING '% has rows that % does not allow: they stay, and may be refused when they are written again',
                          unseen.of, unseen.name
                USING HINT = 'Look for them, put them right, and run this file again.';
        END;
    END LOOP;
END $$;

COMMIT;

-- Approvals ---------------------------------------------------------------------------------------------

-- A transaction of its own: on a database from before there were approvals it reads the whole ledger once, and nothing
-- may be locked for as long as that takes. Deposits and deliveries go on meanwhile; one that this does not see yet is
-- found by the audit.
BEGIN;
SET LOCAL search_path = public, pg_temp;
SET LOCAL lock_timeout = '1s';
SELECT pg_advisory_xact_lock(hashtext('checkout setup.sql'));
SET LOCAL ROLE checkout_owner;
DO $$ BEGIN
    PERFORM set_config('checkout.approvals_are_new', (to_regclass('public.approvals') IS NULL)::text, true);
END $$;

-- Who let money and stock in, and why: the only two things that no step makes. Rows are only ever added. The audit
-- compares their sums with the deposits in the ledger, and with what was ever on the shelf.
CREATE TABLE IF NOT EXISTS approvals (
    approval_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text        NOT NULL,
    subject     text        NOT NULL,  -- the account, or the SKU
    amount      bigint      NOT NULL,  -- minor units, or pieces; negative takes back what should not have been
    currency    text,                  -- of a deposit
    reference   text,                  -- whoever approves may name it: the same name is approved once
    reason      text        NOT NULL,
    approved_by text        NOT NULL DEFAULT session_user,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT approvals_kind_is_known CHECK (kind IN ('deposit', 'delivery')),
    CONSTRAINT approvals_deposit_has_a_currency CHECK ((kind = 'deposit') = (currency IS NOT NULL)),
    CONSTRAINT approvals_amount_is_something CHECK (amount <> 0),
    CONSTRAINT approvals_reason_is_given CHECK (length(btrim(reason)) BETWEEN 1 AND 1000),
    CONSTRAINT approvals_once_per_reference UNIQUE (kind, reference)
);

CREATE OR REPLACE FUNCTION approvals_stay() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'an approval stays as it is: add another one that takes it back' USING ERRCODE = '42501';
END $$;
CALL pg_temp.create_once('CREATE TRIGGER approvals_stay BEFORE DELETE OR UPDATE OR TRUNCATE ON approvals
    FOR EACH STATEMENT EXECUTE FUNCTION approvals_stay()');

-- Gives a customer money, and returns the id of its transfer. It records the caller.
CREATE OR REPLACE FUNCTION deposit(account text, amount bigint, currency text, reason text, reference text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    transfer text := 'deposit/' || coalesce(deposit.reference, gen_random_uuid()::text);
BEGIN
    IF deposit.amount IS NULL OR deposit.amount <= 0 THEN
        RAISE EXCEPTION 'a deposit of % is none', coalesce(deposit.amount::text, 'nothing') USING ERRCODE = '22023';
    END IF;
    IF coalesce(btrim(deposit.reason), '') = '' THEN
        RAISE EXCEPTION 'a deposit needs a reason' USING ERRCODE = '22023';
    END IF;
    UPDATE public.accounts a SET balance_minor = a.balance_minor + deposit.amount
     WHERE a.account_id = deposit.account AND a.kind = 'customer' AND a.currency = deposit.currency;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no customer % with money in %', deposit.account, deposit.currency USING ERRCODE = 'P0002';
    END IF;
    BEGIN
        INSERT INTO public.transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency)
        VALUES (transfer, 'deposit', 'bank', deposit.account, deposit.amount, deposit.currency);
        INSERT INTO public.approvals (kind, subject, amount, currency, reference, reason)
        VALUES ('deposit', deposit.account, deposit.amount, deposit.currency, deposit.reference, deposit.reason);
    EXCEPTION WHEN unique_violation THEN
        RAISE EXCEPTION 'deposit % was made already', deposit.reference USING ERRCODE = '23505';
    END;
    RETURN transfer;
END $$;

-- Puts goods on the shelf, or takes missing ones off; returns how many there are now.
CREATE OR REPLACE FUNCTION deliver(sku text, quantity bigint, reason text, reference text DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    now_on_hand bigint;
BEGIN
    IF deliver.quantity IS NULL OR deliver.quantity = 0 THEN
        RAISE EXCEPTION 'a delivery of nothing is none' USING ERRCODE = '22023';
    END IF;
    IF coalesce(btrim(deliver.reason), '') = '' THEN
        RAISE EXCEPTION 'a delivery needs a reason' USING ERRCODE = '22023';
    END IF;
    IF NOT EXISTS (SELECT FROM public.products p WHERE p.sku = deliver.sku) THEN
        RAISE EXCEPTION 'there is no product %', deliver.sku USING ERRCODE = 'P0002';
    END IF;
    BEGIN
        INSERT INTO public.approvals (kind, subject, amount, reference, reason)
        VALUES ('delivery', deliver.sku, deliver.quantity, deliver.reference, deliver.reason);
    EXCEPTION WHEN unique_violation THEN
        RAISE EXCEPTION 'delivery % was made already', deliver.reference USING ERRCODE = '23505';
    END;
    INSERT INTO public.inventory (sku, on_hand) VALUES (deliver.sku, 0) ON CONFLICT DO NOTHING;
    UPDATE public.inventory i SET received = i.received + deliver.quantity, on_hand = i.on_hand + deliver.quantity
     WHERE i.sku = deliver.sku RETURNING i.on_hand INTO now_on_hand;
    RETURN now_on_hand;
END $$;

-- Approves all money and stock that has no approval, and returns how much that was. The owner's alone.
CREATE OR REPLACE FUNCTION approve_what_is_there(why text) RETURNS bigint LANGUAGE sql
SET search_path = pg_catalog, public, pg_temp AS $$
    WITH found AS (
        SELECT 'deposit' AS kind, credit_account AS subject, currency, sum(amount_minor) AS amount
          FROM public.transfers WHERE kind = 'deposit' GROUP BY credit_account, currency
        UNION ALL
        SELECT 'delivery', sku, NULL, initial + received FROM public.inventory
        UNION ALL
        SELECT kind, subject, currency, -amount FROM public.approvals
    ), approved AS (
        INSERT INTO public.approvals (kind, subject, currency, amount, reason)
        SELECT kind, subject, currency, sum(amount), why FROM found
         GROUP BY kind, subject, currency HAVING sum(amount) <> 0
        RETURNING approval_id
    )
    SELECT count(*) FROM approved
$$;

DO $$ BEGIN
    IF current_setting('checkout.approvals_are_new')::boolean THEN
        PERFORM public.approve_what_is_there('found at upgrade');
    END IF;
END $$;

REVOKE ALL ON approvals FROM PUBLIC, checkout, checkout_reader, checkout_operator;
REVOKE ALL ON FUNCTION approvals_stay, deposit, deliver, approve_what_is_there
    FROM PUBLIC, checkout, checkout_reader, checkout_operator;
GRANT SELECT ON approvals TO checkout, checkout_reader, checkout_operator;
GRANT EXECUTE ON FUNCTION deposit, deliver TO checkout_operator;

COMMIT;
