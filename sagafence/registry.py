"""The saga's row: how far it is, and what it takes to start it again.

Every do and every undo takes the row first, in its own transaction. So another run of the same saga can neither act
while an earlier one is being undone, nor undo what an earlier one has passed the pivot with; and a step that comes
after the end is refused, also when retention has deleted the saga's fence rows. All functions run inside the caller's
transaction and take the row's lock until its end. No other lock may be held before: steps side by side would deadlock.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from sagafence.calls import Way
from sagafence.errors import IdempotencyConflict, InvalidInput, StepAlreadyCompensated
from sagafence.external_steps.sql import as_jsonb

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

_UNWIND = text("""
    UPDATE sagas SET state = CASE WHEN state = 'open' THEN 'unwinding' ELSE state END, updated_at = clock_timestamp()
     WHERE saga_id = :saga_id AND state <> 'ended'
    RETURNING state
""")

# A saga none of whose steps has committed anything has no row until here. A step of an earlier run that is under way
# still comes before this, and then is seen, or after it, and then does nothing.
_ENTER_UNWIND = text(f"""
    INSERT INTO sagas AS present (saga_id, workflow_id, workflow_type, namespace, task_queue, input, fingerprint, state)
    VALUES (:saga_id, :workflow_id, :workflow_type, :namespace, :task_queue, CAST(:input AS jsonb), :fingerprint,
            'unwinding')
    ON CONFLICT (saga_id) DO UPDATE
       SET state = CASE WHEN present.state = 'open' THEN 'unwinding' ELSE present.state END,
           updated_at = clock_timestamp()
     WHERE present.state <> 'ended' AND {_IS_OURS}
    RETURNING state
""")  # noqa: S608 - put together from our own constants

_END = text(f"""
    INSERT INTO sagas AS present
           (saga_id, workflow_id, workflow_type, namespace, task_queue, input, fingerprint, state, outcome, ended_at)
    VALUES (:saga_id, :workflow_id, :workflow_type, :namespace, :task_queue, CAST(:input AS jsonb), :fingerprint,
            'ended', :outcome, clock_timestamp())
    ON CONFLICT (saga_id) DO UPDATE
       SET state = 'ended', outcome = excluded.outcome, updated_at = clock_timestamp(), ended_at = clock_timestamp()
     WHERE present.state <> 'ended' AND (present.state <> 'unwinding' OR excluded.outcome <> 'completed')
       AND {_IS_OURS}
    RETURNING state
""")  # noqa: S608 - put together from our own constants

_MOVE = text("UPDATE sagas SET state = :to WHERE saga_id = :saga_id AND state = ANY (CAST(:came_from AS text[]))")

_READ = text("""
    SELECT workflow_type, fingerprint, state, outcome, purged_at IS NOT NULL AS is_purged
      FROM sagas WHERE saga_id = :saga_id FOR UPDATE
""")

COMPLETED = "completed"
"""The outcome of a saga whose story came to its end."""


class State(StrEnum):
    """How far a saga is."""

    OPEN = "open"
    AT_PIVOT = "at_pivot"
    """Its pivot may have happened elsewhere: nothing is undone before that is settled."""
    PAST_PIVOT = "past_pivot"
    UNWINDING = "unwinding"
    ENDED = "ended"


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


async def enter(connection: AsyncConnection, saga: Opening | str) -> State:
    """Take the saga's row, before anything else that a do does; an `Opening` writes it where there is none yet.

    Two first steps side by side: the second waits for the first, and writes the row where that one was rolled back.
    Whoever is told another state than its step needs must not act: only a result that is stored already counts.

    Raises:
        StepAlreadyCompensated: the id alone was given, and there is no row.
        IdempotencyConflict: the row belongs to a saga of another type or with another input.
        InvalidInput: the input is no JSON.
    """
    given = _parameters(saga)
    row = await _take(connection, _TOUCH if isinstance(saga, str) else _ENTER, given)
    if row is None:
        raise StepAlreadyCompensated(
            f"there is no saga {given['saga_id']}: it ended long ago, or lost its row; this attempt came too late"
        )
    return State(row.state)


async def lock(connection: AsyncConnection, saga_id: str) -> None:
    """Lock the saga's row, if there is one, until the transaction ends."""
    await connection.execute(_READ, {"saga_id": saga_id})


