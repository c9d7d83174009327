"""Faults at the end of a declared saga: in what it records, after a reset, and once retention has deleted its rows."""

from tests.mutants.killers import (
    DECLARED_SAGA,
    LIBRARY_RECORDS,
    LIBRARY_RESET,
    LIBRARY_RETENTION_BESIDE_RUNS,
    LIBRARY_TOGETHER,
    RECORDED_SAGAS,
    at,
)
from tests.mutants.mutant import Mutant

_SAGA = "sagafence/insisting.py"
_WORKFLOW = "sagafence/saga_workflow.py"
_LOCAL = "sagafence/local_steps.py"
_EXTERNAL = "sagafence/bound_external.py"
_REGISTRY = "sagafence/registry.py"
_POSTGRES = "sagafence/postgres.py"
_STORY = "sagafence/saga.py"
_ALARM = "test_what_postgres_refuses_to_record_raises_the_alarm_within_seconds_and_is_recorded_on_a_retry"
_NO_END = "test_an_end_that_cannot_be_recorded_is_an_alarm_and_no_end_until_it_is"
_PURGED = "test_a_run_of_a_completed_saga_whose_rows_are_deleted_says_so_and_neither_undone_nor_cancelled"
_CANCEL_AT_THE_END = (
    "test_a_cancel_while_the_end_of_a_saga_without_a_pivot_is_being_recorded_is_honoured_or_comes_too_late"
)
_LATE_UNDO = "test_an_undo_that_comes_after_retention_takes_nothing_back_and_says_so"

