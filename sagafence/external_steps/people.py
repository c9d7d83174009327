"""What a person is asked about an external step, and the words that they have said of it."""

import math
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio.exceptions import ApplicationError

from sagafence.database import transaction
from sagafence.errors import InvalidInput, OutcomeUnknown, VerdictRefused
from sagafence.external_steps.answers import Heard
from sagafence.external_steps.sql import Opened
from sagafence.external_steps.state import Phase, Question, Step
from sagafence.external_steps.verdicts import SETTLED_ALREADY
from sagafence.fence import FenceKey
from sagafence.provider import Provider, Verdict

# The first calls say when it began, the last what is heard now; an outage of days has hundreds between them.
_CALLS = text("""
    SELECT n, kind, live, CAST(permitted_at AS text) AS permitted_at, CAST(answered_at AS text) AS answered_at, status
    FROM external_calls
    WHERE saga_id = :saga_id AND step = :step AND (n <= 10 OR n > CAST(:permitted AS integer) - 10) ORDER BY n
""")
_LATE_UNTIL = text("SELECT CAST(to_timestamp(CAST(:at AS float8)) AS text)")
_SAY = text("""
    INSERT INTO saga_verdicts (saga_id, step, verdict, who, why, result)
    VALUES (:saga_id, :step, :verdict, :who, :why, CAST(:result AS jsonb))
""")
_SAID = text("""
    SELECT verdict = :verdict AND who = :who AND why = :why FROM saga_verdicts
    WHERE verdict_id = (SELECT max(verdict_id) FROM saga_verdicts WHERE saga_id = :saga_id AND step = :step)
""")
_CLOSE_LATE = text("""
    UPDATE external_steps SET question = NULL, updated_at = clock_timestamp()
    WHERE saga_id = :saga_id AND step = :step AND question = 'came_late'
""")
_QUESTION = text("SELECT question, phase FROM external_steps WHERE saga_id = :saga_id AND step = :step FOR UPDATE")

REMEDY = "reverse it by hand where there is one, and say so with `python -m sagafence resolve-late`"
"""What to do about a success that came late, for the log."""

_ASKED = {
    Question.IS_IT_THERE: "its outcome is unknown. Is there an object with this key?",
    Question.DID_IT_HAPPEN: "the provider only repeats an error. Nothing more can come; did it happen?",
    Question.WHOSE_IS_THE_KEY: "the provider has other content under its key. What is it?",
    Question.WAS_IT_REVERSED: "the outcome of its reversal is unknown. Was it reversed?",
    Question.CAME_LATE: "a success was heard after it was settled. Is there an object to reverse?",
}


async def told(  # noqa: PLR0913 - all that a person must know
    connection: AsyncConnection, key: FenceKey, provider: Provider, opened: Opened, step: Step, *, late_until: float
) -> dict[str, Any]:
    """Gather all that helps to answer: `OutcomeUnknown` names the parts."""
    calls = await connection.execute(_CALLS, {**key.parameters(), "permitted": step.permitted})
    until = (
        (await connection.execute(_LATE_UNTIL, {"at": late_until})).scalar_one() if math.isfinite(late_until) else None
    )
    return {
        "saga_id": key.saga_id,
        "step": key.step,
        "provider": provider.name,
        "key": str(opened.key),
        "undo_key": opened.key.undo,
        "question": step.question,
        "late_until": until,
        "calls": [dict(call) for call in calls.mappings()],
    }


def asked(told: dict[str, Any]) -> OutcomeUnknown:
    """Make the failure that asks a person: the saga is stuck at once."""
    return OutcomeUnknown(f"{_asks(told)})", details=[told])


def repeated(told: dict[str, Any], heard: Heard | None) -> OutcomeUnknown:
    """Make the failure that asks a person, unless a repeat tells before the round ends."""
    failed = heard.error if heard and isinstance(heard.error, ApplicationError) else None
    is_final = failed is not None and failed.non_retryable
    may_tell = "" if is_final else "; a repeat may tell"
    last = f"; the last call heard {heard}" if heard else ""
    return OutcomeUnknown(
        f"{_asks(told)}{may_tell}{last})",
        details=[told],
        non_retryable=is_final,
        next_retry_delay=failed.next_retry_delay if failed else None,
    )


def _asks(told: dict[str, Any]) -> str:
    question = _ASKED[told["question"] or Question.IS_IT_THERE]
    return f"{told['step']} of {told['saga_id']}: {question} (provider {told['provider']}, key {told['key']}"


def require_signature(who: str, why: str) -> None:
    """Refuse a word that nobody stands for, or that has no reason.

    Raises:
        InvalidInput: one of the two is blank.
    """
    if not who.strip() or not why.strip():
        raise InvalidInput("a verdict needs who says it and why")


async def say(  # noqa: PLR0913 - a verdict, and who stands for it
    connection: AsyncConnection, key: FenceKey, verdict: Verdict, *, who: str, why: str, result: str | None
) -> None:
    """Log a person's verdict."""
    said = {"verdict": verdict.value, "who": who, "why": why, "result": result}
    await connection.execute(_SAY, {**key.parameters(), **said})


async def was_said(connection: AsyncConnection, key: FenceKey, verdict: Verdict, *, who: str, why: str) -> bool:
    """Whether this very verdict was the last one: its sender repeats it, since the answer was lost."""
    said = await connection.execute(_SAID, {**key.parameters(), "verdict": verdict.value, "who": who, "why": why})
    return bool(said.scalar_one_or_none())


async def resolve_late(  # noqa: PLR0913 - a verdict, and who stands for it
    engine: AsyncEngine, saga_id: str, step: str, verdict: Verdict, *, who: str, why: str
) -> None:
    """Take a person's word on a success that was heard after its step was settled, and log who said it and why.

    Of a saga that has ended too, which has nobody left to take it: needs neither a worker nor Temporal, and calls no
    provider. From then on retention may delete the saga's rows. Harmless to repeat.

    Args:
        engine: where the rows are.
        saga_id: the saga.
        step: the step, as its row names it.
        verdict: `UNDONE_BY_HAND`: what came late is gone; `NEVER`: there is nothing.
        who: who it is.
        why: what they saw.

    Raises:
        VerdictRefused: nothing came late of that step, or the verdict is that it happened.
        InvalidInput: nobody is named, or no reason.
    """
    require_signature(who, why)
    name, key = f"{step} of {saga_id}", FenceKey(saga_id, step, "")
    if verdict is Verdict.HAPPENED:
        raise VerdictRefused(f"{name}: {verdict} does not count: {SETTLED_ALREADY}")
    async with transaction(engine) as connection:
        if (await connection.execute(_CLOSE_LATE, key.parameters())).rowcount:
            await say(connection, key, verdict, who=who, why=why, result=None)
            return
        row = (await connection.execute(_QUESTION, key.parameters())).one_or_none()
        may_repeat = row is not None and row.question is None and row.phase in {Phase.UNDONE, Phase.NEVER}
        if not (may_repeat and await was_said(connection, key, verdict, who=who, why=why)):
            raise VerdictRefused(f"{name}: {_not_late(row)}")


def _not_late(row: Row[Any] | None) -> str:
    if row is None:
        return "there is no external step of that name; SELECT saga_id, step FROM external_steps shows them"
    if row.question is None:
        return "no success came late: nothing is asked"
    return f"the question is {row.question}, and the saga waits for the answer: send it the update resolve"
