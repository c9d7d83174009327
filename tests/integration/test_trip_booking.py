"""The example of docs/your-own-saga-low-level.md, run: a trip on the same `Saga` and the same fence as the checkout."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

with workflow.unsafe.imports_passed_through():
    from sqlalchemy import TextClause, text
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from temporalio.client import Client
    from temporalio.worker import Interceptor, Worker

    from sagafence import (
        GATE,
        Compensation,
        Completed,
        FenceKey,
        IdempotencyConflict,
        Refusal,
        RetryBackoff,
        Saga,
        SagaError,
        UndoOutcome,
        UndoResult,
        Unwound,
        describe,
        do_once,
        find_cause,
        undo_once,
        wait_until,
    )

with workflow.unsafe.imports_passed_through():
    import asyncio
    import re
    import uuid
    from pathlib import Path

    import pytest
    from temporalio.client import WorkflowFailureError, WorkflowHandle

    from tests.conftest import Database


@dataclass(frozen=True)
class Trip:
    """What somebody asks for; the input of the saga, of its steps and of their undos."""

    trip_id: str
    hotel: str
    flight: str

    def key(self, step: str) -> FenceKey:
        """Name one step of this trip to the fence: business identity and content, nothing else."""
        content = json.dumps([self.hotel, self.flight])
        return FenceKey(self.trip_id, step, hashlib.sha256(content.encode()).hexdigest())


@dataclass(frozen=True)
class Booking:
    """The stored result of a step."""

    confirmation: str


class HotelFull(Refusal):
    """The hotel has no free room. Not retried."""


class FlightFull(Refusal):
    """The flight has no free seat. Not retried."""


TABLES = """
CREATE TABLE hotels (
    hotel      text    PRIMARY KEY,
    free_rooms integer NOT NULL,
    CONSTRAINT hotels_never_overbooked CHECK (free_rooms >= 0)
);
CREATE TABLE flights (
    flight     text    PRIMARY KEY,
    free_seats integer NOT NULL,
    CONSTRAINT flights_never_overbooked CHECK (free_seats >= 0)
);
GRANT SELECT, UPDATE ON hotels, flights TO checkout;
"""

_BOOK_ROOM = text(f"""
WITH outcome AS (
    SELECT jsonb_build_object('confirmation', 'room/' || :trip_id) AS result
      FROM hotels WHERE hotel = :hotel AND free_rooms > 0
), {GATE}, taken AS (
    UPDATE hotels SET free_rooms = free_rooms - 1 FROM gate WHERE hotel = :hotel
)
SELECT result FROM gate
""")

_BOOK_SEAT = text(f"""
WITH outcome AS (
    SELECT jsonb_build_object('confirmation', 'seat/' || :trip_id) AS result
      FROM flights WHERE flight = :flight AND free_seats > 0
), {GATE}, taken AS (
    UPDATE flights SET free_seats = free_seats - 1 FROM gate WHERE flight = :flight
)
SELECT result FROM gate
""")

_FREE_ROOM = text("UPDATE hotels SET free_rooms = free_rooms + 1 WHERE hotel = :hotel")
_FREE_SEAT = text("UPDATE flights SET free_seats = free_seats + 1 WHERE flight = :flight")

_HAS_ROOM = text("SELECT EXISTS (SELECT FROM hotels WHERE hotel = :hotel AND free_rooms > 0)")
_HAS_SEAT = text("SELECT EXISTS (SELECT FROM flights WHERE flight = :flight AND free_seats > 0)")


class Bookings:
    """Two steps and their undos. Each is one transaction, with its fence row."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def book_room(self, trip: Trip) -> Booking:
        """Take a room. A repeat returns the first confirmation."""

        async def explain(connection: AsyncConnection) -> SagaError | None:
            return await _unless(connection, _HAS_ROOM, {"hotel": trip.hotel}, HotelFull(f"{trip.hotel} is full"))

        wanted = {"trip_id": trip.trip_id, "hotel": trip.hotel}
        return Booking(**await do_once(self._engine, trip.key("room"), _BOOK_ROOM, wanted, explain=explain))

    @activity.defn
    async def cancel_room(self, trip: Trip) -> UndoResult:
        """Give the room back, or make sure that it is never taken."""
        async with undo_once(self._engine, trip.key("room")) as undoing:
            if undoing.had_effect:
                await undoing.connection.execute(_FREE_ROOM, {"hotel": trip.hotel})
        return undoing.result()

    @activity.defn
    async def book_seat(self, trip: Trip) -> Booking:
        """Take a seat. A repeat returns the first confirmation."""

        async def explain(connection: AsyncConnection) -> SagaError | None:
            return await _unless(connection, _HAS_SEAT, {"flight": trip.flight}, FlightFull(f"{trip.flight} is full"))

        wanted = {"trip_id": trip.trip_id, "flight": trip.flight}
        return Booking(**await do_once(self._engine, trip.key("seat"), _BOOK_SEAT, wanted, explain=explain))

    @activity.defn
    async def cancel_seat(self, trip: Trip) -> UndoResult:
        """Give the seat back, or make sure that it is never taken."""
        async with undo_once(self._engine, trip.key("seat")) as undoing:
            if undoing.had_effect:
                await undoing.connection.execute(_FREE_SEAT, {"flight": trip.flight})
        return undoing.result()


