"""What the kit has to know about a saga."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.worker import Interceptor

Counts = Mapping[str, int]
"""How many there are of each thing: `{"rooms": 3, "seats": 9}`; money in its minor units."""

Handle = WorkflowHandle[Any, Any]


@dataclass(frozen=True)
class Step:
    """One step of the saga: two activities, and what the first of them does to the world."""

    name: str
    do: str
    """The activity type of the step."""
    undo: str
    """The activity type of its undo."""
    effect: Counts
    """By how much the step changes the probe's counts: `{"rooms": -1}`."""
    is_irrevocable: bool = False
    """The step cannot be undone once it took effect: the saga goes forward. Only the last step can be so."""


async def _cancel(handle: Handle) -> None:
    await handle.cancel()


def _always(_result: Any) -> bool:
    return True


@dataclass(frozen=True)
class SagaUnderTest:
    """How to run one saga, and how to see its effects."""

    start: Callable[[], Awaitable[Handle]]
    """Starts a new saga, under a new workflow id, on a task queue that no other worker polls."""
    worker: Callable[[Sequence[Interceptor]], AbstractAsyncContextManager[Any]]
    """Makes a worker for that task queue, with these interceptors. Called again where a worker is to be lost."""
    probe: Callable[[str], Awaitable[Counts]]
    """Counts the world, given the workflow id. Count what this saga holds, or, where nothing else is at work,
    what is left. Called while nothing of the saga runs, or while its attempt is held up."""
    is_completed: Callable[[Any], bool] = _always
    """Says from the workflow's result whether the saga did what was asked for. A saga that fails, or is
    cancelled, did not."""
    cancel: Callable[[Handle], Awaitable[Any]] = _cancel
    """Asks the saga to cancel. Temporal's own cancel, unless the saga has a way of its own."""
    retry: Callable[[Handle], Awaitable[Any]] | None = None
    """Asks a stuck saga to try its failed undos again; fails as long as it is not stuck. Needed by `undo-stuck`."""
    timeout_seconds: float = 30.0
    """How long anything may take before it counts as never."""
