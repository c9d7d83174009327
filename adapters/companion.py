"""A second worker beside a worker: for work that must not take the first one's slots."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Plugin, Replayer, ReplayerConfig, Worker, WorkerConfig, WorkflowReplayResult


def use_client(worker: Worker, client: Client) -> None:
    """Have a running worker and its companions ask through another client, of the same runtime, from now on."""
    worker.client = client
    for plugin in worker.config()["plugins"]:
        if isinstance(plugin, Companion):
            plugin.use_client(client)


class Companion(Plugin):
    """Runs what `make` gives for as long as the worker runs, and ends it once that has drained."""

    def __init__(self, make: Callable[[Worker], Worker]) -> None:
        self._make = make
        self._running: Worker | None = None

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """Leave the worker as it is."""
        return config

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:  # noqa: A002
        """Run both; where the companion fails for good, the worker ends with it, and says why."""
        async with self._make(worker) as self._running:
            await next(worker)

    def use_client(self, client: Client) -> None:
        """Ask through this client from now on."""
        if self._running is not None:
            self._running.client = client

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
