"""A declared saga without servers: its database is a few rows in memory, and asyncio stands in for the workflow."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio import workflow
from temporalio.converter import DataConverter
from temporalio.exceptions import ApplicationError, FailureError

from sagafence import (
    InvalidInput,
    Resolution,
    SagaCancelled,
    SagaMisuse,
    SagaPurged,
    SagaUnwound,
    UndoOutcome,
    UndoResult,
    Verdict,
)
from sagafence.calls import EarlierStep, Settled, Unwinding, Way
from tests.sagafence.trip_steps import Booking, Trip, TripSteps
from tests.sagafence.trip_story import BookTrip

_DO = {"book_room": "room", "book_seat": "seat", "issue_ticket": "ticket", "greet": "greeting"}
_UNDO = {"cancel_room": "room", "cancel_seat": "seat"}


@dataclass
class Books:
    """The saga's row and the fence, as the activities see them."""

    state: str = "open"
    ended_as: str = ""
    ends: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    refuses: list[str] = field(default_factory=list)
    """Steps whose next do fails, each time that they are named."""
    removed: set[str] = field(default_factory=set)
    """Steps that no worker has any more."""
    is_anothers: bool = False
    """Whether the row is another request's."""
    records_nothing: bool = False
    """Whether the database refuses to record an unwind."""
    records_no_end: bool = False
    """Whether the database refuses to record an end."""
    is_purged: bool = False
    """Whether the saga has completed, and retention has deleted its rows."""
    broken: set[str] = field(default_factory=set)
    """Steps whose undo fails."""
    overtakes: str = ""
    """The step whose result comes although the step is to be cancelled."""
    undone: list[str] = field(default_factory=list)
    resolved: list[tuple[str, str]] = field(default_factory=list)
    may_resolve: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether what an operator says can be recorded now."""
    is_resolving: bool = False
    reason: str | None = None

    async def call(self, activity: str, *given: Any, args: tuple[Any, ...] = (), **__: Any) -> Any:
        """Run an activity."""
        await asyncio.sleep(0)
        args = args or given
        if activity == "sagafence.resolve":
            self.is_resolving = True
            await self.may_resolve.wait()
        if activity.startswith("sagafence."):
            return self._library(activity, *args)
        if activity == "issue_ticket.settle":
            return Settled(happened="ticket" in self.done, result={"step": "ticket", "number": 1})
        instance = args[1].instance
        step = (_DO | _UNDO)[activity]
        name = f"{step}/{instance}" if instance else step
        if activity in _DO:
            value = self._do(name)
            if name == self.overtakes:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            return value
        if self.state == "past_pivot":
            return UndoResult(UndoOutcome.IRREVOCABLE)
        if self.is_anothers:
            raise ApplicationError(f"{name} is another request's", type="IdempotencyConflict")
        if name in self.broken:
            raise ApplicationError(f"{name} cannot be undone", type="Failed")
        self.state = "unwinding"
        self.undone.append(name)
        had_effect = name in self.done
        self.done.discard(name)
        return UndoResult(UndoOutcome.REVERSED if had_effect else UndoOutcome.NOTHING_TO_UNDO)

    def _library(self, activity: str, *args: Any) -> Any:
        if activity == "sagafence.unwind":
            return self._unwind(args[0])
        if activity == "sagafence.resolve":
            return self.resolved.append((args[0].activity, args[0].instance))
        if self.records_no_end:
            raise ApplicationError("permission denied for table sagas", type="DatabaseRefusedStatement")
        if args[0] == "completed" and self.state == "unwinding":
            raise ApplicationError("it is being undone", type="StepAlreadyCompensated")
        self.state, self.ended_as = "ended", args[0]
        self.ends.append(args[0])
        return None

    def _unwind(self, begun: list[str]) -> Unwinding:
        if self.records_nothing:
            raise ApplicationError("permission denied for table sagas", type="DatabaseRefusedStatement")
        if self.state == "past_pivot":
            return Unwinding(Way.FORWARD)
        if self.is_anothers:
            return Unwinding(Way.NOWHERE)
        if self.is_purged:
            return Unwinding(Way.GONE)
        self.state = "unwinding"
        earlier = [name for name in EVERY if name in self.done and name not in begun]
        return Unwinding(Way.BACK, [self._earlier(name) for name in earlier])

    def _earlier(self, name: str) -> EarlierStep:
        step, _, instance = name.partition("/")
        undo_activity = next((undo for undo, of in _UNDO.items() if of == step and step not in self.removed), "")
        return EarlierStep(name, f"book_{step}", undo_activity, instance, is_external=False)

    def _do(self, name: str) -> Any:
        if self.state == "unwinding" or self.is_purged:
            raise ApplicationError(f"{name} is being undone", type="StepAlreadyCompensated")
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
    made.may_resolve.set()
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


EVERY = ["room", "seat/there", "seat/back", "ticket", "greeting"]


async def _run() -> Any:
    saga: Any = BookTrip()
    return await saga.run(Trip("t"))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        await _wait(condition)


async def test_a_saga_past_its_pivot_that_cannot_go_forward_is_stuck_and_has_not_ended(books: Books) -> None:
    books.state, books.done = "past_pivot", set(EVERY[:-1])
    books.refuses = ["room", "room"]
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: running.done() or saga.status().state == "stuck")

    assert books.state == "past_pivot"
    await saga.retry()
    await asyncio.wait_for(running, 5)
    assert (books.ended_as, books.done) == ("completed", set(EVERY))


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


# What earlier runs have done ----------------------------------------------------------------------------------


async def test_a_second_run_that_is_cancelled_before_its_first_step_undoes_what_the_first_did(books: Books) -> None:
    books.done = set(EVERY[:3])
    books.reason = "cancelled"
    with pytest.raises(FailureError):
        await asyncio.wait_for(_run(), 5)

    assert (books.done, books.undone, books.ended_as) == (set(), EVERY[2::-1], "cancelled")


async def test_a_second_run_that_fails_early_undoes_later_steps_of_the_first_before_its_own(books: Books) -> None:
    books.done = set(EVERY[:3])
    books.refuses = ["room"]
    with pytest.raises(FailureError, match="room fails"):
        await asyncio.wait_for(_run(), 5)

    assert (books.done, books.undone, books.ended_as) == (set(), ["seat/back", "seat/there", "room"], "unwound")


async def test_a_cancel_by_temporal_of_a_second_run_past_the_pivot_changes_nothing(books: Books) -> None:
    books.state, books.done = "past_pivot", set(EVERY[:-1])
    books.reason = "cancelled"
    await asyncio.wait_for(_run(), 5)

    assert (books.ended_as, books.done, books.undone) == ("completed", set(EVERY), [])


async def test_a_cancel_update_of_a_second_run_past_the_pivot_comes_too_late(books: Books) -> None:
    books.state, books.done = "past_pivot", set(EVERY[:-1])
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    asked = asyncio.create_task(saga.cancel("early"))
    with pytest.raises(InvalidInput, match="too late"):
        await asyncio.wait_for(asked, 5)
    await asyncio.wait_for(running, 5)

    assert (books.ended_as, books.undone) == ("completed", [])


async def test_a_step_of_an_earlier_run_that_no_worker_has_is_stuck_until_one_has_it(books: Books) -> None:
    books.done, books.reason, books.removed = {"room", "seat/there"}, "cancelled", {"seat"}
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: books.undone == ["room"])

    [stuck] = [step for step in saga.status().steps if step.state == "stuck"]
    assert (stuck.step, "no worker has such a step" in stuck.detail) == ("seat/there", True)
    by_hand = Resolution("seat/there", Verdict.UNDONE_BY_HAND, "ann", "so")
    assert "deploy one" in (saga._the_saga.refusal_of(by_hand) or "")
    books.removed.clear()
    await _until(lambda: saga.status().state == "stuck")
    await asyncio.wait_for(saga.retry(), 5)
    with pytest.raises(FailureError):
        await asyncio.wait_for(running, 5)

    assert (books.done, books.undone, books.ended_as) == (set(), ["room", "seat/there"], "cancelled")


async def _cancelled_beside_the_room(saga: Any, books: Books) -> None:
    """Cancel a saga while its room is booked, so that the result comes all the same."""
    books.overtakes = "room"
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: "room" in books.done)
    await asyncio.wait_for(saga.cancel("found it cheaper"), 5)
    with pytest.raises(SagaCancelled):
        await asyncio.wait_for(running, 5)


async def test_a_cancel_of_another_request_under_a_taken_id_leaves_nothing_stuck(books: Books) -> None:
    books.is_anothers, saga = True, BookTrip()
    await _cancelled_beside_the_room(saga, books)

    assert [step.state for step in saga.status().steps] == ["nothing to undo"]


async def test_a_failure_that_the_story_has_caught_is_not_the_one_that_is_named(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def goes_on(_: BookTrip, saga: Any, trip: Trip, /) -> list[Booking]:
        with contextlib.suppress(FailureError):
            await saga.do(TripSteps.book_room, trip)
        return [await saga.do(TripSteps.book_seat, trip)]

    monkeypatch.setattr(BookTrip, "story", goes_on)
    books.refuses = ["room", "seat"]
    with pytest.raises(SagaUnwound, match="seat fails") as failed:
        await asyncio.wait_for(_run(), 5)

    assert failed.value.details == ("seat",)


async def test_what_an_operator_says_of_an_earlier_runs_step_is_recorded_under_its_own_activity(books: Books) -> None:
    books.done, books.reason, books.broken = {"room", "seat/there"}, "cancelled", {"seat/there"}
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: running.done() or saga.status().state == "stuck")
    happened = Resolution("seat/there", Verdict.HAPPENED, "ann", "so")
    assert "can only be resolved as" in (saga._the_saga.refusal_of(happened) or "")
    await saga.resolve(Resolution("seat/there", Verdict.UNDONE_BY_HAND, "ann", "I rang them"))
    with pytest.raises(FailureError):
        await asyncio.wait_for(running, 5)

    assert (books.resolved, books.ended_as) == ([("book_seat", "there")], "cancelled")


async def test_what_an_operator_says_while_the_story_is_told_again_stops_nothing(books: Books) -> None:
    books.broken, books.refuses = set(EVERY[:3]), ["ticket"]
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: saga.status().state == "stuck")
    books.may_resolve.clear()
    saying = asyncio.create_task(saga.resolve(Resolution("seat/back", Verdict.UNDONE_BY_HAND, "ann", "I rang them")))
    await _until(lambda: books.is_resolving)
    books.state, books.refuses = "past_pivot", ["room"]  # an undo finds it so
    await saga.retry()
    await _until(lambda: [step.step for step in saga.status().steps if step.state == "stuck"] == ["room"])
    books.may_resolve.set()
    await asyncio.wait_for(saying, 5)
    await saga.retry()
    await asyncio.wait_for(running, 5)

    assert books.ended_as == "completed"


async def test_a_cancel_that_a_steps_result_overtakes_is_heard_by_what_the_story_waits_for(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK gives the result of an activity that completes although it was to be cancelled, and no cancel."""

    async def waits(_: BookTrip, saga: Any, trip: Trip, /) -> list[Booking]:
        await saga.do(TripSteps.book_room, trip)
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(BookTrip, "story", waits)
    await _cancelled_beside_the_room(BookTrip(), books)

    assert (books.done, books.ended_as) == (set(), "cancelled")


