"""Which tests run where: `make test` those that are quick, `make slow` the slow ones, `make faults` all of all of them.

Of the tests named in `EVERY` both run some cases: each of these starts a worker for every case.

A case that is left out meets another value of the same axes. Choose a step that has no divisor in common with the
number of values of the innermost axis, so that the share meets all values of every axis.
"""

import pytest

COLLECTED = pytest.StashKey[frozenset[str]]()
"""The ids of all tests of the files that were collected, those included that this run leaves out."""

EVERY = {
    # tests/faults
    "test_a_trip_keeps_its_promises": 5,
    # tests/sagafence and tests/unit
    "test_a_call_whose_answer_is_lost_is_repeated_under_its_key": 3,
    "test_a_compose_file_with_a_mistake_is_refused": 3,
    "test_a_fault_anywhere_in_the_compose_file_is_seen": 11,
    "test_a_pivot_that_was_called_before_a_reset_is_voided_or_found_to_stand_and_not_called_again": 3,
    "test_a_saga_comes_to_its_end_on_a_worker_that_keeps_no_workflow_in_memory": 3,
    "test_a_saga_that_is_reset_on_its_way_forward_does_every_step_once": 5,
    "test_a_saga_that_is_reset_while_a_provider_is_called_has_its_effects_there_once": 3,
    "test_a_saga_that_is_reset_while_a_provider_reverses_is_undone_there_once": 3,
    "test_a_saga_that_is_reset_while_it_is_undone_is_undone_once_and_does_nothing_again": 5,
    "test_a_saga_without_a_pivot_whose_completion_cannot_be_recorded_can_still_be_cancelled": 3,
    "test_the_model_finds_a_planted_mistake": 3,
    "test_whichever_way_a_saga_has_gone_a_reset_to_whichever_task_changes_nothing": 5,
    "test_what_postgres_refuses_to_record_raises_the_alarm_within_seconds_and_is_recorded_on_a_retry": 2,
    # tests/integration
    "test_a_check_reports_what_the_start_would": 3,
    "test_a_follower_that_fails_during_the_drain_is_reported_too": 2,
    "test_a_part_that_dies_ends_all_of_it_and_is_named": 2,
    "test_a_server_that_does_not_answer_is_given_up_when_the_settings_say": 2,
    "test_a_worker_refuses_a_namespace_without_its_search_attributes": 3,
    "test_a_worker_that_cannot_start_says_why_and_what_to_do": 3,
    "test_a_worker_that_is_stopped_while_a_server_keeps_it_waiting_ends_at_once_and_well": 2,
    "test_a_worker_that_is_stopped_while_it_waits_ends_at_once_and_well": 4,
    "test_a_worker_whose_log_follower_ends_drains_and_leaves_with_1": 2,
    "test_every_character_there_is_means_the_same_to_the_database": 2,
    "test_a_wrong_secret_is_in_no_output_and_no_log": 2,
    "test_other_content_under_the_same_order_id_is_refused": 5,
    "test_whatever_is_missing_is_named": 4,
    # tests/workflow
    "test_a_cancel_around_a_step_undoes_everything_or_comes_too_late_for_a_handed_over_parcel": 5,
    "test_a_cancel_beside_a_local_attempt_undoes_the_order": 5,
    "test_a_cancel_by_temporal_during_an_unwind_changes_nothing": 3,
    "test_a_cancel_by_temporal_while_stuck_changes_nothing_in_another_run": 2,
    "test_a_cancel_during_an_outage_is_honoured_before_the_next_attempt": 5,
    "test_a_cancel_in_the_instant_of_a_completion_is_never_half_done": 5,
    "test_a_cancel_that_keeps_an_outage_from_being_retried_is_a_cancel_and_no_rejection": 5,
    "test_a_cancel_while_a_statement_waits_in_postgres_undoes_everything": 5,
    "test_a_malformed_request_fails_at_once_as_invalid_input": 3,
    "test_a_refused_order_leaves_its_row_with_reason_and_lines": 3,
    "test_a_rollback_strands_no_order_of_the_build_that_is_rolled_back": 2,
    "test_a_saga_under_a_foreign_workflow_id_is_refused_before_it_does_anything": 3,
    "test_a_second_cancel_during_the_unwind_of_the_first_changes_nothing": 3,
    "test_a_second_run_of_a_stuck_order_whose_steps_all_stand_does_not_take_it_for_completed": 5,
    "test_a_second_run_of_an_order_that_needs_review_undoes_nothing_until_it_is_retried": 2,
    "test_a_second_run_that_gives_up_in_a_step_leaves_the_order_completed": 5,
    "test_a_step_that_committed_and_never_could_say_so_is_undone_unless_irrevocable": 3,
    "test_a_stuck_order_whose_build_is_gone_is_moved_to_another_and_fixed_there": 2,
    "test_a_sweep_that_is_terminated_while_it_starts_sagas_leaves_none_that_nobody_works_on": 2,
    "test_a_wrong_resolution_is_refused_and_the_order_stays_stuck": 3,
    "test_an_attempt_that_takes_too_long_is_begun_again_and_has_one_effect": 5,
    "test_an_order_that_was_ended_at_work_goes_on_from_what_it_has_done": 4,
    "test_an_order_waits_in_whatever_step_and_completes_once_it_is_put_right": 4,
    "test_an_unwind_that_was_terminated_is_finished_with_the_ending_it_was_heading_to": 5,
    "test_what_a_terminated_saga_left_is_undone_and_the_order_cancelled": 3,
    "test_what_may_pass_is_tried_again": 4,
    "test_what_may_pass_is_tried_again_as_an_ordinary_activity": 5,
    "test_whichever_undos_fail_the_order_is_stuck_and_a_retry_fixes_it": 3,
}
"""Of which test each how-manyth case stays in `make test` or `make slow`."""

