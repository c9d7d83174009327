"""A second worker beside a worker: for work that must not take the first one's slots."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from temporalio.client import WorkflowHistory
from temporalio.worker import Plugin, Replayer, ReplayerConfig, Worker, WorkerConfig, WorkflowReplayResult


class Companion(Plugin):
    """Runs what `make` gives for as long as the worker runs, and ends it once that has drained."""

    def __init__(self, make: Callable[[Worker], Worker]) -> None:
        self._make = make

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """Leave the worker as it is."""
        return config

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:  # noqa: A002
        """Run both; where the companion fails for good, the worker ends with it, and says why."""
        async with self._make(worker):
            await next(worker)

    def configure_replayer(self, config: ReplayerConfig) -> ReplayerConfig:
        """Leave the replayer as it is."""
        return config

    def run_replayer(
        self,
        replayer: Replayer,
        histories: AsyncIterator[WorkflowHistory],
        next: Callable[  # noqa: A002 - the SDK passes it by this name
            [Replayer, AsyncIterator[WorkflowHistory]],
            AbstractAsyncContextManager[AsyncIterator[WorkflowReplayResult]],
        ],
    ) -> AbstractAsyncContextManager[AsyncIterator[WorkflowReplayResult]]:
        """Leave the replay as it is."""
        return next(replayer, histories)
