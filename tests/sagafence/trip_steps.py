"""The steps of a saga for the tests: each takes a row of table `effects`, and can be told to fail or to wait."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from temporalio.common import RetryPolicy

from sagafence import ActivityPolicy, Refusal, SagaSteps, local

_THREE_TIMES = RetryPolicy(initial_interval=timedelta(milliseconds=20), maximum_attempts=3)
QUICK = ActivityPolicy(timedelta(seconds=5), None, _THREE_TIMES)


class Full(Refusal):
    """There is no place left."""


@dataclass(frozen=True)
class Trip:
    """What is asked for, and which steps refuse it."""

    trip_id: str
    fails: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Booking:
    """What a step did."""

    step: str
    number: int


@dataclass
class Attempt:
    """A step that waits until the test lets it go on."""

    has_come: asyncio.Event = field(default_factory=asyncio.Event)
    may_go: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the end of an attempt that was held before it came to the database."""


class TripSteps(SagaSteps):
    """Each adds a row to `effects`, and its undo takes it out again."""

    def __init__(self) -> None:
        self.held: dict[str, Attempt] = {}
        self.broken: set[str] = set()
        self.lost: set[str] = set()
        """Activities whose first attempt commits, and is not heard of."""
        self.refuses: set[str] = set()
        """Activities whose next attempt is refused."""

    def hold(self, name: str) -> Attempt:
        """Hold the next attempt of an activity."""
        return self.held.setdefault(name, Attempt())

    async def _come(self, name: str) -> None:
        if attempt := self.held.pop(name, None):
            attempt.has_come.set()
            await attempt.may_go.wait()
        if name in self.broken:
            raise ValueError(f"{name} is broken")

    async def _take(self, tx: AsyncConnection | AsyncSession, trip: Trip, step: str) -> Booking:
        await self._come(step)
        made = text("INSERT INTO effects (saga_id, step) VALUES (:saga, :step) RETURNING number")
        number = (await tx.execute(made, {"saga": trip.trip_id, "step": step})).scalar_one()
        if step in trip.fails:
            raise Full(f"no {step} is left")
        return Booking(step, number)

    async def _give_back(self, tx: AsyncConnection | AsyncSession, done: Booking) -> None:
        await self._come(f"undo-{done.step}")
        gone = await tx.execute(text("DELETE FROM effects WHERE number = :number RETURNING 1"), {"number": done.number})
        assert gone.scalar_one() == 1

    @local("room", undo_policy=QUICK)
    async def book_room(self, tx: AsyncSession, trip: Trip) -> Booking:
        """Take a room."""
        return await self._take(tx, trip, "room")

    @book_room.undo
    async def cancel_room(self, tx: AsyncSession, _trip: Trip, done: Booking) -> None:
        """Give it back."""
        await self._give_back(tx, done)

    @local("seat", undo_policy=QUICK)
    async def book_seat(self, tx: AsyncConnection, trip: Trip) -> Booking:
        """Take a seat."""
        return await self._take(tx, trip, "seat")

    @book_seat.undo
    async def cancel_seat(self, tx: AsyncConnection, _trip: Trip, done: Booking) -> None:
        """Give it back."""
        await self._give_back(tx, done)

    @local.pivot("ticket", policy=QUICK)
    async def issue_ticket(self, tx: AsyncConnection, trip: Trip) -> Booking:
        """Issue what cannot be taken back."""
        return await self._take(tx, trip, "ticket")

    @local.forward("greeting", policy=QUICK)
    async def greet(self, tx: AsyncSession, trip: Trip) -> Booking:
        """Write to the traveller."""
        return await self._take(tx, trip, "greeting")
