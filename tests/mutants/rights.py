"""Faults in who may do what: the roles of setup.sql, the approvals, and the passwords of embedded servers."""

from tests.mutants.killers import APPROVALS, AUDIT, EMBEDDED, LOG_FILE, RIGHTS, ROLE_ALARMS, SETUP_OWNER, at
from tests.mutants.mutant import Mutant

_SETUP = "setup.sql"
_AUDIT = "activities/audit.sql"

MUTANTS = (
    Mutant(
        "worker-writes-deposits",
        "the worker's password would be enough to make money",
        _SETUP,
        "    IF NOT pg_has_role(current_user, 'checkout_owner', 'MEMBER') THEN\n",
        "    IF false THEN\n",
        at(RIGHTS, "test_the_worker_writes_no_deposit"),
    ),
    Mutant(
        "worker-writes-events",
        "the log would have what never happened",
        _SETUP,
        "GRANT INSERT ON orders, order_lines, reservations, transfers, shipments, step_fence, incidents TO checkout;\n",
        "GRANT INSERT ON orders, order_lines, reservations, transfers, shipments, step_fence, incidents, order_events"
        " TO checkout;\n",
        at(RIGHTS, "test_a_role_may_do_exactly_what_was_decided[18-checkout]"),
    ),
    Mutant(
        "worker-notes-any-event",
        "the owner's function would be a way to every event",
        _SETUP,
        "    IF noted_event IS NULL OR noted_event NOT IN ('retry_requested', 'step_resolved') THEN\n",
        "    IF false THEN\n",
        at(RIGHTS, "test_an_event_is_written_by_a_move_and_by_a_persons_request_alone"),
    ),
    Mutant(
        "every-role-gets-into-the-database",
        "every role of the server would get in, and make temporary tables",
        _SETUP,
        "    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());\n",
        "",
        at(RIGHTS, "test_nothing_of_ours_is_everybodys"),
    ),
    Mutant(
        "rights-are-only-ever-added",
        "what an earlier release or an operator granted would stay for ever",
        _SETUP,
        "        SELECT format('REVOKE ALL ON %s %s FROM PUBLIC, checkout, checkout_reader, checkout_operator',\n",
        "        SELECT format('REVOKE ALL ON %s %s FROM checkout_reader',\n",
        at(RIGHTS, "test_a_second_run_gives_the_owner_nothing_new_and_takes_back_what_was_added"),
    ),
    Mutant(
        "owner-is-not-made-a-member",
        "no owner but a superuser could run setup.sql",
        _SETUP,
        "        statements := statements || format('GRANT checkout_owner TO %I', current_user);\n",
        "        statements := statements;\n",
        at(SETUP_OWNER, "test_the_owner_of_a_database_who_may_make_roles_can_run_it"),
    ),
    Mutant(
        "tables-stay-whoevers-made-them",
        "on an upgraded database the owner would own nothing",
        _SETUP,
        "        SELECT format('ALTER TABLE public.%I OWNER TO checkout_owner', relname) FROM pg_class\n",
        "        SELECT format('COMMENT ON TABLE public.%I IS NULL', relname) FROM pg_class\n",
        at(SETUP_OWNER, "test_what_an_earlier_version_made_becomes_the_owners"),
    ),
    Mutant(
        "role-is-not-checked",
        "the excess rights of the worker's role would not be logged",
        "adapters/readiness.py",
        "    await rights.alarm(engines.steps)\n",
        "",
        at(ROLE_ALARMS, "test_a_worker_says_so_as_it_starts_and_works_all_the_same"),
    ),
    Mutant(
        "approvals-may-be-changed",
        "who let money in could be written over",
        _SETUP,
        "CREATE TRIGGER approvals_stay BEFORE DELETE OR UPDATE OR TRUNCATE ON approvals\n",
        "CREATE TRIGGER approvals_stay BEFORE DELETE OR TRUNCATE ON approvals\n",
        at(APPROVALS, "test_an_approval_stays_as_it_is_for_everybody"),
    ),
    Mutant(
        "nothing-is-approved-at-the-upgrade",
        "the audit of every shop would fail after it",
        _SETUP,
        "    IF current_setting('checkout.approvals_are_new')::boolean THEN\n",
        "    IF false THEN\n",
        at(APPROVALS, "test_what_is_there_at_the_upgrade_is_approved_once_and_nothing_after_it"),
    ),
    Mutant(
        "everything-is-approved-at-each-run",
        "setup.sql would approve a deposit that no operator has approved",
        _SETUP,
        "    IF current_setting('checkout.approvals_are_new')::boolean THEN\n",
        "    IF true THEN\n",
        at(APPROVALS, "test_what_is_there_at_the_upgrade_is_approved_once_and_nothing_after_it"),
    ),
    Mutant(
        "unapproved-money-passes",
        "a deposit by hand would never be found",
        _AUDIT,
        " WHERE coalesce(d.amount, 0) <> coalesce(a.amount, 0);\n",
        " WHERE coalesce(d.amount, 0) < coalesce(a.amount, 0);\n",
        at(AUDIT, "test_damage_is_reported[A12-money was given without an approval]"),
    ),
    Mutant(
        "unapproved-stock-passes",
        "goods that were not delivered would be sold",
        _AUDIT,
        " WHERE coalesce(i.initial + i.received, 0) <> coalesce(a.amount, 0);\n",
        " WHERE coalesce(i.received, 0) > coalesce(a.amount, 0);\n",
        at(AUDIT, "test_damage_is_reported[A13-stock was delivered without an approval]"),
    ),
    Mutant(
        "superuser-needs-no-password",
        "any user of the machine could run programs as the user of the tests",
        "sagafence/devservers/postgres.py",
        'f"host all,replication {SUPERUSER} 127.0.0.1/32 {superuser}",\n',
        'f"host all,replication {SUPERUSER} 127.0.0.1/32 trust",\n',
        at(EMBEDDED, "test_the_superuser_needs_the_password_and_a_guarded_server_asks_everybody"),
    ),
    Mutant(
        "new-log-is-everybodys",
        "every user of the machine would read who bought what",
        "adapters/log_file.py",
        "os.open(name, flags, 0o600))\n",
        "os.open(name, flags, 0o644))\n",
        at(LOG_FILE, "test_a_new_file_is_its_owners_alone_and_one_that_is_there_keeps_its_mode"),
    ),
)
