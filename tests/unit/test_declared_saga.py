"""A declared saga without servers: its database is a few rows in memory, and asyncio stands in for the workflow."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from temporalio import workflow
from temporalio.converter import DataConverter
from temporalio.exceptions import ApplicationError, FailureError

from sagafence import Resolution, SagaMisuse, UndoOutcome, UndoResult, Verdict
from sagafence.calls import Settled
from tests.sagafence.trip_steps import Booking, Trip
from tests.sagafence.trip_story import BookTrip

_DO = {"book_room": "room", "book_seat": "seat", "issue_ticket": "ticket", "greet": "greeting"}
_UNDO = {"cancel_room": "room", "cancel_seat": "seat"}


@dataclass
class Books:
    """The saga's row and the fence, as the activities see them."""

    state: str = "open"
    ended_as: str = ""
    done: set[str] = field(default_factory=set)
    refuses: list[str] = field(default_factory=list)
    """Steps whose next do fails, each time that they are named."""
    reason: str | None = None

    async def call(self, activity: str, *_: Any, args: tuple[Any, ...] = (), **__: Any) -> Any:
        """Run an activity."""
        await asyncio.sleep(0)
        if activity == "sagafence.end":
            self.state, self.ended_as = "ended", args[0]
            return None
        if activity == "issue_ticket.settle":
            return Settled(happened="ticket" in self.done, result={"step": "ticket", "number": 1})
        instance = args[1].instance
        step = (_DO | _UNDO)[activity]
        name = f"{step}/{instance}" if instance else step
        if activity in _DO:
            return self._do(name)
        if self.state == "past_pivot":
            return UndoResult(UndoOutcome.IRREVOCABLE)
        self.state = "unwinding"
        had_effect = name in self.done
        self.done.discard(name)
        return UndoResult(UndoOutcome.REVERSED if had_effect else UndoOutcome.NOTHING_TO_UNDO)

    def _do(self, name: str) -> Any:
        if name in self.refuses:
            self.refuses.remove(name)
            raise ApplicationError(f"{name} fails", type="Failed")
        self.done.add(name)
        if name == "ticket":
            self.state = "past_pivot"
        return {"step": name, "number": 1} if name == "greeting" else Booking(name, 1)


async def _wait(condition: Callable[[], bool], **_: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    """A saga that nothing has happened in yet."""
    made = Books()
    for name, stand_in in {
        "execute_activity": made.call,
        "wait_condition": _wait,
        "cancellation_reason": lambda: made.reason,
        "all_handlers_finished": lambda: True,
        "payload_converter": lambda: DataConverter.default.payload_converter,
        "set_current_details": lambda _: None,
        "patched": lambda _: True,
    }.items():
        monkeypatch.setattr(workflow, name, stand_in)
    monkeypatch.setattr(workflow.logger, "log", lambda *_: None)
    return made


EVERY = {"room", "seat/there", "seat/back", "ticket", "greeting"}


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        await _wait(condition)


async def test_a_saga_past_its_pivot_that_cannot_go_forward_is_stuck_and_has_not_ended(books: Books) -> None:
    books.state, books.done = "past_pivot", EVERY - {"greeting"}
    books.refuses = ["room", "room"]
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: running.done() or saga.status().state == "stuck")

    assert books.state == "past_pivot"
    await saga.retry()
    await asyncio.wait_for(running, 5)
    assert (books.ended_as, books.done) == ("completed", EVERY)


async def test_a_saga_that_is_stuck_past_its_pivot_takes_no_word_of_an_undo(books: Books) -> None:
    books.state, books.refuses = "past_pivot", ["room", "room"]
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: running.done() or saga.status().state == "stuck")
    by_hand = Resolution("room", Verdict.UNDONE_BY_HAND, "ann", "so")

    assert "only goes forward" in (saga._the_saga.refusal_of(by_hand) or "")
    await saga.retry()
    await running


@pytest.mark.parametrize("result", [None, {"wrong": 1}, "text"])
async def test_a_result_that_is_none_of_the_steps_is_refused(books: Books, result: Any) -> None:
    books.refuses = ["greeting"]
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: saga.status().state == "stuck")
    said = Resolution("greeting", Verdict.HAPPENED, "ann", "I rang them", result)

    assert "needs its result" in (saga._the_saga.refusal_of(said) or "")
    await saga.retry()
    await running


@pytest.mark.parametrize("failure", [TimeoutError("late"), FailureError("no")])
async def test_a_failure_of_the_storys_own_after_the_pivot_is_a_mistake_of_the_program(
    books: Books, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    told = BookTrip.story

    async def fails_late(self: BookTrip, saga: Any, trip: Trip, /) -> list[Booking]:
        await told(self, saga, trip)
        raise failure

    monkeypatch.setattr(BookTrip, "story", fails_late)
    saga: Any = BookTrip()
    with pytest.raises(SagaMisuse, match="after its pivot"):
        await asyncio.wait_for(saga.run(Trip("t")), 5)
    assert books.state == "past_pivot"
