"""The figures of domain/policies.py: those that the documents tell, and what has to be longer than what."""

import re
from datetime import timedelta
from typing import Any

import pytest

from activities import maintenance
from adapters import connector, database
from adapters.config import WorkerSettings
from devstack.stack import ROOT
from domain import policies
from domain.bulk import Batch
from domain.model import CheckoutInput
from domain.policies import ActivityPolicy
from terminal.load import bulk

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
SETUP = (ROOT / "setup.sql").read_text(encoding="utf-8")
UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
POLICIES = {name: value for name, value in vars(policies).items() if isinstance(value, ActivityPolicy)}
STEPS = (policies.RESERVE, policies.PAY, policies.SHIP)


def spoken(text: str) -> timedelta | None:
    """Read a duration as the documents write it, such as `15 min, one round`; `no limit` is none."""
    if text.startswith("no limit"):
        return None
    [(number, unit)] = re.findall(r"^([\d.]+) ?(ms|s|min|h)\b", text)
    return timedelta(seconds=float(number) * UNITS[unit])


def documented(heading: str) -> list[list[str]]:
    """Give the rows of the table below a heading of docs/architecture.md."""
    section = ARCHITECTURE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def role_may(name: str) -> float:
    """Give a timeout of the service's role in seconds, as setup.sql sets it."""
    [(number, unit)] = re.findall(rf"'{name}=(\d+)(ms|s|min)'", SETUP)
    return int(number) * UNITS[unit]


def seconds(length: timedelta | None) -> float:
    assert length is not None
    return length.total_seconds()


# What the documents tell -----------------------------------------------------------------------------------


def test_every_policy_is_documented() -> None:
    told = [re.findall(r"^`(\w+)`", row[0])[0] for row in documented("Retry policies")]

    assert sorted(told) == sorted(POLICIES)


@pytest.mark.parametrize("row", documented("Retry policies"), ids=lambda row: re.findall(r"`(\w+)`", row[0])[0])
def test_a_policy_is_as_documented(row: list[str]) -> None:
    policy = POLICIES[re.findall(r"^`(\w+)`", row[0])[0]]
    heartbeat = re.findall(r"lost after (.+) without", row[1])

    assert policy.start_to_close == spoken(row[1])
    assert policy.schedule_to_close == spoken(row[2])
    assert policy.retry.initial_interval == spoken(row[3])
    assert policy.retry.maximum_interval == spoken(row[4])
    assert policy.retry.backoff_coefficient == 2.0, "every backoff doubles"
    assert policy.retry.maximum_attempts == 0, "time ends the attempts, and never their number"
    gives_up_on_a_refused_statement = "DatabaseRefusedStatement" in (policy.retry.non_retryable_error_types or ())
    assert gives_up_on_a_refused_statement is ("`DatabaseRefusedStatement`" in row[5] and "attempts" not in row[5])
    assert policy.heartbeat == (spoken(heartbeat[0]) if heartbeat else None)


def test_the_nested_timeouts_are_as_documented() -> None:
    told: dict[str, Any] = {row[0]: seconds(spoken(row[1])) for row in documented("Timeouts")}

    assert told == {
        "waiting for a lock": role_may("lock_timeout"),
        "connecting, and waiting for a free connection": connector.CONNECT_SECONDS,
        "one statement": role_may("statement_timeout"),
        "waiting for an answer of Postgres": database._COMMAND_TIMEOUT_SECONDS,
        "idle inside a transaction": role_may("idle_in_transaction_session_timeout"),
        "one attempt of a step, which is one statement": seconds(policies.RESERVE.start_to_close),
        "one transaction": role_may("transaction_timeout"),
        "one attempt of an undo or a record, which is one transaction": seconds(policies.UNDO.start_to_close),
    }


