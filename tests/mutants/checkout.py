"""Faults in the checkout's own story: its endings, its validators, and what people see of it."""

from tests.mutants.killers import (
    CANCEL,
    CHECKOUT,
    MAINTENANCE,
    NEXT_SDK,
    REPLAY,
    SECOND_RUN,
    STARTING,
    STUCK,
    STUCK_FOR_LONG,
    at,
)
from tests.mutants.mutant import Mutant

_FILE = "workflows/checkout.py"
_STATE = "workflows/checkout_state.py"
_UPDATES = "workflows/checkout_updates.py"

MUTANTS = (
    Mutant(
        "reserve-under-another-activity-id",
        "tools that know the step by its id would not find it; and running orders would not replay",
        _FILE,
        "policy, step.value, summary, lane",
        'policy, "hold" if step is Step.RESERVE else step.value, summary, lane',
        at(REPLAY, "test_a_recorded_history_replays[completed]"),
    ),
    Mutant(
        "second-round-takes-the-firsts-activity-id",
        "the history would not tell which try was which; and stuck orders would not replay",
        _FILE,
        'f"undo-{step}" if entry.rounds == 1 else f"undo-{step}-{entry.rounds}"',
        'f"undo-{step}"',
        at(REPLAY, "test_a_recorded_history_replays[stuck-and-retried]"),
    ),
    Mutant(
        "closing-not-protected",
        "a cancel would end the run before the order's ending is written",
        _FILE,
        "            outcome = await self._saga.protect(self._close(outcome))",
        "            outcome = await self._close(outcome)",
        at(CANCEL, "test_a_cancel_by_temporal_while_an_unwind_waits_for_the_database_changes_nothing[close_order]"),
    ),
    Mutant(
        "completing-not-protected",
        "a cancel would leave an order stuck whose parcel has arrived",
        _FILE,
        "            await self._saga.protect(self._complete(outcome))",
        "            await self._complete(outcome)",
        at(STUCK, "test_a_cancel_while_the_way_forward_is_written_changes_nothing"),
    ),
    Mutant(
        "updates-cut-off-at-the-end",
        "an operator whose retry mended the order would get an error for an answer",
        _FILE,
        "        await wait_until(workflow.all_handlers_finished)\n",
        "",
        at(STUCK, "test_a_cancel_while_an_update_is_still_answered_changes_nothing"),
    ),
    Mutant(
        "way-forward-is-not-written",
        "an order whose parcel was collected would stay stuck in the database",
        _FILE,
        "        if isinstance(outcome, Irrevocable):\n            await",
        "        if outcome is None:\n            await",
        at(STUCK, "test_a_parcel_that_is_collected_while_its_undo_is_stuck_completes_the_order"),
    ),
    Mutant(
        "foreign-workflow-id-is-accepted",
        "nobody would find the saga, and the sweep would undo its order while it lives",
        _FILE,
        "        _require_own_workflow_id(order)\n",
        "",
        at(STARTING, "test_a_saga_under_a_foreign_workflow_id_is_refused_before_it_does_anything"),
    ),
    Mutant(
        "open-saga-is-refused-its-id",
        "a saga that was open under another id at the deploy would never go on",
        _FILE,
        'given != own and workflow.patched("refuse-a-foreign-workflow-id")',
        "given != own",
        at(STARTING, "test_a_saga_that_was_open_under_a_foreign_workflow_id_at_the_deploy_goes_on"),
    ),
    Mutant(
        "end-is-cut-by-a-cancel",
        "a cancel during the last wait would turn a rejected order into a cancelled run",
        _FILE,
        "        await wait_until(workflow.all_handlers_finished)\n",
        "        await self._saga.protect(workflow.wait_condition(workflow.all_handlers_finished))\n",
        at(NEXT_SDK, "test_a_cancel_while_an_update_is_still_answered_changes_nothing"),
    ),
    Mutant(
        "repair-registers-no-undos",
        "an attempt that outlives its saga would meet no tombstone",
        _FILE,
        "        self._must_undo_all([step.value for step in Step])\n",
        "",
        at(MAINTENANCE, "test_undos_of_a_repair_are_tried_once_each"),
    ),
    Mutant(
        "repair-runs-the-story",
        "an abandoned order would be bought after all",
        _FILE,
        "self._abandon() if order.repair else self._buy(order)",
        "self._buy(order)",
        at(
            MAINTENANCE,
            "test_what_a_terminated_saga_left_is_undone_and_the_order_cancelled[charge_payment-before-True]",
        ),
    ),
    Mutant(
        "repair-is-a-rejection",
        "a customer would be told that the shop refused what an operator ended",
        _FILE,
        "order.ending or Ending.CANCELLED",
        "order.ending or Ending.REJECTED",
        at(
            MAINTENANCE,
            "test_what_a_terminated_saga_left_is_undone_and_the_order_cancelled[charge_payment-before-True]",
        ),
    ),
    Mutant(
        "standing-step-is-asked-about-for-ever",
        "a step that stands although its undo is on the stack would never be undone again",
        "workflows/saga.py",
        "                entry.state = StepState.DONE\n                return\n",
        "                return\n",
        at(SECOND_RUN, "test_a_step_that_stands_although_it_was_undone_is_undone_again"),
        hangs=True,
    ),
    Mutant(
        "strangers-undo-is-a-failure",
        "an intruder under a taken id would be stuck for ever",
        _FILE,
        "        except ActivityError as error:\n            self._require_anothers_order(error)\n"
        "            return UndoResult(UndoOutcome.NOTHING_TO_UNDO)\n",
        "        except ActivityError:\n            raise\n",
        at(CHECKOUT, "test_an_id_of_a_finished_order_with_other_content_is_refused"),
    ),
    Mutant(
        "first-reason-to-cancel-is-lost",
        "the log would name somebody who came too late",
        _UPDATES,
        "        self._cancel_reason = self._cancel_reason or who_and_why(by, reason)\n",
        "        self._cancel_reason = who_and_why(by, reason)\n",
        at(CANCEL, "test_the_first_of_two_cancels_is_the_one_on_record"),
    ),
    Mutant(
        "cancel-update-does-nothing",
        "an accepted cancel would be lost (P6)",
        _UPDATES,
        "        self._saga.cancel()\n",
        "        self._show()\n",
        at(
            CANCEL,
            "test_a_cancel_around_a_step_undoes_everything_or_comes_too_late_for_a_handed_over_parcel[before-charge_payment-carol-update]",
        ),
    ),
    Mutant(
        "cancel-without-its-validator",
        "a cancel without a reason would be accepted",
        _UPDATES,
        "    @cancel.validator\n",
        "",
        at(CANCEL, "test_a_cancel_update_without_a_good_reason_is_refused_and_changes_nothing"),
    ),
    Mutant(
        "cancel-accepted-while-unwinding",
        "people would be told that a cancel counts which comes too late",
        _UPDATES,
        '        if self._saga.is_unwinding or self._status != "running":\n',
        '        if self._status == "completed":\n',
        at(CANCEL, "test_a_cancel_update_during_an_unwind_is_refused_with_the_reason_of_the_unwind[release_inventory]"),
    ),
    Mutant(
        "retry-without-its-validator",
        "a healthy order would log a retry that makes no sense",
        _UPDATES,
        "    @retry_compensation.validator\n",
        "",
        at(STUCK, "test_there_is_nothing_to_retry_or_resolve_in_a_healthy_order[retry]"),
    ),
    Mutant(
        "resolve-without-its-validator",
        "a step that is not stuck would be closed on a person's word",
        _UPDATES,
        "    @resolve_compensation.validator\n",
        "",
        at(STUCK, "test_a_wrong_resolution_is_refused_and_the_order_stays_stuck"),
    ),
    Mutant(
        "retry-is-not-logged",
        "nobody would know who has tried what",
        _UPDATES,
        "            await perform(\n"
        "                Orders.note_retry,\n"
        '                OperatorNote(self._known_order(), f"{why} (request {info.id})" if why else '
        'f"request {info.id}"),\n'
        "                policies.RECORD,\n"
        "                None,\n"
        '                "Log the operator\'s retry",\n'
        "            )\n",
        "",
        at(STUCK, "test_a_retry_is_logged"),
    ),
    Mutant(
        "resolution-is-not-written",
        "the fence would stay open behind an operator's word",
        _UPDATES,
        "            await perform(\n"
        "                Orders.resolve_step,\n"
        "                OperatorNote("
        "self._known_order(), who_and_why(resolution.by, resolution.reason), resolution.step),\n"
        "                policies.RECORD,\n"
        "                None,\n"
        '                f"Resolve {resolution.step} on an operator\'s word",\n'
        "            )\n",
        "            pass\n",
        at(STUCK, "test_a_step_that_was_settled_by_hand_is_resolved_for_good"),
    ),
    Mutant(
        "stuck-order-is-not-parked",
        "nobody would be called",
        _FILE,
        "            on_stuck=self._park,\n",
        "            on_stuck=lambda _: workflow.wait_condition(lambda: True),\n",
        at(STUCK, "test_a_refund_that_keeps_failing_parks_the_order_with_one_incident_that_names_it"),
    ),
    Mutant(
        "failed-step-attribute-missing",
        "operators could not search for where orders fail",
        _STATE,
        "        if failed_step:\n            attributes",
        "        if failed_step is None:\n            failed_step = self._status\n"
        "        if not failed_step:\n            attributes",
        at(STUCK, "test_a_refund_that_keeps_failing_parks_the_order_with_one_incident_that_names_it"),
    ),
    Mutant(
        "status-attribute-missing",
        "stuck orders could not be listed",
        _STATE,
        "        workflow.upsert_search_attributes(attributes)\n",
        "",
        at(STUCK, "test_a_refund_that_keeps_failing_parks_the_order_with_one_incident_that_names_it"),
    ),
    Mutant(
        "undos-failure-becomes-the-reason",
        "the customer would be told of our broken refund instead of the refusal",
        _FILE,
        "        self._set_status(OrderStatus.STUCK, stuck[0].step)\n",
        "        self._reason = tidy(stuck[0].detail)\n        self._set_status(OrderStatus.STUCK, stuck[0].step)\n",
        at(STUCK, "test_a_stuck_order_keeps_its_first_cause_and_reports_the_undos_own_beside_it"),
    ),
    Mutant(
        "rejection-without-its-cause",
        "the failure in the UI would not say what refused the order",
        _FILE,
        "        raise errors.OrderRejected(message, details=[status]) from outcome.cause",
        "        raise errors.OrderRejected(message, details=[status]) from None",
        at(CHECKOUT, "test_a_refused_order_is_rejected_with_everything_undone_and_explained[InsufficientFunds-bob]"),
    ),
    Mutant(
        "temporals-cancel-ends-as-a-failure",
        "Temporal would show an order as failed that was cancelled through it",
        _FILE,
        "        if outcome.cause is None and workflow.cancellation_reason() is not None:\n"
        "            raise CancelledError(message)\n",
        "",
        at(CANCEL, "test_a_cancel_by_temporal_before_any_worker_runs_leaves_a_cancelled_order"),
    ),
    Mutant(
        "unwind-beside-a-step-that-still-runs",
        "each cancel would race the step against its undo in the database",
        "workflows/operation.py",
        "workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED",
        "workflow.ActivityCancellationType.TRY_CANCEL",
        at(CANCEL, "test_an_unwind_begins_after_the_cancelled_step_has_stopped"),
    ),
    Mutant(
        "next-run-begins-anew",
        "a stuck order would be bought again in its next run",
        _FILE,
        "            repair=True,\n",
        "            repair=False,\n",
        at(STUCK_FOR_LONG, "test_a_stuck_order_is_retried_beyond_the_limit_and_ends_as_ever"),
    ),
    Mutant(
        "next-run-forgets-where-it-was-heading",
        "an order that was refused would end as cancelled",
        _FILE,
        "            ending=self._ending,\n",
        "            ending=None,\n",
        at(STUCK_FOR_LONG, "test_a_stuck_order_is_retried_beyond_the_limit_and_ends_as_ever"),
    ),
    Mutant(
        "run-ends-before-its-updates-are-answered",
        "an operator would never hear of a request that the run had taken",
        _FILE,
        "is_continue_as_new_suggested() and workflow.all_handlers_finished()):",
        "is_continue_as_new_suggested()):",
        at(STUCK_FOR_LONG, "test_a_run_waits_for_the_answers_that_it_owes_and_rounds_go_on_meanwhile"),
    ),
    Mutant(
        "retry-for-a-reason-that-does-not-fit",
        "whatever somebody sends would be written into the order's log",
        _UPDATES,
        "request is not None and request.reason and (problem := reason_problem(request.reason))",
        "request is not None and request.reason and (problem := None)",
        at(STUCK, "test_a_retry_while_it_is_still_broken_answers_that_it_is_still_stuck"),
    ),
)
