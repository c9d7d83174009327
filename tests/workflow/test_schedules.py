"""The sweep and the audit run by themselves, once each, as the settings say."""

import asyncio
import logging
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionExecutionStartWorkflow,
    ScheduleActionStartWorkflow,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    WorkflowFailureError,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from adapters import schedule_watch, schedules
from adapters.polled_state import Finding
from adapters.schedules import Every
from domain import policies
from domain.sweep import SweepInput
from tests.conftest import Shop
from tests.workflow.sagas import until

EVERY = Every(sweep=timedelta(seconds=60), audit=timedelta(seconds=300))
RARELY = Every(sweep=timedelta(days=36_500), audit=timedelta(days=36_500))
"""So that none begins a run by itself while a test looks, as one of a minute does at each full minute."""


@pytest.fixture
def task_queue() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


async def interval_of(handle: ScheduleHandle) -> timedelta:
    [interval] = (await handle.describe()).schedule.spec.intervals
    return interval.every


async def test_many_workers_make_each_schedule_once(client: Client, task_queue: str) -> None:
    await asyncio.gather(*(schedules.ensure(client, task_queue, EVERY) for _ in range(10)))

    assert await interval_of(client.get_schedule_handle(f"sweep-{task_queue}")) == EVERY.sweep
    assert await interval_of(client.get_schedule_handle(f"audit-{task_queue}")) == EVERY.audit


async def test_a_changed_setting_changes_the_schedule_and_leaves_a_pause_alone(client: Client, task_queue: str) -> None:
    handle = client.get_schedule_handle(f"sweep-{task_queue}")
    await schedules.ensure(client, task_queue, EVERY)
    await handle.pause(note="while we look")

    await schedules.ensure(client, task_queue, Every(sweep=timedelta(seconds=30), audit=EVERY.audit))

    found = await handle.describe()
    assert await interval_of(handle) == timedelta(seconds=30)
    assert (found.schedule.state.paused, found.schedule.state.note) == (True, "while we look")


async def test_zero_means_never(client: Client, task_queue: str) -> None:
    await schedules.ensure(client, task_queue, EVERY)

    for _ in range(2):
        await schedules.ensure(client, task_queue, Every(sweep=EVERY.sweep, audit=timedelta()))

    assert await interval_of(client.get_schedule_handle(f"sweep-{task_queue}")) == EVERY.sweep
    with pytest.raises(RPCError) as gone:
        await client.get_schedule_handle(f"audit-{task_queue}").describe()
    assert gone.value.status is RPCStatusCode.NOT_FOUND


async def test_what_a_schedule_starts_does_its_work(shop: Shop) -> None:
    await schedules.ensure(shop.client, shop.task_queue, EVERY)
    await shop.database.run(
        "INSERT INTO orders (order_id, customer) VALUES ('by-hand', 'alice');"
        "INSERT INTO order_lines (order_id, sku, quantity) VALUES ('by-hand', 'tea-mug', 1);"
        "UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'lamp'"
    )

    async with shop.working():
        for name in ("sweep", "audit"):
            await shop.client.get_schedule_handle(f"{name}-{shop.task_queue}").trigger()

        async def both_have_run() -> bool:
            status = await shop.database.value("SELECT status FROM orders")
            found = await shop.database.value("SELECT count(*) FROM audit_events")
            return bool(status == "completed" and found == 1)

        await until(both_have_run)


# What a build wants of its schedules ----------------------------------------------------------------------


async def test_a_run_that_cannot_go_on_ends_some_time(client: Client, task_queue: str) -> None:
    await schedules.ensure(client, task_queue, EVERY)

    for name, timeout in (("sweep", policies.SWEEP_RUN_TIMEOUT), ("audit", policies.AUDIT_RUN_TIMEOUT)):
        action = (await client.get_schedule_handle(f"{name}-{task_queue}").describe()).schedule.action
        assert isinstance(action, ScheduleActionStartWorkflow)
        assert action.run_timeout == timeout
        assert action.execution_timeout is None  # a sweep of many runs may take as long as it takes


