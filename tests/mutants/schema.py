"""Faults in setup.sql: the last guards, the state machine, its numbered log, and the service's rights."""

from tests.mutants.killers import ACTIVITIES, SETUP, at
from tests.mutants.mutant import Mutant

_FILE = "setup.sql"

MUTANTS = (
    Mutant(
        "stock-may-be-oversold",
        "the last unit would be sold to everybody who asks at once",
        _FILE,
        "CHECK (reserved <= on_hand)",
        "CHECK (reserved <= on_hand + 1000)",
        at(ACTIVITIES, "test_the_last_of_its_kind_is_sold_once_to_twenty_buyers_at_once"),
    ),
    Mutant(
        "balance-may-be-overdrawn",
        "a balance would be spent by several orders at once",
        _FILE,
        "CHECK (balance_minor >= 0)",
        "CHECK (balance_minor >= -1000000)",
        at(ACTIVITIES, "test_a_balance_is_spent_once_by_orders_that_pay_at_once"),
    ),
    Mutant(
        "order-may-be-captured-twice",
        "nothing in the ledger itself would refuse a second capture",
        _FILE,
        "CREATE UNIQUE INDEX transfers_once_per_order",
        "CREATE INDEX transfers_once_per_order",
        at(SETUP, "test_the_database_refuses_what_its_constraint_forbids[transfers_once_per_order]"),
    ),
    Mutant(
        "second-open-incident-allowed",
        "one order would call two operators",
        _FILE,
        "INDEX incidents_one_open_per_order ON incidents (order_id) WHERE closed_at IS NULL",
        "INDEX incidents_one_open_per_order ON incidents (order_id, cause) WHERE closed_at IS NULL",
        at(SETUP, "test_the_database_refuses_what_its_constraint_forbids[incidents_one_open_per_order]"),
    ),
    Mutant(
        "ended-order-may-move-on",
        "a rejected order would come back to life",
        _FILE,
        "        ELSE false END\n",
        "        ELSE true END\n",
        at(SETUP, "test_a_status_moves_only_to_where_it_may[rejected]"),
    ),
    Mutant(
        "unpaid-order-may-complete",
        "an order would complete without a payment",
        _FILE,
        "        WHEN 'reserved'  THEN next IN ('paid', ",
        "        WHEN 'reserved'  THEN next IN ('paid', 'completed', ",
        at(SETUP, "test_a_status_moves_only_to_where_it_may[reserved]"),
    ),
    Mutant(
        "handed-over-order-may-unwind",
        "an order would be taken back whose parcel is gone",
        _FILE,
        "           OR (OLD.status = 'completed' AND EXISTS (\n"
        "                   SELECT FROM shipments s WHERE s.order_id = NEW.order_id AND "
        "s.state = 'handed_over')) THEN\n",
        "        THEN\n",
        at(SETUP, "test_an_order_stays_completed_once_its_parcel_is_handed_over"),
    ),
    Mutant(
        "moves-are-not-logged",
        "saga.log would miss what happened (P9)",
        _FILE,
        "CREATE TRIGGER orders_log_move AFTER INSERT OR UPDATE OF status ON orders",
        "CREATE TRIGGER orders_log_move AFTER INSERT ON orders",
        at(SETUP, "test_moves_made_by_hand_are_numbered_without_a_gap_whoever_makes_them"),
    ),
    Mutant(
        "events-numbered-with-a-gap",
        "a reader of the log could not tell a gap from a loss",
        _FILE,
        "        NEW.event_seq := OLD.event_seq + 1;\n",
        "        NEW.event_seq := OLD.event_seq + 2;\n",
        at(SETUP, "test_moves_made_by_hand_are_numbered_without_a_gap_whoever_makes_them"),
    ),
    Mutant(
        "move-leaves-the-clock-as-it-was",
        "the sweep would take an order for lost that moved a moment ago",
        _FILE,
        "        NEW.updated_at := now();\n",
        "",
        at(SETUP, "test_a_move_sets_the_clock_of_how_long_an_order_has_stood_still"),
    ),
    Mutant(
        "service-may-change-the-ledger",
        "a bug of ours could rewrite what was paid",
        _FILE,
        "GRANT UPDATE (balance_minor) ON accounts TO checkout;",
        "GRANT UPDATE (balance_minor) ON accounts TO checkout;\nGRANT UPDATE ON transfers TO checkout;",
        at(SETUP, "test_the_service_may_update_exactly_what_the_steps_change"),
    ),
    Mutant(
        "service-may-delete-events",
        "a bug of ours could forget what happened",
        _FILE,
        "GRANT UPDATE (balance_minor) ON accounts TO checkout;",
        "GRANT UPDATE (balance_minor) ON accounts TO checkout;\nGRANT DELETE ON order_events TO checkout;",
        at(SETUP, "test_the_service_may_not[DELETE FROM order_events]"),
    ),
    Mutant(
        "role-without-a-transaction-timeout",
        "an attempt that Temporal gave up would go on for as long as it likes",
        _FILE,
        "        'transaction_timeout=9s',\n",
        "",
        at(SETUP, "test_the_services_timeouts_are_nested_inside_one_attempt"),
    ),
    Mutant(
        "role-waits-for-locks-too-long",
        "one hot row would hold every attempt up to its end",
        _FILE,
        "        'lock_timeout=1500ms',\n",
        "        'lock_timeout=15s',\n",
        at(SETUP, "test_the_services_timeouts_are_nested_inside_one_attempt"),
    ),
    Mutant(
        "setup-locks-before-it-looks",
        "whoever brings the schema up to date would stop the shop until the last open transaction ends",
        _FILE,
        "    IF to_regclass(name) IS NULL AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = name) THEN\n"
        "        EXECUTE statement;\n    END IF;\n",
        "    EXECUTE replace(replace(statement, ' INDEX ', ' INDEX IF NOT EXISTS '), 'CREATE TRIGGER', "
        "'CREATE OR REPLACE TRIGGER');\n",
        at(SETUP, "test_a_run_beside_open_transactions_waits_for_none_of_them"),
        hangs=True,
    ),
    Mutant(
        "setup-waits-as-long-as-it-takes",
        "a new column would stop the shop until the last open transaction ends",
        _FILE,
        "SET LOCAL lock_timeout = '1s';\n",
        "",
        at(SETUP, "test_a_run_that_would_have_to_wait_gives_up_before_others_wait_long"),
        hangs=True,
    ),
    Mutant(
        "any-encoding-will-do",
        "an order that is cancelled for a reason in another alphabet could never be closed",
        _FILE,
        "    IF current_setting('server_encoding') <> 'UTF8' THEN\n",
        "    IF false THEN\n",
        at(SETUP, "test_a_database_that_does_not_keep_every_text_is_refused_with_what_to_do"),
    ),
)
