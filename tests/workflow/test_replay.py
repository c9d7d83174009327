"""Orders that are open survive a deploy: the recorded history of every ending replays with today's code."""

import asyncio
import socket
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowReplayResult, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.payments import Payments
from adapters.temporal import DATA_CONVERTER, RefuseWrongArguments
from domain import policies
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.workflow.record import FOLDER, SCENES
from workflows.checkout import CheckoutWorkflow


@workflow.defn(name="Checkout")
class PaysFirst:
    """A checkout whose steps come in another order: what must not be deployed."""

    @workflow.run
    async def run(self, order: CheckoutInput) -> CheckoutStatus:
        await workflow.execute_activity_method(
            Payments.charge_payment,
            order,
            activity_id="pay",
            start_to_close_timeout=policies.PAY.start_to_close,
        )
        return CheckoutStatus(order.order_id, "completed")


async def replay(kind: type, recording: Path, runner: WorkflowRunner | None = None) -> WorkflowReplayResult:
    text = await asyncio.to_thread(recording.read_text, encoding="utf-8")
    replayer = Replayer(
        workflows=[kind],
        workflow_runner=runner or SandboxedWorkflowRunner(),
        data_converter=DATA_CONVERTER,
        interceptors=[RefuseWrongArguments()],
    )
    return await replayer.replay_workflow(
        WorkflowHistory.from_json(checkout_workflow_id("recorded"), text), raise_on_replay_failure=False
    )


RECORDINGS = sorted(FOLDER.glob("*.json"))


def test_there_is_a_recording_of_every_ending() -> None:
    assert {recording.stem for recording in RECORDINGS} >= set(SCENES)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(recording: Path) -> None:
    result = await replay(CheckoutWorkflow, recording)

    assert result.replay_failure is None


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
async def test_steps_in_another_order_do_not_replay(recording: Path) -> None:
    result = await replay(PaysFirst, recording, UnsandboxedWorkflowRunner())

    assert isinstance(result.replay_failure, workflow.NondeterminismError)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_does_not_name_the_machine_it_was_made_on(recording: Path) -> None:
    text = recording.read_text(encoding="utf-8")

    assert f"@{socket.gethostname()}" not in text
    assert str(Path.home()) not in text
    assert str(FOLDER.parent.parent.parent) not in text