async def move(connection: AsyncConnection, saga_id: str, to: State, *came_from: State) -> None:
    """Note that the saga is at its pivot, past it, or back before it. Changes nothing from any other state."""
    await connection.execute(_MOVE, {"saga_id": saga_id, "to": to, "came_from": [state.value for state in came_from]})


async def begin_unwind(connection: AsyncConnection, saga: Opening | str) -> Way:
    """Note that the saga unwinds, unless it must not; an `Opening` writes the row where there is none yet.

    The id alone is what an undo has. Without a row it may undo, and notes nothing.

    Raises:
        IdempotencyConflict: the row belongs to another saga, whose effects must stay.
    """
    row = await _take(connection, _UNWIND if isinstance(saga, str) else _ENTER_UNWIND, _parameters(saga))
    if row is None or row.state == State.UNWINDING:
        return Way.BACK
    if row.state != State.ENDED:
        return Way.FORWARD
    if row.outcome != COMPLETED:
        return Way.NOWHERE
    return Way.GONE if row.is_purged else Way.FORWARD


async def end(connection: AsyncConnection, saga: Opening | str, outcome: str) -> None:
    """Note that all is settled, and how it ended. From now on every do is refused. Safe to repeat.

    Raises:
        StepAlreadyCompensated: it is being undone, and must not end as completed.
        IdempotencyConflict: the saga has ended in another way, or the row belongs to another saga.
    """
    given = _parameters(saga)
    if (await connection.execute(_END, given | {"outcome": outcome})).one_or_none() is not None:
        return
    stored = (await connection.execute(_READ, given)).one()
    _refuse_anothers(stored, given)
    if stored.state != State.ENDED:
        raise StepAlreadyCompensated(f"saga {given['saga_id']} is being undone: it cannot be completed")
    if stored.outcome != outcome:
        raise IdempotencyConflict(f"saga {given['saga_id']} has ended as {stored.outcome} already, not as {outcome}")


def _parameters(saga: Opening | str) -> dict[str, str]:
    opening = Opening(saga, "", "", None) if isinstance(saga, str) else saga
    try:
        document = json.dumps(opening.input, allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise InvalidInput(f"the input of saga {opening.saga_id} is no JSON: {problem}") from None
    if document != as_jsonb(opening.input):
        raise InvalidInput(f"the input of saga {opening.saga_id} has a character that Postgres cannot store")
    return {
        "saga_id": opening.saga_id,
        "workflow_id": opening.workflow_id or opening.saga_id,
        "workflow_type": opening.workflow_type,
        "namespace": opening.namespace,
        "task_queue": opening.task_queue,
        "input": document,
        "fingerprint": opening.fingerprint,
    }


async def _take(connection: AsyncConnection, statement: TextClause, given: dict[str, str]) -> Any:
    """Take the row by a statement and return it; None where there is none.

    Raises:
        IdempotencyConflict: it is another saga's.
    """
    while (row := (await connection.execute(statement, given)).one_or_none()) is None:
        stored = (await connection.execute(_READ, given)).one_or_none()
        if stored is None:
            return None
        _refuse_anothers(stored, given)
        if stored.state == State.ENDED:
            return stored
        # The row was written in the instant between the two statements: now the first one finds it.
    return row


def _refuse_anothers(stored: Any, given: dict[str, str]) -> None:
    for name in ("workflow_type", "fingerprint"):
        if given[name] and getattr(stored, name) not in {"", given[name]}:
            raise IdempotencyConflict(
                f"{given['saga_id']} already belongs to a saga with another type or input; choose another id"
            )
