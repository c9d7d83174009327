"""How the cases run in which a transaction is lost: its COMMIT fails after the activity's code has run.

The fault comes through SQLAlchemy's own `commit` event, so that the saga needs no seam; SQLAlchemy is imported by these
cases alone.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from temporalio import activity

from sagafence.testing.cases import Kind
from sagafence.testing.common import begin_unwind, step_of
from sagafence.testing.trial import Trial


class _Loss:
    """Whether the transaction was lost already."""

    has_come = False


@contextmanager
def _losing_the_first(trial: Trial, name: str) -> Iterator[_Loss]:
    """Fail the first COMMIT of an activity inside the block, before Postgres hears of it: it rolls back."""
    from sqlalchemy import event  # noqa: PLC0415 - an extra, and the kit needs temporalio alone
    from sqlalchemy.engine import Connection, Engine  # noqa: PLC0415
    from sqlalchemy.exc import OperationalError  # noqa: PLC0415

    loss = _Loss()

    def lose(_connection: Connection) -> None:
        if loss.has_come or not activity.in_activity():
            return
        info = activity.info()
        if trial.faults.is_about(info) and trial.faults.name_of(info.activity_type, info.activity_id) == name:
            loss.has_come = True
            raise OperationalError("COMMIT", None, ConnectionResetError("injected"), connection_invalidated=True)

    event.listen(Engine, "commit", lose)
    try:
        yield loss
    finally:
        event.remove(Engine, "commit", lose)


def _commit_lost(*, in_undo: bool) -> Callable[[Trial], Awaitable[None]]:
    async def run(trial: Trial) -> None:
        step = step_of(trial)
        name = step.undo if in_undo else step.do
        if in_undo:
            begin_unwind(trial)
        with _losing_the_first(trial, name) as loss:
            async with trial.working():
                await trial.ended()
        trial.require(
            loss.has_come,
            "A case proves nothing unless its fault is injected. Does the step commit through SQLAlchemy, as its "
            "`is_transaction` says?",
            f"no attempt of {name} came to a COMMIT",
        )

    return run


RUNS: dict[Kind, Callable[[Trial], Awaitable[None]]] = {
    Kind.DO_COMMIT_LOST: _commit_lost(in_undo=False),
    Kind.UNDO_COMMIT_LOST: _commit_lost(in_undo=True),
}
