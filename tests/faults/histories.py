"""Histories that faults have shaped replay with today's code, in the strict sandbox."""

from collections.abc import AsyncIterator, Iterable, Sequence

from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory

from tests.faults.stepping import Stage
from tests.workflow.replays import replayer

replayed = 0


async def replay_all(histories: Iterable[tuple[Stage, Sequence[HistoryEvent]]]) -> None:
    """Replay them all; name those that do not."""
    kept = [WorkflowHistory(stage.handle.id, events) for stage, events in histories]

    async def one_by_one() -> AsyncIterator[WorkflowHistory]:
        for history in kept:
            yield history

    done = await replayer().replay_workflows(one_by_one(), raise_on_replay_failure=False)

    assert done.replay_failures == {}
    assert kept
