"""A cancel at every event of every saga's history: honoured or refused with a reason, never lost, never half done."""

from typing import NamedTuple

import pytest
from temporalio.api.enums.v1 import WorkflowTaskFailedCause

from tests.conftest import Shop
from tests.faults.harness import TASK
from tests.faults.interruptions import ACCEPTED, CANCELLED, CANCELS, Case, Interruption, without
from tests.faults.net_effect import assert_net_effect, replay_all
from tests.faults.scripts import REASON, SCRIPTS, Script, be_patient, name_of, perform, run_all
from tests.faults.share import share
from tests.workflow.sagas import DOES, violations

pytestmark = pytest.mark.timeout(600)

UNWINDS = "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES"
"""The first event that a saga has as soon as its order is being undone."""


def last_do(script: Script) -> str:
    """Name the forward step after which nothing forward comes: the refused one, or ship."""
    return script.refused_step or "ship_order"


def expected_status(case: Case) -> str:
    """A cancel decides the order's ending until the last forward step is at work; from then on that step does."""
    if case.is_closing_task and "cancel" not in case.interruption.requests:
        return case.script.ends  # an update does not keep the server from ending a saga
    begun = {stop.what for stop in case.course.before(case.instant)}
    if case.instant.moment in {"before", "after"}:
        begun.add(case.instant.what)
    if case.script.is_cancelled_before or last_do(case.script) not in begun:
        return "cancelled"
    return case.script.cancelled_last_step


def expected_close(status: str, case: Case) -> str:
    """Name the event that a saga ends with, by the order's status and by the cancel that its unwind has begun with."""
    if status == "completed":
        return "WORKFLOW_EXECUTION_COMPLETED"
    if status == "cancelled" and (place := case.place_of("cancel")) is not None and UNWINDS not in case.names[:place]:
        return "WORKFLOW_EXECUTION_CANCELED"
    return "WORKFLOW_EXECUTION_FAILED"


def refusal_of_update(case: Case) -> str | None:
    """Say why an update is refused: a task has told the saga how its last step ended, or that it is cancelled."""
    if case.is_closing_task and "cancel" not in case.interruption.requests:
        return "aborted by closing workflow"
    if case.is_closing_task:  # both are told to the task that is tried again, in either order
        return None if case.answer == "accepted" else "already"
    last = last_do(case.script)
    output = [stop.what for stop in case.course.before(case.instant) if stop.what == TASK or stop == (last, 1, "after")]
    tasks_since = len(output) - 1 - output.index(last) if last in output else 0
    is_at_work = case.instant.what == TASK and case.instant.moment == "started" and last in output
    return "already: " if tasks_since or is_at_work or case.script.is_cancelled_before else None


def assert_it_came_where_it_should(case: Case) -> None:
    first = case.interruption.requests[0]
    if "cancel" in case.interruption.requests:
        place = case.place_of("cancel")
        assert place is not None, "the cancel is not in the history"
        before = case.names[:place]
        if first == "cancel":
            assert before == case.expected_before("cancel")
        assert case.names.count(CANCELLED) == 1
    if "update" in case.interruption.requests:
        if refusal := refusal_of_update(case):
            assert case.place_of("update") is None
            assert refusal in (case.answer or "")
            return
        assert case.answer == "accepted"
        place = case.place_of("update")
        assert place is not None, "the update is not in the history"
        assert without(case.names[:place], CANCELLED) == case.expected_before("update")


def assert_no_task_failed(case: Case) -> None:
    """The only failed task is the one that the server itself refuses: it ended a saga that had news waiting."""
    failed = [event for event in case.events if name_of(event) == "WORKFLOW_TASK_FAILED"]
    causes = [event.workflow_task_failed_event_attributes.cause for event in failed]
    unhandled = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
    assert causes == ([unhandled] if case.is_closing_task and "cancel" in case.interruption.requests else [])


def assert_nothing_forward_after(case: Case) -> None:
    """A step that was not scheduled when the cancel was noticed never is."""
    seen = [n for n, name in enumerate(case.names) if name in {CANCELLED, ACCEPTED}]
    later = case.events[min(seen) :] if seen else []
    scheduled = [event.activity_task_scheduled_event_attributes.activity_type.name for event in later]
    assert not set(scheduled) & set(DOES)


async def assert_outcome(case: Case) -> None:
    status = expected_status(case)
    assert_it_came_where_it_should(case)
    assert_no_task_failed(case)
    assert_nothing_forward_after(case)
    assert case.names[-1] == expected_close(status, case)
    assert await case.harness.shop.order_status(case.harness.order) == status
    if status == "cancelled" and not case.script.is_cancelled_before:
        reason = await case.harness.shop.database.value(
            "SELECT reason FROM orders WHERE order_id = $1", case.harness.order.order_id
        )
        assert reason == f"cancelled: {REASON}"
    await assert_net_effect(case.harness, status)


async def carry_out(case: Case) -> None:
    await case.carry_out()
    await assert_outcome(case)


class Play(NamedTuple):
    script: Script
    interruption: Interruption

    def __str__(self) -> str:
        return f"{self.script}-{self.interruption}"


# A stuck saga has long been unwinding: to it a second cancel of Temporal's own is the first one once more.
PLAYS = [
    Play(script, interruption)
    for script in SCRIPTS
    for interruption in CANCELS
    if not (script.name.startswith("stuck") and str(interruption) == "cancel-and-cancel")
]


@pytest.mark.parametrize("play", share(PLAYS, every=21))
async def test_a_cancel_at_every_event_ends_the_order_properly(
    shop: Shop, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, interruption = play
    be_patient(monkeypatch, stuck_wait=script.stuck_wait)
    _, course = await perform(shop, script)
    cases = [Case(shop, course, interruption, instant) for instant in course.instants()]

    await run_all(cases, carry_out)

    assert await violations(shop) == []
    await replay_all((case.harness, case.events) for case in cases)
