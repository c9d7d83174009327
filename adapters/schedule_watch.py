"""Whether the schedules do their work: a run that cannot go on blocks all later ones, and nothing else reports it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.client import Client, ScheduleActionExecutionStartWorkflow, ScheduleActionResult, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from adapters.polled_state import Finding, PolledState
from adapters.schedules import Every, named
from adapters.temporal import NOT_OURS_TO_ASK
from domain.errors import AuditViolation

_log = logging.getLogger("checkout.schedules")

POLL_SECONDS = 60.0
_REPEAT_AFTER_POLLS = 10
_LATE_AFTER_INTERVALS = 3
_LATE_AFTER_AT_LEAST = timedelta(minutes=5)
# The first failures of a workflow task may be those of a worker that is being replaced.
_TASK_FAILS_FROM_ATTEMPT = 3

_ENDED = {
    Status.WORKFLOW_EXECUTION_STATUS_FAILED: "failed",
    Status.WORKFLOW_EXECUTION_STATUS_TIMED_OUT: "timed out",
    Status.WORKFLOW_EXECUTION_STATUS_TERMINATED: "was terminated",
    Status.WORKFLOW_EXECUTION_STATUS_CANCELED: "was cancelled",
}


@dataclass(frozen=True)
class _Run:
    """One run of a schedule; `problem` is empty where it has done its work, or is doing it."""

    is_open: bool
    problem: str = ""


async def follow(
    current: Callable[[], Client], task_queue: str, every: Every, *, poll_seconds: float = POLL_SECONDS
) -> None:
    """Log an error where a schedule does not do its work, at once and repeatedly while that lasts; until cancelled.

    Where the credentials do not allow it, that is logged once, and tried again: credentials are replaced.
    """
    begun = datetime.now(UTC)
    intervals = {name: interval for name, interval in named(task_queue, every).items() if interval}
    states = {name: PolledState(_fine(name), repeat_every=_REPEAT_AFTER_POLLS) for name in intervals}
    may_poll = PolledState(known=True)
    while True:
        for name, interval in intervals.items():
            try:
                found = await look(current(), name, interval, not_before=begun)
            except RPCError as error:  # a short outage; the worker itself reports a long one
                if error.status in NOT_OURS_TO_ASK and may_poll.update(found=False):
                    _log.warning("cannot see whether the schedules do their work: %s", error.message)
                continue
            may_poll.update(found=True)
            if states[name].update(found, is_alarm=found.is_alarm):
                level = logging.ERROR if found.is_alarm else logging.INFO
                _log.log(level, "%s", found.text, extra={"action": "schedule_standing"})
        await asyncio.sleep(poll_seconds)


async def look(client: Client, name: str, interval: timedelta, *, not_before: datetime) -> Finding:
    """Return whether a schedule does its work: one of its newest runs has succeeded, or is in progress.

    It has three intervals for that, and at least five minutes, since its last success or the given instant: while no
    worker ran, nothing was done. A run whose workflow task keeps failing is reported at once.
    """
    try:
        schedule = await client.get_schedule_handle(name).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return Finding(f"schedule {name} is gone; a worker that starts makes it anew", is_alarm=True)
    if schedule.schedule.state.paused:
        return Finding(f"schedule {name} is paused: {schedule.schedule.state.note or 'without a note'}")
    since, problem = not_before, ""
    for begun in reversed(schedule.info.recent_actions):
        run = await _run_of(client, begun)
        if run is None:
            continue
        if not run.problem:
            if run.is_open:
                return _fine(name)
            since = max(since, begun.started_at)
            break
        problem = problem or run.problem
        if run.problem.startswith(_TASK_FAILS):
            return _alarm(name, run.problem)
    if datetime.now(UTC) - since <= max(_LATE_AFTER_INTERVALS * interval, _LATE_AFTER_AT_LEAST):
        return _fine(name)
    return _alarm(name, problem or "it has begun no run")


_TASK_FAILS = "the workflow task of its newest run keeps failing"


def _fine(name: str) -> Finding:
    return Finding(f"schedule {name} does its work")


def _alarm(name: str, problem: str) -> Finding:
    return Finding(
        f"schedule {name} does not do its work: {problem}; see docs/operations.md, What runs by itself",
        is_alarm=True,
    )


async def _run_of(client: Client, begun: ScheduleActionResult) -> _Run | None:
    """Look up a run that a schedule has started; None where it is past Temporal's retention."""
    assert isinstance(begun.action, ScheduleActionExecutionStartWorkflow)
    workflow_id, run_id = begun.action.workflow_id, begun.action.first_execution_run_id
    asked = DescribeWorkflowExecutionRequest(
        namespace=client.namespace, execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
    )
    try:
        found = await client.workflow_service.describe_workflow_execution(asked, retry=True)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return None
    run = found.workflow_execution_info
    if run.HasField("close_time"):
        how = _ENDED.get(run.status)  # continued as new, it has done its share
        if how is None or (how == "failed" and await _has_found_something(client, workflow_id, run_id)):
            return _Run(is_open=False)
        return _Run(is_open=False, problem=f"its newest run {how}")
    if found.pending_workflow_task.attempt >= _TASK_FAILS_FROM_ATTEMPT:
        return _Run(is_open=True, problem=f"{_TASK_FAILS} ({workflow_id}, run {run_id})")
    failing = next((pending for pending in found.pending_activities if pending.HasField("last_failure")), None)
    if failing is not None:
        return _Run(is_open=True, problem=f"{failing.activity_type.name}: {failing.last_failure.message}")
    return _Run(is_open=True)


async def _has_found_something(client: Client, workflow_id: str, run_id: str) -> bool:
    """Return whether a run has failed because that is how an audit reports what it has found."""
    try:
        await client.get_workflow_handle(workflow_id, run_id=run_id).result(follow_runs=False)
    except WorkflowFailureError as failure:
        return isinstance(failure.cause, ApplicationError) and failure.cause.type == AuditViolation.__name__
    return True
