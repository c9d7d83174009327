"""One step that is worked on: whose it is, how it is called, and what its next move means for the caller."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sagafence.database import transaction
from sagafence.errors import (
    CompensationImpossible,
    DatabaseUnavailable,
    InvalidInput,
    NotSettledYet,
    StepAlreadyCompensated,
)
from sagafence.external_steps import people, sql
from sagafence.external_steps.answers import Calls, Heard, refused_again
from sagafence.external_steps.state import Act, Facts, Next, Question, Step
from sagafence.fence import FenceKey
from sagafence.provider import Out, Provider, Settles

_log = logging.getLogger("sagafence.external_steps")

# One attempt goes through few rounds; it ends rather than spin where others change the row all the time.
ROUNDS = 20
# An answer that was heard and not recorded is unknown again, so a failover is waited out here.
_RECORDS = 4
_FIRST_PAUSE = 0.2
# Past the instant when it is quiet: that instant itself does not count.
_SPARE = timedelta(milliseconds=20)

Recorded = TypeVar("Recorded")


class PivotOf(Protocol):
    """The saga that a step is the pivot of."""

    async def lock(self, connection: AsyncConnection) -> None:
        """Lock the saga's row, before the step's."""

    async def note(self, connection: AsyncConnection, step: Step) -> None:
        """Note what the pivot has come to, in the same transaction."""


@dataclass(frozen=True)
class Work(Generic[Out]):
    """A step, its provider, its author's functions and its request as JSON."""

    engine: AsyncEngine
    provider: Provider
    key: FenceKey
    calls: Calls[Out]
    facts: Facts
    request: str
    pivot: PivotOf | None = None
    """What the saga is told of a pivot; None for any other step."""

    @property
    def name(self) -> str:
        """Give what messages call it."""
        return f"{self.key.step} of {self.key.saga_id}"

    async def open(self, connection: AsyncConnection) -> sql.Opened:
        """Lock its row, which is made where there is none."""
        if self.pivot:
            await self.pivot.lock(connection)
        return await sql.open_row(connection, self.key, self.provider, self.request)

    async def lock(self, connection: AsyncConnection) -> sql.Opened:
        """Lock its row, which is there."""
        if self.pivot:
            await self.pivot.lock(connection)
        opened = await sql.lock_row(connection, self.key)
        if opened is None:
            raise CompensationImpossible(f"the row of {self.name} was deleted while it was worked on")
        return opened

    async def save(  # noqa: PLR0913 - a row has so many parts
        self,
        connection: AsyncConnection,
        opened: sql.Opened,
        step: Step,
        *,
        permits: Next | None = None,
        forward: bool = False,
        evidence: sql.Evidence | None = None,
        result: str | None = None,
        refusal: str | None = None,
    ) -> None:
        """Write the row as it is now, and what the saga has to know of its pivot."""
        if step.question is Question.CAME_LATE and opened.step.question is not Question.CAME_LATE:
            _log.error("%s: a success was heard after it was settled: %s", self.name, people.REMEDY)
        await sql.save(
            connection,
            self.key,
            opened,
            step,
            permits=permits,
            forward=forward,
            evidence=evidence,
            result=result,
            refusal=refusal,
        )
        if self.pivot:
            await self.pivot.note(connection, step)

    async def recorded(self, record: Callable[[AsyncConnection], Awaitable[Recorded]]) -> Recorded:
        """Run a transaction that records what was heard: past a cancel, and more than once where Postgres is away."""
        recording = asyncio.create_task(self._record(record))
        try:
            return await asyncio.shield(recording)
        except asyncio.CancelledError:
            # Without keys, what is not recorded is unknown for ever.
            await asyncio.wait([recording])
            if not recording.cancelled() and (failed := recording.exception()) is not None:
                _log.warning("%s: what was heard is not recorded: %s", self.name, failed)
            raise

    async def _record(self, record: Callable[[AsyncConnection], Awaitable[Recorded]]) -> Recorded:
        for attempt in range(1, _RECORDS):
            try:
                async with transaction(self.engine) as connection:
                    return await record(connection)
            except DatabaseUnavailable:
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt)
        async with transaction(self.engine) as connection:
            return await record(connection)

    async def failure(
        self,
        connection: AsyncConnection,
        opened: sql.Opened,
        step: Step,
        following: Next,
        heard: Heard | None = None,
    ) -> Exception | None:
        """Give what to raise of a move, once its transaction is committed; `heard` is what the move was made after."""
        if following.act is Act.ASK:
            late_until = self.facts.late_until(step)
            told = await people.told(connection, self.key, self.provider, opened, step, late_until=late_until)
            # An outage may end before its round does: only where no repeat can tell is a person asked at once.
            may_tell = step.question is Question.IS_IT_THERE and self.facts.may_repeat(step, opened.now)
            return people.repeated(told, heard) if may_tell else people.asked(told)
        if following.act is Act.WAIT:
            left = timedelta(seconds=max(0.0, (following.until or opened.now) - opened.now)) + _SPARE
            return NotSettledYet(
                f"{self.name}: a call may still be under way for {left.total_seconds():.1f} s", next_retry_delay=left
            )
        if following.act is Act.REFUSED and opened.refusal:
            return refused_again(opened.refusal)
        if following.act is Act.IMPOSSIBLE:
            return CompensationImpossible(f"{self.name} is a pivot in one place and none in another")
        return self.too_late() if following.act in {Act.LATE, Act.REFUSED} else None

    def too_late(self) -> StepAlreadyCompensated:
        """Make the failure of an attempt that comes after the end."""
        return StepAlreadyCompensated(f"{self.name} was already undone; this attempt came too late")

    def restless(self) -> NotSettledYet:
        """Make the failure of an attempt that never finds the row as it left it."""
        return NotSettledYet(f"{self.name} is being changed by others all the time")


def work_on(  # noqa: PLR0913, PLR0917 - what a step consists of
    engine: AsyncEngine,
    provider: Provider,
    key: FenceKey,
    request: Any,
    calls: Calls[Out],
    pivot: PivotOf | None = None,
) -> Work[Out]:
    """Check what a step is called with.

    Raises:
        InvalidInput: the request is no JSON.
        CompensationImpossible: a function is missing without which the provider cannot be asked.
    """
    if provider.settles is Settles.BY_LOOKING_UP and calls.look is None:
        raise CompensationImpossible(f"provider {provider.name} settles by looking up: give the step {key.step} a look")
    try:
        sent = sql.as_jsonb(request)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the request of {key.step} cannot be stored as JSON: {error}") from None
    return Work(engine, provider, key, calls, Facts(provider, can_look=calls.look is not None), sent, pivot)
