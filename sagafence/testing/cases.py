"""The matrix: what can go wrong with each step and each undo, and how the saga must end then."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from sagafence.testing.description import Counts, Step, Together
from sagafence.testing.plan import Bounds, Plan, total

ONE_ATTEMPT = timedelta(seconds=1)
"""The timeout of an attempt that hangs; long enough for one that does not."""
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
    DO_COMMIT_LOST = "do-commit-lost"
    DO_LATE = "do-late"
    DO_LATE_AFTER_A_REPEAT = "do-late-after-a-repeat"
    DO_STUCK = "do-stuck"

    BESIDE_A_REFUSAL_BEFORE = "beside-a-refusal-before"
    BESIDE_A_REFUSAL_AFTER = "beside-a-refusal-after"

    CANCEL_BEFORE_EFFECT = "cancel-before-effect"
    CANCEL_AFTER_EFFECT = "cancel-after-effect"
    CANCEL_BESIDE_REPORT = "cancel-beside-report"

    UNDO_FAILS_THEN_WORKS = "undo-fails-then-works"
    UNDO_REPEATED = "undo-repeated"
    UNDO_COMMIT_LOST = "undo-commit-lost"
    UNDO_LATE = "undo-late"
    UNDO_STUCK = "undo-stuck"
    UNDO_CANCELLED_BEFORE = "undo-cancelled-before"
    UNDO_CANCELLED_AFTER = "undo-cancelled-after"

    DO_RESTARTED_BEFORE = "do-restarted-before"
    DO_RESTARTED_AFTER = "do-restarted-after"
    UNDO_RESTARTED_BEFORE = "undo-restarted-before"
    UNDO_RESTARTED_AFTER = "undo-restarted-after"

    PROVIDER_ACTS_THEN_500 = "provider-acts-then-500"
    PROVIDER_ACTS_IN_SILENCE = "provider-acts-in-silence"
    PROVIDER_HEARS_TWICE = "provider-hears-twice"
    PROVIDER_IS_BUSY = "provider-is-busy"
    PROVIDER_ACTS_THEN_500_FOR_GOOD = "provider-acts-then-500-for-good"
    PROVIDER_ANSWERS_LATE = "provider-answers-late"
    PROVIDER_ACTS_LATE = "provider-acts-late"
    UNDO_PROVIDER_ACTS_THEN_500 = "undo-provider-acts-then-500"
    UNDO_PROVIDER_ACTS_IN_SILENCE = "undo-provider-acts-in-silence"
    UNDO_PROVIDER_HEARS_TWICE = "undo-provider-hears-twice"


STORIES = {
    Kind.PLAIN: "nothing went wrong",
    Kind.CANCEL_AT_THE_START: "a cancel was asked for before the saga's first task",
    Kind.DO_FAILS_THEN_WORKS: f"{{do}} failed {TIMES} times without effect, and would then have worked",
    Kind.DO_REFUSED: "{do} failed for good, without effect",
    Kind.DO_GIVES_UP: f"{{do}} failed {TIMES} times without effect and was not tried again",
    Kind.DO_REPORT_LOST: "{do} took effect, its report was lost, and it was tried again",
    Kind.DO_REPORT_LOST_FOR_GOOD: "{do} took effect and was reported as failed for good",
    Kind.DO_COMMIT_LOST: "{do} had run when its COMMIT failed and all was rolled back, and it was tried again",
    Kind.DO_LATE: "an attempt of {do} timed out, the saga ended, and only then did the attempt act",
    Kind.DO_LATE_AFTER_A_REPEAT: "an attempt of {do} timed out, a second one worked, and the first acted after the end",
    Kind.DO_STUCK: "{do} failed for good, again and again, until it was mended and tried again",
    Kind.BESIDE_A_REFUSAL_BEFORE: "a step beside it failed for good while {do} had begun and had no effect yet",
    Kind.BESIDE_A_REFUSAL_AFTER: "a step beside it failed for good while {do} had taken effect and not reported it yet",
    Kind.CANCEL_BEFORE_EFFECT: "a cancel was asked for while {do} had begun and had no effect yet",
    Kind.CANCEL_AFTER_EFFECT: "a cancel was asked for while {do} had taken effect and not reported it yet",
    Kind.CANCEL_BESIDE_REPORT: "a cancel was asked for at the moment at which {do} reported",
    Kind.UNDO_FAILS_THEN_WORKS: f"{{undo}} failed {TIMES} times without effect, and would then have worked",
    Kind.UNDO_REPEATED: "{undo} took effect, its report was lost, and it was tried again",
    Kind.UNDO_COMMIT_LOST: "{undo} had run when its COMMIT failed and all was rolled back, and it was tried again",
    Kind.UNDO_LATE: "an attempt of {undo} timed out, a second one worked, and the first acted after the end",
    Kind.UNDO_STUCK: "{undo} failed for good, round after round, until it was fixed and tried again",
    Kind.UNDO_CANCELLED_BEFORE: "a cancel was asked for while {undo} had begun and had no effect yet",
    Kind.UNDO_CANCELLED_AFTER: "a cancel was asked for while {undo} had taken effect and not reported it yet",
    Kind.DO_RESTARTED_BEFORE: "the worker was lost while {do} had begun and had no effect yet",
    Kind.DO_RESTARTED_AFTER: "the worker was lost while {do} had taken effect and not reported it yet",
    Kind.UNDO_RESTARTED_BEFORE: "the worker was lost while {undo} had begun and had no effect yet",
    Kind.UNDO_RESTARTED_AFTER: "the worker was lost while {undo} had taken effect and not reported it yet",
    Kind.PROVIDER_ACTS_THEN_500: "the provider acted on {calls} and answered 500",
    Kind.PROVIDER_ACTS_IN_SILENCE: "the provider acted on {calls} and did not answer",
    Kind.PROVIDER_HEARS_TWICE: "the provider heard {calls} twice, and the second answer came back",
    Kind.PROVIDER_IS_BUSY: f"the provider answered 409 to {{calls}} {TIMES} times: in progress; then it acted",
    Kind.PROVIDER_ACTS_THEN_500_FOR_GOOD: "the provider acted on {calls} and answered 500 until {do} gave up",
    Kind.PROVIDER_ANSWERS_LATE: "the provider acted on {calls}, and answered after the end; {do} gave up meanwhile",
    Kind.PROVIDER_ACTS_LATE: "{calls} came to the provider after the end, when {do} had given up and was undone",
    Kind.UNDO_PROVIDER_ACTS_THEN_500: "the provider acted on {undo_calls} and answered 500",
    Kind.UNDO_PROVIDER_ACTS_IN_SILENCE: "the provider acted on {undo_calls} and did not answer",
    Kind.UNDO_PROVIDER_HEARS_TWICE: "the provider heard {undo_calls} twice, and the second answer came back",
}
"""What happened, in words."""

_COMPLETE = {
    Kind.PLAIN,
    Kind.DO_FAILS_THEN_WORKS,
    Kind.DO_REPORT_LOST,
    Kind.DO_COMMIT_LOST,
    Kind.DO_LATE_AFTER_A_REPEAT,
    Kind.DO_RESTARTED_BEFORE,
    Kind.DO_RESTARTED_AFTER,
    Kind.PROVIDER_HEARS_TWICE,
    Kind.PROVIDER_IS_BUSY,
}
_CANCELS = {Kind.CANCEL_BEFORE_EFFECT, Kind.CANCEL_AFTER_EFFECT, Kind.CANCEL_BESIDE_REPORT}
_PASSING_STRIKES = {
    Kind.PROVIDER_ACTS_THEN_500,  # a saga may unwind when it cannot know
    Kind.PROVIDER_ACTS_IN_SILENCE,
}
_GIVING_UP = {
    Kind.PROVIDER_ACTS_THEN_500_FOR_GOOD,
    Kind.PROVIDER_ANSWERS_LATE,
    Kind.PROVIDER_ACTS_LATE,
}
_COMMITS = {Kind.DO_COMMIT_LOST, Kind.UNDO_COMMIT_LOST}
_BESIDE = {Kind.BESIDE_A_REFUSAL_BEFORE, Kind.BESIDE_A_REFUSAL_AFTER}
_OF_A_PROVIDER = {kind for kind in Kind if "provider-" in kind.value}
_UNDOS = {kind for kind in Kind if kind.value.startswith("undo-")}
_OF_NO_STEP = (Kind.PLAIN, Kind.CANCEL_AT_THE_START)
_OF_A_STEP = tuple(kind for kind in Kind if kind not in _OF_NO_STEP)
_FORWARD = (
    (_COMPLETE | _CANCELS | _PASSING_STRIKES | {Kind.DO_STUCK}) - set(_OF_NO_STEP)  # what cannot turn the saga back
)
_PAST_LOCAL = (
    set(_OF_A_STEP) - _UNDOS - _OF_A_PROVIDER - _BESIDE - {Kind.DO_FAILS_THEN_WORKS}  # that one passes both
)


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    kind: Kind
    plan: Plan
    step: Step | None = None
    is_past_local: bool = False
    """The local attempt has failed already, and the fault is the ordinary one's."""

    def __str__(self) -> str:
        name = f"{self.step.name}-{self.kind}" if self.step else str(self.kind)
        return f"{name}-past-local" if self.is_past_local else name

    @property
    def story(self) -> str:
        """Say what goes wrong."""
        if self.step is None:
            return STORIES[self.kind]
        told = STORIES[self.kind].format(
            do=self.step.do, undo=self.step.undo, calls=self.step.calls, undo_calls=self.step.undo_calls
        )
        return f"after its local attempt, {told}" if self.is_past_local else told

    @property
    def is_local(self) -> bool:
        """Whether the fault is the local attempt's."""
        return self.step is not None and self.step.is_local_first and not self.is_past_local

    @property
    def ending(self) -> Ending:
        """How the saga must end."""
        if self.kind in _COMPLETE or (self.step is not None and self.plan.is_forward(self.step)):
            return Ending.COMPLETED
        if self.kind is Kind.CANCEL_BESIDE_REPORT or self.kind in _PASSING_STRIKES:
            return Ending.EITHER
        if self.step is not None and self.step.is_irrevocable:
            if self.kind in {Kind.DO_REPORT_LOST_FOR_GOOD, Kind.CANCEL_AFTER_EFFECT}:
                return Ending.COMPLETED
            # It depends on whether the attempt listens to cancels, and on how the saga finds out what has happened.
            if self.kind is Kind.CANCEL_BEFORE_EFFECT or self.kind in _GIVING_UP:
                return Ending.EITHER
        # A saga hears of a cancel when its local attempt is over, and may have its end in the same task.
        if self.is_local and (self.kind in _CANCELS or self.kind in _GIVING_UP):
            return Ending.EITHER
        return Ending.UNDONE

    @property
    def whole_effect(self) -> Counts:
        """By how much a saga that completes changes the world."""
        return total(self.plan.steps)

    @property
    def effect_so_far(self) -> Bounds:
        """By how much the steps up to and with this one change the world."""
        assert self.step is not None
        return self.plan.effect_after(self.step)


