"""The step fence: every step takes effect at most once, and never after its undo.

One row per (saga id, step), written first, in the transaction of the effect. The attempt that inserts it acts;
every other one reads what it says.

The technique is the barrier table of dtm and the TCC fence of Seata, with two differences: a repeated step
returns the *stored result*, and a step that comes after its undo gets an *error* instead of a silent success.

How to fence a step of your own:

* write its effect as **one** SQL statement that begins with CTEs ending in one named `outcome` with a column
  `result` (jsonb), goes on with `GATE`, and writes only what it joins with `gate`, or with a CTE that does. When
  the gate stays shut, nothing has happened;
* take every other lock after the gate, in the step as in its undo, so that the two cannot deadlock;
* give the statement to `do_once`. Write the undo as a block inside `undo_once`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio import activity

from sagafence.database import single_statement, transaction, violated_constraint
from sagafence.errors import (
    DatabaseRefusedStatement,
    DatabaseUnavailable,
    IdempotencyConflict,
    SagaError,
    StepAlreadyCompensated,
)
from sagafence.policy import UNDO_ATTEMPTS_WHEN_REFUSED
from sagafence.undo import UndoOutcome, UndoResult

GATE = """
gate AS (
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint, result)
    SELECT :saga_id, :step, 'done', true, :fingerprint, outcome.result FROM outcome
    ON CONFLICT DO NOTHING
    RETURNING result
)"""
"""The CTE that only one attempt passes. It waits for a concurrent attempt to commit or roll back."""

_READ = text("""
    SELECT phase, fingerprint, result FROM step_fence WHERE saga_id = :saga_id AND step = :step
""")

_CLOSE = text("""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint)
    VALUES (:saga_id, :step, 'undone', false, :fingerprint)
    ON CONFLICT (saga_id, step) DO UPDATE SET phase = 'undone', updated_at = now()
     WHERE step_fence.phase = 'done' AND step_fence.fingerprint = excluded.fingerprint
    RETURNING had_effect, result
""")

_RESOLVE = text("""
    INSERT INTO step_fence (saga_id, step, phase, had_effect, fingerprint)
    VALUES (:saga_id, :step, 'resolved', false, :fingerprint)
    ON CONFLICT (saga_id, step) DO UPDATE SET phase = 'resolved', updated_at = now()
     WHERE step_fence.phase = 'done' AND step_fence.fingerprint = excluded.fingerprint
    RETURNING phase
""")


_REPEATABLE_READ = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


@dataclass(frozen=True)
class FenceKey:
    """Which step of which saga, and the fingerprint of the request it acts on.

    Made of business identity alone. A run id, an attempt or an activity id would change on a retry or a
    reset and let the effect happen twice.
    """

    saga_id: str
    step: str
    fingerprint: str
    conflict: type[IdempotencyConflict] = IdempotencyConflict
    """What is raised where the row belongs to another request."""

    def parameters(self) -> dict[str, Any]:
        """Return the bind values that `GATE` names."""
        return {"saga_id": self.saga_id, "step": self.step, "fingerprint": self.fingerprint}


Explain = Callable[[AsyncConnection], Awaitable[SagaError | None]]


async def do_once(  # noqa: PLR0913 - a step, and the two questions about it
    engine: AsyncEngine,
    key: FenceKey,
    statement: TextClause,
    parameters: Mapping[str, Any],
    *,
    explain: Explain,
    recheck: Explain | None = None,
) -> dict[str, Any]:
    """Run a step's effect unless it already happened, and return its first result either way.

    One round trip when the gate opens. When it stays shut, further statements, each with a fresh snapshot, read why.

    Args:
        engine: where the fence and the effect live, together.
        key: the step's identity.
        statement: the effect, built around `GATE`; returns one row with `result`.
        parameters: its bind values besides the key's.
        explain: finds the business refusal that kept the gate shut, or None when it finds none.
        recheck: finds why a repeat must not use the stored result, or None when it may. For the last step: while its
            undo keeps failing, no later step would notice that the saga is unwinding.

    Raises:
        StepAlreadyCompensated: the undo came first.
        IdempotencyConflict: the row belongs to another request.
        SagaError: what `explain` or `recheck` found.
        DatabaseUnavailable: the reason is gone meanwhile; retried.
        DatabaseRefusedStatement: a constraint refuses the effect, and nothing explains it.
    """
    async with single_statement(engine) as connection:
        try:
            executed = await connection.execute(statement, {**parameters, **key.parameters()})
            guard, result = None, executed.scalar_one_or_none()
        except IntegrityError as error:
            # A constraint refused what the snapshot had allowed: another saga was faster, or it always does.
            guard, result = violated_constraint(error), None
            if guard is None:
                raise
        if result is not None:
            return dict(result)
        refusal: SagaError | None = None
        stored = (await connection.execute(_READ, key.parameters())).one_or_none()
        if stored is None:
            refusal = await explain(connection)
            # `explain` may have seen what a concurrent attempt has committed since: then the fence has the result.
            stored = (await connection.execute(_READ, key.parameters())).one_or_none()
        if stored is not None:
            first = stored_result(key, stored)
            if recheck is not None and (refusal := await recheck(connection)):
                raise refusal
            return first
    if guard is not None and refusal is None:
        result = await _do_undisturbed(engine, key, statement, parameters)
        if result is not None:
            return result
    raise refusal or DatabaseUnavailable(
        f"{key.step} of {key.saga_id} was refused by {guard or 'a state'} that has changed since"
    )


async def _do_undisturbed(
    engine: AsyncEngine, key: FenceKey, statement: TextClause, parameters: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Run the effect on one snapshot, on which a faster saga shows as 40001: a constraint that refuses always does.

    Returns None when the gate stays shut.

    Raises:
        DatabaseUnavailable: another saga was faster again; retried.
        DatabaseRefusedStatement: the constraint refuses whoever comes.
    """
    async with transaction(engine) as connection:
        await connection.execute(_REPEATABLE_READ)
        result = (await connection.execute(statement, {**parameters, **key.parameters()})).scalar_one_or_none()
    return None if result is None else dict(result)


