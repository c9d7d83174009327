"""What the kit has to know about a saga."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.worker import Interceptor

from sagafence.testing.provider import ProviderStrikes

Counts = Mapping[str, int]
"""How many there are of each thing: `{"rooms": 3, "seats": 9}`; money in its minor units."""

Handle = WorkflowHandle[Any, Any]


@dataclass(frozen=True)
class Step:
    """One step of the saga: its activities, and what the first of them does to the world."""

    name: str
    do: str
    """The activity type of the step; its activity id where several steps share a type: `seat/there`."""
    undo: str = ""
    """The activity type of its undo, or its id. A step after the point of no return has none."""
    effect: Counts = field(default_factory=dict)
    """By how much the step changes the probe's counts: `{"rooms": -1}`."""
    is_irrevocable: bool = False
    """The point of no return: once it took effect, the saga goes forward. Its undo, where it has one, settles whether
    it did. One step at most, and none beside it."""
    is_local_first: bool = False
    """The step is tried as a local activity first, and as an ordinary one where that fails."""
    calls: str = ""
    """The request of the step to its provider, as it begins: `POST /tenants`. See `ProviderStrikes`."""
    undo_calls: str = ""
    """The request that reverses it, as it begins: `DELETE /tenants/`."""
    can_be_late: bool = True
    """Whether a request may come to the provider after the undo: true where the undo keeps it from acting then, false
    where the provider promises that it does not come so late."""
    is_transaction: bool = False
    """The step is one transaction through SQLAlchemy, as that of `@local` is, and so is its undo: each is lost once."""


class Together:
    """Steps that run side by side: `Together(seat, tenant)`; a list in it is a branch of steps one after the other."""

    def __init__(self, *branches: Step | Sequence[Step]) -> None:
        self.branches: Sequence[Sequence[Step]] = tuple(
            (branch,) if isinstance(branch, Step) else tuple(branch) for branch in branches
        )


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
    """Asks a stuck saga to try again what failed; fails as long as it is not stuck. Needed by `undo-stuck` and
    `do-stuck`."""
    provider: ProviderStrikes[Any, Any] | None = None
    """Where the provider of its external steps is struck; nothing else may use that provider meanwhile. Needed by the
    cases of steps with `calls`."""
    undoes_in_order: bool = True
    """Whether a step is undone before those that it followed. False where undos run side by side on purpose."""
    timeout_seconds: float = 30.0
    """How long anything may take before it counts as never."""
