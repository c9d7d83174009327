"""Orders that are open survive a deploy: a recorded history of every ending, and of every way there, replays on HEAD.

Where a change does not fit them, the failure says what to do about it.
"""

import asyncio
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowReplayResult, WorkflowRunner

from activities.audit import Audit
from activities.payments import Payments
from domain import policies
from domain.audit import AuditInput
from domain.bulk import Batch, BatchReport
from domain.lookup import NamesInput, NamesReport
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import checkout_workflow_id
from domain.sweep import SweepInput, SweepReport
from tests.workflow.builds import TellsMore, WaitsFirst, WaitsFirstPatched
from tests.workflow.record import FOLDER
from tests.workflow.replays import replayer
from tests.workflow.scenes import SCENES
from workflows.bulk import BulkCheckoutWorkflow
from workflows.checkout import CheckoutWorkflow
from workflows.maintenance import AuditWorkflow, NamesWorkflow, SweepWorkflow, VersionedAudit, VersionedSweep

RECORDINGS = sorted(FOLDER.glob("*.json"))
CHECKOUTS = [path for path in RECORDINGS if not path.stem.startswith(("sweep", "audit", "bulk", "look"))]
HEAD = (CheckoutWorkflow, BulkCheckoutWorkflow, NamesWorkflow, AuditWorkflow, SweepWorkflow)

INSTRUCTIONS = """\
{name}.json does not replay: an order that is open at the deploy would stop with this error.

{error}

The commands of a workflow have changed: their order, their number or their kind (see docs/upgrades.md). Either

1. revert the order of commands, if the change was not meant; or
2. keep it for new runs alone, with the old commands in the other branch, and record the new way beside the old:
       if workflow.patched("what-changed"): ...
   a new scene in tests/workflow/scenes.py, then `.venv/bin/python -m tests.workflow.record`; or
3. if these commands have never been deployed anywhere, record this history anew:
       .venv/bin/python -m tests.workflow.record --again {name}
"""


async def replay(kinds: Sequence[type], recording: Path, runner: WorkflowRunner | None = None) -> WorkflowReplayResult:
    text = await asyncio.to_thread(recording.read_text, encoding="utf-8")
    return await replayer(*kinds, runner=runner).replay_workflow(
        WorkflowHistory.from_json(checkout_workflow_id("recorded"), text), raise_on_replay_failure=False
    )


async def require_replay(kinds: Sequence[type], recording: Path, runner: WorkflowRunner | None = None) -> None:
    """Fail with what to do, unless the history replays."""
    failure = (await replay(kinds, recording, runner)).replay_failure
    if failure is not None:
        pytest.fail(INSTRUCTIONS.format(name=recording.stem, error=failure), pytrace=False)


def named(recording: Path) -> str:
    return recording.stem


# One of each workflow and of each way through the checkout. What a changed workflow does to these, it does to all;
# `make faults` asks the others too.
_SOME = {
    *("completed", "fast-completed", "rejected-at-pay", "stuck-and-retried", "cancelled-by-temporal-at-ship"),
    *("sweep", "audit", "bulk-completed"),
}


def some_of(recordings: Sequence[Path]) -> list[Any]:
    """Make test parameters of the recordings; a few of them stay in `make test`."""
    return [
        pytest.param(path, id=path.stem, marks=() if path.stem in _SOME else pytest.mark.exhaustive)
        for path in recordings
    ]


# What is recorded ---------------------------------------------------------------------------------------------


