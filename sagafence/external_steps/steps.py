"""External steps on Postgres: do, undo, settle, and what a person says."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from sagafence.database import transaction
from sagafence.errors import CompensationImpossible, InvalidInput, VerdictRefused
from sagafence.external_steps import people, sql
from sagafence.external_steps.answers import Calls
from sagafence.external_steps.doing import do
from sagafence.external_steps.settling import settle
from sagafence.external_steps.state import Facts
from sagafence.external_steps.verdicts import said
from sagafence.external_steps.work import PivotOf, work_on
from sagafence.fence import FenceKey, limited_refusals
from sagafence.provider import Happened, Never, Out, Provider, Settles, Verdict
from sagafence.undo import UndoOutcome, UndoResult

Enter = Callable[[AsyncConnection], Awaitable[bool]]
"""Called first in every transaction that permits a call of a do. Says whether one may be permitted."""
Mark = Callable[[AsyncConnection], Awaitable[None]]
"""Called first in every transaction of an undo. Raises where nothing may be undone."""


async def _always(_: AsyncConnection) -> bool:
    return True


async def _nothing(_: AsyncConnection) -> None:
    """Mark nothing."""


class ExternalSteps:
    """External steps with one provider.

    Args:
        engine: where the rows are (schema/external.sql).
        provider: what it can do.
    """

    def __init__(self, engine: AsyncEngine, provider: Provider) -> None:
        self._engine = engine
        self._provider = provider

    async def do(
        self, key: FenceKey, request: Any, calls: Calls[Out], *, enter: Enter = _always, pivot: PivotOf | None = None
    ) -> Out:
        """Have the step's effect, at most once, and return its first result.

        Raises:
            Refusal: the provider's final no, as the call raised it; on a repeat again.
            StepAlreadyCompensated: the undo came first, or meanwhile.
            IdempotencyConflict: the row belongs to another request.
            OutcomeUnknown: it may have happened, and may not be sent again.
            NotSettledYet: it may have happened; a look will tell later.
            Exception: whatever the call raised. The step is unknown, and a retry goes on.
        """
        return await do(work_on(self._engine, self._provider, key, request, calls, pivot), enter)

    async def undo(self, key: FenceKey, request: Any, calls: Calls[Out], *, mark: Mark = _nothing) -> UndoResult:
        """Settle the step, and reverse its effect where it had one. Afterwards no late call leaves an effect.

        Raises:
            OutcomeUnknown: only a person can say; retryable, while a repeat may tell too.
            NotSettledYet: a call may still be under way; its `next_retry_delay` says when none can be.
            IdempotencyConflict: the row belongs to another request, whose effect must stay.
            Exception: whatever the undo raised.
        """
        if calls.undo is None:
            raise CompensationImpossible(f"{key.step} of {key.saga_id} has no undo")

        async with limited_refusals():
            ended = await settle(work_on(self._engine, self._provider, key, request, calls), mark, pivot=False)
        if ended.goes_forward:
            return UndoResult(UndoOutcome.IRREVOCABLE, {"result": ended.result})
        stored = {"result": ended.result} if ended.is_known else {}
        if ended.was_over:
            return UndoResult(UndoOutcome.ALREADY_UNDONE, stored)
        was_reversed = ended.is_known or ended.was_voided
        return UndoResult(UndoOutcome.REVERSED if was_reversed else UndoOutcome.NOTHING_TO_UNDO, stored)

    async def settle(
        self, key: FenceKey, request: Any, calls: Calls[Out], *, pivot: PivotOf | None = None
    ) -> Happened[Out] | Never:
        """Find out whether a pivot happened, and never reverse it. Afterwards the answer stays what it is.

        Raises:
            OutcomeUnknown: only a person can say; retryable, while a repeat may tell too. Nothing before the pivot may
                be undone meanwhile.
            NotSettledYet: a call may still be under way; its `next_retry_delay` says when none can be.
            IdempotencyConflict: the row belongs to another request.
        """
        if self._provider.settles is Settles.BY_VOIDING and calls.undo is None:
            raise CompensationImpossible(
                f"provider {self._provider.name} settles by voiding: give the pivot {key.step} an undo"
            )

        async with limited_refusals():
            # Whether the saga unwinds is what this finds out.
            work = work_on(self._engine, self._provider, key, request, calls, pivot)
            ended = await settle(work, _nothing, pivot=True)
        return Happened(calls.load(ended.result)) if ended.goes_forward else Never()

    async def resolve(  # noqa: PLR0913 - a verdict, and who stands for it
        self,
        key: FenceKey,
        verdict: Verdict,
        *,
        who: str,
        why: str,
        looked_at: datetime | None = None,
        result: Any = None,
        needs_result: bool = False,
        pivot: PivotOf | None = None,
    ) -> None:
        """Take a person's word on a step that waits for it, and log who said it and why.

        Args:
            key: the step's identity.
            verdict: what the person says.
            who: who it is.
            why: what they saw.
            looked_at: when they saw it, or undid it, with its time zone; None: just now.
            result: the step's result as JSON, where they say that it happened and nobody else knows it.
            needs_result: whether None is no result of this step.
            pivot: the saga that the step is the pivot of.

        Raises:
            VerdictRefused: nothing is asked, nobody has said what the result is, or a call or a reversal may have acted
                since that look.
            InvalidInput: nobody is named, or no reason; or the time has no zone.
        """
        people.require_signature(who, why)
        if looked_at and not looked_at.tzinfo:
            raise InvalidInput("looked_at needs its time zone")
        facts, dumped = Facts(self._provider, can_look=False), sql.as_jsonb(result)
        async with transaction(self._engine) as connection:
            if pivot:
                await pivot.lock(connection)
            opened = await sql.lock_row(connection, key)
            if opened is None:
                raise VerdictRefused(f"{key.step} of {key.saga_id} was never called: nothing is asked")
            if opened.step.question is None and await people.was_said(connection, key, verdict, who=who, why=why):
                return
            if verdict is Verdict.HAPPENED and needs_result and result is None and not opened.step.known:
                raise VerdictRefused(f"{key.step} of {key.saga_id}: say what its result is, as its do would return it")
            at = min(opened.now, looked_at.timestamp()) if looked_at else opened.now
            step = said(facts, opened.step, verdict, at, await sql.last_change(connection, key))
            if isinstance(step, str):
                raise VerdictRefused(f"{key.step} of {key.saga_id}: {verdict.value} does not count: {step}")
            kept = dumped if verdict is Verdict.HAPPENED and not opened.step.known else None
            await people.say(connection, key, verdict, who=who, why=why, result=kept)
            await sql.save(connection, key, opened, step, result=kept)
            if pivot:
                await pivot.note(connection, step)