MUTANTS = (
    Mutant(
        "mistake-beside-a-pivot-settles-it-first",
        "a story that a corrected deploy would complete would have to be undone, since its pivot is closed",
        _STORY,
        "        _raise_bug(failures)  # at once: then what this workflow task would have begun is not begun\n",
        "",
        at(LIBRARY_TOGETHER, "test_a_pivot_beside_another_step_stops_the_story_before_either_is_begun"),
    ),
    Mutant(
        "unwind-is-commanded-otherwise",
        "sagas that are open at a deploy would stop with an error of Temporal's",
        _STORY,
        '            activity_id="unwind" if rounds == 1 else f"unwind-{rounds}",\n',
        '            activity_id=f"unwind-{rounds}",\n',
        at(RECORDED_SAGAS, "test_a_recorded_saga_replays[unwound-at-the-pivot]"),
    ),
    Mutant(
        "declared-step-of-each-run-anew",
        "a run that is reset, or started again, would do everything a second time",
        _LOCAL,
        "    saga_id = activity.info().workflow_id\n",
        "    saga_id = activity.info().workflow_run_id\n",
        at(LIBRARY_RESET, "test_a_completed_saga_that_is_reset_to_whichever_task_answers_as_before_and_does_nothing"),
        hangs=True,
    ),
    Mutant(
        "end-refused-in-silence",
        "a saga whose end Postgres refuses would run on for a quarter of an hour, and nobody would hear of it",
        _POSTGRES,
        "                async with limited_refusals(), transaction(self._engine) as connection:\n"
        "                    await end(",
        "                async with transaction(self._engine) as connection:\n                    await end(",
        at(LIBRARY_RECORDS, f"{_ALARM}[a completion]", f"{_ALARM}[an end that was undone]"),
    ),
    Mutant(
        "unwind-refused-in-silence",
        "a saga whose unwind Postgres refuses would stand still for a quarter of an hour, and nobody would hear of it",
        _POSTGRES,
        "            async with limited_refusals(), transaction(self._engine) as connection:\n"
        "                return await unwind(",
        "            async with transaction(self._engine) as connection:\n                return await unwind(",
        at(LIBRARY_RECORDS, f"{_ALARM}[an unwind]"),
    ),
    Mutant(
        "end-is-given-up",
        "a saga that is past its pivot would fail each workflow task from then on, and one that was undone end as lost",
        _SAGA,
        "        await self._insist(entry, uncancelled, _FINAL)\n",
        "        await uncancelled(1)\n",
        at(DECLARED_SAGA, f"{_NO_END}[completed]", f"{_NO_END}[unwound]"),
    ),
    Mutant(
        "end-is-shown-before-it-is-recorded",
        "a saga whose end is not recorded would be shown as ended",
        _WORKFLOW,
        "        outcome = _name_of(ended)\n",
        "        self._ended_as = outcome = _name_of(ended)\n",
        at(DECLARED_SAGA, f"{_NO_END}[unwound]"),
    ),
    Mutant(
        "end-that-is-refused-for-good-is-tried-on",
        "a run that cannot end as completed would be stuck for ever",
        _SAGA,
        "        await self._insist(entry, uncancelled, _FINAL)\n",
        "        await self._insist(entry, uncancelled)\n",
        at(DECLARED_SAGA, "test_a_story_that_catches_every_failure_does_not_complete_while_another_run_is_undone"),
    ),
    Mutant(
        "cancel-is-lost-while-the-end-is-stuck",
        "a cancel would be swallowed where a saga without a pivot waits to record its end",
        _SAGA,
        "                raise asyncio.CancelledError  # it came while this waited for another round\n",
        "                pass\n",
        at(DECLARED_SAGA, "test_a_cancel_is_honoured_while_an_end_before_any_pivot_cannot_be_recorded[temporal]"),
    ),
    Mutant(
        "end-of-a-cancelled-saga-is-cancelled",
        "a saga that is undone after a cancel would never have an end",
        _SAGA,
        "            return phase is Phase.FORWARD and self.cancellation.is_requested\n",
        "            return self.cancellation.is_requested\n",
        at(
            DECLARED_SAGA,
            "test_a_second_run_that_is_cancelled_before_its_first_step_undoes_what_the_first_did",
        ),
    ),
    Mutant(
        "end-that-fails-after-a-cancel-is-stuck",
        "a cancel would have to wait an hour for the next round",
        _SAGA,
        "                if is_cancelled():\n                    raise asyncio.CancelledError from error"
        "  # an attempt that fails after a cancel is not tried again\n",
        "",
        at(LIBRARY_RECORDS, f"{_CANCEL_AT_THE_END}[fails]"),
        hangs=True,
    ),
    Mutant(
        "two-ends-at-once",
        "after a cancel workflow tasks would fail until the attempt before has run out of time",
        _WORKFLOW,
        "                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,\n",
        "",
        at(LIBRARY_RECORDS, f"{_CANCEL_AT_THE_END}[is late]"),
    ),
    Mutant(
        "purged-completion-counts-as-undone",
        "whoever starts a completed saga again would be told that its effects are undone",
        _REGISTRY,
        "    return Way.GONE if row.is_purged else Way.FORWARD\n",
        "    return Way.NOWHERE if row.is_purged else Way.FORWARD\n",
        at(
            LIBRARY_RETENTION_BESIDE_RUNS,
            "test_another_run_of_a_completed_saga_whose_rows_are_deleted_says_that_it_was_completed",
            "test_another_run_of_a_saga_elsewhere_whose_rows_are_deleted_calls_no_provider",
        ),
    ),
    Mutant(
        "purged-completion-is-told-again-for-ever",
        "another run of a saga whose rows are deleted would be stuck, where nobody can do anything",
        _WORKFLOW,
        " and not saga.is_purged:\n",
        ":\n",
        at(DECLARED_SAGA, _PURGED),
    ),
    Mutant(
        "late-undo-of-a-purged-completion-counts-as-undone",
        "an undo that comes after retention would be answered as if the step had been taken back",
        _LOCAL,
        "UndoOutcome.ALREADY_UNDONE if way is Way.NOWHERE else UndoOutcome.IRREVOCABLE",
        "UndoOutcome.IRREVOCABLE if way is Way.FORWARD else UndoOutcome.ALREADY_UNDONE",
        at(LIBRARY_RETENTION_BESIDE_RUNS, f"{_LATE_UNDO}[give_back]"),
    ),
    Mutant(
        "late-undo-elsewhere-of-a-purged-completion-counts-as-undone",
        "an undo that comes after retention would be answered as if the provider had taken it back",
        _EXTERNAL,
        "            is_undone = found.way is Way.NOWHERE\n",
        "            is_undone = found.way is not Way.FORWARD\n",
        at(LIBRARY_RETENTION_BESIDE_RUNS, f"{_LATE_UNDO}[delete]"),
    ),
)