async def test_an_unwind_that_cannot_be_recorded_is_stuck_and_undoes_nothing_until_it_is(books: Books) -> None:
    books.refuses, books.records_nothing = ["seat/back"], True
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: running.done() or saga.status().state == "stuck")

    record = saga.status().steps[-1]
    assert (record.step, record.state) == ("sagafence.unwind", "stuck")
    assert "permission denied" in record.detail
    assert books.undone == []
    by_hand = Resolution("sagafence.unwind", Verdict.UNDONE_BY_HAND, "ann", "so")
    assert "nobody can do by hand" in (saga._the_saga.refusal_of(by_hand) or "")
    books.records_nothing = False
    await saga.retry()
    with pytest.raises(FailureError, match="seat/back fails"):
        await asyncio.wait_for(running, 5)
    assert (books.done, books.ended_as) == (set(), "unwound")


# Its end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refuses", [[], ["seat/back"]], ids=["completed", "unwound"])
async def test_an_end_that_cannot_be_recorded_is_an_alarm_and_no_end_until_it_is(
    books: Books, monkeypatch: pytest.MonkeyPatch, refuses: list[str]
) -> None:
    alarms = list[str]()
    monkeypatch.setattr(workflow.logger, "log", lambda *said: alarms.append(str(said[-1])))
    books.refuses, books.records_no_end = [*refuses], True
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: running.done() or saga.status().state == "stuck")

    [stuck] = [step for step in saga.status().steps if step.state == "stuck"]
    assert (stuck.step, books.state) == ("sagafence.end", "unwinding" if refuses else "past_pivot")
    assert alarms == ["sagafence.end (DatabaseRefusedStatement: permission denied for table sagas)"]
    by_hand = Resolution("sagafence.end", Verdict.HAPPENED, "ann", "so")
    assert "the end is not recorded yet" in (saga._the_saga.refusal_of(by_hand) or "")
    assert (await saga.retry()).state == "stuck"
    assert len(alarms) == 2
    books.records_no_end = False
    await saga.retry()
    ended = (await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), 5))[0]

    assert isinstance(ended, SagaUnwound if refuses else list)
    assert (books.ended_as, saga.status().state) == (("unwound", "unwound") if refuses else ("completed", "completed"))


