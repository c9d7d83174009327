"""The matrix: what can go wrong with each step and each undo, and how the saga must end then."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sagafence.testing.description import Counts, Step

TIMES = 3
"""How often an attempt fails where it fails a few times."""


class Ending(StrEnum):
    """How a saga may end."""

    COMPLETED = "completed"
    UNDONE = "undone"
    EITHER = "completed or undone"


class Kind(StrEnum):
    """What goes wrong."""

    PLAIN = "plain"
    CANCEL_AT_THE_START = "cancel-at-the-start"

    DO_FAILS_THEN_WORKS = "do-fails-then-works"
    DO_REFUSED = "do-refused"
    DO_GIVES_UP = "do-gives-up"
    DO_REPORT_LOST = "do-report-lost"
    DO_REPORT_LOST_FOR_GOOD = "do-report-lost-for-good"
    DO_LATE = "do-late"
    DO_LATE_AFTER_A_REPEAT = "do-late-after-a-repeat"

    CANCEL_BEFORE_EFFECT = "cancel-before-effect"
    CANCEL_AFTER_EFFECT = "cancel-after-effect"
    CANCEL_BESIDE_REPORT = "cancel-beside-report"

    UNDO_FAILS_THEN_WORKS = "undo-fails-then-works"
    UNDO_REPEATED = "undo-repeated"
    UNDO_LATE = "undo-late"
    UNDO_STUCK = "undo-stuck"
    UNDO_CANCELLED_BEFORE = "undo-cancelled-before"
    UNDO_CANCELLED_AFTER = "undo-cancelled-after"

    DO_RESTARTED_BEFORE = "do-restarted-before"
    DO_RESTARTED_AFTER = "do-restarted-after"
    UNDO_RESTARTED_BEFORE = "undo-restarted-before"
    UNDO_RESTARTED_AFTER = "undo-restarted-after"


STORIES = {
    Kind.PLAIN: "nothing went wrong",
    Kind.CANCEL_AT_THE_START: "a cancel was asked for before the saga's first task",
    Kind.DO_FAILS_THEN_WORKS: f"{{do}} failed {TIMES} times without effect, and would then have worked",
    Kind.DO_REFUSED: "{do} failed for good, without effect",
    Kind.DO_GIVES_UP: f"{{do}} failed {TIMES} times without effect and was not tried again",
    Kind.DO_REPORT_LOST: "{do} took effect, its report was lost, and it was tried again",
    Kind.DO_REPORT_LOST_FOR_GOOD: "{do} took effect and was reported as failed for good",
    Kind.DO_LATE: "an attempt of {do} timed out, the saga ended, and only then did the attempt act",
    Kind.DO_LATE_AFTER_A_REPEAT: "an attempt of {do} timed out, a second one worked, and the first acted after the end",
    Kind.CANCEL_BEFORE_EFFECT: "a cancel was asked for while {do} had begun and had no effect yet",
    Kind.CANCEL_AFTER_EFFECT: "a cancel was asked for while {do} had taken effect and not reported it yet",
    Kind.CANCEL_BESIDE_REPORT: "a cancel was asked for at the moment at which {do} reported",
    Kind.UNDO_FAILS_THEN_WORKS: f"{{undo}} failed {TIMES} times without effect, and would then have worked",
    Kind.UNDO_REPEATED: "{undo} took effect, its report was lost, and it was tried again",
    Kind.UNDO_LATE: "an attempt of {undo} timed out, a second one worked, and the first acted after the end",
    Kind.UNDO_STUCK: "{undo} failed for good, round after round, until it was fixed and tried again",
    Kind.UNDO_CANCELLED_BEFORE: "a cancel was asked for while {undo} had begun and had no effect yet",
    Kind.UNDO_CANCELLED_AFTER: "a cancel was asked for while {undo} had taken effect and not reported it yet",
    Kind.DO_RESTARTED_BEFORE: "the worker was lost while {do} had begun and had no effect yet",
    Kind.DO_RESTARTED_AFTER: "the worker was lost while {do} had taken effect and not reported it yet",
    Kind.UNDO_RESTARTED_BEFORE: "the worker was lost while {undo} had begun and had no effect yet",
    Kind.UNDO_RESTARTED_AFTER: "the worker was lost while {undo} had taken effect and not reported it yet",
}
"""What happened, in words."""

_COMPLETE = {
    Kind.PLAIN,
    Kind.DO_FAILS_THEN_WORKS,
    Kind.DO_REPORT_LOST,
    Kind.DO_LATE_AFTER_A_REPEAT,
    Kind.DO_RESTARTED_BEFORE,
    Kind.DO_RESTARTED_AFTER,
}
_OF_NO_STEP = (Kind.PLAIN, Kind.CANCEL_AT_THE_START)
_OF_A_STEP = tuple(kind for kind in Kind if kind not in _OF_NO_STEP)


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    kind: Kind
    steps: Sequence[Step]
    step: Step | None = None

    def __str__(self) -> str:
        return f"{self.step.name}-{self.kind}" if self.step else str(self.kind)

    @property
    def story(self) -> str:
        """Say what goes wrong."""
        return STORIES[self.kind].format(do=self.step and self.step.do, undo=self.step and self.step.undo)

    @property
    def ending(self) -> Ending:
        """How the saga must end."""
        if self.kind in _COMPLETE:
            return Ending.COMPLETED
        if self.kind is Kind.CANCEL_BESIDE_REPORT:
            return Ending.EITHER
        if self.step is not None and self.step.is_irrevocable:
            if self.kind in {Kind.DO_REPORT_LOST_FOR_GOOD, Kind.CANCEL_AFTER_EFFECT}:
                return Ending.COMPLETED
            if self.kind is Kind.CANCEL_BEFORE_EFFECT:  # depends on whether the attempt listens to cancels
                return Ending.EITHER
        return Ending.UNDONE

    @property
    def whole_effect(self) -> Counts:
        """By how much a saga that completes changes the world."""
        return total(self.steps)

    @property
    def effect_so_far(self) -> Counts:
        """By how much the steps up to and with this one change the world."""
        assert self.step is not None
        return total(self.steps[: self.steps.index(self.step) + 1])


def matrix(steps: Sequence[Step], *, can_be_retried: bool = False) -> list[Case]:
    """Generate every case of these steps, the first that the saga does first.

    Args:
        steps: all steps of the saga; they run one after the other.
        can_be_retried: the saga waits with an undo that fails for good, and its description says how to `retry`.
    """
    if not steps or any(step.is_irrevocable for step in steps[:-1]):
        raise ValueError("a saga has at least one step, and only its last one can be irrevocable")
    if len({step.name for step in steps}) < len(steps):
        raise ValueError("two steps have the same name")
    return [
        *(Case(kind, steps) for kind in _OF_NO_STEP),
        *(
            Case(kind, steps, step)
            for step in steps
            for kind in _OF_A_STEP
            if (can_be_retried or kind is not Kind.UNDO_STUCK)
            and not (step.is_irrevocable and kind.value.startswith("undo-"))
        ),
    ]


def total(steps: Sequence[Step]) -> Counts:
    """Add up the effects of some steps, without sums of zero."""
    names = {name for step in steps for name in step.effect}
    sums = {name: sum(step.effect.get(name, 0) for step in steps) for name in sorted(names)}
    return {name: count for name, count in sums.items() if count}