SLOW_FILES = frozenset(
    {
        # tests/integration: a process of the product, or a server of its own, for nearly every test
        "test_api_document",
        "test_bulk_load",
        "test_cancel_wherever_it_is",
        "test_commands",
        "test_embedded",
        "test_every_order_answers",
        "test_one_audit_at_a_time",
        "test_plans",
        "test_postgres_16",
        "test_pytest_plugin",
        "test_real_ids",
        "test_schema_behind",
        "test_secrets_of_commands",
        "test_setup_owner",
        "test_starter_orders",
        "test_starter_upkeep",
        "test_terminal",
        "test_trip_booking",
        "test_what_start_says",
        "test_worker_drain",
        "test_worker_health",
        "test_worker_image",
        "test_worker_log",
        "test_worker_settings",
        "test_worker_start",
        # tests/http_api: processes, servers that do not answer, some five hundred requests
        "test_away",
        "test_contract",
        "test_process",
        # tests/sagafence: a provider's process for each test, many sagas in each, or every case of the kit
        "test_external_nemesis",
        "test_kit_on_declared",
        "test_workspace_provider",
        # tests/workflow: several workers, or several runs, in each test
        "test_next_sdk",
        "test_requests",
        "test_restored_database",
        "test_review",
        "test_review_for_long",
        "test_review_of_the_ended",
        "test_stuck_for_long",
        "test_version_log",
        "test_versioning",
    }
)
"""Which files `make slow` runs in place of `make test`, besides all of tests/faults."""

