"""Faults in what tells a database that is behind its code, older than it, or not ours: setup.sql and the start."""

from tests.mutants.killers import PLANS, POSTGRES_16, SCHEMA, SCHEMA_BEHIND, SETUP_OWNER, at
from tests.mutants.mutant import Mutant

_SETUP = "setup.sql"
_CHECK = "adapters/schema.py"
_NAMED = "test_whatever_is_missing_is_named"

MUTANTS = (
    Mutant(
        "names-are-cut-off",
        "an operator would look for a function that is not there under that name",
        _CHECK,
        "SELECT oid, CAST(relname AS text) AS name FROM pg_class",
        "SELECT oid, relname AS name FROM pg_class",
        at(SCHEMA, f"{_NAMED}[right to a function]"),
    ),
    Mutant(
        "a-column-that-takes-no-null-is-not-told",
        "a worker would start where no order can be written",
        _CHECK,
        '    tightened = (facts["not null"] & known)',
        '    tightened = (facts["not null"] & strange)',
        at(SCHEMA, f"{_NAMED}[a column of ours that has become mandatory]"),
    ),
    Mutant(
        "an-index-that-is-unique-among-more-rows-will-do",
        "an order that gets stuck a second time could not be parked",
        _CHECK,
        "           || CASE WHEN i.indisunique AND i.indpred IS NOT NULL\n",
        "           || CASE WHEN false\n",
        at(SCHEMA, f"{_NAMED}[unique among more rows than ours]"),
    ),
    Mutant(
        "a-session-without-triggers-will-do",
        "orders would be without their state machine and their log",
        _CHECK,
        " AND current_setting('session_replication_role') <> 'replica')",
        ")",
        at(SCHEMA, f"{_NAMED}[triggers that do not fire]"),
    ),
    Mutant(
        "a-missing-right-to-the-schema-hides-itself",
        "a worker would advise to check the password",
        _CHECK,
        "CASE WHEN has_schema_privilege('public', 'USAGE') THEN has_sequence_privilege(",
        "CASE WHEN true THEN has_sequence_privilege(",
        at(SCHEMA, f"{_NAMED}[right to the schema]"),
    ),
    Mutant(
        "functions-are-for-everybody-or-nobody",
        "on a database whose functions are not for everybody nothing would move, and setup.sql would not help",
        _SETUP,
        "GRANT EXECUTE ON FUNCTION order_may_move, order_stays_completed, orders_move, orders_log_move TO checkout;\n",
        "",
        at(SCHEMA, f"{_NAMED}[right to a function]"),
    ),
    Mutant(
        "trigger-of-any-table-will-do",
        "orders would be without its state machine where another schema has a trigger of that name",
        _SETUP,
        "WHERE t.tgrelid = target AND t.tgname = name AND NOT t.tgisinternal;\n"
        "        IF found IS DISTINCT FROM wanted OR NOT is_alive THEN\n",
        "WHERE t.tgname = name;\n        IF found IS NULL THEN\n",
        at(SETUP_OWNER, "test_tables_that_were_put_aside_are_not_taken_for_ours"),
    ),
    Mutant(
        "setup-leaves-a-trigger-disabled",
        "orders would be without its state machine after somebody's load by hand",
        _SETUP,
        "        IF found IS DISTINCT FROM wanted OR NOT is_alive THEN\n",
        "        IF found IS DISTINCT FROM wanted THEN\n",
        at(SCHEMA, f"{_NAMED}[trigger disabled]"),
    ),
    Mutant(
        "setup-takes-a-schema-back",
        "the functions of an older release would replace those of a newer one",
        _SETUP,
        "        IF present > current_setting('checkout.schema_version')::integer THEN\n",
        "        IF false THEN\n",
        at(SCHEMA, "test_a_setup_sql_of_an_older_release_changes_nothing"),
    ),
    Mutant(
        "setup-fails-with-status-0",
        "a deploy would go on after a setup that did nothing",
        _SETUP,
        "\\set ON_ERROR_STOP on\n",
        "",
        at(SETUP_OWNER, "test_a_server_that_is_too_old_is_refused_in_one_line"),
    ),
    Mutant(
        "setup-follows-the-search-path",
        "the tables would be where the service does not look",
        _SETUP,
        "SET LOCAL search_path = public, pg_temp;\n",
        "",
        at(SETUP_OWNER, "test_any_search_path_will_do"),
    ),
    Mutant(
        "steps-keep-plans-that-scan",
        "each step would read whole tables that grew after its plan was made",
        _SETUP,
        "        'client_connection_check_interval=1s',\n        'enable_seqscan=off'\n",
        "        'client_connection_check_interval=1s'\n",
        at(PLANS, "test_a_plan_that_a_step_keeps_while_the_tables_grow_reads_by_index"),
    ),
    Mutant(
        "disabled-trigger-passes-the-check",
        "a worker would move orders that no state machine guards and no event tells of",
        _CHECK,
        "     WHERE g.tgenabled = 'A' OR (g.tgenabled = 'O' AND",
        "     WHERE g.tgenabled <> 'R' OR (g.tgenabled = 'O' AND",
        at(SCHEMA, f"{_NAMED}[trigger disabled]"),
    ),
    Mutant(
        "older-version-passes-the-check",
        "a worker would work with functions of the release before",
        _CHECK,
        "    if here < version and _ENTRY not in lacks:",
        "    if here < 0 and _ENTRY not in lacks:",
        at(SCHEMA, f"{_NAMED}[version]"),
    ),
    Mutant(
        "only-the-steps-connections-are-checked",
        "sweep and audit would fail for ever, and no start would say so",
        _CHECK,
        '((steps, "steps"), (sweep, "sweep"), (audit, "audit"))',
        '((steps, "steps"),)',
        at(SCHEMA, f"{_NAMED}[no lock_timeout]"),
    ),
    Mutant(
        "worker-starts-on-any-schema",
        "a schema one version behind would reject customers (P12)",
        "adapters/readiness.py",
        '        raise CannotStart("\\n  ".join(["The database lacks:", *lacks]) + f"\\n{schema.REMEDY}")\n',
        "        pass\n",
        at(SCHEMA_BEHIND, "test_a_schema_one_version_behind_rejects_nobody"),
        hangs=True,
    ),
    Mutant(
        "old-servers-end-no-transaction",
        "below 17 an undo that Temporal gave up would go on for as long as it likes",
        "adapters/database.py",
        "limit = None if version is None or version >= _AGE_IS_LIMITED_SINCE else _TRANSACTION_SECONDS",
        "limit = None",
        at(POSTGRES_16, "test_a_transaction_that_lives_too_long_is_ended_and_is_an_outage"),
    ),
)
