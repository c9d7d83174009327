"""The saga's own row."""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from sagafence.errors import StepAlreadyCompensated


@dataclass(frozen=True)
class Opening:
    """What a saga's row is made of."""

    saga_id: str
    workflow_type: str
    task_queue: str
    input: Any


_OPEN = text("""
    INSERT INTO sagas (saga_id, workflow_type, task_queue, input)
    VALUES (:saga_id, :workflow_type, :task_queue, CAST(:input AS jsonb)) ON CONFLICT DO NOTHING
""")
_STATE = text("SELECT state FROM sagas WHERE saga_id = :saga_id FOR SHARE")
_END = text("""
    UPDATE sagas SET state = 'ended', outcome = :outcome, ended_at = clock_timestamp()
     WHERE saga_id = :saga_id AND state <> 'ended'
""")


async def enter(connection: AsyncConnection, opening: Opening | str) -> None:
    """Take the saga's row; make it where it is not there yet."""
    saga_id = opening if isinstance(opening, str) else opening.saga_id
    if isinstance(opening, Opening):
        await connection.execute(_OPEN, {**opening.__dict__, "input": json.dumps(opening.input)})
    state = (await connection.execute(_STATE, {"saga_id": saga_id})).scalar_one_or_none()
    if state == "ended":
        raise StepAlreadyCompensated(f"{saga_id} has ended; this attempt came too late")


async def end(connection: AsyncConnection, saga_id: str, outcome: str) -> None:
    """Note how the saga ended."""
    await connection.execute(_END, {"saga_id": saga_id, "outcome": outcome})
