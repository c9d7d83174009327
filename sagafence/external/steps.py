"""The protocol of external steps on Postgres: intent, permission, call, record; close, settle, know, reverse."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sagafence.database import transaction
from sagafence.errors import (
    CompensationImpossible,
    DatabaseUnavailable,
    InvalidInput,
    NotSettledYet,
    StepAlreadyCompensated,
    VerdictRefused,
)
from sagafence.external import sql
from sagafence.external.answers import Calls, Heard, hear_do, hear_undo, refused_again
from sagafence.external.backward import begin_undo, heard_claim, heard_reversal, heard_void, looked_undo
from sagafence.external.forward import begin_do, heard_do, looked_do
from sagafence.external.state import Act, Answer, Facts, Next, Phase, Question, Step
from sagafence.external.verdicts import said
from sagafence.fence import FenceKey, limited_refusals
from sagafence.provider import Happened, Known, Never, Out, Provider, Settles, Unknown, Verdict
from sagafence.undo import UndoOutcome, UndoResult

_log = logging.getLogger("sagafence.external")

# One attempt goes through few rounds; it ends rather than spin where others change the row all the time.
_ROUNDS = 20
# An answer that was heard and not recorded is unknown again, so a failover is waited out here.
_RECORDS = 4
_FIRST_PAUSE = 0.2
# Past the instant when it is quiet: that instant itself does not count.
_SPARE = timedelta(milliseconds=20)

Recorded = TypeVar("Recorded")
Enter = Callable[[AsyncConnection, Any], Awaitable[None]]


class ExternalSteps:
    """External steps with one provider.

    Args:
        engine: where the rows are (schema/external.sql).
        provider: what it can do.
        enter: called first in the transaction of every do, with the connection and the opening or the saga's id; raises
            where the saga has ended.
        mark_unwinding: called first in the transaction of every undo, with the connection and the saga's id.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        provider: Provider,
        *,
        enter: Enter | None = None,
        mark_unwinding: Enter | None = None,
    ) -> None:
        self._engine = engine
        self._provider = provider
        self._enter = enter
        self._mark_unwinding = mark_unwinding

    async def do(self, key: FenceKey, request: Any, calls: Calls[Out], *, opening: Any = None) -> Out:
        """Have the step's effect, at most once, and return its first result.

        Raises:
            Refusal: the provider's final no, as the call raised it; on a repeat again.
            StepAlreadyCompensated: the undo came first, or meanwhile.
            IdempotencyConflict: the row belongs to another request.
            OutcomeUnknown: it may have happened, and may not be sent again.
            NotSettledYet: it may have happened; a look will tell later.
            Exception: whatever the call raised. The step is unknown, and a retry goes on.
        """
        facts, sent = self._facts(calls), _as_request(request)
        for _ in range(_ROUNDS):
            async with transaction(self._engine) as connection:
                if self._enter is not None:
                    await self._enter(connection, key.saga_id if opening is None else opening)
                opened = await sql.open_row(connection, key, self._provider, sent)
                step, following = begin_do(facts, opened.step, opened.now)
                await sql.save(connection, key, opened, step, permits=following, forward=True)
                failure = await self._failure(connection, key, facts, opened, step, following)
            if failure is not None:
                raise failure
            if following.act is Act.STORED:
                return calls.load(opened.result)
            if following.act is Act.LOOK:
                await self._look_before_do(key, calls, facts, opened)
                continue
            heard = await hear_do(calls, opened.key, opened.request)
            after, result = await self._record_do(key, facts, following.n, heard)
            if heard.answer in {Answer.KEY_REUSED, Answer.STORED_FAILURE} and after.phase is Phase.INTENDED:
                continue
            if heard.error is not None:
                raise heard.error
            if after.phase is not Phase.DONE:
                raise _too_late(key)
            return calls.load(result)
        raise NotSettledYet(f"{key.step} of {key.saga_id} is being changed by others all the time")

    async def undo(self, key: FenceKey, request: Any, calls: Calls[Out]) -> UndoResult:
        """Settle the step, and reverse its effect where it had one. Afterwards no late call leaves an effect.

        Raises:
            OutcomeUnknown: only a person can say.
            NotSettledYet: a call may still be under way; its `next_retry_delay` says when none can be.
            Exception: whatever the undo raised.
        """
        if calls.undo is None:
            raise CompensationImpossible(f"{key.step} of {key.saga_id} has no undo")
        async with limited_refusals():
            ended = await self._settle(key, request, calls, pivot=False)
        if ended.act is Act.FORWARD:
            return UndoResult(UndoOutcome.IRREVOCABLE, {"result": ended.result})
        stored = {"result": ended.result} if ended.known else {}
        if ended.was_over:
            return UndoResult(UndoOutcome.ALREADY_UNDONE, stored)
        was_reversed = ended.known or ended.voided
        return UndoResult(UndoOutcome.REVERSED if was_reversed else UndoOutcome.NOTHING_TO_UNDO, stored)

    async def settle(self, key: FenceKey, request: Any, calls: Calls[Out]) -> Happened[Out] | Never:
        """Find out whether a pivot happened, and never reverse it. Afterwards the answer stays what it is.

        Raises:
            OutcomeUnknown: only a person can say. Nothing before the pivot may be undone meanwhile.
            NotSettledYet: a call may still be under way; its `next_retry_delay` says when none can be.
        """
        if calls.undo is None and self._provider.settles is Settles.BY_VOIDING:
            raise CompensationImpossible(f"{key.step} of {key.saga_id} has no void")
        async with limited_refusals():
            ended = await self._settle(key, request, calls, pivot=True)
        return Happened(calls.load(ended.result)) if ended.act is Act.FORWARD else Never()

    async def resolve(self, key: FenceKey, verdict: Verdict, *, who: str, why: str, result: Any = None) -> None:
        """Take a person's word on a step that waits for it, and log who said it and why.

        Raises:
            VerdictRefused: nothing is asked, or a call or a reversal may still be under way.
        """
        if not who.strip() or not why.strip():
            raise InvalidInput("a verdict needs who says it and why")
        facts, dumped = Facts(self._provider, can_look=False), sql.as_jsonb(result)
        async with transaction(self._engine) as connection:
            opened = await sql.lock_row(connection, key)
            if opened is None:
                raise VerdictRefused(f"{key.step} of {key.saga_id} was never called: nothing is asked")
            if opened.step.question is None and await sql.was_said(connection, key, verdict, who, why):
                return
            step = said(facts, opened.step, verdict, opened.now)
            if isinstance(step, str):
                raise VerdictRefused(f"{key.step} of {key.saga_id}: {verdict.value} does not count: {step}")
            kept = dumped if verdict is Verdict.HAPPENED and not opened.step.known else None
            await sql.say(connection, key, verdict, who, why, kept)
            await sql.save(connection, key, opened, step, result=kept)

    # ------------------------------------------------------------------------------------------------------- forward
    async def _look_before_do(self, key: FenceKey, calls: Calls[Out], facts: Facts, opened: sql.Opened) -> None:
        assert calls.look is not None
        found = await calls.look(opened.key, opened.request)
        result = None if found is None else sql.as_jsonb(calls.dump(found))
        async with transaction(self._engine) as connection:
            now = await self._locked(connection, key)
            token = opened.step.token()
            step, following = looked_do(facts, now.step, found=found is not None, token=token, looked_at=opened.now)
            await sql.save(connection, key, now, step, result=None if now.step.known else result)
            failure = await self._failure(connection, key, facts, now, step, following)
        if failure is not None:
            raise failure

    async def _record_do(self, key: FenceKey, facts: Facts, n: int, heard: Heard) -> tuple[Step, Any]:
        async def record(connection: AsyncConnection) -> tuple[Step, Any]:
            opened = await self._locked(connection, key)
            step = heard_do(facts, opened.step, n, heard.answer, opened.now)
            if step.question is Question.CAME_LATE and opened.step.question is not Question.CAME_LATE:
                _log.error("%s of %s: a success was heard after it was settled", key.step, key.saga_id)
            result = heard.result if not opened.step.known else None
            refusal = heard.refusal() if step.phase is Phase.NEVER else None
            evidence = heard.evidence(n)
            await sql.save(connection, key, opened, step, evidence=evidence, result=result, refusal=refusal)
            return step, (await self._locked(connection, key)).result

        return await self._recorded(record)

    # ---------------------------------------------------------------------------------------------------------- back
    async def _settle(self, key: FenceKey, request: Any, calls: Calls[Out], *, pivot: bool) -> "_Ended":
        facts, sent, voided, was_over = self._facts(calls), _as_request(request), False, True
        for _ in range(_ROUNDS):
            async with transaction(self._engine) as connection:
                if self._mark_unwinding is not None and not pivot:
                    await self._mark_unwinding(connection, key.saga_id)
                opened = await sql.open_row(connection, key, self._provider, sent)
                step, following = begin_undo(facts, opened.step, opened.now, pivot=pivot)
                await sql.save(connection, key, opened, step, permits=following)
                failure = await self._failure(connection, key, facts, opened, step, following)
            was_over = was_over and opened.step.phase in {Phase.UNDONE, Phase.RESOLVED}
            result = opened.result
            if failure is None and following.act is Act.LOOK:
                following, result, failure = await self._look_before_undo(key, calls, facts, opened, step, pivot=pivot)
            if failure is None and following.act in {Act.SEND, Act.VOID, Act.REVERSE}:
                voided = voided or following.act is Act.VOID
                following, result, failure = await self._ask_provider(
                    key, calls, facts, opened, following, result, pivot=pivot
                )
            if failure is not None:
                raise failure
            if following.act in {Act.SETTLED, Act.FORWARD}:
                return await self._ended(key, following.act, voided=voided, was_over=was_over)
        raise NotSettledYet(f"{key.step} of {key.saga_id} is being changed by others all the time")

    async def _look_before_undo(
        self, key: FenceKey, calls: Calls[Out], facts: Facts, opened: sql.Opened, step_before: Step, *, pivot: bool
    ) -> tuple[Next, Any, Exception | None]:
        assert calls.look is not None
        found = await calls.look(opened.key, opened.request)
        shown = None if found is None else calls.dump(found)
        async with transaction(self._engine) as connection:
            locked = await self._locked(connection, key)
            step, following = looked_undo(
                facts,
                locked.step,
                locked.now,
                found=found is not None,
                token=step_before.token(),
                looked_at=opened.now,
                pivot=pivot,
            )
            result = sql.as_jsonb(shown) if found is not None and not locked.step.known else None
            await sql.save(connection, key, locked, step, permits=following, result=result)
            failure = await self._failure(connection, key, facts, locked, step, following)
        return following, shown, failure

    async def _ask_provider(  # noqa: PLR0913 - a call, and what is known before it
        self,
        key: FenceKey,
        calls: Calls[Out],
        facts: Facts,
        opened: sql.Opened,
        sent: Next,
        result: Any,
        *,
        pivot: bool,
    ) -> tuple[Next, Any, Exception | None]:
        if sent.act is Act.SEND:
            heard = await hear_do(calls, opened.key, opened.request)
        else:
            is_known = sent.act is Act.REVERSE or opened.step.known
            seen = Known(calls.load(result)) if is_known else Unknown()
            heard = await hear_undo(calls, opened.key, opened.request, seen)

        async def record(connection: AsyncConnection) -> tuple[Next, Any, Exception | None]:
            locked = await self._locked(connection, key)
            if sent.act is Act.SEND:
                step, following = heard_claim(facts, locked.step, sent, heard.answer, locked.now, pivot=pivot)
            elif sent.act is Act.VOID:
                step, following = heard_void(facts, locked.step, sent, heard.answer, pivot=pivot)
            else:
                step, following = heard_reversal(facts, locked.step, sent.n, heard.answer)
            stored = None if locked.step.known else heard.result
            evidence = heard.evidence(sent.n)
            await sql.save(connection, key, locked, step, evidence=evidence, result=stored)
            failure = await self._failure(connection, key, facts, locked, step, following)
            if following.act is Act.RETRY:
                failure = heard.error or NotSettledYet(f"{key.step} of {key.saga_id}: nothing was settled")
            return following, None, failure

        return await self._recorded(record)

    async def _ended(self, key: FenceKey, act: Act, *, voided: bool, was_over: bool) -> "_Ended":
        async with transaction(self._engine) as connection:
            opened = await self._locked(connection, key)
        return _Ended(act, opened.result, opened.step.known, voided, was_over)

    # ---------------------------------------------------------------------------------------------------------- both
    def _facts(self, calls: Calls[Out]) -> Facts:
        if self._provider.settles is Settles.BY_LOOKING_UP and calls.look is None:
            raise CompensationImpossible(f"provider {self._provider.name} settles by looking up: give the step a look")
        return Facts(self._provider, can_look=calls.look is not None)

    async def _locked(self, connection: AsyncConnection, key: FenceKey) -> sql.Opened:
        opened = await sql.lock_row(connection, key)
        if opened is None:
            raise CompensationImpossible(f"the row of {key.step} of {key.saga_id} was deleted while it was worked on")
        return opened

    async def _failure(  # noqa: PLR0913 - all that a failure tells
        self,
        connection: AsyncConnection,
        key: FenceKey,
        facts: Facts,
        opened: sql.Opened,
        step: Step,
        following: Next,
    ) -> Exception | None:
        """Give what to raise, once the transaction is committed."""
        if following.act is Act.ASK:
            return await sql.outcome_unknown(connection, key, self._provider, opened, step, facts.aged_at(step))
        if following.act is Act.WAIT:
            left = timedelta(seconds=max(0.0, (following.until or opened.now) - opened.now)) + _SPARE
            return NotSettledYet(
                f"{key.step} of {key.saga_id}: a call may still be under way for {left.total_seconds():.1f} s",
                next_retry_delay=left,
            )
        if following.act is Act.REFUSED:
            return refused_again(opened.refusal) if opened.refusal else _too_late(key)
        if following.act is Act.IMPOSSIBLE:
            return CompensationImpossible(f"{key.step} of {key.saga_id} is a pivot in one place and none in another")
        return _too_late(key) if following.act is Act.LATE else None

    async def _recorded(self, record: Callable[[AsyncConnection], Awaitable[Recorded]]) -> Recorded:
        """Run a transaction that records what was heard, more than once where Postgres is away."""
        for attempt in range(1, _RECORDS + 1):
            try:
                async with transaction(self._engine) as connection:
                    return await record(connection)
            except DatabaseUnavailable:
                if attempt == _RECORDS:
                    raise
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt)
        raise AssertionError


@dataclass(frozen=True)
class _Ended:
    act: Act
    result: Any
    known: bool
    voided: bool
    was_over: bool


def _as_request(request: Any) -> str:
    try:
        return sql.as_jsonb(request)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the request cannot be stored as JSON: {error}") from None


def _too_late(key: FenceKey) -> StepAlreadyCompensated:
    return StepAlreadyCompensated(f"{key.step} of {key.saga_id} was already undone; this attempt came too late")
