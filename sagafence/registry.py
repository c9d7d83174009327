"""The saga's row: whether it is open, unwinding or ended, and what it takes to start it again.

Every do takes the row first, in its own transaction: the first one writes it, and one that comes after the end is
refused, also when retention has deleted the saga's fence rows. All three functions run inside the caller's transaction
and take the row's lock until its end. No other lock may be held before: steps side by side would deadlock.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from sagafence.errors import IdempotencyConflict, InvalidInput, StepAlreadyCompensated

# Whose row it is. A text alone, without an opening, has neither type nor fingerprint.
_IS_OURS = """
    (:workflow_type = '' OR present.workflow_type IN ('', :workflow_type))
    AND (:fingerprint = '' OR present.fingerprint IN ('', :fingerprint))
"""

_ENTER = text(f"""
    INSERT INTO sagas AS present (saga_id, workflow_id, workflow_type, namespace, task_queue, input, fingerprint)
    VALUES (:saga_id, :workflow_id, :workflow_type, :namespace, :task_queue, CAST(:input AS jsonb), :fingerprint)
    ON CONFLICT (saga_id) DO UPDATE SET updated_at = clock_timestamp(), task_queue = excluded.task_queue
     WHERE present.state <> 'ended' AND {_IS_OURS}
    RETURNING state
""")  # noqa: S608 - put together from our own constants

_TOUCH = text("""
    UPDATE sagas SET updated_at = clock_timestamp() WHERE saga_id = :saga_id AND state <> 'ended' RETURNING state
""")

_UNWIND = text(f"""
    UPDATE sagas AS present SET state = 'unwinding', updated_at = clock_timestamp()
     WHERE saga_id = :saga_id AND state <> 'ended' AND {_IS_OURS}
    RETURNING state
""")  # noqa: S608 - put together from our own constants

# A saga none of whose steps has committed anything has no row until here. Its tombstones are in the fence, and have to
# be found by retention like all others.
_END = text(f"""
    INSERT INTO sagas AS present
           (saga_id, workflow_id, workflow_type, namespace, task_queue, input, fingerprint, state, outcome, ended_at)
    VALUES (:saga_id, :workflow_id, :workflow_type, :namespace, :task_queue, CAST(:input AS jsonb), :fingerprint,
            'ended', :outcome, clock_timestamp())
    ON CONFLICT (saga_id) DO UPDATE
       SET state = 'ended', outcome = excluded.outcome, updated_at = clock_timestamp(), ended_at = clock_timestamp()
     WHERE present.state <> 'ended' AND {_IS_OURS}
    RETURNING state
""")  # noqa: S608 - put together from our own constants

_READ = text("SELECT workflow_type, fingerprint, state, outcome FROM sagas WHERE saga_id = :saga_id")


@dataclass(frozen=True)
class Opening:
    """What a saga's row says of it: enough to start its workflow again."""

    saga_id: str
    workflow_type: str
    task_queue: str
    input: Any
    """The workflow's one argument, as JSON."""
    fingerprint: str = ""
    """Of the input: a saga with another one under the same id is refused. Empty: inputs are not compared."""
    workflow_id: str = ""
    """Empty: it is the saga's id."""
    namespace: str = ""
    """Of Temporal: a sweep leaves the sagas of other namespaces alone. Empty: it takes this one for its own."""


async def enter(connection: AsyncConnection, saga: Opening | str) -> None:
    """Take the saga's row, before anything else that a do does; an `Opening` writes it where there is none yet.

    Two first steps side by side: the second waits for the first, and writes the row where that one was rolled back.

    Raises:
        StepAlreadyCompensated: the saga has ended, or the id alone was given and there is no row.
        IdempotencyConflict: the row belongs to a saga of another type or with another input.
        InvalidInput: the input is no JSON.
    """
    given = _parameters(saga)
    if not await _take(connection, _TOUCH if isinstance(saga, str) else _ENTER, given):
        raise StepAlreadyCompensated(
            f"there is no saga {given['saga_id']}: it ended long ago, or lost its row; this attempt came too late"
        )


async def mark_unwinding(connection: AsyncConnection, saga: Opening | str) -> None:
    """Note in the transaction of an undo that the saga unwinds. Without a row there is nothing to note.

    Raises:
        StepAlreadyCompensated: the saga has ended, and with it all of its undos; what stands is to stay.
        IdempotencyConflict: the row belongs to another saga, whose effects must stay.
    """
    await _take(connection, _UNWIND, _parameters(saga))


async def end(connection: AsyncConnection, saga: Opening | str, outcome: str) -> None:
    """Note that all is settled, and how it ended. From now on every do is refused. Safe to repeat.

    Raises:
        IdempotencyConflict: the saga has ended in another way, or the row belongs to another saga.
    """
    given = _parameters(saga)
    if (await connection.execute(_END, given | {"outcome": outcome})).one_or_none() is not None:
        return
    stored = (await connection.execute(_READ, given)).one()
    _refuse_anothers(stored, given)
    if stored.outcome != outcome:
        raise IdempotencyConflict(f"saga {given['saga_id']} has ended as {stored.outcome} already, not as {outcome}")


def _parameters(saga: Opening | str) -> dict[str, str]:
    opening = Opening(saga, "", "", None) if isinstance(saga, str) else saga
    try:
        document = json.dumps(opening.input, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise InvalidInput(f"the input of saga {opening.saga_id} is no JSON: {problem}") from None
    return {
        "saga_id": opening.saga_id,
        "workflow_id": opening.workflow_id or opening.saga_id,
        "workflow_type": opening.workflow_type,
        "namespace": opening.namespace,
        "task_queue": opening.task_queue,
        "input": document,
        "fingerprint": opening.fingerprint,
    }


async def _take(connection: AsyncConnection, statement: TextClause, given: dict[str, str]) -> bool:
    """Take the row by a statement; return False where there is none, and say why where it may not be taken."""
    while (await connection.execute(statement, given)).one_or_none() is None:
        stored = (await connection.execute(_READ, given)).one_or_none()
        if stored is None:
            return False
        _refuse_anothers(stored, given)
        if stored.state == "ended":
            raise StepAlreadyCompensated(
                f"saga {given['saga_id']} has ended as {stored.outcome}; this attempt came too late",
                details=[{"saga_id": given["saga_id"], "outcome": stored.outcome}],
            )
        # The row was written in the instant between the two statements: now the first one finds it.
    return True


def _refuse_anothers(stored: Any, given: dict[str, str]) -> None:
    for name in ("workflow_type", "fingerprint"):
        if given[name] and getattr(stored, name) not in {"", given[name]}:
            raise IdempotencyConflict(
                f"{given['saga_id']} already belongs to a saga with another type or input; choose another id"
            )
