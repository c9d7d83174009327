"""The figures of domain/policies.py: what has to be longer than what."""

from datetime import timedelta

import pytest

from activities import audit
from adapters import connector, database
from devstack.stack import ROOT
from domain import policies
from domain.bulk import BATCH_BYTES, Batch
from domain.model import CheckoutInput
from sagafence import UNDO_ATTEMPTS_WHEN_REFUSED, ActivityPolicy
from tests.tables import role_timeout

OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
POLICIES = {name: value for name, value in vars(policies).items() if isinstance(value, ActivityPolicy)}
STEPS = (policies.RESERVE, policies.PAY, policies.SHIP)


def seconds(length: timedelta | None) -> float:
    assert length is not None
    return length.total_seconds()


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_backoff_doubles_and_ends_by_time_alone(name: str) -> None:
    assert POLICIES[name].retry.backoff_coefficient == 2.0
    assert POLICIES[name].retry.maximum_attempts == 0


@pytest.mark.parametrize("name", ["RESERVE", "PAY", "SHIP"])
def test_an_attempt_of_a_step_outlasts_its_statement(name: str) -> None:
    attempt = seconds(POLICIES[name].start_to_close)

    assert (
        role_timeout("lock_timeout") < role_timeout("statement_timeout") < database._COMMAND_TIMEOUT_SECONDS < attempt
    )
    assert connector.CONNECT_SECONDS + role_timeout("statement_timeout") <= attempt


@pytest.mark.parametrize("name", ["UNDO", "RECORD", "BATCH"])
def test_an_attempt_of_an_undo_a_record_or_a_batch_outlasts_its_transaction(name: str) -> None:
    assert (
        role_timeout("statement_timeout") < role_timeout("transaction_timeout") < seconds(POLICIES[name].start_to_close)
    )


def test_reading_much_ends_before_its_attempt_does() -> None:
    # The server's limits for a statement and a transaction, and the driver's own.
    assert seconds(policies.MAINTENANCE.start_to_close) > database._LONG_STATEMENT_SECONDS + 2
    assert seconds(policies.AUDIT.start_to_close) > database._AUDIT_SECONDS + 2
    assert 0.9 * seconds(policies.MAINTENANCE.start_to_close) < database._LONG_STATEMENT_SECONDS
    assert 0.9 * seconds(policies.AUDIT.start_to_close) < database._AUDIT_SECONDS


def test_an_audit_is_lost_only_after_several_heartbeats_and_long_before_its_attempt_is_over() -> None:
    assert seconds(policies.AUDIT.heartbeat) >= 4 * audit._HEARTBEAT_SECONDS
    assert seconds(policies.AUDIT.heartbeat) < seconds(policies.AUDIT.start_to_close) / 10


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_there_is_time_for_more_than_one_attempt(name: str) -> None:
    policy = POLICIES[name]

    if policy.schedule_to_close is not None:
        assert seconds(policy.schedule_to_close) >= 2 * seconds(policy.start_to_close)
    assert seconds(policy.retry.initial_interval) < seconds(policy.retry.maximum_interval)


def test_the_further_an_order_is_the_later_it_is_given_up() -> None:
    given_up = [seconds(policy.schedule_to_close) for policy in (policies.BATCH, *STEPS)]

    assert given_up == sorted(set(given_up)), "a batch hands over; then cheap refusals, and last a refund"
    assert seconds(policies.UNDO.schedule_to_close) >= given_up[-1]
    assert policies.RECORD.schedule_to_close is None


def test_a_local_attempt_waits_for_a_lock_and_ends_within_its_workflow_task() -> None:
    assert role_timeout("lock_timeout") < seconds(policies.LOCAL_ATTEMPT) < seconds(policies.WORKFLOW_TASK)
    assert 2 * seconds(policies.LOCAL_ATTEMPT) <= seconds(policies.WORKFLOW_TASK), "well below"


def test_a_blocked_workflow_task_is_reported_as_deadlocked_before_it_goes_to_another_worker() -> None:
    deadlocked_after, temporals_default = 2.0, 10.0

    assert deadlocked_after < seconds(policies.WORKFLOW_TASK) < temporals_default


def test_an_undo_that_is_refused_is_tried_for_about_three_seconds() -> None:
    initial, longest = seconds(policies.UNDO.retry.initial_interval), seconds(policies.UNDO.retry.maximum_interval)
    waits = [min(initial * 2**number, longest) for number in range(UNDO_ATTEMPTS_WHEN_REFUSED - 1)]

    assert 2.5 <= sum(waits) <= 3.5


def test_a_sweep_looks_no_sooner_and_an_audit_complains_no_sooner_than_an_order_may_stand_still() -> None:
    longest = max(seconds(policy.schedule_to_close) for policy in (*STEPS, policies.UNDO))

    assert seconds(policies.AUDIT_AT_REST_AFTER) >= 2 * longest
    assert seconds(policies.SWEEP_UNFINISHED_AFTER) >= 2 * seconds(policies.SHIP.retry.maximum_interval)
    assert policies.SWEEP_EVERY < policies.AUDIT_EVERY < policies.AUDIT_AT_REST_AFTER


def test_a_run_is_given_up_only_after_all_that_its_activities_may_take() -> None:
    recorded = seconds(policies.MAINTENANCE.schedule_to_close)

    assert seconds(policies.AUDIT_RUN_TIMEOUT) > seconds(policies.AUDIT.schedule_to_close) + recorded
    # A page of the sweep asks three times; the next sweep is not to wait for much longer than for an outage.
    assert 3 * recorded < seconds(policies.SWEEP_RUN_TIMEOUT) <= 3600
    assert seconds(policies.LOOKUP.schedule_to_close) < seconds(policies.LOOKUP_RUN_TIMEOUT) <= 30


def test_the_largest_batch_of_a_load_is_one_that_its_workflow_and_temporal_take() -> None:
    temporal_takes = 2_000_000

    assert BATCH_BYTES + CheckoutInput.max_payload_bytes < Batch.max_payload_bytes < temporal_takes


def test_the_documented_figures_of_sweep_and_audit_are_these() -> None:
    assert "runs the sweep each minute" in OPERATIONS
    assert "the audit every five minutes" in OPERATIONS
    assert timedelta(minutes=1) == policies.SWEEP_EVERY
    assert timedelta(minutes=5) == policies.AUDIT_EVERY
    assert (policies.SWEEP_BATCH, policies.AUDIT_VIOLATIONS_SHOWN) == (100, 20)
