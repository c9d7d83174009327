"""Faults in what tells a database that is behind its code, older than it, or not ours: setup.sql and the start."""

from tests.mutants.killers import PLANS, POSTGRES_16, SCHEMA, SCHEMA_BEHIND, SETUP_OWNER, at
from tests.mutants.mutant import Mutant

_SETUP = "setup.sql"
_CHECK = "adapters/schema.py"
_NAMED = "test_whatever_is_missing_is_named"

MUTANTS = (
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
        "NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')",
        "NOT g.tgisinternal",
        at(SCHEMA, f"{_NAMED}[trigger disabled]"),
    ),
    Mutant(
        "older-version-passes-the-check",
        "a worker would work with functions of the release before",
        _CHECK,
        "    if here < version:\n",
        "    if here < 0:\n",
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