def matrix(steps: Sequence[Step | Together], *, can_be_retried: bool = False) -> list[Case]:
    """Generate every case of these steps, the first that the saga does first.

    Args:
        steps: all steps of the saga; they run one after the other, but for those that run `Together`.
        can_be_retried: the saga waits with an undo that fails for good, and with a step after its point of no return
            that does, and its description says how to `retry`.
    """
    plan = Plan(steps)
    return [
        *(Case(kind, plan) for kind in _OF_NO_STEP),
        *(
            case
            for step in plan.steps
            for kind in _OF_A_STEP
            if _concerns(plan, step, kind, can_be_retried=can_be_retried)
            for case in _routes(plan, step, kind)
        ),
    ]


def _concerns(plan: Plan, step: Step, kind: Kind, *, can_be_retried: bool) -> bool:
    """Whether a kind of case makes sense for a step."""
    makes_no_sense = (
        (kind in {Kind.UNDO_STUCK, Kind.DO_STUCK} and not can_be_retried)
        or (kind in _OF_A_PROVIDER and not (step.undo_calls if kind in _UNDOS else step.calls))
        or (kind in _COMMITS and not step.is_transaction)
        or (kind is Kind.PROVIDER_ACTS_LATE and not step.can_be_late)
        or (kind in _BESIDE and not plan.beside(step))
        # Nothing settles what became of it, so it must not give up.
        or (not step.undo and kind in {Kind.DO_GIVES_UP, Kind.DO_LATE, *_GIVING_UP})
    )
    if makes_no_sense:
        return False
    if plan.is_forward(step):
        return kind in _FORWARD
    return kind is not Kind.DO_STUCK and (plan.can_be_undone(step) or kind not in _UNDOS)


def _routes(plan: Plan, step: Step, kind: Kind) -> Iterator[Case]:
    yield Case(kind, plan, step)
    if step.is_local_first and kind in _PAST_LOCAL:
        yield Case(kind, plan, step, is_past_local=True)
