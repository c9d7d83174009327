"""An operator pauses, unpauses or resets an activity: it goes on where it was told to, and has one effect."""

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
from tests.faults.net_effect import assert_net_effect, replay_all
from tests.faults.scripts import SCRIPTS, Script, be_patient, history_of, name_of, wait_for_the_end
from tests.faults.share import share
from tests.faults.stepping import Stage, Stop
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
        """Number the attempt that is interfered with. One that runs keeps its number: strike the second."""
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


async def pending(stage: Stage) -> PendingActivityInfo:
    [found] = (await stage.handle.describe()).raw_description.pending_activities
    return found


async def pause(stage: Stage, activity_id: str) -> None:
    execution = WorkflowExecution(workflow_id=stage.handle.id)
    await stage.shop.client.workflow_service.pause_activity(
        PauseActivityRequest(namespace="default", execution=execution, id=activity_id, reason="a test")
    )


async def unpause(stage: Stage, activity_id: str, *, reset_attempts: bool) -> None:
    execution = WorkflowExecution(workflow_id=stage.handle.id)
    await stage.shop.client.workflow_service.unpause_activity(
        UnpauseActivityRequest(namespace="default", execution=execution, id=activity_id, reset_attempts=reset_attempts)
    )


async def reset(stage: Stage, activity_id: str) -> None:
    execution = WorkflowExecution(workflow_id=stage.handle.id)
    await stage.shop.client.workflow_service.reset_activity(
        ResetActivityRequest(namespace="default", execution=execution, id=activity_id)
    )


async def has_failed(stage: Stage) -> bool:
    return stage.alive == 0 and (await pending(stage)).HasField("last_failure")


async def is_paused(stage: Stage) -> bool:
    found = await pending(stage)
    return stage.alive == 0 and found.paused and found.state == PAUSED


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESERVE", "PAY", "SHIP", "UNDO"):
        policy = replace(getattr(policies, name), start_to_close=timedelta(seconds=5))
        monkeypatch.setattr(policies, name, policy)


def retry_after(monkeypatch: pytest.MonkeyPatch, wait: timedelta) -> None:
    for name in ("RESERVE", "PAY", "SHIP", "UNDO"):
        slow = replace(getattr(policies, name), retry=RetryPolicy(initial_interval=wait), schedule_to_close=None)
        monkeypatch.setattr(policies, name, slow)


async def interfere(stage: Stage, case: Case) -> None:
    """Hold the struck attempt after its effect; it then fails without having told; do the verb before or after."""
    held = stage.hold(Stop(case.activity, case.struck, "after"))
    await held.reached()
    activity_id = (await pending(stage)).activity_id
    act: Callable[[Stage, str], Awaitable[None]] = reset if case.verb == "reset" else pause
    if case.when == "running":
        await act(stage, activity_id)
        held.open()
    else:
        held.open()
        await until(lambda: has_failed(stage))
        await act(stage, activity_id)
    if case.verb != "reset":
        await until(lambda: is_paused(stage))
        assert stage.attempts_of(case.activity) == case.struck
        await unpause(stage, activity_id, reset_attempts=case.verb == "pause-and-forget-attempts")


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
    stage = Stage(shop, case.script.order(shop))
    stage.fail(case.activity, "after", lost_report, times=case.struck)

    async with stage:
        await stage.employ()
        await stage.shop.start(stage.order)
        await interfere(stage, case)
        await wait_for_the_end(stage)
        events: list[HistoryEvent] = await history_of(stage)

    numbers = [number for name, number in stage.attempts if name == case.activity]
    assert len(numbers) == case.struck + 1
    assert (numbers[-1] <= case.struck) is (case.verb != "pause")  # the server has forgotten the attempts, or not
    assert await shop.order_status(stage.order) == case.script.ends
    await assert_net_effect(stage, case.script.ends)
    assert "WORKFLOW_TASK_FAILED" not in {name_of(event) for event in events}
    assert await violations(shop) == []
    await replay_all([(stage, events)])
