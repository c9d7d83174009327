"""Faults in declared sagas: what a story's verbs promise, and what a second run finds."""

from tests.mutants.killers import (
    DECLARED_SAGA,
    LIBRARY_EXTERNAL_SAGAS,
    LIBRARY_FINGERPRINT,
    LIBRARY_LOCAL_SAGAS,
    LIBRARY_REGISTRY,
    LIBRARY_SECOND_RUNS,
    at,
)
from tests.mutants.mutant import Mutant

_SAGA = "sagafence/saga.py"
_WORKFLOW = "sagafence/saga_workflow.py"
_LOCAL = "sagafence/local_steps.py"
_EXTERNAL = "sagafence/bound_external.py"
_FINGERPRINT = "sagafence/fingerprint.py"
_UNWINDING = "sagafence/unwinding.py"
_REGISTRY = "sagafence/registry.py"
_CANCEL_OF_A_SECOND_RUN = (
    "test_a_cancel_of_a_second_run_takes_nothing_back_that_the_first_has_passed_the_pivot_with[greeting]"
)
_ANOTHER_REQUEST = "test_another_request_under_the_same_id_is_refused_and_takes_nothing_back"
_AFTER_THE_PIVOT = "test_after_the_pivot_a_step_is_tried_until_it_works_and_no_cancel_is_taken"
_UNKNOWN_PIVOT = "test_while_a_pivot_is_unknown_nothing_before_it_is_undone"
_SECOND_RUN_AT_PIVOT = "test_a_cancel_of_a_second_run_undoes_nothing_while_the_pivot_of_the_first_is_unknown"