def test_every_default_of_a_setting_is_as_documented() -> None:
    rows = re.findall(r"^\| `CHECKOUT_(\w+)` \| `([^`]*)` \|", OPERATIONS, re.MULTILINE)
    told = {name.lower(): default for name, default in rows}
    made = {name: field.default for name, field in WorkerSettings.model_fields.items() if field.default is not None}
    made["database_url"] = made["database_url"].get_secret_value().replace("postgresql+asyncpg", "postgresql")

    assert told == {name: str(default) for name, default in made.items() if name in told}
    assert made.keys() - told.keys() <= {"build_id"}


def test_a_stuck_order_waits_as_documented() -> None:
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    [(first, longest)] = re.findall(r"waits between rounds: (\d+ h), doubling to (\d+ h)\.", glossary)

    assert spoken(first) == policies.STUCK_RETRY_FIRST
    assert spoken(longest) == policies.STUCK_RETRY_LONGEST


# What has to be longer than what -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RESERVE", "PAY", "SHIP"])
def test_an_attempt_of_a_step_outlasts_its_statement(name: str) -> None:
    attempt = seconds(POLICIES[name].start_to_close)

    assert role_may("lock_timeout") < role_may("statement_timeout") < database._COMMAND_TIMEOUT_SECONDS < attempt
    assert connector.CONNECT_SECONDS + role_may("statement_timeout") <= attempt


@pytest.mark.parametrize("name", ["UNDO", "RECORD", "BATCH"])
def test_an_attempt_of_an_undo_a_record_or_a_batch_outlasts_its_transaction(name: str) -> None:
    assert role_may("statement_timeout") < role_may("transaction_timeout") < seconds(POLICIES[name].start_to_close)


def test_reading_much_ends_before_its_attempt_does() -> None:
    # The server's limits for a statement and a transaction, and the driver's own.
    assert seconds(policies.MAINTENANCE.start_to_close) > database._PATIENT_SECONDS + 2
    assert seconds(policies.AUDIT.start_to_close) > database._AUDIT_SECONDS + 2
    assert 0.9 * seconds(policies.MAINTENANCE.start_to_close) < database._PATIENT_SECONDS
    assert 0.9 * seconds(policies.AUDIT.start_to_close) < database._AUDIT_SECONDS


def test_an_audit_is_lost_only_after_several_heartbeats_and_long_before_its_attempt_is_over() -> None:
    assert seconds(policies.AUDIT.heartbeat) >= 4 * maintenance._HEARTBEAT_SECONDS
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
    assert role_may("lock_timeout") < seconds(policies.LOCAL_ATTEMPT) < seconds(policies.WORKFLOW_TASK)
    assert 2 * seconds(policies.LOCAL_ATTEMPT) <= seconds(policies.WORKFLOW_TASK), "well below"


def test_a_workflow_task_that_hangs_is_told_as_deadlocked_before_it_goes_to_another_worker() -> None:
    deadlocked_after, temporals_default = 2.0, 10.0

    assert deadlocked_after < seconds(policies.WORKFLOW_TASK) < temporals_default


def test_an_undo_that_is_refused_is_tried_for_about_three_seconds() -> None:
    initial, longest = seconds(policies.UNDO.retry.initial_interval), seconds(policies.UNDO.retry.maximum_interval)
    waits = [min(initial * 2**number, longest) for number in range(policies.UNDO_ATTEMPTS_WHEN_REFUSED - 1)]

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

    assert bulk._BATCH_BYTES + CheckoutInput.max_payload_bytes < Batch.max_payload_bytes < temporal_takes


def test_the_documented_figures_of_sweep_and_audit_are_these() -> None:
    assert "runs the sweep each minute" in OPERATIONS
    assert "the audit every five minutes" in OPERATIONS
    assert timedelta(minutes=1) == policies.SWEEP_EVERY
    assert timedelta(minutes=5) == policies.AUDIT_EVERY
    assert (policies.SWEEP_BATCH, policies.AUDIT_VIOLATIONS_SHOWN) == (100, 20)
