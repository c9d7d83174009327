"""What a saga's workflow and its activities say to each other, besides a step's own input and result."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sagafence.provider import Verdict


@dataclass(frozen=True)
class SagaInput:
    """What a saga was started with; its row has it, to start the saga again."""

    content: Any
    fingerprint: str


@dataclass(frozen=True)
class StepCall:
    """What each activity of a step gets beside the step's input."""

    instance: str = ""
    """Which of several calls of the same step this is."""
    opening: SagaInput | None = None
    """What the saga was started with, until a step has recorded it."""
    as_stored: bool = False
    """Whether its input is what its row has: that of an earlier run, which may be another."""


@dataclass(frozen=True)
class Settled:
    """What became of a step whose outcome was unknown."""

    happened: bool
    result: Any = None


@dataclass(frozen=True)
class Resolution:
    """What an operator says of a stuck step, for the update `resolve` of a `SagaWorkflow`. It is recorded for good."""

    step: str
    """The step's name as `SagaStatus` shows it."""
    verdict: Verdict
    who: str
    """Who says so: for the record."""
    why: str
    """How they know: for the record."""
    result: Any = None
    """The step's result, as JSON, where it happened."""
    looked_at: str = ""
    """When they looked, or undid it: ISO 8601 with its time zone, `2026-11-30T09:00:00Z`. A word on an external step
    needs it: what has acted since makes it untrue."""


class Way(StrEnum):
    """Where an undo leads."""

    BACK = "back"
    FORWARD = "forward"
    """The pivot was passed, or may have been, by this run or an earlier one: nothing may be undone."""
    GONE = "gone"
    """The saga has completed, and retention has deleted what it did: that stands, and nobody knows of it any more."""
    NOWHERE = "nowhere"
    """The saga has ended, and all that was to be undone is."""


@dataclass(frozen=True)
class EarlierStep:
    """A step that an earlier run of the saga has begun, and what its undo takes."""

    step: str
    activity: str
    undo_activity: str
    """Empty where the worker has no such step."""
    instance: str
    is_external: bool


@dataclass(frozen=True)
class Unwinding:
    """Which way an unwind leads, and what it has to undo besides the steps of its own run."""

    way: Way
    earlier: list[EarlierStep] = field(default_factory=list)
    """Those that were begun first come first."""
