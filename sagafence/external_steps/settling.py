"""The way back: close, then seal or wait, know, reverse, settle. A pivot is settled the same way and never reversed."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from sagafence.database import transaction
from sagafence.errors import NotSettledYet
from sagafence.external_steps import sql
from sagafence.external_steps.answers import Heard, hear_do, hear_undo
from sagafence.external_steps.backward import (
    begin_undo,
    heard_claim,
    heard_reversal,
    heard_void,
    look_failed,
    looked_undo,
)
from sagafence.external_steps.state import Act, Answer, Next, Phase, Question, Step
from sagafence.external_steps.work import ROUNDS, Work
from sagafence.provider import Known, Out, Unknown

Mark = Callable[[AsyncConnection], Awaitable[None]]


@dataclass(frozen=True)
class Ended:
    """How settling ended."""

    goes_forward: bool
    result: Any
    is_known: bool
    was_voided: bool
    was_over: bool


@dataclass(frozen=True)
class _Move:
    """What to do next, with the result that it is about, or what to raise."""

    following: Next
    result: Any
    failure: Exception | None
    heard: Heard | None = None


async def settle(work: Work[Out], mark: Mark, *, pivot: bool) -> Ended:
    """Settle a step. Whatever it asks the provider was permitted before, by a transaction that has committed."""
    was_voided, was_over, heard = False, True, None
    for _ in range(ROUNDS):
        async with transaction(work.engine) as connection:
            await mark(connection)
            opened = await work.open(connection)
            step, following = begin_undo(work.facts, opened.step, opened.now, pivot=pivot)
            await work.save(connection, opened, step, permits=following)
            move = _Move(following, opened.result, await work.failure(connection, opened, step, following))
        was_over = was_over and opened.step.phase in {Phase.UNDONE, Phase.RESOLVED}
        if move.failure is None and move.following.act is Act.LOOK:
            move = await _look(work, opened, step, heard, pivot=pivot)
        if move.failure is None and move.following.act in {Act.SEND, Act.VOID, Act.REVERSE}:
            was_voided = was_voided or move.following.act is Act.VOID
            move = await _ask(work, opened, move, pivot=pivot)
            heard = move.heard
        if move.failure is not None:
            raise move.failure
        if move.following.act in {Act.SETTLED, Act.FORWARD}:
            async with transaction(work.engine) as connection:
                last = await work.lock(connection)
            goes_forward = move.following.act is Act.FORWARD
            is_known = last.step.known and last.step.question is not Question.CAME_LATE
            return Ended(goes_forward, last.result, is_known, was_voided, was_over)
    raise work.restless()


async def _look(work: Work[Out], opened: sql.Opened, before: Step, heard: Heard | None, *, pivot: bool) -> _Move:
    assert work.calls.look is not None
    try:
        found = await work.calls.look(opened.key, opened.request)
    except Exception as error:  # noqa: BLE001 - whatever it is, it tells nothing
        return await _without_a_look(work, Heard(Answer.UNKNOWN, error=error))
    shown = None if found is None else work.calls.dump(found)
    async with transaction(work.engine) as connection:
        now = await work.lock(connection)
        step, following = looked_undo(
            work.facts,
            now.step,
            now.now,
            found=found is not None,
            token=before.token(),
            looked_at=opened.now,
            pivot=pivot,
        )
        result = sql.as_jsonb(shown) if found is not None and not now.step.known else None
        await work.save(connection, now, step, permits=following, result=result)
        return _Move(following, shown, await work.failure(connection, now, step, following, heard))


async def _without_a_look(work: Work[Out], heard: Heard) -> _Move:
    async with transaction(work.engine) as connection:
        now = await work.lock(connection)
        step, following = look_failed(work.facts, now.step, now.now)
        await work.save(connection, now, step)
        return _Move(following, None, await work.failure(connection, now, step, following, heard) or heard.error)


async def _ask(work: Work[Out], opened: sql.Opened, move: _Move, *, pivot: bool) -> _Move:
    sent = move.following
    if sent.act is Act.SEND:
        heard = await hear_do(work.calls, opened.key, opened.request)
    else:
        is_known = sent.act is Act.REVERSE or opened.step.known
        seen = Known(work.calls.load(move.result)) if is_known else Unknown()
        heard = await hear_undo(work.calls, opened.key, opened.request, seen)

    async def record(connection: AsyncConnection) -> _Move:
        now = await work.lock(connection)
        step, following = _heard(work, now, sent, heard, pivot=pivot)
        result = None if now.step.known else heard.result
        await work.save(connection, now, step, evidence=heard.evidence(sent.n), result=result)
        if following.act is Act.RETRY:
            # An error of the author's own code stays what it is.
            return _Move(following, None, heard.error or NotSettledYet(f"{work.name}: nothing was settled"))
        return _Move(following, None, await work.failure(connection, now, step, following, heard), heard)

    return await work.recorded(record)


def _heard(work: Work[Out], now: sql.Opened, sent: Next, heard: Heard, *, pivot: bool) -> tuple[Step, Next]:
    if sent.act is Act.SEND:
        return heard_claim(work.facts, now.step, sent, heard.answer, now.now, pivot=pivot)
    if sent.act is Act.VOID:
        return heard_void(work.facts, now.step, sent, heard.answer, pivot=pivot)
    return heard_reversal(work.facts, now.step, sent.n, heard.answer)