def events(recording: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(recording.read_text(encoding="utf-8"))["events"]
    return found


def test_there_is_a_recording_of_every_scene() -> None:
    assert {recording.stem for recording in RECORDINGS} >= set(SCENES)


def test_a_recording_ends_as_its_name_says() -> None:
    expected = {
        "completed": {"COMPLETED"},
        "rejected": {"FAILED"},
        "cancelled": {"FAILED", "CANCELED"},
        "continued": {"CONTINUED_AS_NEW"},
    }
    endings = {
        recording.stem: events(recording)[-1]["eventType"].removeprefix("EVENT_TYPE_WORKFLOW_EXECUTION_")
        for recording in CHECKOUTS
    }

    others = {
        name: ending
        for name, ending in endings.items()
        if ending not in expected.get(name.removeprefix("fast-").split("-")[0], {"FAILED"})
    }
    assert endings
    assert others == {}


def test_the_recordings_have_every_activity_every_update_and_every_kind_of_command() -> None:
    every = [event for recording in RECORDINGS for event in events(recording)]

    activities = {
        event["activityTaskScheduledEventAttributes"]["activityType"]["name"]
        for event in every
        if "activityTaskScheduledEventAttributes" in event
    }
    updates = {
        event["workflowExecutionUpdateAcceptedEventAttributes"]["acceptedRequest"]["input"]["name"]
        for event in every
        if "workflowExecutionUpdateAcceptedEventAttributes" in event
    }
    kinds = {event["eventType"].removeprefix("EVENT_TYPE_") for event in every}

    assert activities == {
        *("reserve_inventory", "charge_payment", "ship_order"),
        *("release_inventory", "refund_payment", "cancel_shipment"),
        *("check_out_orders", "reserve_orders", "charge_orders", "ship_orders", "unwind_orders"),
        *("close_order", "complete_order", "park_order", "resolve_step", "note_retry"),
        *("run_audit", "record_findings", "find_unfinished", "find_contradictions", "start_sagas"),
        "look_up_names",
    }
    assert updates == {"cancel", "cancel_order", "retry_compensation", "resolve_compensation"}
    assert kinds >= {
        *("ACTIVITY_TASK_COMPLETED", "ACTIVITY_TASK_FAILED", "ACTIVITY_TASK_CANCEL_REQUESTED"),
        *("TIMER_FIRED", "TIMER_CANCELED", "WORKFLOW_EXECUTION_CANCEL_REQUESTED"),
        *("WORKFLOW_EXECUTION_CONTINUED_AS_NEW", "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", "MARKER_RECORDED"),
    }


def test_no_recording_names_the_machine_it_was_made_on() -> None:
    names = (f"@{socket.gethostname()}", str(Path.home()), str(FOLDER.parent.parent.parent))

    named_in = {
        recording.stem for recording in RECORDINGS for name in names if name in recording.read_text(encoding="utf-8")
    }

    assert named_in == set()


# What replays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", RECORDINGS, ids=named)
async def test_a_recorded_history_replays(recording: Path) -> None:
    await require_replay(HEAD, recording)


async def test_a_recorded_sweep_replays_on_a_versioned_worker() -> None:
    for name in ("sweep", "sweep-that-goes-on", "audit", "audit-that-finds"):
        await require_replay([VersionedAudit, VersionedSweep], FOLDER / f"{name}.json")


@pytest.mark.parametrize("kind", [TellsMore, WaitsFirstPatched])
@pytest.mark.parametrize("recording", some_of(CHECKOUTS))
async def test_a_compatible_or_patched_change_replays(kind: type, recording: Path) -> None:
    await require_replay([kind], recording, UnsandboxedWorkflowRunner())


# What does not ------------------------------------------------------------------------------------------------


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


@workflow.defn(name="Sweep")
class AuditsFirst:
    """A sweep that begins with something else."""

    @workflow.run
    async def run(self, sweep: SweepInput) -> SweepReport:
        await workflow.execute_activity_method(
            Audit.run_audit, AuditInput(), start_to_close_timeout=policies.MAINTENANCE.start_to_close
        )
        return sweep.so_far


@workflow.defn(name="Audit")
class DoesNothing:
    """An audit that does not audit."""

    @workflow.run
    async def run(self, audit: AuditInput) -> None:
        pass


@workflow.defn(name="BulkCheckout")
class CarriesNothing:
    """A batch that does no step."""

    @workflow.run
    async def run(self, batch: Batch) -> BatchReport:
        return BatchReport(batch.orders)


@workflow.defn(name="LookUpNames")
class LooksNothingUp:
    """A look at a file's names that asks nobody."""

    @workflow.run
    async def run(self, asked: NamesInput) -> NamesReport:
        return NamesReport(asked.skus)


OTHERS = (AuditsFirst, DoesNothing, CarriesNothing, LooksNothingUp)


@pytest.mark.parametrize("kinds", [(PaysFirst, *OTHERS), (WaitsFirst, *OTHERS)], ids=["order", "number"])
@pytest.mark.parametrize("recording", some_of(RECORDINGS))
async def test_other_commands_do_not_replay_and_the_failure_says_what_to_do(
    kinds: Sequence[type], recording: Path
) -> None:
    with pytest.raises(pytest.fail.Exception) as output:
        await require_replay(kinds, recording, UnsandboxedWorkflowRunner())

    for advice in (
        f"{recording.stem}.json does not replay",
        "Nondeterminism error",
        "revert the order of commands",
        'workflow.patched("what-changed")',
        f"python -m tests.workflow.record --again {recording.stem}",
        "docs/upgrades.md",
    ):
        assert advice in str(output.value)
