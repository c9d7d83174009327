"""Faults in what is written about an order as a whole: its ending, its reason, its incident, its notes."""

from tests.mutants.killers import ACTIVITIES, MAINTENANCE, PARKED, SECOND_RUN, STUCK, at
from tests.mutants.mutant import Mutant

_FILE = "activities/orders.py"
_STEPS = "activities/steps.py"

MUTANTS = (
    Mutant(
        "close-does-not-compare-the-content",
        "an intruder under a taken id would end somebody else's order",
        _STEPS,
        "        is_same = fingerprint == order.fingerprint\n",
        "        is_same = True\n",
        at(ACTIVITIES, "test_a_stranger_under_an_orders_id_can_change_nothing_of_it"),
    ),
    Mutant(
        "content-by-hand-is-not-compared",
        "an order by hand would be taken with other lines",
        _STEPS,
        "        is_same = found == {(order.customer, line.sku, line.quantity) for line in order.lines}\n",
        "        is_same = True\n",
        at(ACTIVITIES, "test_an_order_that_was_written_by_hand_is_not_taken_with_other_content"),
    ),
    Mutant(
        "close-does-not-look-again",
        "an order that came while the row was missing would be closed by a stranger",
        _FILE,
        "            await lock_order(connection, order)  # another order may have taken the id meanwhile\n",
        "",
        at(ACTIVITIES, "test_an_order_that_comes_while_a_stranger_ends_its_id_is_left_alone[close_order]"),
    ),
    Mutant(
        "park-does-not-look-again",
        "an order that came while the row was missing would get a stranger's incident",
        _FILE,
        "            await lock_order(connection, order)  # as in close_order\n",
        "",
        at(ACTIVITIES, "test_an_order_that_comes_while_a_stranger_ends_its_id_is_left_alone[park_order]"),
    ),
    Mutant(
        "close-before-standing-steps-are-undone",
        "an order would end as cancelled and keep its stock and money (P1)",
        _FILE,
        "            if (steps := found.unreviewed or found.steps) and not (locked and locked.stays_completed):\n",
        "            if (steps := found.unreviewed or found.steps) and not locked:\n",
        at(SECOND_RUN, "test_a_second_run_that_is_cancelled_before_its_first_step_undoes_what_the_first_run_left"),
    ),
    Mutant(
        "cancel-stops-at-the-completion",
        "a second run that is cancelled would leave the label standing, and a late undo would half undo it (P6)",
        _FILE,
        "by=CANCEL if is_asked_for(undo) else None)",
        "by=None)",
        at(SECOND_RUN, "test_a_second_run_that_is_cancelled_reaches_behind_the_completion_as_long_as_there_is_a_label"),
    ),
    Mutant(
        "close-takes-the-newest-ending",
        "an order that was cancelled would end as rejected by its repair",
        _FILE,
        "       SET status = coalesce(orders.ending, excluded.ending), changed_by = 'close',",
        "       SET status = excluded.ending, changed_by = 'close',",
        at(ACTIVITIES, "test_an_order_ends_the_way_its_unwind_began"),
    ),
    Mutant(
        "unwind-forgets-its-first-reason",
        "a repair would hide why the order was refused",
        _STEPS,
        "           reason = coalesce(reason, :reason), ending = coalesce(ending, :ending)\n",
        "           reason = :reason, ending = coalesce(ending, :ending)\n",
        at(MAINTENANCE, "test_a_stuck_order_whose_saga_was_terminated_is_finished"),
    ),
    Mutant(
        "unwind-forgets-where-it-was-heading",
        "a repair would turn a rejection into a cancellation",
        _STEPS,
        "           reason = coalesce(reason, :reason), ending = coalesce(ending, :ending)\n",
        "           reason = coalesce(reason, :reason), ending = :ending\n",
        at(MAINTENANCE, "test_a_stuck_order_whose_saga_was_terminated_is_finished"),
    ),
    Mutant(
        "refused-order-keeps-no-lines",
        "nobody would know what a refused customer had wanted",
        _FILE,
        "WITH kept AS ({_KEEP_LINES}), closed AS",
        "WITH kept AS (SELECT CAST(:skus AS text[]), CAST(:quantities AS integer[])), closed AS",
        at(ACTIVITIES, "test_closing_an_order_that_never_had_a_row_writes_what_was_asked_for_and_why"),
    ),
    Mutant(
        "incident-stays-open",
        "operators would be called to an order that has ended",
        _FILE,
        'text(f"WITH kept AS ({_KEEP_LINES}), closed AS ({_CLOSE_INCIDENT}) {_STATE}")',
        'text(f"WITH kept AS ({_KEEP_LINES}), unused AS (SELECT CAST(:resolution AS text)) {_STATE}")',
        at(ACTIVITIES, "test_closing_a_parked_order_closes_its_incident"),
    ),
    Mutant(
        "incident-of-a-completed-order-stays-open",
        "operators would be called to a parcel that has arrived",
        _FILE,
        'text(f"WITH closed AS ({_CLOSE_INCIDENT}) {_STATE}")',
        'text(f"WITH unused AS (SELECT CAST(:resolution AS text)) {_STATE}")',
        at(STUCK, "test_a_parcel_that_is_collected_while_its_undo_is_stuck_completes_the_order"),
    ),
    Mutant(
        "completed-order-keeps-its-reason-to-fail",
        "a customer would be told why an order failed that did not",
        _FILE,
        "changed_by = 'handed over', reason = NULL, ending = NULL,\n           taken_back_by = NULL\n",
        "changed_by = 'handed over'\n",
        at(STUCK, "test_a_parcel_that_is_collected_while_its_undo_is_stuck_completes_the_order"),
    ),
    Mutant(
        "park-opens-another-incident",
        "each fruitless round would open, or fail to open, one more",
        _FILE,
        "    ON CONFLICT (order_id) WHERE closed_at IS NULL DO UPDATE\n"
        "       SET steps = excluded.steps, cause = excluded.cause,\n"
        "           needs_review = incidents.needs_review OR excluded.needs_review\n",
        "",
        at(ACTIVITIES, "test_parking_opens_one_incident_and_parking_again_brings_it_up_to_date"),
    ),
    Mutant(
        "park-keeps-the-old-incident",
        "the operator would read of steps that are settled and causes that are gone",
        _FILE,
        "    ON CONFLICT (order_id) WHERE closed_at IS NULL DO UPDATE\n"
        "       SET steps = excluded.steps, cause = excluded.cause,\n"
        "           needs_review = incidents.needs_review OR excluded.needs_review\n",
        "    ON CONFLICT (order_id) WHERE closed_at IS NULL DO NOTHING\n",
        at(ACTIVITIES, "test_parking_opens_one_incident_and_parking_again_brings_it_up_to_date"),
    ),
    Mutant(
        "park-although-the-parcel-is-gone",
        "an order that has ended well would wait for a person",
        _FILE,
        " AND NOT EXISTS (\n"
        "           SELECT FROM shipments s WHERE s.order_id = orders.order_id AND s.state = 'handed_over')",
        "",
        at(ACTIVITIES, "test_parking_an_order_whose_parcel_is_gone_answers_completed"),
    ),
    Mutant(
        "cause-of-any-length",
        "a long message would fail the park itself, and stop the saga",
        _FILE,
        '"cause": park.cause[:1000]',
        '"cause": park.cause',
        at(ACTIVITIES, "test_a_cause_of_any_length_can_be_parked"),
    ),
    Mutant(
        "note-is-written-by-each-attempt",
        "the log would tell of retries that nobody asked for",
        "setup.sql",
        "         WHERE o.order_id = noted_order AND NOT EXISTS (\n"
        "               SELECT FROM public.order_events e\n"
        "                WHERE e.order_id = noted_order AND e.event = noted_event AND e.reason = noted_reason)\n",
        "         WHERE o.order_id = noted_order\n",
        at(ACTIVITIES, "test_a_retry_is_logged_once_however_often_it_is_repeated"),
    ),
    Mutant(
        "note-without-the-orders-lock",
        "two attempts at once would both find the note missing",
        _FILE,
        "            await lock_order(connection, note.order)\n            await connection.execute(_REVIEWED",
        "            await connection.execute(_REVIEWED",
        at(ACTIVITIES, "test_a_retry_is_logged_once_when_an_abandoned_attempt_is_still_writing_it"),
    ),
    Mutant(
        "incidents-of-before-are-closed-again",
        "how an earlier incident was settled, and when, would be lost with each later one",
        _FILE,
        '     WHERE order_id = :order_id AND closed_at IS NULL\n"""\n\n_OPEN_INCIDENT',
        '     WHERE order_id = :order_id\n"""\n\n_OPEN_INCIDENT',
        at(PARKED, "test_an_incident_that_is_closed_keeps_how_it_was_settled"),
    ),
    Mutant(
        "review-of-before-holds-up-every-undo",
        "an order that was reviewed and got stuck again could never be undone",
        _STEPS,
        "WHERE order_id = :order_id AND closed_at IS NULL AND needs_review",
        "WHERE order_id = :order_id AND needs_review",
        at(PARKED, "test_a_review_that_is_over_holds_up_nothing_any_more"),
    ),
)
