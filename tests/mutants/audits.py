"""Faults in the audit and in what runs by itself: what it finds is told once, and it runs as the settings say."""

from tests.mutants.killers import LONG_AUDIT, MAINTENANCE, RESTORED, SCHEDULES, at
from tests.mutants.mutant import Mutant

_FILE = "activities/maintenance.py"
_WORKFLOW = "workflows/maintenance.py"
_SCHEDULES = "client/schedules.py"

MUTANTS = (
    Mutant(
        "audit-gets-a-minute",
        "a shop with a million orders would have no audit",
        _WORKFLOW,
        "audit, summary, policies.AUDIT)",
        "audit, summary)",
        at(LONG_AUDIT, "test_temporal_lets_an_audit_take_long_and_soon_notices_a_lost_one"),
    ),
    Mutant(
        "audit-has-no-heartbeat",
        "an audit that nobody waits for would read on for half an hour",
        _FILE,
        "            activity.heartbeat()\n",
        "",
        at(LONG_AUDIT, "test_an_audit_that_nobody_waits_for_any_more_leaves_postgres_alone"),
    ),
    Mutant(
        "audit-does-not-look-for-the-last-one",
        "a restored database would pass for a healthy one",
        _FILE,
        "                if not (await connection.execute(_HAS_EVENT, asdict(audit.anchor))).scalar_one():\n",
        "                if (await connection.execute(_HAS_EVENT, asdict(audit.anchor))).scalar_one() is None:\n",
        at(RESTORED, "test_an_audit_says_that_the_database_went_back_although_newer_orders_came"),
    ),
    Mutant(
        "audit-looks-for-a-number-alone",
        "a few new orders would hide that a restore has lost others",
        _FILE,
        "event_id = :event_id AND order_id = :order_id AND seq = :seq\n"
        "                      AND extract(epoch FROM at)::text = :at)",
        "event_id >= :event_id)",
        at(RESTORED, "test_an_audit_says_that_the_database_went_back_although_newer_orders_came"),
    ),
    Mutant(
        "audit-forgets-the-last-one",
        "no audit of the schedule's would ever see a restore",
        _WORKFLOW,
        "            audit = replace(audit, anchor=last.anchor)\n",
        "            audit = replace(audit, anchor=None if last else audit.anchor)\n",
        at(RESTORED, "test_the_schedule_hands_each_audit_what_the_last_clean_one_saw"),
    ),
    Mutant(
        "audit-succeeds-whatever-it-finds",
        "nobody would see that an invariant is broken",
        _WORKFLOW,
        "        if not report.is_clean:\n",
        "        if report.violation_count < 0:\n",
        at(MAINTENANCE, "test_an_audit_that_finds_something_fails_with_its_report"),
    ),
    Mutant(
        "audit-on-somebodys-word-is-told",
        "saga.log would tell of violations that are orders under way",
        _WORKFLOW,
        "        if audit.is_recorded:\n",
        "        if report.checks:\n",
        at(MAINTENANCE, "test_an_audit_on_somebodys_word_that_all_is_at_rest_tells_the_log_nothing"),
    ),
    Mutant(
        "findings-are-told-again",
        "each audit would tell of the same violation, until nobody reads it",
        _FILE,
        " WHERE told.event IS DISTINCT FROM 'violated'\n",
        "\n",
        at(MAINTENANCE, "test_a_violation_is_told_once_when_it_comes_and_once_when_it_is_over"),
    ),
    Mutant(
        "findings-are-told-side-by-side",
        "two audits at once would each tell of the same violation",
        _FILE,
        "            await connection.execute(_TAKE_TURNS)\n",
        "",
        at(MAINTENANCE, "test_a_violation_that_two_audits_find_at_once_is_told_once"),
    ),
    Mutant(
        "findings-are-never-over",
        "nobody would learn that a violation has been mended, nor that it is back",
        _FILE,
        "     WHERE told.event = 'violated' AND f.check_id IS NULL",
        "     WHERE told.event = 'forgotten' AND f.check_id IS NULL",
        at(MAINTENANCE, "test_a_violation_is_told_once_when_it_comes_and_once_when_it_is_over"),
    ),
    Mutant(
        "check-that-lists-a-part-clears-the-rest",
        "a violation would be told as mended because it came behind a hundred others",
        _FILE,
        "[check for check in report.checks if listed[check] < AUDIT_VIOLATIONS_SHOWN]",
        "[check for check in report.checks if listed[check] >= 0]",
        at(MAINTENANCE, "test_a_check_that_found_more_than_it_lists_clears_nothing"),
    ),
    Mutant(
        "interval-is-not-updated",
        "a changed setting would change nothing",
        _SCHEDULES,
        "        await handle.update(renewed)\n",
        "        del renewed\n",
        at(SCHEDULES, "test_a_changed_setting_changes_the_schedule_and_leaves_a_pause_alone"),
    ),
    Mutant(
        "pause-is-lost",
        "a worker that starts would let the sweep loose again that somebody has paused",
        _SCHEDULES,
        "replace(found.description.schedule, spec=spec, action=action, policy=policy)",
        "Schedule(spec=spec, action=action, policy=policy) if found else replace(found)",
        at(SCHEDULES, "test_a_changed_setting_changes_the_schedule_and_leaves_a_pause_alone"),
    ),
    Mutant(
        "zero-leaves-the-schedule",
        "what was turned off would go on",
        _SCHEDULES,
        "            await handle.delete()\n",
        "            await handle.describe()\n",
        at(SCHEDULES, "test_zero_means_never"),
    ),
)