def older(
    task_queue: str, *, action: dict[str, Any], overlap: ScheduleOverlapPolicy = ScheduleOverlapPolicy.SKIP
) -> Schedule:
    given: dict[str, Any] = {
        "arg": SweepInput(),
        "run_timeout": policies.SWEEP_RUN_TIMEOUT,
        "task_queue": task_queue,
    } | action
    return Schedule(
        action=ScheduleActionStartWorkflow(policies.SWEEP_WORKFLOW, id=f"sweep-{task_queue}", **given),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=EVERY.sweep)]),
        policy=SchedulePolicy(overlap=overlap, catchup_window=timedelta(seconds=30)),
    )


@pytest.mark.parametrize(
    ("action", "overlap"),
    [
        ({"run_timeout": None}, ScheduleOverlapPolicy.SKIP),
        ({"task_queue": "another"}, ScheduleOverlapPolicy.SKIP),
        ({"arg": SweepInput(5.0)}, ScheduleOverlapPolicy.SKIP),
        ({"execution_timeout": timedelta(seconds=90)}, ScheduleOverlapPolicy.SKIP),
        ({}, ScheduleOverlapPolicy.BUFFER_ALL),
    ],
    ids=["run timeout", "task queue", "input", "execution timeout", "overlap"],
)
async def test_a_schedule_of_an_older_worker_becomes_what_this_build_wants_and_keeps_its_pause(
    client: Client, task_queue: str, action: dict[str, Any], overlap: ScheduleOverlapPolicy
) -> None:
    handle = await client.create_schedule(f"sweep-{task_queue}", older(task_queue, action=action, overlap=overlap))
    await handle.pause(note="while we look")

    await schedules.ensure(client, task_queue, EVERY)

    found = (await handle.describe()).schedule
    assert isinstance(found.action, ScheduleActionStartWorkflow)
    assert (found.action.run_timeout, found.action.execution_timeout) == (policies.SWEEP_RUN_TIMEOUT, None)
    assert found.action.task_queue == task_queue
    [given] = await client.data_converter.decode(list(found.action.args), [SweepInput])
    assert given == SweepInput()
    assert found.policy.overlap == ScheduleOverlapPolicy.SKIP
    assert (found.state.paused, found.state.note) == (True, "while we look")


async def test_a_schedule_that_is_as_this_build_wants_it_is_not_touched(client: Client, task_queue: str) -> None:
    for _ in range(2):
        await schedules.ensure(client, task_queue, EVERY)

    for name in ("sweep", "audit"):
        assert (await client.get_schedule_handle(f"{name}-{task_queue}").describe()).info.last_updated_at is None


# A schedule that does not do its work ---------------------------------------------------------------------


@workflow.defn(name=policies.SWEEP_WORKFLOW)
class CannotGoOn:
    """A sweep of a bad build: its workflow task fails, each time."""

    @workflow.run
    async def run(self, _sweep: SweepInput) -> None:
        raise RuntimeError("a bad deploy")


@workflow.defn(name=policies.SWEEP_WORKFLOW)
class WorksOn:
    """A sweep that takes long."""

    @workflow.run
    async def run(self, _sweep: SweepInput) -> None:
        await workflow.wait_condition(lambda: False)


def working_with(client: Client, task_queue: str, kind: type) -> Worker:
    return Worker(client, task_queue=task_queue, workflows=[kind], workflow_runner=UnsandboxedWorkflowRunner())


async def begin(client: Client, task_queue: str, name: str = "sweep") -> ScheduleHandle:
    """Make the schedules, and have one begin a run now."""
    await schedules.ensure(client, task_queue, RARELY)
    handle = client.get_schedule_handle(f"{name}-{task_queue}")
    await handle.trigger()

    async def has_begun() -> bool:
        return len((await handle.describe()).info.recent_actions) == 1

    await until(has_begun)
    return handle


