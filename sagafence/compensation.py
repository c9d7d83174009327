"""The parts of a saga: the compensations on its stack, the four ways in which its run can end, and its failures."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

from temporalio.exceptions import ActivityError, ApplicationError, FailureError, RetryState, is_cancelled_exception
from temporalio.exceptions import TimeoutError as TemporalTimeoutError

from sagafence.undo import UndoOutcome, UndoResult

T = TypeVar("T")


class StepState(StrEnum):
    """What became of a step, as `status` shows it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNDOING = "undoing"
    UNDONE = "undone"
    NOTHING_TO_UNDO = "nothing to undo"
    IRREVOCABLE = "irrevocable"
    STUCK = "stuck"
    RESOLVED = "resolved"


SETTLED = {
    UndoOutcome.REVERSED: StepState.UNDONE,
    UndoOutcome.ALREADY_UNDONE: StepState.UNDONE,
    UndoOutcome.NOTHING_TO_UNDO: StepState.NOTHING_TO_UNDO,
    UndoOutcome.IRREVOCABLE: StepState.IRREVOCABLE,
}
"""How each outcome of an undo shows in its step's state."""


@dataclass
class Compensation:
    """One entry of the stack, and what became of it.

    Attributes:
        step: the step's name; no other entry has it.
        undo: what is called, again in every round, until it returns.
        state: of the step; `StepState.STUCK` after a round in which the undo failed.
        detail: the failure of the last round, or how an operator has resolved it.
        rounds: how many rounds of the undo have begun.
        was_undone_before: whether its undo found the step undone already.
        resolution: why an operator has resolved it, if one has.
    """

    step: str
    undo: Callable[[], Awaitable[UndoResult]]
    state: StepState
    detail: str = ""
    rounds: int = 0  # of its undo, begun so far
    was_undone_before: bool = False  # its undo found the step undone already
    resolution: str | None = None  # why an operator has resolved it, if one has

    @property
    def is_stuck(self) -> bool:
        """Whether its undo failed and no operator has resolved it."""
        return self.state is StepState.STUCK


@dataclass(frozen=True)
class Completed(Generic[T]):
    """The forward story ran to its end, and this is what it returned."""

    value: T


@dataclass(frozen=True)
class Unwound:
    """The stack was unwound, after the failure or the cancel that `cause` and `failed_step` name."""

    cause: BaseException | None
    """The first failure; None when a cancel was all there was."""
    failed_step: str | None
    compensations: Sequence[Compensation]


@dataclass(frozen=True)
class Irrevocable:
    """The unwind found a step past its point of no return before anything was undone: go forward."""

    step: str
    stored: dict[str, Any] = field(default_factory=dict)
    """The result that the step had stored."""


@dataclass(frozen=True)
class StillStuck:
    """Undos keep failing, and this run is to end: continue it as new, with a saga that `is_resumed`."""

    is_partly_undone: bool
    """Whether anything is undone already; `Saga.run` of the next run asks for it."""


@dataclass(frozen=True)
class RetryBackoff:
    """How long a stuck saga waits before the next round: `first`, doubling up to `longest`."""

    first: timedelta
    longest: timedelta

    def after(self, rounds: int) -> timedelta:
        """Return the wait after so many rounds, counted from 1. It never exceeds `longest`."""
        doublings: int = min(rounds - 1, 30)
        return min(self.first * (1 << doublings), self.longest)


def describe(error: BaseException) -> str:
    """Describe a failure by its innermost cause: `OutOfStock: tea-mug: 5 wanted, 2 free`."""
    while isinstance(error, (ActivityError, TemporalTimeoutError)) and error.cause is not None:
        error = error.cause
    kind = getattr(error, "type", None)
    if not isinstance(kind, str):  # a TimeoutError's type is an enum
        kind = type(error).__name__
    message = getattr(error, "message", None) or str(error)
    return f"{kind}: {message}" if message else kind


def find_cause(error: BaseException | None, kind: str) -> ApplicationError | None:
    """Find the failure of this type in the chain of causes; None when there is none."""
    while error is not None:
        if isinstance(error, ApplicationError) and error.type == kind:
            return error
        error = error.__cause__
    return None


def is_cut_short(cause: BaseException | None) -> bool:
    """Whether a failure only follows from a cancel.

    An attempt that fails after the cancel was requested is not retried: its failure would have been retried otherwise,
    and is not why the saga ends.
    """
    if isinstance(cause, ActivityError) and cause.retry_state is RetryState.CANCEL_REQUESTED:
        # A refusal would have ended the story without the cancel, too.
        return not (isinstance(cause.cause, ApplicationError) and cause.cause.non_retryable)
    return cause is not None and is_cancelled_exception(cause)


def failure_of(task: "asyncio.Task[Any]") -> BaseException | None:
    """Return the failure that a finished story ended with, or None; raise any other exception, which is a bug."""
    if task.cancelled():
        return None
    error = task.exception()
    if error is None or isinstance(error, (FailureError, TimeoutError)):
        return error
    raise error