async def _unless(
    connection: AsyncConnection, fact: TextClause, about: dict[str, str], refusal: SagaError
) -> SagaError | None:
    """Give the refusal unless the fact holds by now: then the step is worth another attempt."""
    return None if (await connection.execute(fact, about)).scalar_one() else refusal


_STEP = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(seconds=5),
    schedule_to_close_timeout=timedelta(minutes=1),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(seconds=5)),
    cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
_UNDO = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    schedule_to_close_timeout=timedelta(minutes=15),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(minutes=1)),
)


@workflow.defn(name="Trip")
class TripWorkflow:
    """A room and a seat, or neither."""

    def __init__(self) -> None:
        self._saga = Saga(
            backoff=RetryBackoff(first=timedelta(hours=1), longest=timedelta(days=1)),
            on_stuck=self._call_somebody,
        )

    @workflow.run
    async def run(self, trip: Trip) -> list[str]:
        """Book the whole trip and answer with the confirmations."""
        outcome = await self._saga.run(self._book(trip))
        await wait_until(workflow.all_handlers_finished)
        if isinstance(outcome, Completed):
            return outcome.value
        assert isinstance(outcome, Unwound)  # no undo of this saga answers IRREVOCABLE
        if outcome.cause is None:
            raise CancelledError(f"trip {trip.trip_id} was cancelled")
        raise ApplicationError(describe(outcome.cause), type="TripRefused") from outcome.cause

    async def _book(self, trip: Trip) -> list[str]:
        with self._saga.step("room", undo=lambda: self._undo(Bookings.cancel_room, trip)):
            room = await workflow.execute_activity_method(Bookings.book_room, trip, **_STEP)
        with self._saga.step("seat", undo=lambda: self._undo(Bookings.cancel_seat, trip)):
            seat = await workflow.execute_activity_method(Bookings.book_seat, trip, **_STEP)
        return [room.confirmation, seat.confirmation]

    async def _undo(self, undo: Callable[[Any, Trip], Awaitable[UndoResult]], trip: Trip) -> UndoResult:
        """Undo a step, unless the id is another trip's: then none of ours took effect, or ever will."""
        try:
            return await workflow.execute_activity_method(undo, trip, **_UNDO)
        except ActivityError as error:
            if find_cause(error, IdempotencyConflict.__name__) is None:
                raise
            return UndoResult(UndoOutcome.NOTHING_TO_UNDO)

    async def _call_somebody(self, stuck: Sequence[Compensation]) -> None:
        """Raise your alarm here, through an activity that never gives up."""
        workflow.set_current_details("stuck: " + ", ".join(f"{entry.step} ({entry.detail})" for entry in stuck))

    @workflow.query
    def stuck_steps(self) -> list[str]:
        """Name the steps whose undo keeps failing."""
        return self._saga.stuck_steps

    @workflow.update
    async def retry(self) -> None:
        """Try the failed undos again, now that their cause is fixed; wait for what comes of it."""
        self._saga.retry()
        await self._saga.round_ended()

    @retry.validator
    def _validate_retry(self) -> None:
        if not self._saga.is_stuck:
            raise ApplicationError("the trip is not stuck")


def trip_worker(
    client: Client, engine: AsyncEngine, task_queue: str, interceptors: Sequence[Interceptor] = ()
) -> Worker:
    """Put the worker together."""
    bookings = Bookings(engine)
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[TripWorkflow],
        activities=[bookings.book_room, bookings.cancel_room, bookings.book_seat, bookings.cancel_seat],
        interceptors=interceptors,
    )


# The tests ----------------------------------------------------------------------------------------------

_BREAK_CANCEL_ROOM = """
CREATE FUNCTION no_way_back() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the hotel does not answer'; END $$;
CREATE TRIGGER no_way_back BEFORE UPDATE ON hotels FOR EACH ROW
    WHEN (NEW.free_rooms > OLD.free_rooms) EXECUTE FUNCTION no_way_back();
"""


