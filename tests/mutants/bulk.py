"""Faults in the bulk lane: who gets the last ones, what is left behind, and who deals with the rest."""

from tests.mutants.killers import BATCHES, BULK, BULK_FILES, at
from tests.mutants.mutant import Mutant

_STEPS = "activities/batches.py"
_UNWIND = "activities/batch_unwind.py"
_SHARED = "activities/batch.py"
_WORKFLOW = "workflows/bulk.py"
_EQUAL = at(BATCHES, "test_orders_that_are_done_together_leave_what_they_leave_one_by_one")

MUTANTS = (
    Mutant(
        "batch-promises-the-last-one-twice",
        "a batch with more buyers than goods would never be reserved",
        _STEPS,
        "            free[line.sku] -= line.quantity\n",
        "            free[line.sku] -= 0\n",
        _EQUAL,
    ),
    Mutant(
        "batch-spends-a-balance-twice",
        "a batch with a customer who cannot pay all of it would never be paid",
        _STEPS,
        "        left_over[row.customer] -= row.total_minor\n",
        "",
        _EQUAL,
    ),
    Mutant(
        "batch-acts-without-the-fence",
        "an order that was undone before would be reserved all the same",
        _STEPS,
        "    taken = [accepted[order_id] for order_id in claimed]\n",
        "    taken = [accepted[order_id] for order_id in accepted]\n",
        at(BATCHES, "test_an_order_that_was_undone_before_it_was_done_is_left_to_its_saga"),
    ),
    Mutant(
        "batch-takes-anothers-id",
        "an order would be paid under the id of another one",
        _SHARED,
        "    elif row.fingerprint is not None and row.fingerprint != order.fingerprint:\n",
        "    elif False:\n",
        at(BATCHES, "test_an_id_that_belongs_to_another_order_is_told_and_left_alone"),
    ),
    Mutant(
        "batch-takes-its-first-look-for-the-last",
        "an order whose id another one has just taken would be handed over to that one's saga",
        _SHARED,
        "            if row is None or sort_out(report, orders[order_id], row):\n",
        "            if row is None or row.status:\n",
        at(BATCHES, "test_an_order_that_comes_while_its_fence_is_taken_is_looked_at_again[lines1]"),
    ),
    Mutant(
        "load-tells-a-strangers-ending",
        "an order would be told completed where another order with its id is",
        "client/bulk.py",
        "        if await checkouts.has_saga_of(order):\n",
        "        if await checkouts.has_saga_of(order) or not is_last:\n",
        at(BULK, "test_the_end_of_a_strangers_saga_is_not_told_as_that_of_an_order"),
    ),
    Mutant(
        "load-tells-a-taken-id-as-a-refusal",
        "an order whose id is another's would be told rejected, as if it could come again under that id",
        "client/bulk.py",
        """            if (status.reason or "").startswith(f"{IdempotencyMismatch.__name__}: "):\n""",
        "            if False:\n",
        at(BULK, "test_an_order_whose_own_saga_finds_its_id_taken_is_told_to_be_of_other_content"),
    ),
    Mutant(
        "batch-forgets-that-a-step-is-forgotten",
        "what a restored database has lost would be taken for done",
        _SHARED,
        "    if row is None or row.status in before:\n",
        "    if row is None:\n",
        at(BATCHES, "test_a_step_that_the_database_has_forgotten_is_told"),
    ),
    Mutant(
        "batch-keeps-the-goods-of-the-refused",
        "stock would be held for orders that were rejected",
        _UNWIND,
        '"reserved": [order_id for order_id, step in had_effect if step == Step.RESERVE]',
        '"reserved": []',
        _EQUAL,
    ),
    Mutant(
        "batch-leaves-the-failed-step-open",
        "a late attempt of the refused step would act after the unwind",
        _UNWIND,
        "_STEPS[: _STEPS.index(each.last_step) + 1]",
        "_STEPS[: _STEPS.index(each.last_step)]",
        _EQUAL,
    ),
    Mutant(
        "batch-undoes-as-far-as-it-knows",
        "a batch that is cancelled before it knows what an earlier run has done would keep the money",
        _UNWIND,
        "_DONE[row.status] if row else Step.RESERVE",
        "Step.RESERVE",
        at(BATCHES, "test_an_unwind_that_does_not_know_how_far_its_orders_came_takes_back_all_the_same"),
    ),
    Mutant(
        "batch-gives-up-with-its-step",
        "a step that keeps failing would cost all its orders",
        _WORKFLOW,
        "                await self._saga.protect(self._hand_over(due, describe(error)))\n",
        "                raise\n",
        at(BULK, "test_where_a_step_keeps_failing_its_orders_go_on_in_sagas_of_their_own"),
    ),
    Mutant(
        "batch-leaves-the-refused-as-they-are",
        "a rejected order would hold its goods until the sweep came",
        _WORKFLOW,
        "            self._refused[order_id] = _Undo(self._step, tidy(reason), Ending.REJECTED)\n",
        '            self._outcomes[order_id] = Outcome(order_id, "rejected", reason)\n',
        at(BULK, "test_each_order_of_a_batch_has_an_outcome_of_its_own"),
    ),
    Mutant(
        "batch-does-not-hear-of-a-cancel",
        "orders would be paid and shipped after the load was called off",
        _WORKFLOW,
        "            if self._saga.is_cancel_requested:\n",
        "            if False:\n",
        at(BULK, "test_a_cancel_undoes_what_has_not_been_completed[after-charge_orders]"),
    ),
    Mutant(
        "batch-goes-on-by-sagas-after-a-cancel",
        "a step that fails in the moment of a cancel would have its orders completed all the same",
        _WORKFLOW,
        "                if self._saga.is_cancel_requested:  # whatever it failed of: nothing is to go on\n",
        "                if False:\n",
        at(BULK, "test_a_cancel_during_an_attempt_that_then_fails_undoes_the_batch"),
    ),
    Mutant(
        "batch-guesses-what-was-forgotten",
        "goods would be reserved and money taken twice after a restore",
        _WORKFLOW,
        "            await self._hand_over(report.forgotten, doubt, doubt=doubt)\n",
        "            await self._hand_over(report.forgotten, doubt)\n",
        at(BULK, "test_what_the_database_has_forgotten_is_parked_and_not_guessed"),
    ),
    Mutant(
        "sweep-repairs-what-a-batch-carries",
        "a worker that was away for a minute would cost all orders of its batches",
        "activities/maintenance.py",
        "            if reported is None:\n                continue\n",
        "            reported = reported or frozenset()\n",
        at(
            BULK,
            "test_the_sweep_leaves_orders_alone_while_their_batch_is_under_way_and_repairs_them_once_it_is_lost",
        ),
    ),
    Mutant(
        "load-trusts-a-torn-line",
        "an order whose outcome was half written would be lost in one line with the next",
        "client/outcomes.py",
        "        self._drop_torn_line()\n",
        "",
        at(BULK_FILES, "test_a_line_that_a_killed_load_has_begun_is_written_anew"),
    ),
    Mutant(
        "load-asks-for-the-stuck-no-more",
        "an order that was mended would stay stuck in the outcomes",
        "client/outcomes.py",
        "ENDINGS | {OTHER_CONTENT}",
        'ENDINGS | {OTHER_CONTENT, "stuck"}',
        at(BULK_FILES, "test_a_load_goes_on_behind_the_outcomes_that_are_settled"),
    ),
)
