"""Declared sagas that are open survive a new release: a recorded history of every ending replays with today's code."""

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from sagafence import Saga, SagaWorkflow
from tests.sagafence.elsewhere_steps import Order, OrderSteps
from tests.sagafence.elsewhere_story import Fulfil
from tests.sagafence.record import FOLDER
from tests.sagafence.scenes import SCENES
from tests.sagafence.trip_steps import Booking, Trip, TripSteps
from tests.sagafence.trip_story import BookTrip

RECORDINGS = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}

INSTRUCTIONS = """\
{name}.json does not replay: a declared saga that is open when the library is replaced would stop with this error.

{error}

The commands of a declared saga have changed. Revert that; or put it behind `workflow.patched`, with the old way in the
other branch, and record the new way with a scene of its own in tests/sagafence/scenes.py:
    .venv/bin/python -m tests.sagafence.record
As long as no release has had these commands, record this history anew, with a line in sagafence/CHANGELOG.md:
    .venv/bin/python -m tests.sagafence.record --again {name}
"""


async def _failure(name: str, kinds: Sequence[type], runner: WorkflowRunner) -> Exception | None:
    history = WorkflowHistory.from_json("recorded", RECORDINGS[name].read_text(encoding="utf-8"))
    replayer = Replayer(workflows=list(kinds), workflow_runner=runner)
    return (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure


def _events(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RECORDINGS[name].read_text(encoding="utf-8"))["events"]
    return found


def _activities(name: str) -> list[str]:
    scheduled = [event.get("activityTaskScheduledEventAttributes") for event in _events(name)]
    return [one["activityType"]["name"] for one in scheduled if one]


# What is recorded -----------------------------------------------------------------------------------------------


def test_there_is_a_recording_of_every_scene_of_a_declared_saga_which_ends_as_its_name_says() -> None:
    endings = {"completed": "COMPLETED", "unwound": "FAILED", "purged": "FAILED", "cancelled-by-temporal": "CANCELED"}
    ended = {name: _events(name)[-1]["eventType"].rpartition("_")[2] for name in RECORDINGS}

    assert RECORDINGS.keys() == SCENES.keys()
    others = {
        name: ending
        for name, ending in ended.items()
        if ending != endings.get(name, endings.get(name.split("-")[0], ending))
    }
    assert others == {}


def test_the_recorded_sagas_have_every_activity_of_theirs_every_update_and_a_wait_that_is_over() -> None:
    every = [event for name in RECORDINGS for event in _events(name)]
    accepted = [event.get("workflowExecutionUpdateAcceptedEventAttributes") for event in every]

    assert {activity for name in RECORDINGS for activity in _activities(name)} == {
        *("book_room", "cancel_room", "book_seat", "cancel_seat", "issue_ticket", "issue_ticket.settle", "greet"),
        *("book", "give_back", "create", "delete", "bill", "bill.settle", "write"),
        *("sagafence.unwind", "sagafence.end", "sagafence.resolve"),
    }
    assert {one["acceptedRequest"]["input"]["name"] for one in accepted if one} == {"cancel", "retry", "resolve"}
    assert "EVENT_TYPE_TIMER_CANCELED" in {event["eventType"] for event in every}


def test_no_recorded_saga_names_the_machine_it_was_made_on() -> None:
    names = (f"@{socket.gethostname()}", str(Path.home()), str(FOLDER.parent.parent.parent))
    texts = [path.read_text(encoding="utf-8") for path in RECORDINGS.values()]

    assert [name for name in names if any(name in text for text in texts)] == []


# What replays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDINGS)
async def test_a_recorded_saga_replays(name: str) -> None:
    failure = await _failure(name, [BookTrip, Fulfil], SandboxedWorkflowRunner())
    if failure is not None:
        pytest.fail(INSTRUCTIONS.format(name=name, error=failure), pytrace=False)


@workflow.defn(name="BookTrip")
class BookTripWithTwoRooms(SagaWorkflow[Trip, list[Booking]]):
    """The trip with another step, which sagas that are open do not know."""

    backoff = BookTrip.backoff

    async def story(self, saga: Saga, trip: Trip, /) -> list[Booking]:
        """Two rooms for whoever begins from now on."""
        if workflow.patched("a-second-room"):
            await saga.do(TripSteps.book_room, trip, instance="second")
        return await BookTrip.story(self, saga, trip)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECORDINGS)
async def test_a_recorded_saga_replays_with_a_step_more_behind_a_patch(name: str) -> None:
    assert await _failure(name, [BookTripWithTwoRooms, Fulfil], UnsandboxedWorkflowRunner()) is None


# What does not --------------------------------------------------------------------------------------------------


@workflow.defn(name="BookTrip")
class SeatsFirst(SagaWorkflow[Trip, list[Booking]]):
    """The trip in another sequence."""

    async def story(self, saga: Saga, trip: Trip, /) -> list[Booking]:
        """Seats, and then the room."""
        seats = await saga.together(
            *(saga.do(TripSteps.book_seat, trip, instance=which) for which in ("there", "back"))
        )
        room = await saga.do(TripSteps.book_room, trip)
        ticket = await saga.pivot(TripSteps.issue_ticket, trip)
        return [room, *seats, ticket, await saga.then(TripSteps.greet, trip)]


@workflow.defn(name="Fulfil")
class OneAfterTheOther(SagaWorkflow[Order, list[int]]):
    """The order with its steps no longer side by side."""

    async def story(self, saga: Saga, order: Order, /) -> list[int]:
        """A room, and then a tenant."""
        done = [await saga.do(OrderSteps.book, order), await saga.do(OrderSteps.create, order)]
        done.append(await saga.pivot(OrderSteps.bill, order))
        return [*done, await saga.then(OrderSteps.write, order)]


# A saga that is cancelled before its first step says nothing of their sequence.
_WITH_STEPS = [name for name in RECORDINGS if {"book_room", "book"} & set(_activities(name))]


@pytest.mark.parametrize("name", _WITH_STEPS)
async def test_a_recorded_saga_does_not_replay_with_its_steps_in_another_sequence(name: str) -> None:
    failure = await _failure(name, [SeatsFirst, OneAfterTheOther], UnsandboxedWorkflowRunner())

    assert "Nondeterminism error" in str(failure)