@pytest.mark.parametrize("by", ["update", "temporal"])
async def test_a_cancel_is_honoured_while_an_end_before_any_pivot_cannot_be_recorded(
    books: Books, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    async def has_no_pivot(_: BookTrip, saga: Any, trip: Trip, /) -> list[Booking]:
        return [await saga.do(TripSteps.book_room, trip)]

    monkeypatch.setattr(BookTrip, "story", has_no_pivot)
    books.records_no_end = True
    saga: Any = BookTrip()
    running = asyncio.create_task(saga.run(Trip("t")))
    await _until(lambda: running.done() or saga.status().state == "stuck")
    books.records_no_end = False
    if by == "update":
        await asyncio.wait_for(saga.cancel("found it cheaper"), 5)
    else:
        books.reason = "found it cheaper"
    with pytest.raises(FailureError):
        await asyncio.wait_for(running, 5)

    assert (books.done, books.ends) == (set(), ["cancelled"])


async def test_a_story_that_catches_every_failure_does_not_complete_while_another_run_is_undone(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def catches(_: BookTrip, saga: Any, trip: Trip, /) -> list[Booking]:
        with contextlib.suppress(FailureError):
            await saga.do(TripSteps.book_room, trip)
        return []

    monkeypatch.setattr(BookTrip, "story", catches)
    books.state = "unwinding"
    with pytest.raises(SagaUnwound, match="it is being undone"):
        await asyncio.wait_for(_run(), 5)

    assert books.ends == ["unwound"]


# Once retention has deleted its rows ------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["", "temporal"])
async def test_a_run_of_a_completed_saga_whose_rows_are_deleted_says_so_and_neither_undone_nor_cancelled(
    books: Books, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    books.is_purged, books.reason = True, "cancelled" if by == "temporal" else None
    monkeypatch.setattr(workflow, "info", lambda: SimpleNamespace(workflow_id="t"))
    saga: Any = BookTrip()
    asked = asyncio.create_task(saga.cancel("early")) if not by else None
    with pytest.raises(SagaPurged, match="t has completed long ago"):
        await asyncio.wait_for(saga.run(Trip("t")), 5)

    assert (books.undone, books.ended_as, saga.status().state) == ([], "", "completed")
    if asked:
        with pytest.raises(InvalidInput, match="too late"):
            await asyncio.wait_for(asked, 5)
