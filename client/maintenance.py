"""Audits, sweeps and lookups of names on request: callers who ask for the same at once share a run."""

import asyncio
import contextlib
from datetime import timedelta
from typing import TypeVar

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.converter import value_to_type
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError

from client.failures import NoWorker, Refused
from domain import policies
from domain.audit import AuditInput, AuditReport
from domain.errors import AuditViolation
from domain.lookup import NamesInput, NamesReport
from domain.sweep import SweepInput, SweepReport

# For Temporal to report a run that has timed out.
_ANSWER_SECONDS = 5.0
T = TypeVar("T")


def audit_id(task_queue: str, *, is_at_rest: bool = False) -> str:
    """Return the workflow id of the audits on request."""
    return f"audit-{task_queue}-by-hand" + ("-at-rest" if is_at_rest else "")


async def audit(client: Client, task_queue: str, timeout: timedelta, *, is_at_rest: bool) -> AuditReport:
    """Check every invariant in the database; at rest, orders that are unfinished are not given an hour."""
    given = AuditInput(0.0, is_recorded=False) if is_at_rest else AuditInput()
    name = audit_id(task_queue, is_at_rest=is_at_rest)
    try:
        return await _run(client, policies.AUDIT_WORKFLOW, given, name, task_queue, timeout, AuditReport)
    except WorkflowFailureError as failure:
        if isinstance(failure.cause, ApplicationError) and failure.cause.type == AuditViolation.__name__:
            report: AuditReport = value_to_type(AuditReport, failure.cause.details[0])
            return report
        raise _unfinished(failure, task_queue, timeout) from None


async def sweep(client: Client, task_queue: str, idle_for: timedelta, timeout: timedelta) -> SweepReport:
    """Start or repair the saga of every order that needs one."""
    seconds = idle_for.total_seconds()
    given, name = SweepInput(seconds), f"sweep-{task_queue}-by-hand-{seconds:g}"
    try:
        return await _run(client, policies.SWEEP_WORKFLOW, given, name, task_queue, timeout, SweepReport)
    except WorkflowFailureError as failure:
        raise _unfinished(failure, task_queue, timeout) from None


async def look_up(
    client: Client, task_queue: str, asked: NamesInput, workflow_id: str, timeout: timedelta
) -> NamesReport:
    """Look up in the database what is known of these names."""
    try:
        return await _run(client, policies.NAMES_WORKFLOW, asked, workflow_id, task_queue, timeout, NamesReport)
    except WorkflowFailureError as failure:
        raise _unfinished(failure, task_queue, timeout) from None


async def _run(  # noqa: PLR0913, PLR0917 - what differs between the three
    client: Client,
    workflow: str,
    given: object,
    workflow_id: str,
    task_queue: str,
    timeout: timedelta,
    returns: type[T],
) -> T:
    """Run a maintenance workflow, or share a run.

    One that began before this request may have passed what the request is about: its end is awaited, and the next run
    is shared.

    Raises:
        WorkflowFailureError: it failed, or did not finish in time.
        NoWorker: the run that it waited for took all of the time.
    """

    async def begin(conflict: WorkflowIDConflictPolicy) -> WorkflowHandle[object, T]:
        return await client.start_workflow(
            workflow,
            given,
            result_type=returns,
            id=workflow_id,
            task_queue=task_queue,
            execution_timeout=timeout,
            id_conflict_policy=conflict,
        )

    try:
        async with asyncio.timeout(timeout.total_seconds() + _ANSWER_SECONDS):
            try:
                handle = await begin(WorkflowIDConflictPolicy.FAIL)
            except WorkflowAlreadyStartedError as running:
                earlier = client.get_workflow_handle(workflow_id, run_id=running.run_id)
                with contextlib.suppress(WorkflowFailureError):
                    await earlier.result()
            else:
                return await handle.result()
            while True:
                shared = await begin(WorkflowIDConflictPolicy.USE_EXISTING)
                try:
                    return await shared.result()
                except WorkflowFailureError as failure:
                    if isinstance(failure.cause, ApplicationError):
                        raise
                    # The caller that began it gave it less time than we have.
    except TimeoutError:
        raise _late(task_queue, timeout, "it waited for another one") from None


def _unfinished(failure: WorkflowFailureError, task_queue: str, timeout: timedelta) -> Refused | NoWorker:
    """Say why a run did not come to its end."""
    if isinstance(failure.cause, ApplicationError):
        return Refused(failure.cause.message)
    cause: BaseException | None = failure.cause
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    return _late(task_queue, timeout, str(cause))


def _late(task_queue: str, timeout: timedelta, why: str) -> NoWorker:
    return NoWorker(
        f"it did not finish within {timeout.total_seconds():g} s ({why}); is a worker running on task queue "
        f"{task_queue}? `python worker.py` starts one"
    )