@dataclass
class Undoing:
    """What an undo works with inside `undo_once`."""

    connection: AsyncConnection
    stored: dict[str, Any]
    had_effect: bool
    outcome: UndoOutcome

    def result(self) -> UndoResult:
        """Return how the undo went."""
        return UndoResult(self.outcome, self.stored)


@asynccontextmanager
async def undo_once(engine: AsyncEngine, key: FenceKey) -> AsyncIterator[Undoing]:
    """Open the transaction in which a step is undone, with the fence already turned.

    Where `had_effect` is true, reverse the effect in the block: its statements come after the fence's own,
    so they see what a forward attempt committed while we waited for it. Otherwise there is nothing to
    reverse, and the row refuses the step from now on.

    Raises:
        IdempotencyConflict: the row belongs to another request, whose effect must stay.
    """
    async with limited_refusals(), transaction(engine) as connection:
        yield await close_fence(connection, key)


async def close_fence(connection: AsyncConnection, key: FenceKey) -> Undoing:
    """Turn the fence within a transaction: see `undo_once`."""
    row = (await connection.execute(_CLOSE, key.parameters())).one_or_none()
    if row is None:
        stored = (await connection.execute(_READ, key.parameters())).one()
        if stored.fingerprint != key.fingerprint:
            raise _mismatch(key)
        return Undoing(connection, stored.result or {}, False, UndoOutcome.ALREADY_UNDONE)
    if row.had_effect:
        return Undoing(connection, row.result, True, UndoOutcome.REVERSED)
    return Undoing(connection, {}, False, UndoOutcome.NOTHING_TO_UNDO)


async def resolve_once(connection: AsyncConnection, key: FenceKey) -> None:
    """Close a step for good on an operator's word: from now on neither it nor its undo has any effect for this saga.

    Changes nothing when it is resolved already, or belongs to another request. Call it inside a transaction.

    Raises:
        StepAlreadyCompensated: the step was undone meanwhile, and there is nothing to resolve.
    """
    if (await connection.execute(_RESOLVE, key.parameters())).one_or_none() is not None:
        return
    stored = (await connection.execute(_READ, key.parameters())).one()
    if stored.fingerprint == key.fingerprint and stored.phase == "undone":
        raise StepAlreadyCompensated(f"{key.step} of {key.saga_id} is undone already: there is nothing to resolve")


@asynccontextmanager
async def limited_refusals() -> AsyncIterator[None]:
    """End the round when Postgres has refused the undo's statements too often: only an operator can fix that.

    The number of the attempt would count outages too. Temporal gives the details of the last heartbeat to every later
    attempt, on whatever worker.
    """
    try:
        yield
    except DatabaseRefusedStatement as refused:
        if activity.in_activity():
            refusals = 1 + next(iter(activity.info().heartbeat_details), 0)
            if refusals >= UNDO_ATTEMPTS_WHEN_REFUSED:
                raise DatabaseRefusedStatement(refused.message, non_retryable=True) from None
            activity.heartbeat(refusals)
        raise


async def fence_row(connection: AsyncConnection, key: FenceKey) -> Row[Any] | None:
    """Read a step's row, if there is one."""
    return (await connection.execute(_READ, key.parameters())).one_or_none()


def stored_result(key: FenceKey, row: Row[Any]) -> dict[str, Any]:
    """Return what a row of the fence says, or raise why it must not be used."""
    if row.fingerprint != key.fingerprint:
        raise _mismatch(key)
    if row.phase != "done" or row.result is None:
        raise StepAlreadyCompensated(f"{key.step} of {key.saga_id} was already undone; this attempt came too late")
    return dict(row.result)


def _mismatch(key: FenceKey) -> IdempotencyConflict:
    return key.conflict(f"{key.saga_id} already belongs to a request with other content; choose another id")
