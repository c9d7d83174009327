"""The Temporal Schedules of a task queue: by default a sweep every minute and an audit every five."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from adapters.temporal import NOT_OURS_TO_ASK
from domain import policies
from domain.audit import AuditInput
from domain.sweep import SweepInput

_log = logging.getLogger("checkout.schedules")

# A run that was missed while Temporal was away is not caught up: the next one sees as much.
_CATCH_UP = timedelta(seconds=30)


@dataclass(frozen=True)
class Every:
    """The intervals; zero means never."""

    sweep: timedelta
    audit: timedelta


def named(task_queue: str, every: Every) -> Mapping[str, timedelta]:
    """Map the names of a task queue's schedules to their intervals."""
    return {f"sweep-{task_queue}": every.sweep, f"audit-{task_queue}": every.audit}


async def ensure(client: Client, task_queue: str, every: Every) -> None:
    """Create or update the schedules of a task queue as the settings and this build want them.

    Safe to repeat, by any number of workers; a pause stays. Where the worker may not manage schedules it logs that, and
    `starter.py sweep` and `starter.py audit` have to be run by other means.

    A run has a timeout: one whose workflow task keeps failing would block all later ones.
    """
    runs: Sequence[tuple[str, SweepInput | AuditInput, timedelta]] = (
        (policies.SWEEP_WORKFLOW, SweepInput(), policies.SWEEP_RUN_TIMEOUT),
        (policies.AUDIT_WORKFLOW, AuditInput(), policies.AUDIT_RUN_TIMEOUT),
    )
    for (name, interval), (workflow, given, timeout) in zip(named(task_queue, every).items(), runs, strict=True):
        action = ScheduleActionStartWorkflow(workflow, given, id=name, task_queue=task_queue, run_timeout=timeout)
        try:
            await _ensure_one(client, name, action, interval)
        except RPCError as error:
            if error.status not in NOT_OURS_TO_ASK:
                raise
            _log.warning("schedule %s cannot be made: %s; run it by other means", name, error.message)


async def _ensure_one(client: Client, name: str, action: ScheduleActionStartWorkflow, interval: timedelta) -> None:
    handle = client.get_schedule_handle(name)
    if not interval:
        try:
            await handle.delete()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
        return
    spec = ScheduleSpec(intervals=[ScheduleIntervalSpec(every=interval)])
    policy = SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCH_UP)
    wanted = Schedule(action=action, spec=spec, policy=policy)
    try:
        await client.create_schedule(name, wanted)
    except ScheduleAlreadyRunningError:
        content = await _content(client, wanted)

        async def renewed(known: ScheduleUpdateInput) -> ScheduleUpdate | None:
            found = known.description.schedule
            if await _content(client, found) == content:
                return None
            # From what is there, so that a pause and its note stay.
            return ScheduleUpdate(replace(found, spec=spec, action=action, policy=policy))

        await handle.update(renewed)


async def _content(client: Client, schedule: Schedule) -> tuple[Any, ...]:
    """Return what this build decides of a schedule, in a form that can be compared."""
    action = schedule.action
    if not isinstance(action, ScheduleActionStartWorkflow):
        return ()
    given = [
        part if isinstance(part, Payload) else (await client.data_converter.encode([part]))[0] for part in action.args
    ]
    timeouts = (action.execution_timeout, action.run_timeout, action.task_timeout)
    return (
        (action.workflow, action.id, action.task_queue, [part.data for part in given], action.retry_policy),
        [timeout or timedelta() for timeout in timeouts],
        (schedule.spec.intervals, schedule.spec.calendars, schedule.spec.cron_expressions, schedule.spec.skip),
        (schedule.spec.start_at, schedule.spec.end_at, schedule.spec.jitter or timedelta()),
        (schedule.policy.overlap, schedule.policy.catchup_window, schedule.policy.pause_on_failure),
    )
