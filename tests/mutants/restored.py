"""Faults in what happens behind a database that was restored: doubts, parked orders, and steps that still stand."""

from tests.mutants.killers import BESIDE, RESTORED, SECOND_RUN, at
from tests.mutants.mutant import Mutant

_SAGA = "sagafence/stack.py"
_STORY = "workflows/checkout.py"
_ORDERS = "activities/orders.py"
_SEARCH = "activities/sweep.py"

_MEETS_A_PARCEL = at(
    SECOND_RUN,
    "test_a_second_run_that_is_cancelled_before_it_knows_of_the_first_runs_parcel_undoes_that_first[charge_payment]",
)
_SWEPT = at(RESTORED, "test_an_order_that_temporal_has_completed_is_parked_by_the_sweep_and_not_refunded[ship_order]")

MUTANTS = (
    Mutant(
        "sweep-forgets-what-a-batch-has-reported",
        "an order whose parcel its batch has sent would be refunded after a restore",
        _SEARCH,
        "                if row.order_id in completed and not now.was_completed:\n",
        "                if not row.order_id:\n",
        at(
            RESTORED,
            "test_an_order_that_a_batch_has_completed_is_parked_and_one_that_it_refused_is_undone[True]",
        ),
    ),
    Mutant(
        "doubt-is-no-hindrance",
        "a restored database would have an order undone whose parcel may be on its way",
        "workflows/checkout_steps.py",
        "        if self._question:\n            raise errors.DatabaseContradictsHistory(self._question)\n        row",
        "        row",
        at(RESTORED, "test_a_saga_whose_steps_are_forgotten_is_parked_and_undoes_nothing_by_itself"),
    ),
    Mutant(
        "doubt-is-never-lifted",
        "an operator who has looked could not have the order undone",
        "workflows/checkout_stuck.py",
        '            self._question = ""\n        self._saga.retry()\n',
        "        self._saga.retry()\n",
        at(RESTORED, "test_a_parked_saga_undoes_what_there_is_once_somebody_has_looked"),
    ),
    Mutant(
        "swept-doubt-is-no-doubt",
        "the sweep would refund every order that was delivered before a restore",
        _STORY,
        'order.review_reason if order.repair else ""',
        '""',
        _SWEPT,
    ),
    Mutant(
        "forgotten-reservation-is-a-refusal",
        "a restored database would end orders by itself that only a person can judge",
        "activities/steps.py",
        "    if found in _DUE_AT[:number]:\n",
        "    if step is not Step.PAY and found in _DUE_AT[:number]:\n",
        at(
            RESTORED,
            "test_a_saga_whose_steps_are_forgotten_is_parked_and_undoes_nothing_by_itself[None-charge_payment-reserve]",
        ),
    ),
    Mutant(
        "forgotten-payment-is-a-refusal",
        "a restored database would end orders by itself that only a person can judge",
        "activities/steps.py",
        "    if found in _DUE_AT[:number]:\n",
        "    if step is not Step.SHIP and found in _DUE_AT[:number]:\n",
        at(
            RESTORED,
            "test_a_saga_whose_steps_are_forgotten_is_parked_and_undoes_nothing_by_itself[charge_payment-ship_order-pay]",
        ),
    ),
    Mutant(
        "park-overlooks-what-stands",
        "a refund that waits for an earlier run's parcel would wait for ever",
        _ORDERS,
        "            if unknown and not found.is_gone:\n",
        "            if unknown and found.is_gone:\n",
        _MEETS_A_PARCEL,
    ),
    Mutant(
        "parked-saga-hears-of-no-more",
        "a parcel of an earlier run would never be called back",
        "workflows/checkout_stuck.py",
        '{"tracking_number": state.tracking_number})\n        self._must_undo(state.active_steps)\n',
        '{"tracking_number": state.tracking_number})\n',
        _MEETS_A_PARCEL,
    ),
    Mutant(
        "parcel-that-can-be-called-back-is-gone",
        "a cancelled order would be delivered, because an earlier run had printed its label",
        "workflows/checkout_stuck.py",
        "        if state.status == OrderStatus.COMPLETED and not state.active_steps:\n",
        "        if state.status == OrderStatus.COMPLETED:\n",
        _MEETS_A_PARCEL,
    ),
    Mutant(
        "next-round-waits-although-there-is-more-to-undo",
        "a customer would wait a minute for a cancel that nothing holds up",
        _SAGA,
        "            if all(entry.is_stuck for entry in self._unsettled()):\n",
        "            if stuck:\n",
        _MEETS_A_PARCEL,
    ),
    Mutant(
        "must-undo-forgets",
        "what an earlier run has left would be asked about for ever, and never undone",
        _SAGA,
        "        self.add_compensation(step, undo).state = StepState.DONE\n",
        "        del undo\n",
        at(
            SECOND_RUN,
            "test_a_second_run_that_is_cancelled_before_its_first_step_undoes_what_the_first_run_left[reserve]",
        ),
        hangs=True,
    ),
    Mutant(
        "sweep-repeats-completed-orders",
        "an order that was delivered before a restore would be delivered or refunded once more",
        "activities/sagas.py",
        "= WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY\n",
        "= WorkflowIDReusePolicy.ALLOW_DUPLICATE\n",
        _SWEPT,
    ),
    Mutant(
        "contradiction-on-temporals-word-alone",
        "an order that completes while the sweep looks would be parked",
        _SEARCH,
        "       AND status NOT IN ('completed', 'rejected', 'cancelled')\n",
        "",
        at(RESTORED, "test_an_order_that_completes_while_the_sweep_looks_is_no_contradiction"),
    ),
    Mutant(
        "contradictions-read-the-database-first",
        "an order that completes between the two looks would be parked",
        _SEARCH,
        "        answers = await _concurrently(_has_completed(order) for order in orders)\n"
        "        completed = [order for order, has_completed in zip(orders, answers, strict=True) if has_completed]\n"
        "        current = await self._unfinished_still([order.order_id for order in completed])\n",
        "        current = await self._unfinished_still([order.order_id for order in orders])\n"
        "        answers = await _concurrently(_has_completed(order) for order in orders)\n"
        "        completed = [order for order, has_completed in zip(orders, answers, strict=True) if has_completed]\n",
        at(RESTORED, "test_an_order_that_completes_between_the_two_looks_is_no_contradiction"),
    ),
    Mutant(
        "doubt-dies-with-its-run",
        "whoever terminates a parked run would have a delivered order refunded",
        _SEARCH,
        'review_reason = (row.to_review or "").removeprefix(_NEEDS_REVIEW)\n',
        'review_reason = ""\n',
        at(RESTORED, "test_a_parked_order_whose_run_is_terminated_is_parked_again"),
    ),
    Mutant(
        "sweep-believes-what-it-read-before-temporal-answered",
        "an order that its batch completes while the sweep looks would be parked, and refunded by who retries it (P11)",
        _SEARCH,
        "        current = await self._unfinished_still(of_ended)\n",
        "        current = await self._unfinished_still([row.order_id for row in rows])\n"
        "        current = {row.order_id: current.get(row.order_id) or type('Row', (), "
        "{**row._mapping, 'was_completed': False}) for row in rows}\n",
        at(BESIDE, "test_orders_that_their_batch_completes_while_the_sweep_looks_are_left_alone[True]"),
    ),
    Mutant(
        "sweep-takes-what-has-moved",
        "an order that is on its way while its batch closes would be repaired in that instant",
        _SEARCH,
        "now is None or now.updated_at != row.updated_at:\n",
        "now is None:\n",
        at(BESIDE, "test_an_order_that_moves_while_its_batch_closes_is_left_to_the_next_sweep"),
    ),
    Mutant(
        "batch-has-the-last-word",
        "an order that was cancelled after its batch had completed it would wait for a person",
        _SEARCH,
        "                if row.order_id in completed and not now.was_completed:\n",
        "                if row.order_id in completed:\n",
        at(BESIDE, "test_an_order_that_left_completed_because_somebody_asked_is_no_contradiction"),
    ),
    Mutant(
        "sweep-waits-for-a-batch-that-was-reset",
        "one reset of a batch would fail every sweep for as long as it takes",
        _SEARCH,
        "get_workflow_handle(workflow_id, run_id=run.execution.run_id, result_type=BatchReport)",
        "get_workflow_handle(workflow_id, result_type=BatchReport)",
        at(BESIDE, "test_a_batch_that_is_reset_while_the_sweep_looks_is_not_waited_for"),
    ),
    Mutant(
        "sweep-fails-of-one-forgotten-run",
        "a run that retention takes while the sweep looks would fail it for all other orders",
        _SEARCH,
        "        return await request\n    except RPCError as error:\n"
        "        if error.status is not RPCStatusCode.NOT_FOUND:\n",
        "        return await request\n    except RPCError as error:\n"
        "        if error.status is not RPCStatusCode.UNKNOWN:\n",
        at(BESIDE, "test_a_run_that_temporal_forgets_while_the_sweep_looks_fails_no_sweep"),
    ),
)