@dataclass(frozen=True)
class Agency:
    """The trip's saga under test: two hotels, two flights, and somebody who books."""

    client: Client
    engine: AsyncEngine
    database: Database
    task_queue: str

    async def start(self, hotel: str, flight: str, trip_id: str = "") -> WorkflowHandle[TripWorkflow, list[str]]:
        trip = Trip(trip_id or f"trip-{uuid.uuid4().hex[:12]}", hotel, flight)
        return await self.client.start_workflow(TripWorkflow.run, trip, id=trip.trip_id, task_queue=self.task_queue)

    def working(self, interceptors: Sequence[Interceptor] = ()) -> Worker:
        return trip_worker(self.client, self.engine, self.task_queue, interceptors)

    async def free(self, hotel: str, flight: str) -> tuple[int, int]:
        return (
            await self.database.value("SELECT free_rooms FROM hotels WHERE hotel = $1", hotel),
            await self.database.value("SELECT free_seats FROM flights WHERE flight = $1", flight),
        )

    async def fences(self, trip_id: str) -> dict[str, tuple[str, bool]]:
        rows = await self.database.fetch("SELECT step, phase, had_effect FROM step_fence WHERE saga_id = $1", trip_id)
        return {row["step"]: (row["phase"], row["had_effect"]) for row in rows}


@pytest.fixture
async def agency(client: Client, engine: AsyncEngine, database: Database) -> Agency:
    await database.run(TABLES)
    await database.run(
        "INSERT INTO hotels VALUES ('Seaside', 3), ('Last Inn', 1); INSERT INTO flights VALUES ('PX1', 9), ('PX2', 0)"
    )
    return Agency(client, engine, database, f"trips-{uuid.uuid4().hex[:12]}")


async def failure_of(handle: WorkflowHandle[TripWorkflow, list[str]]) -> BaseException:
    with pytest.raises(WorkflowFailureError) as failed:
        await asyncio.wait_for(handle.result(), 20)
    return failed.value.cause


async def test_a_trip_books_both(agency: Agency) -> None:
    async with agency.working():
        handle = await agency.start("Seaside", "PX1")

        assert await handle.result() == [f"room/{handle.id}", f"seat/{handle.id}"]

    assert await agency.free("Seaside", "PX1") == (2, 8)
    assert await agency.fences(handle.id) == {"room": ("done", True), "seat": ("done", True)}


async def test_a_refused_flight_cancels_the_room(agency: Agency) -> None:
    async with agency.working():
        handle = await agency.start("Seaside", "PX2")

        failure = await failure_of(handle)

    assert isinstance(failure, ApplicationError)
    assert (failure.type, failure.message) == ("TripRefused", "FlightFull: PX2 is full")
    assert await agency.free("Seaside", "PX2") == (3, 0)
    assert await agency.fences(handle.id) == {"room": ("undone", True), "seat": ("undone", False)}


async def test_the_last_room_goes_to_exactly_one_of_many(agency: Agency) -> None:
    async with agency.working():
        handles = await asyncio.gather(*(agency.start("Last Inn", "PX1") for _ in range(8)))
        outcomes = await asyncio.gather(*(handle.result() for handle in handles), return_exceptions=True)

    assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
    assert await agency.free("Last Inn", "PX1") == (0, 8)


async def test_a_cancelled_trip_holds_nothing(agency: Agency) -> None:
    blocker = agency.engine.connect()
    async with agency.working(), blocker as connection, connection.begin():
        await connection.execute(text("SELECT FROM flights WHERE flight = 'PX1' FOR UPDATE"))
        handle = await agency.start("Seaside", "PX1")
        async with asyncio.timeout(20):
            while "room" not in await agency.fences(handle.id):
                await asyncio.sleep(0.02)
        await handle.cancel()
        await connection.rollback()

        failure = await failure_of(handle)

    assert isinstance(failure, CancelledError)
    assert await agency.free("Seaside", "PX1") == (3, 9)


async def test_an_id_of_a_trip_to_elsewhere_is_refused_and_takes_nothing_back(agency: Agency) -> None:
    async with agency.working():
        first = await agency.start("Seaside", "PX1")
        await first.result()
        second = await agency.start("Last Inn", "PX1", trip_id=first.id)

        failure = await failure_of(second)

    assert isinstance(failure, ApplicationError)
    assert failure.message.startswith("IdempotencyConflict: ")
    assert await agency.free("Seaside", "PX1") == (2, 8)
    assert await agency.free("Last Inn", "PX1") == (1, 8)


async def test_a_trip_whose_undo_keeps_failing_is_stuck_until_somebody_fixes_it(agency: Agency) -> None:
    await agency.database.run(_BREAK_CANCEL_ROOM)
    async with agency.working():
        handle = await agency.start("Seaside", "PX2")
        async with asyncio.timeout(20):
            while await handle.query(TripWorkflow.stuck_steps) != ["room"]:
                await asyncio.sleep(0.1)
        await agency.database.run("DROP TRIGGER no_way_back ON hotels")
        await handle.execute_update(TripWorkflow.retry)

        failure = await failure_of(handle)

    assert isinstance(failure, ApplicationError)
    assert failure.type == "TripRefused"
    assert await agency.free("Seaside", "PX2") == (3, 0)


def test_every_block_of_the_document_is_a_part_of_this_module() -> None:
    here = Path(__file__)
    document = (here.parents[2] / "docs" / "your-own-saga-low-level.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|sql)\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    source = here.read_text(encoding="utf-8")

    assert len(blocks) >= 5
    assert [block for block in blocks if block not in source] == []
