"""Faults in the step fence: at most once, never after the undo, the first result, no other content."""

from tests.mutants.killers import ACTIVITIES, CHECKOUT, CONTRACT, DATABASE, FENCE, SECOND_RUN, STUCK, at
from tests.mutants.mutant import Mutant

_FILE = "sagafence/fence.py"

MUTANTS = (
    Mutant(
        "gate-opens-for-everybody",
        "the fence's conflict clause alone keeps an effect without a natural key from happening twice",
        _FILE,
        "    ON CONFLICT DO NOTHING\n    RETURNING result\n)",
        "    ON CONFLICT (saga_id, step) DO UPDATE SET updated_at = now()\n    RETURNING result\n)",
        at(FENCE, "test_a_repeat_adds_nothing_and_answers_the_first_result"),
    ),
    Mutant(
        "do-ignores-the-fingerprint",
        "another order under the same id would be answered with the first one's result",
        _FILE,
        "    if row.fingerprint != key.fingerprint:\n        raise _mismatch(key)\n    if row.phase",
        "    if row.phase",
        at(CONTRACT, "test_other_content_under_the_same_order_id_is_refused[reserve-done-do]"),
    ),
    Mutant(
        "undo-ignores-the-fingerprint",
        "a stranger's undo would turn the fence of an effect that is not its own",
        _FILE,
        "     WHERE step_fence.phase = 'done' AND step_fence.fingerprint = excluded.fingerprint\n"
        "    RETURNING had_effect",
        "     WHERE step_fence.phase = 'done'\n    RETURNING had_effect",
        at(FENCE, "test_another_request_can_neither_do_nor_undo_nor_resolve_a_step"),
    ),
    Mutant(
        "repeated-undo-ignores-the-fingerprint",
        "a stranger would be told that its step is undone",
        _FILE,
        "        if stored.fingerprint != key.fingerprint:\n            raise _mismatch(key)\n",
        "",
        at(CONTRACT, "test_other_content_under_the_same_order_id_is_refused[reserve-undone-undo]"),
    ),
    Mutant(
        "resolve-ignores-the-fingerprint",
        "an operator's word on one order would close the fence of another",
        _FILE,
        "     WHERE step_fence.phase = 'done' AND step_fence.fingerprint = excluded.fingerprint\n    RETURNING phase\n",
        "     WHERE step_fence.phase = 'done'\n    RETURNING phase\n",
        at(FENCE, "test_another_request_can_neither_do_nor_undo_nor_resolve_a_step"),
    ),
    Mutant(
        "no-tombstone",
        "a step in flight would take effect after its undo found nothing",
        _FILE,
        "    row = (await connection.execute(_CLOSE, key.parameters())).one_or_none()\n",
        "    if (await connection.execute(_READ, key.parameters())).one_or_none() is None:\n"
        "        return Undoing(connection, {}, False, UndoOutcome.NOTHING_TO_UNDO)\n"
        "    row = (await connection.execute(_CLOSE, key.parameters())).one_or_none()\n",
        at(CONTRACT, "test_undo_without_do_succeeds_and_leaves_a_tombstone[pay]"),
    ),
    Mutant(
        "late-do-after-a-tombstone-succeeds",
        "the saga would go on with a step that was undone (P4)",
        _FILE,
        '    if row.phase != "done" or row.result is None:\n'
        '        raise StepAlreadyCompensated(f"{key.step} of {key.saga_id} was already undone; '
        'this attempt came too late")\n'
        "    return dict(row.result)\n",
        "    return dict(row.result or {})\n",
        at(FENCE, "test_a_step_that_was_undone_or_resolved_never_takes_effect"),
    ),
    Mutant(
        "do-after-its-undo-answers-the-old-result",
        "a late attempt would report success for an effect that was reversed",
        _FILE,
        '    if row.phase != "done" or row.result is None:',
        "    if row.result is None:",
        at(CONTRACT, "test_a_do_after_its_tombstone_is_refused[reserve-True]"),
    ),
    Mutant(
        "undo-leaves-the-fence-open",
        "the effect would be reversed again by every repeat of the undo",
        _FILE,
        "DO UPDATE SET phase = 'undone', updated_at = now()",
        "DO UPDATE SET updated_at = now()",
        at(CONTRACT, "test_undo_restores_what_do_changed_once[reserve]"),
    ),
    Mutant(
        "undo-closes-the-fence-and-reverses-nothing",
        "stock or money would stay taken, with a fence that says otherwise",
        _FILE,
        "        return Undoing(connection, row.result, True, UndoOutcome.REVERSED)",
        "        return Undoing(connection, row.result, False, UndoOutcome.ALREADY_UNDONE)",
        at(CONTRACT, "test_undo_restores_what_do_changed_once[pay]"),
    ),
    Mutant(
        "undo-answers-already-undone-without-closing-the-fence",
        "the first attempt to come in late would pass",
        _FILE,
        "    row = (await connection.execute(_CLOSE, key.parameters())).one_or_none()\n",
        "    if (await connection.execute(_READ, key.parameters())).one_or_none() is None:\n"
        "        return Undoing(connection, {}, False, UndoOutcome.ALREADY_UNDONE)\n"
        "    row = (await connection.execute(_CLOSE, key.parameters())).one_or_none()\n",
        at(FENCE, "test_a_step_that_was_undone_or_resolved_never_takes_effect"),
    ),
    Mutant(
        "resolve-leaves-the-fence-open",
        "an undo that comes later would act on what a person has settled already",
        _FILE,
        "DO UPDATE SET phase = 'resolved', updated_at = now()",
        "DO UPDATE SET updated_at = now()",
        at(ACTIVITIES, "test_a_resolved_step_never_acts_again"),
    ),
    Mutant(
        "resolve-leaves-no-tombstone",
        "a step that a person has settled before it ran could still run",
        "activities/orders.py",
        "            await resolve_once(connection, key)\n",
        "",
        at(ACTIVITIES, "test_a_resolved_step_never_acts_again"),
    ),
    Mutant(
        "reason-that-has-passed-is-a-refusal",
        "an order would be rejected for a shortage that is over",
        _FILE,
        "    raise refusal or DatabaseUnavailable(",
        "    raise refusal or StepAlreadyCompensated(",
        at(FENCE, "test_a_reason_that_has_passed_meanwhile_is_worth_another_attempt"),
    ),
    Mutant(
        "unnamed-violation-is-a-guard",
        "a broken statement would be retried as if somebody had been faster",
        _FILE,
        "            if guard is None:\n                raise\n",
        "",
        at(FENCE, "test_a_violation_that_no_guard_made_needs_a_person"),
    ),
    Mutant(
        "undo-gives-up-at-the-first-refusal",
        "a grant that comes a second late would cost an operator's night",
        _FILE,
        "            if refusals >= UNDO_ATTEMPTS_WHEN_REFUSED:\n",
        "            if refusals >= 1:\n",
        at(DATABASE, "test_an_undo_gives_its_round_up_after_a_few_attempts_when_a_person_is_needed"),
    ),
    Mutant(
        "undo-never-gives-its-round-up",
        "an order that needs a person would not be parked for 15 minutes",
        _FILE,
        "            if refusals >= UNDO_ATTEMPTS_WHEN_REFUSED:\n",
        "            if refusals >= 1000:\n",
        at(DATABASE, "test_an_undo_gives_its_round_up_after_a_few_attempts_when_a_person_is_needed"),
    ),
    Mutant(
        "outages-count-as-refusals-of-an-undo",
        "one refusal after an outage would park the order",
        _FILE,
        "1 + next(iter(activity.info().heartbeat_details), 0)",
        "activity.info().attempt",
        at(STUCK, "test_an_outage_before_each_refusal_does_not_end_a_round_early"),
    ),
    Mutant(
        "refusals-of-an-undo-are-forgotten",
        "a round would go on for 15 minutes, each attempt the first that was refused",
        _FILE,
        "            activity.heartbeat(refusals)\n",
        "",
        at(STUCK, "test_an_outage_before_each_refusal_does_not_end_a_round_early"),
    ),
    Mutant(
        "foreign-constraint-is-an-outage",
        "a payment that no attempt can make would be tried for two minutes",
        _FILE,
        "    if guard is not None and refusal is None:\n",
        "    if False:\n",
        at(ACTIVITIES, "test_a_constraint_that_is_not_ours_refuses_a_payment_at_once"),
    ),
    Mutant(
        "rival-is-a-foreign-constraint",
        "an order would be rejected because others were faster twice",
        _FILE,
        "        await connection.execute(_REPEATABLE_READ)\n",
        "",
        at(FENCE, "test_a_guard_that_refuses_because_of_a_rival_again_is_worth_another_attempt"),
    ),
    Mutant(
        "fence-key-has-the-attempt",
        "each retry would be a step of its own",
        "activities/steps.py",
        "    return FenceKey(order.order_id, step.value, order.fingerprint, OrderIdConflict)",
        "    attempt = activity.info().attempt if activity.in_activity() else 1\n"
        '    return FenceKey(order.order_id, f"{step.value}/{attempt}", order.fingerprint, OrderIdConflict)',
        at(CHECKOUT, "test_a_step_that_committed_and_then_failed_has_its_effect_once[charge_payment]"),
    ),
    Mutant(
        "fence-key-has-the-run-id",
        "a second run of an order could not undo what the first has left",
        "activities/steps.py",
        "    return FenceKey(order.order_id, step.value, order.fingerprint, OrderIdConflict)",
        '    run = activity.info().workflow_run_id if activity.in_activity() else "by hand"\n'
        '    return FenceKey(f"{order.order_id}/{run}", step.value, order.fingerprint, OrderIdConflict)',
        at(
            SECOND_RUN,
            "test_a_second_run_that_is_cancelled_before_its_first_step_undoes_what_the_first_run_left[reserve]",
        ),
    ),
    Mutant(
        "fence-key-has-the-activity-id",
        "a step and its undo would stand before two different fences",
        "activities/steps.py",
        "    return FenceKey(order.order_id, step.value, order.fingerprint, OrderIdConflict)",
        "    doing = activity.info().activity_id if activity.in_activity() else step.value\n"
        "    return FenceKey(order.order_id, doing, order.fingerprint, OrderIdConflict)",
        at(CHECKOUT, "test_a_refused_order_is_rejected_with_everything_undone_and_explained[InsufficientFunds-bob]"),
    ),
)
