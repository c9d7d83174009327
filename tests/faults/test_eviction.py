"""A worker that forgets a workflow at every await: the same commands, the same endings, and it always stops."""

import asyncio
import re
import uuid
from collections.abc import Sequence

import pytest
from temporalio.api.history.v1 import HistoryEvent
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import Worker

from tests.conftest import Shop
from tests.faults.harness import ROLES, TASK, Harness, product_parts
from tests.faults.net_effect import assert_net_effect, replay_all
from tests.faults.runner import ObservedInstance, ObservedRunner
from tests.faults.scripts import (
    SCRIPTS,
    Course,
    Script,
    be_patient,
    history_of,
    name_of,
    perform,
    playing,
)
from tests.faults.share import share
from tests.workflow.sagas import violations

pytestmark = pytest.mark.timeout(600)

BY_TIME = [script for script in SCRIPTS if script.name == "stuck-and-mended-by-time"]
OTHERS = [script for script in SCRIPTS if script not in BY_TIME]
STOPS_WITHIN_SECONDS = 30.0
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class CountedInstance(ObservedInstance):
    """Counts what a worker evicts, of any workflow."""

    evictions = 0

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        CountedInstance.evictions += any(job.HasField("remove_from_cache") for job in act.jobs)
        return super().activate(act)


def commands_of(events: Sequence[HistoryEvent], order_id: str) -> list[tuple[str, ...]]:
    """Give what the workflow has commanded, in order, with its inputs."""
    found: list[tuple[str, ...]] = []
    for event in events:
        name = name_of(event)
        if name == "ACTIVITY_TASK_SCHEDULED":
            activity = event.activity_task_scheduled_event_attributes
            given = [_alike(payload.data.decode(), order_id) for payload in activity.input.payloads]
            found.append((name, activity.activity_type.name, activity.activity_id, *given))
        elif name.startswith(("TIMER_", "UPSERT_", "WORKFLOW_EXECUTION_")) or name.endswith("CANCEL_REQUESTED"):
            found.append((name,))
    return found


def _alike(text: str, order_id: str) -> str:
    """Take out what differs between two orders, and between two requests of an operator."""
    return _UUID.sub("UUID", text.replace(order_id, "ORDER"))


def worker_that_remembers(shop: Shop, cached: int, harnesses: Sequence[Harness]) -> Worker:
    parts = product_parts(shop.client, shop.engine)
    parts["task_queue"] = shop.task_queue
    parts["interceptors"] = [*parts["interceptors"], *harnesses]
    parts["max_cached_workflows"] = cached
    parts["workflow_runner"] = ObservedRunner(parts["workflow_runner"], lambda instance, _id: CountedInstance(instance))
    return Worker(**parts)


async def play(harness: Harness, script: Script) -> None:
    async with playing(harness, script):
        pass


@pytest.mark.parametrize(
    "scripts",
    [pytest.param(OTHERS, id="alternating", marks=pytest.mark.exhaustive), pytest.param(BY_TIME, id="by-time")],
)
@pytest.mark.parametrize("cached", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
async def test_a_worker_without_a_cache_commands_the_same_as_one_with_a_cache(
    shop: Shop, cached: int, scripts: list[Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch, stuck_wait=scripts[0].stuck_wait)
    courses = [(await perform(shop, script)) for script in scripts]
    queue = f"forgetful-{uuid.uuid4().hex[:12]}"
    harnesses = [Harness(shop, script.order(shop), task_queue=queue) for script in scripts for _ in range(2)]
    played = list(zip(harnesses, [course for course in courses for _ in range(2)], strict=True))
    before = CountedInstance.evictions

    async with worker_that_remembers(harnesses[0].shop, cached, harnesses):
        await asyncio.gather(*(play(harness, course.script) for harness, (_, course) in played))
    histories = [(harness, await history_of(harness)) for harness in harnesses]

    for (harness, events), (_, (usual, course)) in zip(histories, played, strict=True):
        usually = commands_of(course.events, usual.order.order_id)
        assert (course.script.name, commands_of(events, harness.order.order_id)) == (course.script.name, usually)
        assert await shop.order_status(harness.order) == course.script.ends
        await assert_net_effect(harness, course.script.ends)
    tasks = sum(name_of(event) == "WORKFLOW_TASK_COMPLETED" for _, events in histories for event in events)
    # Without a cache every task ends with an eviction; with room for one, another saga's task may bring it.
    assert CountedInstance.evictions - before >= (tasks if cached == 0 else len(harnesses))
    assert await violations(shop) == []
    await replay_all(histories)


async def stop_at_every_await(harness: Harness, course: Course) -> int:
    """Stop the workflow worker, and start another, wherever the saga waits; give how often."""
    stops = [stop for stop in course.trace if stop.what != TASK and stop.moment in {"before", "waiting"}]
    holds = [harness.hold(stop) for stop in stops]
    await harness.employ()
    async with playing(harness, course.script):
        for hold in holds:
            await hold.reached()
            await asyncio.wait_for(harness.dismiss("workflows"), STOPS_WITHIN_SECONDS)
            await harness.employ("workflows")
            hold.open()
    return len(holds)


@pytest.mark.parametrize("script", share(SCRIPTS, every=4))
async def test_a_worker_stops_wherever_the_saga_waits_and_another_goes_on(
    shop: Shop, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch, stuck_wait=script.stuck_wait)
    usual, course = await perform(shop, script)
    harness = Harness(shop, script.order(shop), cached=0)  # whatever waits has been evicted, or keeps the worker

    async with harness:
        stopped = await stop_at_every_await(harness, course)
        evicted = harness.evictions
        events = await history_of(harness)
        for role in ROLES:
            await asyncio.wait_for(harness.dismiss(role), STOPS_WITHIN_SECONDS)

    assert evicted >= stopped
    assert commands_of(events, harness.order.order_id) == commands_of(course.events, usual.order.order_id)
    assert "WORKFLOW_TASK_FAILED" not in map(name_of, events)
    assert await shop.order_status(harness.order) == script.ends
    await assert_net_effect(harness, script.ends)
    assert await violations(shop) == []
    await replay_all([(harness, events)])
