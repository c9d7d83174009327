"""A reset to any workflow task: the new run meets the fences of the old one, and the order ends as it would have.

Where the old run has an attempt under way, the attempt is held until the new run has ended.
"""

import asyncio
from collections.abc import Sequence

import pytest
from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowExecutionStatus

from domain.sweep import SweepReport
from tests.conftest import Shop
from tests.faults.harness import TASK, Harness, Stop
from tests.faults.interruptions import TERMINATED
from tests.faults.net_effect import assert_net_effect, replay_all, rows_of
from tests.faults.scripts import (
    OPERATOR,
    SCRIPTS,
    Course,
    Script,
    be_patient,
    history_of,
    is_brought_by_an_update,
    name_of,
    perform,
    run_all,
    sweep,
    wait_for_the_end,
)
from tests.faults.share import share
from tests.workflow.sagas import DOES, reset_to, until, violations

pytestmark = pytest.mark.timeout(600)

BY_NAME = {script.name: script for script in SCRIPTS}
ENDED = [script for script in SCRIPTS if script.name != "stuck-and-mended-by-time"]
ALIVE = [
    BY_NAME[name]
    for name in ("completed", "completed-with-a-label", "rejected-at-ship", "cancelled", "stuck-and-resolved")
]


def started_tasks(events: Sequence[HistoryEvent]) -> list[int]:
    """Give the place in a history of every start of a workflow task to which the server can reset.

    It writes a task that only an update has brought in one batch with its completion, and refuses to part them.
    """
    names = [name_of(event) for event in events]
    started = [n for n, name in enumerate(names) if name == "WORKFLOW_TASK_STARTED"]
    return [n for n in started if not is_brought_by_an_update(names, n)]


def needs_a_person(course: Course) -> bool:
    """Whether a run whose history says that an undo has failed waits for an operator."""
    return any(stop.what == OPERATOR for stop in course.trace)


async def keep_operating(script: Script, harness: Harness) -> None:
    """Ask again and again: a run that was reset says that it has been stuck before it is."""
    while (await harness.handle.describe()).status == WorkflowExecutionStatus.RUNNING:
        await script.operate(harness)
        await asyncio.sleep(0.1)


async def reset(harness: Harness, events: Sequence[HistoryEvent], place: int, run_id: str) -> None:
    """Reset a run to the workflow task that started at a place of its history; the new run is the newest."""
    await reset_to(harness.shop, harness.handle.id, run_id, events[place].event_id)


def assert_was_reset(old: Sequence[HistoryEvent], new: Sequence[HistoryEvent], place: int) -> None:
    """The new history is the old one up to the task, which then counts as failed."""
    kept = place + 1
    assert [name_of(event) for event in new[:kept]] == [name_of(event) for event in old[:kept]]
    assert name_of(new[kept]) == "WORKFLOW_TASK_FAILED"
    cause = new[kept].workflow_task_failed_event_attributes.cause
    assert cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
    assert [name_of(event) for event in new].count("WORKFLOW_TASK_FAILED") == 1


async def run_id_of(harness: Harness) -> str:
    run_id = (await harness.handle.describe()).run_id
    assert run_id
    return run_id


@pytest.mark.parametrize("script", share(ENDED, every=5))
async def test_an_ended_saga_that_is_reset_ends_as_before_and_moves_nothing(
    shop: Shop, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch, stuck_wait=script.stuck_wait)
    harness, course = await perform(shop, script)
    harness.mend()
    before, run_id = await rows_of(harness), await run_id_of(harness)
    histories: list[tuple[Harness, Sequence[HistoryEvent]]] = []

    async with harness:
        await harness.employ()
        for number, place in enumerate(started_tasks(course.events), start=1):
            case = f"ended {script} to task {number}"
            await reset(harness, course.events, place, run_id)
            operator = asyncio.create_task(keep_operating(script, harness)) if needs_a_person(course) else None
            await wait_for_the_end(harness)
            if operator:
                operator.cancel()
                await asyncio.gather(operator, return_exceptions=True)
            events = await history_of(harness)
            assert_was_reset(course.events, events, place)
            assert (case, await rows_of(harness)) == (case, before)
            assert name_of(events[-1]) == name_of(course.events[-1]), case
            histories.append((harness, events))

    assert await violations(shop) == []
    await replay_all(histories)


class Case:
    """One reset of a saga that is held at a stop, to one of the tasks that it has behind it."""

    def __init__(self, shop: Shop, course: Course, stop: Stop, number: int) -> None:
        self.course = course
        self.stop = stop
        self.number = number
        self.harness = Harness(shop, course.script.order(shop))
        self.events: list[HistoryEvent] = []

    def __str__(self) -> str:
        return f"{self.course.script} at {self.stop} to task {self.number}"

    async def carry_out(self) -> None:
        script, harness = self.course.script, self.harness
        async with harness:
            script.prepare(harness)
            held = harness.hold(self.stop)
            await harness.employ()
            await harness.shop.start(harness.order)
            operator = asyncio.create_task(script.operate(harness))
            await held.reached()
            old, run_id = await history_of(harness), await run_id_of(harness)
            old_handle = harness.shop.client.get_workflow_handle(harness.handle.id, run_id=run_id)
            place = started_tasks(old)[self.number - 1]
            harness.mend()
            await reset(harness, old, place, run_id)
            if needs_a_person(self.course):  # who comes again when the old run is gone
                operator.cancel()
                held.open()
                operator = asyncio.create_task(keep_operating(script, harness))
            await wait_for_the_end(harness)
            held.open()
            await until(self._is_quiet)
            operator.cancel()
            await asyncio.gather(operator, return_exceptions=True)
            self.events = await history_of(harness)
            assert name_of((await old_handle.fetch_history()).events[-1]) == TERMINATED
            assert_was_reset(old, self.events, place)

    async def _is_quiet(self) -> bool:
        return self.harness.alive == 0


def cases_of(shop: Shop, course: Course) -> list[Case]:
    """Hold every attempt: a step's before and after its effect, an undo's before; reset to every task behind it."""
    stops = [
        stop
        for stop in course.instants()
        if stop.what != TASK
        and (stop.moment in {"before", "waiting"} or (stop.what in DOES and stop.moment == "after"))
    ]
    if needs_a_person(course):
        stops = [stop for stop in stops if stop.what == OPERATOR]
    return [
        Case(shop, course, stop, number)
        for stop in stops
        for number, _ in enumerate(started_tasks(course.events[: len(course.prefix(stop))]), start=1)
    ]


@pytest.mark.parametrize("script", share(ALIVE, every=9))
async def test_a_saga_that_is_reset_while_an_attempt_is_alive_ends_as_it_would_have(
    shop: Shop, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch, stuck_wait=script.stuck_wait)
    _, course = await perform(shop, script)
    cases = cases_of(shop, course)

    await run_all(cases, Case.carry_out)
    async with shop.working():
        swept = await sweep(shop)

    assert swept == SweepReport()  # nothing is left to it
    for case in cases:
        assert (str(case), await shop.order_status(case.harness.order)) == (str(case), script.ends)
        await assert_net_effect(case.harness, script.ends)
    assert await violations(shop) == []
    await replay_all((case.harness, case.events) for case in cases)