async def look(client: Client, handle: ScheduleHandle, *, running_for: timedelta) -> Finding:
    """Look as a worker does that has run for so long."""
    return await schedule_watch.look(client, handle.id, EVERY.sweep, not_before=datetime.now(UTC) - running_for)


async def test_a_run_whose_workflow_task_keeps_failing_is_reported_as_an_error_at_once_and_again(
    client: Client, task_queue: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_watch, "_REPEAT_AFTER_POLLS", 1)
    told: list[str] = []

    async def is_reported_twice() -> bool:
        told[:] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        return sum("the workflow task of its newest run keeps failing" in message for message in told) >= 2

    async with working_with(client, task_queue, CannotGoOn):
        await begin(client, task_queue)
        watch = asyncio.create_task(schedule_watch.follow(lambda: client, task_queue, EVERY, poll_seconds=0.1))
        await until(is_reported_twice)
        watch.cancel()

    assert f"schedule sweep-{task_queue} does not do its work" in " ".join(told)
    await client.get_workflow_handle(await _newest(client, task_queue)).terminate()


async def _newest(client: Client, task_queue: str) -> str:
    [begun] = (await client.get_schedule_handle(f"sweep-{task_queue}").describe()).info.recent_actions
    assert isinstance(begun.action, ScheduleActionExecutionStartWorkflow)
    return begun.action.workflow_id


@pytest.mark.parametrize(("minutes", "is_alarming"), [(4, False), (6, True)])
async def test_a_schedule_whose_runs_fail_is_reported_once_it_has_had_time(
    client: Client, task_queue: str, minutes: int, is_alarming: bool
) -> None:
    handle = await begin(client, task_queue)
    await client.get_workflow_handle(await _newest(client, task_queue)).terminate()

    state = await look(client, handle, running_for=timedelta(minutes=minutes))

    assert state.is_alarm is is_alarming
    assert ("its newest run was terminated" in state.text) is is_alarming


async def test_a_run_that_takes_long_and_gets_on_is_no_alarm(client: Client, task_queue: str) -> None:
    async with working_with(client, task_queue, WorksOn):
        handle = await begin(client, task_queue)
        state = await look(client, handle, running_for=timedelta(days=1))

    assert state == Finding(f"schedule {handle.id} does its work")
    await client.get_workflow_handle(await _newest(client, task_queue)).terminate()


async def test_an_audit_that_has_found_something_has_done_its_work(shop: Shop) -> None:
    await shop.database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'lamp'")
    async with shop.working():
        handle = await begin(shop.client, shop.task_queue, "audit")
        [begun] = (await handle.describe()).info.recent_actions
        assert isinstance(begun.action, ScheduleActionExecutionStartWorkflow)
        with pytest.raises(WorkflowFailureError):
            await shop.client.get_workflow_handle(begun.action.workflow_id).result()
        state = await look(shop.client, handle, running_for=timedelta(days=1))

    assert not state.is_alarm


async def test_a_schedule_that_begins_nothing_or_is_gone_is_reported_and_a_pause_is_no_alarm(
    client: Client, task_queue: str
) -> None:
    await schedules.ensure(client, task_queue, RARELY)
    handle, long_ago = client.get_schedule_handle(f"sweep-{task_queue}"), timedelta(days=1)

    idle = await look(client, handle, running_for=long_ago)
    await handle.pause(note="while we look")
    paused = await look(client, handle, running_for=long_ago)
    await handle.delete()
    gone = await look(client, handle, running_for=long_ago)

    assert (idle.is_alarm, paused.is_alarm, gone.is_alarm) == (True, False, True)
    assert "it has begun no run" in idle.text
    assert paused.text == f"schedule sweep-{task_queue} is paused: while we look"
    assert "is gone" in gone.text