SLOW_TESTS = frozenset(
    {
        # tests/http_api: Temporal takes up to twenty seconds to delete a history
        "test_a_repeat_after_temporal_has_forgotten_the_saga_starts_nothing",
        "test_an_order_of_a_batch_that_temporal_has_forgotten_has_no_history",
        "test_an_order_whose_history_may_be_gone_links_to_one_only_where_it_is",
        # tests/integration and tests/unit
        "test_a_fault_anywhere_in_the_compose_file_is_seen",
        "test_a_mutant_is_killed_by_a_failing_test_and_survives_a_blind_one",
        "test_a_port_that_somebody_has_is_named_and_how_to_find_them",
        "test_no_text_from_outside_acts_at_an_edge",
        "test_ten_thousand_orders_meet_every_kind_of_batch",
        "test_ten_thousand_orders_meet_every_kind_of_everything",
        "test_ten_thousand_orders_meet_every_kind_of_second_run",
        "test_whatever_is_typed_composed_is_an_id_or_is_refused_in_printable_words",
        "test_a_data_folder_that_is_put_back_under_a_follower_loses_no_event",
        "test_a_hang_is_an_error_unless_the_mutant_says_that_it_hangs",
        "test_every_character_there_is_means_the_same_to_the_database",
        "test_a_part_that_dies_ends_all_of_it_and_is_named",
        "test_a_worker_whose_api_key_is_refused_at_start_says_so",
        "test_none_of_a_hundred_thousand_texts_from_outside_acts_at_an_edge",
        "test_a_worker_checks_the_schema_while_it_works",
        "test_a_worker_process_takes_a_new_key_and_goes_on",
        "test_an_order_and_the_data_outlive_ctrl_c",
        "test_every_command_prints_the_release",
        "test_the_programs_find_all_that_they_import_in_what_the_image_gets",
        # tests/sagafence
        "test_more_sagas_than_one_run_of_the_sweep_takes_are_all_started",
        "test_nothing_is_concluded_from_a_temporal_that_is_away",
        "test_a_broken_promise_is_found_by_the_case_that_the_tutorial_names",
        "test_the_tutorials_first_tests_pass_in_a_folder_of_their_own",
        "test_the_tutorials_walk_ends_as_it_says",
        "test_no_state_of_a_larger_world_breaks_a_promise",
        # tests/workflow: these wait out the 15 s that a request waits for a worker
        "test_a_request_that_nobody_took_exits_with_1_and_says_that_it_may_still_happen",
        "test_a_repeated_resolve_shows_how_the_order_stands_now",
        "test_a_retry_that_nobody_took_is_one_round_however_often_it_is_repeated",
        "test_a_stuck_order_is_retried_beyond_the_limit_and_ends_as_ever",
        "test_a_run_whose_workflow_task_keeps_failing_is_reported_as_an_error_at_once_and_again",
        "test_a_worker_takes_a_new_api_key_from_its_file_and_goes_on",
        "test_more_orders_than_are_handed_over_at_once_all_have_sagas_of_their_own",
    }
)
"""Which tests of other files `make slow` runs in place of `make test`: they take longer than most files."""

LONGEST_FAULTS = frozenset(
    {
        "test_a_saga_that_is_reset_while_an_attempt_is_alive_ends_as_it_would_have",
        "test_a_worker_that_is_let_in_no_more_says_so_and_ends_with_1",
        "test_every_order_ends_properly_though_worker_and_postgres_are_killed_twice_each",
        "test_other_content_is_refused_although_temporal_has_forgotten_the_order",
        "test_the_same_content_after_the_end_changes_nothing_and_is_reported_the_same",
        "test_a_deadlock_with_a_foreign_transaction_costs_no_order",
        "test_serialization_failures_cost_no_order",
        "test_steps_and_undos_of_opposing_orders_never_deadlock",
    }
)
"""Which tests of tests/faults `make faults` alone runs."""


def share_out(items: list[pytest.Item]) -> None:
    """Mark the fault suites, what is slow, and the cases outside the share as exhaustive."""
    met: dict[str, int] = {}
    for item in items:
        if item.path.parent.name == "faults":
            item.add_marker(pytest.mark.faults)
            item.add_marker(pytest.mark.slow)
        if item.path.stem in SLOW_FILES:
            item.add_marker(pytest.mark.slow)
        if not isinstance(item, pytest.Function):
            continue
        if item.originalname in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)
        if item.originalname in LONGEST_FAULTS:
            item.add_marker(pytest.mark.exhaustive)
        elif every := EVERY.get(item.originalname):
            number = met.get(item.originalname, 0)
            met[item.originalname] = number + 1
            if number % every:
                item.add_marker(pytest.mark.exhaustive)
