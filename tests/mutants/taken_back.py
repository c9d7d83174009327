"""Faults in who may take a completed order back, in what needs a review, and in what waits for the environment."""

from tests.mutants.killers import COMPLETED_STAYS, ENVIRONMENT, FENCE, REVIEW, REVIEW_ENDED, SECOND_RUN, SETUP, at
from tests.mutants.mutant import Mutant

_ORDERS = "activities/orders.py"
_STEPS = "activities/steps.py"
_STORY = "workflows/checkout.py"
_RESET = at(
    REVIEW, "test_a_second_run_of_an_order_that_needs_review_undoes_nothing_until_it_is_retried[_terminate_and_start]"
)
_WAITS = at(
    ENVIRONMENT,
    "test_an_order_waits_in_whatever_step_and_completes_once_it_is_put_right[a missing right-charge_payment]",
)

MUTANTS = (
    Mutant(
        "anybody-takes-a-completed-order-back",
        "a second run that fails would cancel the label and refund the money (P11)",
        "setup.sql",
        "    SELECT status = 'completed' AND coalesce(taken_back_by <> 'cancel', true)\n",
        "    SELECT false AND coalesce(taken_back_by <> 'cancel', true)\n",
        at(
            COMPLETED_STAYS,
            "test_a_second_run_that_gives_up_in_a_step_leaves_the_order_completed[_run_again-charge_payment]",
        ),
    ),
    Mutant(
        "a-repeat-of-ship-takes-back",
        "a repeat that gives up in ship would take back what an earlier run has shipped",
        "setup.sql",
        "           AND coalesce(taken_back_by <> shipped_by, true)\n",
        "           AND taken_back_by IS NULL\n",
        at(
            COMPLETED_STAYS,
            "test_a_second_run_that_gives_up_in_a_step_leaves_the_order_completed[_run_again-ship_order]",
        ),
    ),
    Mutant(
        "nobody-takes-back-but-a-cancel",
        "a customer whose order was rejected would get the parcel",
        "activities/shipping.py",
        "shipped_by = :run\n      FROM gate",
        "shipped_by = NULL\n      FROM gate",
        at(COMPLETED_STAYS, "test_the_run_that_shipped_an_order_and_never_heard_of_it_takes_it_back_itself"),
    ),
    Mutant(
        "park-takes-a-completed-order-back",
        "a repair or a second run would park a healthy order",
        _ORDERS,
        "            if locked is not None and locked.stays_completed:\n"
        "                return await _state(connection, order)\n",
        "",
        at(COMPLETED_STAYS, "test_parking_and_closing_leave_an_order_completed_that_another_run_has_shipped"),
    ),
    Mutant(
        "database-lets-anybody-take-back",
        "a statement by hand, or of an older worker, would take a completed order back",
        "setup.sql",
        "           OR public.order_stays_completed(OLD.status, OLD.shipped_by, NEW.taken_back_by)\n",
        "",
        at(COMPLETED_STAYS, "test_the_database_lets_nobody_else_take_a_completed_order_back"),
    ),
    Mutant(
        "goes-forward-without-its-parcel",
        "a customer would be told of a completed order without its parcel",
        _STEPS,
        "        raise _Irrevocable(found.scalar_one_or_none() or {})\n",
        "        raise _Irrevocable({})\n",
        at(COMPLETED_STAYS, "test_a_second_run_that_goes_forward_after_all_knows_the_parcels_number"),
    ),
    Mutant(
        "cancelled-label-counts-as-gone",
        "a label that was cancelled by hand would leave the customer without parcel and money",
        "activities/shipping.py",
        "SELECT state = 'handed_over' FROM",
        "SELECT state <> 'label' FROM",
        at(COMPLETED_STAYS, "test_a_label_that_was_cancelled_by_hand_is_not_taken_for_a_parcel_that_is_gone"),
    ),
    Mutant(
        "rivals-work-is-a-refusal",
        "a step that somebody else has done this instant would end the order as undone",
        "sagafence/fence.py",
        "            # `explain` may have seen what a concurrent attempt has committed since: then the "
        "fence has the result.\n"
        "            stored = (await connection.execute(_READ, key.parameters())).one_or_none()\n",
        "",
        at(FENCE, "test_a_refusal_that_is_the_work_of_a_rival_which_has_just_committed_is_the_rivals_result"),
    ),
    Mutant(
        "resolves-what-is-undone",
        "an operator would vouch for money that a round has refunded already",
        "sagafence/fence.py",
        '    if stored.fingerprint == key.fingerprint and stored.phase == "undone":\n',
        "    if not stored.phase:\n",
        at(REVIEW, "test_a_resolution_that_comes_after_a_round_has_undone_the_step_is_refused_and_not_logged"),
    ),
    Mutant(
        "resolution-shows-as-undone",
        "what a person vouched for would show as undone",
        "sagafence/stack.py",
        "if entry.is_stuck or entry.was_undone_before:",
        "if entry.is_stuck:",
        at(REVIEW, "test_a_round_that_comes_after_a_resolution_undoes_nothing"),
    ),
    Mutant(
        "review-holds-up-no-undo",
        "a second run would undo what only a person may decide",
        _STEPS,
        "    is_stuck = locked is not None and locked.status == OrderStatus.STUCK\n",
        "    is_stuck = False\n",
        _RESET,
    ),
    Mutant(
        "review-is-not-kept",
        "a second run would know nothing of the review",
        "workflows/checkout_stuck.py",
        ", bool(self._question))\n",
        ")\n",
        _RESET,
    ),
    Mutant(
        "review-is-never-over",
        "an operator who has looked could not have the order undone",
        _ORDERS,
        '            await connection.execute(_REVIEWED, {"order_id": note.order.order_id})\n',
        "",
        at(REVIEW, "test_a_retry_that_fails_again_has_lifted_the_review_all_the_same"),
    ),
    Mutant(
        "review-of-what-has-ended",
        "a run that a sweep has started too late would wait for a review for ever, as stuck",
        "workflows/checkout_stuck.py",
        '                self._question = ""  # an operator',
        "                pass  # an operator",
        at(
            REVIEW_ENDED,
            "test_a_review_of_an_order_that_has_ended_since_a_sweep_listed_it_ends_as_the_order_has[rejected]",
        ),
    ),
    Mutant(
        "review-comes-back-with-the-sweep",
        "an order would be parked again for a review that an operator has made",
        "activities/sweep.py",
        "i.closed_at IS NULL AND i.needs_review) AS to_review",
        "i.closed_at IS NULL) AS to_review",
        at(REVIEW, "test_a_sweep_of_an_order_whose_run_was_ended_after_a_retry_asks_for_no_second_review"),
    ),
    Mutant(
        "review-is-lost-by-the-upgrade",
        "a second run would undo what an earlier version has parked for a person",
        "setup.sql",
        "        UPDATE public.incidents SET needs_review = true\n",
        "        UPDATE public.incidents SET needs_review = false\n",
        at(SETUP, "test_an_order_that_an_earlier_version_parked_for_a_review_needs_one_still"),
    ),
    Mutant(
        "closing-forgets-the-review",
        "an order that the database has forgotten would be closed before anybody has looked",
        _ORDERS,
        "found.unreviewed or found.steps",
        "found.steps",
        at(REVIEW, "test_closing_waits_for_the_review_too_where_the_database_has_forgotten_every_step"),
    ),
    Mutant(
        "nobody-knows-who-asked",
        "the log would not say who had an order undone, and why",
        "workflows/checkout_stuck.py",
        'f"{why} (request {info.id})" if why else f"request {info.id}"',
        'f"request {info.id}"',
        at(REVIEW, "test_who_asked_for_a_retry_and_why_is_in_the_orders_log"),
    ),
    Mutant(
        "environment-rejects-customers",
        "a missing right or column would cost every order that came meanwhile (P12)",
        "workflows/checkout_steps.py",
        "                if fault is None or self._saga.cancellation.is_requested:\n                    raise\n",
        "                raise\n",
        _WAITS,
    ),
    Mutant(
        "waiting-shows-nowhere",
        "an operator could not find the orders that wait",
        "workflows/checkout_steps.py",
        "                workflow.upsert_search_attributes([policies.FAILED_STEP.value_set(step.value)])\n"
        "                self._show()\n"
        "                try:\n",
        "                try:\n",
        _WAITS,
    ),
    Mutant(
        "waiting-shows-for-ever",
        "a completed order would be listed as failed in a step",
        "workflows/checkout_steps.py",
        "                workflow.upsert_search_attributes([policies.FAILED_STEP.value_unset()])\n",
        "",
        _WAITS,
    ),
    Mutant(
        "a-missing-right-is-the-orders-fault",
        "a missing right would reject every order",
        "sagafence/database.py",
        '_MISCONFIGURED_CLASSES = frozenset({"28", "3D", "3F", "42"})',
        '_MISCONFIGURED_CLASSES = frozenset({"28", "3D", "3F"})\n_REFUSING_CLASSES = frozenset({"42"})',
        _WAITS,
    ),
    Mutant(
        "a-parking-overtakes-the-retry",
        "an operator's word would be overwritten by a round that began meanwhile, and the order stay stuck for hours",
        "workflows/checkout_stuck.py",
        'held("parking", after="retry",',
        'held("parking", after="",',
        at(REVIEW, "test_a_retry_that_is_being_noted_while_a_round_of_its_own_accord_parks_the_order_is_not_lost"),
        hangs=True,
    ),
    Mutant(
        "a-review-is-forgotten-by-the-next-run",
        "an order that waited for days would be undone in its next run although nobody has looked",
        "workflows/checkout.py",
        "            review_reason=self._question,\n            reason",
        "            reason",
        at(
            "tests/workflow/test_review_for_long.py",
            "test_an_order_that_needs_a_review_is_undone_in_no_run_before_somebody_has_looked",
        ),
        hangs=True,
    ),
    Mutant(
        "a-retry-does-not-wait-for-the-parking",
        "an operator's word would be overwritten by the parking it overtook, and the order stay stuck for hours",
        "workflows/checkout_stuck.py",
        'held("retry", after="parking",',
        'held("retry", after="",',
        at(REVIEW, "test_a_retry_that_comes_while_the_order_is_being_parked_is_not_lost"),
        hangs=True,
    ),
    Mutant(
        "what-has-ended-is-stuck",
        "a second run of an order that has ended would be stuck for an hour, without an incident",
        "workflows/checkout_stuck.py",
        "            self._take_over_the_ending(steps, nothing_active=state.nothing_active)\n",
        "            pass\n",
        at(SECOND_RUN, "test_a_second_run_whose_undo_is_refused_ends_as_the_order_has_and_is_not_stuck"),
        hangs=True,
    ),
    Mutant(
        "what-stands-is-taken-for-ended",
        "a step that stands under an order that has ended would be undone again and again without a pause",
        "workflows/checkout_stuck.py",
        "        elif nothing_active and workflow.patched(",
        "        elif workflow.patched(",
        at(SECOND_RUN, "test_a_second_run_of_what_has_ended_is_stuck_where_a_step_stands_after_all"),
        hangs=True,
    ),
)
