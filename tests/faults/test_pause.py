"""An operator pauses, unpauses or resets an activity: it goes on as it was asked to, and has one effect."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Literal, NamedTuple

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import PauseActivityRequest, ResetActivityRequest, UnpauseActivityRequest
from temporalio.common import RetryPolicy

from domain import policies
from tests.conftest import Shop
from tests.faults.harness import Harness, Stop
from tests.faults.net_effect import assert_net_effect, replay_all
from tests.faults.scripts import SCRIPTS, Script, be_patient, history_of, name_of, wait_for_the_end
from tests.faults.share import share
from tests.workflow.gates import lost_report
from tests.workflow.sagas import DOES, UNDOS, until, violations

pytestmark = pytest.mark.timeout(300)

Verb = Literal["pause", "pause-and-forget-attempts", "reset"]
When = Literal["running", "backing-off"]
PAUSED = PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED
COMPLETED, REJECTED = (
    next(script for script in SCRIPTS if script.name == name) for name in ("completed", "rejected-at-ship")
)


class Case(NamedTuple):
    activity: str
    when: When
    verb: Verb

    def __str__(self) -> str:
        return "-".join(self)

    @property
    def struck(self) -> int:
        """Number the attempt that is interfered with. One that runs keeps its number: take the second."""
        return 2 if self.when == "running" else 1

    @property
    def script(self) -> Script:
        return COMPLETED if self.activity in DOES else REJECTED


CASES = [
    Case(name, when, verb)
    for name in (*DOES, *UNDOS)
    for when in ("running", "backing-off")
    for verb in ("pause", "pause-and-forget-attempts", "reset")
]


async def pending(harness: Harness) -> PendingActivityInfo:
    [found] = (await harness.handle.describe()).raw_description.pending_activities
    return found


async def pause(harness: Harness, activity_id: str) -> None:
    execution = WorkflowExecution(workflow_id=harness.handle.id)
    await harness.shop.client.workflow_service.pause_activity(
        PauseActivityRequest(namespace="default", execution=execution, id=activity_id, reason="a test")
    )


async def unpause(harness: Harness, activity_id: str, *, reset_attempts: bool) -> None:
    execution = WorkflowExecution(workflow_id=harness.handle.id)
    await harness.shop.client.workflow_service.unpause_activity(
        UnpauseActivityRequest(namespace="default", execution=execution, id=activity_id, reset_attempts=reset_attempts)
    )


async def reset(harness: Harness, activity_id: str) -> None:
    execution = WorkflowExecution(workflow_id=harness.handle.id)
    await harness.shop.client.workflow_service.reset_activity(
        ResetActivityRequest(namespace="default", execution=execution, id=activity_id)
    )


async def has_failed(harness: Harness) -> bool:
    return harness.alive == 0 and (await pending(harness)).HasField("last_failure")


async def is_paused(harness: Harness) -> bool:
    found = await pending(harness)
    return harness.alive == 0 and found.paused and found.state == PAUSED


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESERVE", "PAY", "SHIP", "UNDO"):
        policy = replace(getattr(policies, name), start_to_close=timedelta(seconds=5))
        monkeypatch.setattr(policies, name, policy)


def retry_after(monkeypatch: pytest.MonkeyPatch, wait: timedelta) -> None:
    for name in ("RESERVE", "PAY", "SHIP", "UNDO"):
        slow = replace(getattr(policies, name), retry=RetryPolicy(initial_interval=wait), schedule_to_close=None)
        monkeypatch.setattr(policies, name, slow)


async def interfere(harness: Harness, case: Case) -> None:
    """Hold the struck attempt after its effect; it then fails without a report; do the verb before or after."""
    held = harness.hold(Stop(case.activity, case.struck, "after"))
    await held.reached()
    activity_id = (await pending(harness)).activity_id
    act: Callable[[Harness, str], Awaitable[None]] = reset if case.verb == "reset" else pause
    if case.when == "running":
        await act(harness, activity_id)
        held.open()
    else:
        held.open()
        await until(lambda: has_failed(harness))
        await act(harness, activity_id)
    if case.verb != "reset":
        await until(lambda: is_paused(harness))
        assert harness.attempts_of(case.activity) == case.struck
        await unpause(harness, activity_id, reset_attempts=case.verb == "pause-and-forget-attempts")


@pytest.mark.parametrize("case", share(CASES, every=7))
async def test_an_activity_that_an_operator_interferes_with_has_one_effect(
    shop: Shop, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    if (case.when, case.verb) == ("running", "reset"):
        # The server no longer takes the report of the attempt that runs: the next comes when that has timed out.
        be_impatient(monkeypatch)
    if case.when == "backing-off":
        retry_after(monkeypatch, timedelta(hours=1))  # only the operator brings the next attempt
    harness = Harness(shop, case.script.order(shop))
    harness.fail(case.activity, "after", lost_report, times=case.struck)

    async with harness:
        await harness.employ()
        await harness.shop.start(harness.order)
        await interfere(harness, case)
        await wait_for_the_end(harness)
        events: list[HistoryEvent] = await history_of(harness)

    numbers = [number for name, number in harness.attempts if name == case.activity]
    assert len(numbers) == case.struck + 1
    assert (numbers[-1] <= case.struck) is (case.verb != "pause")  # the server has forgotten the attempts, or not
    assert await shop.order_status(harness.order) == case.script.ends
    await assert_net_effect(harness, case.script.ends)
    assert "WORKFLOW_TASK_FAILED" not in {name_of(event) for event in events}
    assert await violations(shop) == []
    await replay_all([(harness, events)])