MUTANTS = (
    Mutant(
        "declared-undo-past-the-pivot-is-let-in",
        "an undo that outlives its run would take back what cannot be taken back",
        _LOCAL,
        "            if way is not Way.BACK:\n",
        "            if way is Way.NOWHERE:\n",
        at(LIBRARY_LOCAL_SAGAS, "test_an_undo_that_outlives_its_run_takes_nothing_back_past_the_pivot"),
    ),
    Mutant(
        "local-pivot-does-not-move-the-row",
        "nobody but its own run would know that there is no way back",
        _LOCAL,
        "                await move(connection, key.saga_id, State.PAST_PIVOT, State.OPEN)\n",
        "                pass\n",
        at(LIBRARY_LOCAL_SAGAS, _CANCEL_OF_A_SECOND_RUN),
        hangs=True,
    ),
    Mutant(
        "operators-word-leaves-the-fence-open",
        "an attempt that comes late would act on what was undone by hand",
        _LOCAL,
        "            await resolve_once(connection, key)\n",
        "",
        at(LIBRARY_LOCAL_SAGAS, "test_an_operator_can_say_that_a_step_was_undone_by_hand"),
    ),
    Mutant(
        "sibling-is-not-waited-for",
        "steps would be undone while one beside them still acts",
        _SAGA,
        "            await self._until(are_done)\n            raise",
        "            raise",
        at(
            LIBRARY_LOCAL_SAGAS,
            "test_a_step_that_is_under_way_beside_one_that_failed_is_waited_for_before_anything_is_undone",
        ),
    ),
    Mutant(
        "cancel-counts-past-the-pivot",
        "a cancel that came too late would begin an unwind",
        _SAGA,
        "            self.cancellation.overrule()\n",
        "",
        at(LIBRARY_LOCAL_SAGAS, _AFTER_THE_PIVOT),
    ),
    Mutant(
        "step-after-the-pivot-gives-up",
        "the saga would be left half done with no way back",
        _SAGA,
        "            result = await self._uninterrupted(self._insist(entry, begun.do))\n",
        "            result = await begun.do()\n",
        at(LIBRARY_LOCAL_SAGAS, _AFTER_THE_PIVOT),
        hangs=True,
    ),
    Mutant(
        "unknown-pivot-counts-as-never",
        "what the pivot paid for would be undone",
        _SAGA,
        "                settled = await self._uninterrupted(self._insist(entry, begun.settle))\n",
        "                settled = type('Settled', (), {'happened': False})\n",
        at(LIBRARY_EXTERNAL_SAGAS, _UNKNOWN_PIVOT),
        hangs=True,
    ),
    Mutant(
        "another-request-is-stuck",
        "whoever takes a taken id would leave a saga that waits for an operator",
        _SAGA,
        "            if begun.name in self._conflicts and find_cause(",
        "            if begun.name not in self._conflicts and find_cause(",
        at(LIBRARY_LOCAL_SAGAS, _ANOTHER_REQUEST),
        hangs=True,
    ),
    Mutant(
        "story-told-again-is-cancelled-again",
        "a saga that is past its pivot would never come to its end",
        _WORKFLOW,
        "            saga.cancellation.overrule()\n",
        "",
        at(LIBRARY_LOCAL_SAGAS, _CANCEL_OF_A_SECOND_RUN),
        hangs=True,
    ),
    Mutant(
        "another-request-ends-the-saga",
        "the first request could do nothing more under its own id",
        _WORKFLOW,
        "            args=[outcome, opening],\n",
        "            args=[outcome, None],\n",
        at(LIBRARY_LOCAL_SAGAS, _ANOTHER_REQUEST),
    ),
    Mutant(
        "cancel-that-came-too-late-is-answered-well",
        "who asked for it would believe that everything is undone",
        _WORKFLOW,
        "        if not self._the_saga.goes_back:\n            raise",
        "        if False:\n            raise",
        at(
            LIBRARY_LOCAL_SAGAS,
            "test_a_cancel_that_comes_while_the_pivot_acts_is_refused_where_it_took_effect[update]",
        ),
    ),
    Mutant(
        "external-pivot-does-not-move-the-row",
        "another run would undo what the pivot may have paid for",
        _EXTERNAL,
        "            await move(connection, self.saga_id, State.AT_PIVOT, State.OPEN)\n",
        "            pass\n",
        at(LIBRARY_EXTERNAL_SAGAS, _UNKNOWN_PIVOT),
    ),
    Mutant(
        "external-pivot-that-never-happened-holds-the-stack",
        "nothing could be undone, and nothing could go on",
        _EXTERNAL,
        "            await move(connection, self.saga_id, State.OPEN, State.AT_PIVOT)\n",
        "            pass\n",
        at(LIBRARY_EXTERNAL_SAGAS, _UNKNOWN_PIVOT),
        hangs=True,
    ),
    Mutant(
        "external-undo-past-the-pivot-is-let-in",
        "an undo that outlives its run would undo at the provider what the pivot may have paid for",
        _EXTERNAL,
        "begin_unwind(connection, saga)) is not Way.BACK:",
        "begin_unwind(connection, saga)) is Way.NOWHERE:",
        at(
            LIBRARY_EXTERNAL_SAGAS,
            "test_an_undo_that_outlives_its_run_takes_nothing_back_at_the_provider_past_the_pivot",
        ),
    ),
    Mutant(
        "fingerprint-sees-nothing",
        "another request under a taken id would get the first one's results",
        _FINGERPRINT,
        "hashlib.sha256(plain.encode())",
        'hashlib.sha256(b"")',
        at(LIBRARY_LOCAL_SAGAS, _ANOTHER_REQUEST),
    ),
    Mutant(
        "fingerprint-sees-defaults",
        "a deploy that adds a field would turn every saga that runs into another request",
        _FINGERPRINT,
        "            if not _is_default(field, getattr(value, field.name))\n",
        "",
        at(LIBRARY_FINGERPRINT, "test_a_field_that_is_added_with_a_default_changes_nothing"),
    ),
    Mutant(
        "fingerprint-sees-the-sequence-of-keys",
        "the same request from another client would be another one",
        _FINGERPRINT,
        "sort_keys=True",
        "sort_keys=False",
        at(LIBRARY_FINGERPRINT, "test_the_sequence_of_keys_and_of_members_says_nothing_and_that_of_a_list_does"),
    ),
    Mutant(
        "earlier-runs-steps-stay-in-effect",
        "a second run that is cancelled early would end, and leave what the first had done",
        _UNWINDING,
        "[row for row in rows if row.step not in begun]",
        "[]",
        at(LIBRARY_SECOND_RUNS, "test_what_is_cancelled_before_its_first_step_undoes_what_the_first_run_did"),
    ),
    Mutant(
        "earlier-runs-steps-are-undone-in-any-sequence",
        "what later steps need would be taken away under them",
        _UNWINDING,
        "     ORDER BY created_at, step\n",
        "     ORDER BY created_at DESC, step\n",
        at(LIBRARY_SECOND_RUNS, "test_what_is_cancelled_before_its_first_step_undoes_what_the_first_run_did"),
    ),
    Mutant(
        "unwind-forgets-what-may-have-happened-elsewhere",
        "a call whose answer was never heard would keep its effect",
        _UNWINDING,
        "phase NOT IN ('never', 'undone', 'resolved')",
        "phase = 'done'",
        at(
            LIBRARY_EXTERNAL_SAGAS,
            "test_a_second_run_that_is_cancelled_before_its_first_step_reverses_what_the_first_may_have_done_elsewhere",
        ),
    ),
    Mutant(
        "unwind-takes-rows-of-others-for-declared-steps",
        "a saga that also uses the fence itself would be stuck in every unwind of a second run",
        _UNWINDING,
        " AND given IS NOT NULL",
        "",
        at(LIBRARY_SECOND_RUNS, "test_a_row_of_the_fence_that_no_declared_step_wrote_is_left_to_whoever_wrote_it"),
        hangs=True,
    ),
    Mutant(
        "do-answers-while-the-saga-unwinds",
        "a cancel that was accepted would wait for whatever the story of the next run waits for",
        _LOCAL,
        "    if state is State.UNWINDING:\n",
        "    if state is None:\n",
        at(LIBRARY_SECOND_RUNS, "test_a_cancel_that_was_accepted_is_not_forgotten_with_its_run"),
    ),
    Mutant(
        "undone-saga-completes",
        "a run that came to its end beside the unwind of another would report success",
        _REGISTRY,
        "AND (present.state <> 'unwinding' OR excluded.outcome <> 'completed')",
        "",
        at(LIBRARY_REGISTRY, "test_an_unwind_before_any_step_writes_the_row_and_refuses_completion_only"),
    ),
    Mutant(
        "unwind-before-any-step-writes-no-row",
        "a first step that is under way would be missed, and its saga would end without it",
        _REGISTRY,
        "_UNWIND if isinstance(saga, str) else _ENTER_UNWIND",
        "_UNWIND",
        at(LIBRARY_SECOND_RUNS, "test_a_step_that_is_under_way_for_a_lost_run_is_seen_by_the_unwind_of_the_next"),
    ),
    Mutant(
        "cancel-is-swallowed-by-the-result-of-a-step",
        "a saga that waits for a signal next would never hear of it",
        _SAGA,
        "        if (task := asyncio.current_task()) and task.cancelling():\n            # The result",
        "        if False:\n            # The result",
        at(DECLARED_SAGA, "test_a_cancel_that_a_steps_result_overtakes_is_heard_by_what_the_story_waits_for"),
    ),
    Mutant(
        "operators-result-is-not-kept",
        "the next run would be stuck at a step that was settled by hand",
        _LOCAL,
        "            if isinstance(self._step, Forward):\n                await _entered",
        "            if False:\n                await _entered",
        at(
            LIBRARY_SECOND_RUNS,
            "test_what_an_operator_said_of_a_step_after_the_pivot_is_its_result_in_later_runs_too",
        ),
        hangs=True,
    ),
    Mutant(
        "step-that-no-worker-has-counts-as-undone",
        "what the code of another release did would stay, without a word",
        "sagafence/begun.py",
        "    if not earlier.undo_activity:\n",
        '    if not earlier.undo_activity:\n        return UndoResult("already_undone")\n    if False:\n',
        at(DECLARED_SAGA, "test_a_step_of_an_earlier_run_that_no_worker_has_is_stuck_until_one_has_it"),
    ),
    Mutant(
        "operators-word-without-a-result",
        "the story would go on with nothing where a step's result should be",
        "sagafence/external_steps/steps.py",
        "verdict is Verdict.HAPPENED and needs_result and",
        "False and",
        at(LIBRARY_EXTERNAL_SAGAS, "test_an_operator_settles_what_nobody_can_find_out"),
    ),
)
