"""Which way an unwind leads, and what earlier runs have left for it to undo.

The stack of a run has the steps that this run has begun. One that is started again under the same id, because the
first was lost, and is cancelled or fails before it has come as far, knows nothing of the others: their rows do.
"""

from collections.abc import Collection, Iterator, Mapping

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection
from temporalio import activity

from sagafence.calls import EarlierStep, Unwinding, Way
from sagafence.declare import External, Step, Undoable
from sagafence.errors import IdempotencyConflict, InvalidInput
from sagafence.registry import Opening, begin_unwind

# Also a step that may have had its effect. A later step is begun after an earlier one has committed. The fence has
# steps that were not declared too, which are undone by the workflow's own code or not at all.
_IN_EFFECT = text("""
    SELECT step, created_at FROM step_fence
     WHERE saga_id = :saga_id AND phase = 'done' AND given IS NOT NULL
     UNION ALL
    SELECT step, created_at FROM external_steps
     WHERE saga_id = :saga_id
       AND (phase NOT IN ('never', 'undone', 'resolved') OR (phase = 'never' AND question IS NOT NULL))
     ORDER BY created_at, step
""")


async def unwind(
    connection: AsyncConnection, saga: Opening, begun: Collection[str], steps: Mapping[str, Step[object, object]]
) -> Unwinding:
    """Note that the saga unwinds, and find what is in effect and not among the steps that this run has `begun`.

    From the commit on no step of the saga takes effect any more, whichever run calls it.

    Args:
        connection: the transaction that it is noted in.
        saga: whose row is taken, or written where there is none.
        begun: the steps of this run, by the names that their rows have.
        steps: the declared steps, by name.
    """
    try:
        way = await begin_unwind(connection, saga)
    except (IdempotencyConflict, InvalidInput) as refused:
        # Nothing of it is ours, or none of its steps could record it: every do was refused for the same reason.
        activity.logger.warning("%s", refused.message)
        return Unwinding(Way.NOWHERE)
    if way is not Way.BACK:
        return Unwinding(way)
    rows = await connection.execute(_IN_EFFECT, {"saga_id": saga.saga_id})
    return Unwinding(way, list(_earlier([row for row in rows if row.step not in begun], steps)))


def _earlier(rows: list[Row[tuple[object, ...]]], steps: Mapping[str, Step[object, object]]) -> Iterator[EarlierStep]:
    for row in rows:
        name, _, instance = row.step.partition("/")
        step = steps.get(name)
        if step is None:  # the code of another release wrote it
            yield EarlierStep(row.step, "", "", instance, is_external=False)
        elif isinstance(step, Undoable):  # a pivot that is in effect has another way than back
            is_external = isinstance(step, External)
            yield EarlierStep(row.step, step.activity, step.undo_activity, instance, is_external)
