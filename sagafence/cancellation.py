"""Cancels: whether a run must be cancelled, and what a cancel may interrupt. Knows no shop words.

Temporal cancels the workflow's main task: a plain `asyncio.shield` keeps the shielded task running, and its waiter goes
on without it. Later SDKs also raise the cancel in every other task that was waiting for a condition when it came, once
that wait is over. An eviction from the worker's cache arrives as the same `asyncio.CancelledError`, but was not
requested: swallowing it would hold the worker for ever.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from temporalio import workflow

T = TypeVar("T")


class Cancellation:
    """The request to cancel a run, by Temporal or by an update.

    An await can swallow a cancel that arrives together with its result, so check `is_requested` before each step.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._is_overruled = False

    def overrule(self) -> None:
        """Have requests change nothing from now on: there is no way back any more."""
        self._is_overruled = True

    def request(self, reason: str) -> None:
        """Request it from within the workflow. The first reason is kept."""
        self._reason = self._reason or reason

    @property
    def is_requested(self) -> bool:
        """Whether the run must be cancelled."""
        return self._has_come and not self._is_overruled

    @property
    def _has_come(self) -> bool:
        return self._reason is not None or self.is_from_temporal

    @property
    def is_from_temporal(self) -> bool:
        """Whether it was requested through Temporal, so that Temporal expects the run to end as cancelled."""
        return workflow.cancellation_reason() is not None

    @property
    def reason(self) -> str:
        """Why it was requested."""
        return self._reason or workflow.cancellation_reason() or "no reason given"

    async def interruptible(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run work to its end and return its task. A cancel is passed on to it, once.

        A failure that arrived together with the cancel comes first, where the SDK would drop it: conditions are checked
        only when everything that arrived with a workflow task has reached the code that waited for it.
        """
        task = asyncio.create_task(work)
        await self.wait_until(lambda: task.done() or self.is_requested)
        if not task.done():
            task.cancel()
            await self.wait_until(task.done)
        return task

    async def protect(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work to its end, whatever cancels arrive: in a task of its own, which none of them reaches."""
        task = asyncio.create_task(work)
        await self.wait_until(task.done)
        return task.result()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, whatever cancels arrive."""
        while True:
            try:
                return await workflow.wait_condition(condition)
            except asyncio.CancelledError:
                if not self._has_come:
                    raise  # an eviction; one that follows a request is raised by the next wait_condition, for good


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, whatever cancels arrive. For update handlers and the end of a workflow as well."""
    await Cancellation().wait_until(condition)
