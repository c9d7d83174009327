"""What runs by itself: a sweep every minute and an audit every five, as Temporal Schedules of the task queue."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

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
from domain.maintenance import AuditInput, SweepInput
from workflows.maintenance import AuditWorkflow, SweepWorkflow

_log = logging.getLogger("checkout.schedules")

# A run that was missed while Temporal or all workers were away is not made up for: the next one sees as much.
_CATCH_UP = timedelta(seconds=30)


@dataclass(frozen=True)
class Every:
    """How often what runs; a zero interval means never."""

    sweep: timedelta
    audit: timedelta


async def ensure(client: Client, task_queue: str, every: Every) -> None:
    """Make the schedules of a task queue as the settings want them. Safe to repeat, by any number of workers.

    A pause stays, whoever made it; so does everything else that a schedule remembers. Where the worker may not
    manage schedules, it says so, and somebody else has to run `starter.py sweep` and `starter.py audit`.
    """
    wanted: Mapping[str, tuple[timedelta, Any, Any]] = {
        f"sweep-{task_queue}": (every.sweep, SweepWorkflow.run, SweepInput()),
        f"audit-{task_queue}": (every.audit, AuditWorkflow.run, AuditInput()),
    }
    for name, (interval, workflow, given) in wanted.items():
        action = ScheduleActionStartWorkflow(workflow, given, id=name, task_queue=task_queue)
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
    try:
        await client.create_schedule(name, Schedule(action=action, spec=spec, policy=policy))
    except ScheduleAlreadyRunningError:
        known = (await handle.describe()).schedule.spec.intervals
        if [found.every for found in known] == [interval]:
            return
        # The update begins from what is there, so that a pause and its note stay.

        def renewed(found: ScheduleUpdateInput) -> ScheduleUpdate:
            return ScheduleUpdate(replace(found.description.schedule, spec=spec, action=action, policy=policy))

        await handle.update(renewed)
