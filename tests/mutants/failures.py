"""Faults in what an error is taken for: an outage, a refusal, a broken state."""

from tests.mutants.killers import DATABASE, MODEL, PARKING, at
from tests.mutants.mutant import Mutant

_FILE = "sagafence/database.py"
_TRANSIENT = "    if code[:2] in _TRANSIENT_CLASSES or code in _TRANSIENT_CODES | _STALE_PLAN_CODES:\n"

MUTANTS = (
    Mutant(
        "a-mandatory-column-rejects-customers",
        "a column that another release, or somebody by hand, made mandatory would cost every order that comes (P12)",
        _FILE,
        '_MISCONFIGURED_CODES = frozenset({"23502", "25006"})',
        '_MISCONFIGURED_CODES = frozenset({"25006"})',
        at(DATABASE, "test_the_sqlstate_alone_decides_who_must_act[DatabaseMisconfigured-23502]"),
    ),
    Mutant(
        "serialization-failure-is-a-refusal",
        "two shoppers at once would cost one of them the order",
        _FILE,
        "    if _is_misconfigured(code):\n",
        '    if code == "40001":\n'
        '        return InvalidInput(f"Postgres refused: {message} ({code})")\n'
        "    if _is_misconfigured(code):\n",
        at(DATABASE, "test_a_serialization_failure_is_an_outage"),
    ),
    Mutant(
        "deadlock-needs-a-person",
        "a deadlock would end an order that the next attempt would have saved",
        _FILE,
        "    if _is_misconfigured(code):\n",
        '    if code == "40P01":\n'
        '        return DatabaseRefusedStatement(f"Postgres refused: {message} ({code})")\n'
        "    if _is_misconfigured(code):\n",
        at(DATABASE, "test_a_deadlock_is_an_outage_for_one_of_the_two"),
    ),
    Mutant(
        "restart-of-postgres-needs-a-person",
        "a failover would end every order that was in flight",
        _FILE,
        "    if _is_misconfigured(code):\n",
        '    if code[:2] == "57":\n'
        '        return DatabaseRefusedStatement(f"Postgres refused: {message} ({code})")\n'
        "    if _is_misconfigured(code):\n",
        at(DATABASE, "test_the_sqlstate_alone_decides_who_must_act"),
    ),
    Mutant(
        "replica-needs-a-person",
        "a failover would end every order that came a second too early",
        _FILE,
        "    if _is_misconfigured(code):\n",
        '    if code == "25006":\n'
        '        return DatabaseRefusedStatement(f"Postgres refused: {message} ({code})")\n'
        "    if _is_misconfigured(code):\n",
        at(DATABASE, "test_the_sqlstate_alone_decides_who_must_act[DatabaseMisconfigured-25006]"),
    ),
    Mutant(
        "lost-connection-is-a-refusal",
        "a COMMIT whose answer was lost would be taken for a failure",
        _FILE,
        '    return DatabaseUnavailable(f"no connection to Postgres: {message}")',
        '    return InvalidInput(f"no connection to Postgres: {message}")  # type: ignore[return-value]',
        at(DATABASE, "test_an_error_without_a_sqlstate_is_an_outage_in_a_few_words"),
    ),
    Mutant(
        "connection-errors-come-out-raw",
        "what asyncpg raises while connecting would have no name, and no policy",
        _FILE,
        "        OSError,\n        TimeoutError,\n    ) as error:",
        "    ) as error:",
        at(DATABASE, "test_a_refused_connection_is_an_outage"),
    ),
    Mutant(
        "overload-comes-back-at-once",
        "a thousand orders would come back in the same instant",
        _FILE,
        '{message} ({code})", next_retry_delay=_spread())',
        '{message} ({code})")',
        at(DATABASE, "test_statements_that_an_overloaded_server_refuses_do_not_all_come_back_at_once"),
    ),
    Mutant(
        "overload-of-sessions-comes-back-at-once",
        "a thousand orders would ask for a session in the same instant",
        _FILE,
        "next_retry_delay=_spread() if (code or",
        "next_retry_delay=None if (code or",
        at(DATABASE, "test_too_many_connections_are_an_outage_from_which_not_all_come_back_at_once"),
    ),
    Mutant(
        "malformed-value-is-quoted",
        "a card number would end up in a history",
        _FILE,
        '        return malformed(f"Postgres cannot store one of the values ({code})")',
        '        return malformed(f"Postgres cannot store one of the values: {message} ({code})")',
        at(DATABASE, "test_a_value_that_postgres_cannot_store_is_invalid_input"),
    ),
    Mutant(
        "missing-right-is-an-outage",
        "an order that no statement can write would be tried until its time is over",
        _FILE,
        '_REFUSING_CLASSES = frozenset({"23", "44", "P0"})',
        '_REFUSING_CLASSES = frozenset({"44", "P0"})',
        at(DATABASE, "test_a_violated_constraint_is_named_without_its_row"),
    ),
    Mutant(
        "lost-prepared-statement-needs-a-person",
        "a connection pooler in between would cost orders",
        _FILE,
        "    if code in _TRANSIENT_CODES | _STALE_PLAN_CODES:\n        return False\n",
        "",
        at(DATABASE, "test_the_sqlstate_alone_decides_who_must_act"),
    ),
    Mutant(
        "unknown-error-is-a-refusal",
        "an error that nobody foresaw would end an order, and an undo",
        _FILE,
        "    return DatabaseUnavailable(f\"Postgres {'asked to try again' if passes else 'failed'}: "
        '{message} ({code})")',
        '    return (DatabaseUnavailable if passes else InvalidInput)(f"Postgres failed: {message} ({code})")',
        at(DATABASE, "test_the_sqlstate_alone_decides_who_must_act"),
    ),
    Mutant(
        "endings-are-given-up",
        "an outage of 15 minutes would end a saga without the order's ending",
        "domain/policies.py",
        "RECORD = ActivityPolicy(timedelta(seconds=10), None,",
        "RECORD = ActivityPolicy(timedelta(seconds=10), timedelta(minutes=15),",
        at(DATABASE, "test_only_forward_steps_give_up_at_once_when_a_person_is_needed"),
    ),
    Mutant(
        "forward-steps-retry-what-needs-a-person",
        "a customer would wait a minute, or fifteen, for a missing right",
        "sagafence/policy.py",
        "[DatabaseRefusedStatement.__name__] if stops_when_refused else None",
        "None",
        at(DATABASE, "test_only_forward_steps_give_up_at_once_when_a_person_is_needed"),
    ),
    Mutant(
        "refusals-are-retried",
        "an order that is out of stock would be tried for a minute",
        "sagafence/errors.py",
        "        super().__init__(message, details=details, category=ApplicationErrorCategory.BENIGN)",
        "        super().__init__(\n"
        "            message, details=details, category=ApplicationErrorCategory.BENIGN, non_retryable=False\n"
        "        )",
        at(MODEL, "test_a_refusal_is_not_retried_and_no_alarm"),
    ),
    Mutant(
        "outages-are-not-retried",
        "a customer would notice each restart of Postgres",
        "sagafence/errors.py",
        "class DatabaseUnavailable(SagaError):\n"
        '    """Postgres is away, busy or being restarted. Retried, as the step\'s policy says."""\n'
        "\n"
        "    def __init__(self, message: str, *, next_retry_delay: timedelta | None = None) -> None:\n"
        "        super().__init__(message, non_retryable=False, next_retry_delay=next_retry_delay)\n",
        "class DatabaseUnavailable(SagaError):\n"
        '    """Postgres is away, busy or being restarted. Retried, as the step\'s policy says."""\n'
        "\n"
        "    def __init__(self, message: str, *, next_retry_delay: timedelta | None = None) -> None:\n"
        "        super().__init__(message, non_retryable=True, next_retry_delay=next_retry_delay)\n",
        at(MODEL, "test_an_outage_is_retried"),
    ),
    Mutant(
        "audit-reads-many-states",
        "checks that compare two moments would report what never was",
        "adapters/database.py",
        'isolation_level="REPEATABLE READ", postgresql_readonly=True',
        'isolation_level="READ COMMITTED", postgresql_readonly=True',
        at(DATABASE, "test_the_snapshot_sees_one_state_for_the_whole_block"),
    ),
    Mutant(
        "audit-may-write",
        "a check with a mistake in it could change what it looks at",
        "adapters/database.py",
        'isolation_level="REPEATABLE READ", postgresql_readonly=True',
        'isolation_level="REPEATABLE READ"',
        at(DATABASE, "test_the_snapshot_may_not_write"),
    ),
    Mutant(
        "stale-session-is-kept",
        "after a migration a session would fail for as long as it lives",
        _FILE,
        "        context.is_disconnect = True\n",
        "        context.is_disconnect = False\n",
        at(DATABASE, "test_a_session_whose_triggers_planned_before_a_schema_change_is_left"),
    ),
    Mutant(
        "stale-plan-needs-a-person",
        "a migration would end every order that is under way",
        _FILE,
        "code in _TRANSIENT_CODES | _STALE_PLAN_CODES:",
        "code in _TRANSIENT_CODES:",
        at(DATABASE, "test_a_session_whose_triggers_planned_before_a_schema_change_is_left"),
    ),
    Mutant(
        "unstorable-ending-is-a-bad-request",
        "the run would fail, and its order be left without an ending or an incident",
        _FILE,
        "translated_errors(malformed=DatabaseRefusedStatement)",
        "translated_errors()",
        at(
            PARKING,
            *(
                f"test_an_ending_that_the_database_cannot_store_is_tried_until_it_can[{case}]"
                for case in ("rejected-close_order", "stuck-park_order")
            ),
        ),
    ),
)
