"""What is known of an external step, and what its provider's declaration says about time and proof.

The protocol is a set of rules without a database or a network (forward.py, backward.py, verdicts.py). `Step` is what a
step's row and its calls say. A rule takes it and gives the step as it must be stored, and what to do next; steps.py
calls each rule inside a transaction that holds the row's lock, and commits before it acts on it.
The model in tests/external_model runs these same rules against every provider, network and pause that it can think of.

Two words: *sealed* means that no call under the key can act any more, because the provider answers its copies from
memory or refuses them. *Quiet* means that every call that was permitted is answered, or older than the provider may be
late. While a call is unanswered and nothing bounds its lateness, only a seal settles a step.
"""

import math
from datetime import timedelta
from enum import Enum, StrEnum
from typing import NamedTuple

from sagafence.provider import Keeps, Provider, Settles


class Phase(StrEnum):
    """What is known of a step. The sentences are in schema/external.sql."""

    INTENDED = "intended"
    DONE = "done"
    NEVER = "never"
    UNDOING = "undoing"
    SETTLING = "settling"
    UNDONE = "undone"
    RESOLVED = "resolved"


class Seal(StrEnum):
    """Whether a call under the step's key can still act."""

    OPEN = "open"
    SEALED = "sealed"
    SILENT = "silent"
    """It cannot, but the provider only repeats an error: whether one has acted is unknown."""
    FOREIGN = "foreign"
    """The provider has other content under the key. Nothing under it is touched."""


class Question(StrEnum):
    """What a person is asked."""

    IS_IT_THERE = "is_it_there"
    DID_IT_HAPPEN = "did_it_happen"
    WHOSE_IS_THE_KEY = "whose_is_the_key"
    WAS_IT_REVERSED = "was_it_reversed"
    CAME_LATE = "came_late"


class Answer(Enum):
    """What a call heard."""

    OK = "ok"
    REFUSED = "refused"
    REJECTED = "rejected"
    KEY_REUSED = "key reused"
    STORED_FAILURE = "stored failure"
    STANDS = "stands"
    UNKNOWN = "unknown"


class Act(Enum):
    """What to do next."""

    SEND = "send"
    VOID = "void"
    REVERSE = "reverse"
    LOOK = "look"
    AGAIN = "again"
    WAIT = "wait"
    RETRY = "retry"
    ASK = "ask"
    STORED = "stored"
    LATE = "late"
    REFUSED = "refused"
    SETTLED = "settled"
    FORWARD = "forward"
    IMPOSSIBLE = "impossible"


class Next(NamedTuple):
    """What to do next, and what must be remembered for its answer."""

    act: Act
    n: int = 0
    was_quiet: bool = False
    until: float | None = None


class Step(NamedTuple):
    """What is known of one step. Instants are seconds by the database's clock."""

    phase: Phase = Phase.INTENDED
    permitted: int = 0
    live: frozenset[int] = frozenset()
    first: float | None = None
    last: float | None = None
    seal: Seal = Seal.OPEN
    doubts: int = 0
    known: bool = False
    stands: bool = False
    reversing: frozenset[int] = frozenset()
    reversed: bool = False
    rev_first: float | None = None
    rev_last: float | None = None
    question: Question | None = None
    generation: int = 0

    def token(self) -> tuple[object, ...]:
        """Give what must be the same before and after a look: no call was permitted or answered meanwhile."""
        return (self.phase, self.permitted, self.live, self.seal, self.known)


CLOSING = (Phase.SETTLING, Phase.UNDOING)


class Facts:
    """What a provider's declaration says about time and proof."""

    def __init__(self, provider: Provider, *, can_look: bool) -> None:
        self.provider = provider
        self.can_look = can_look
        self.kept = _seconds(provider.keeps_keys_for)
        self.late = _seconds(provider.late_by_at_most)
        self.lag = _seconds(provider.sight_lags_by)
        self.has_keys = provider.has_keys
        self.stores_errors = provider.keeps is Keeps.FIRST_ANSWERS
        self.seals = provider.has_keys and not provider.frees_keys
        self.voids = provider.settles is Settles.BY_VOIDING
        self.repeats = provider.settles is Settles.BY_REPEATING

    def within_window(self, first: float | None, now: float) -> bool:
        """Whether what is sent now arrives before a key can be forgotten that may have been made at `first`."""
        if first is None or self.kept == math.inf:
            return True
        return now + self.late < first + self.kept

    def may_repeat(self, step: Step, now: float) -> bool:
        """Whether the request may be sent again under its key, to find out what became of it."""
        return self.repeats and step.seal is Seal.OPEN and self.within_window(step.first, now)

    def aged_at(self, step: Step) -> float:
        """Give the instant after which every call is too old to act and every effect is visible."""
        return -math.inf if step.last is None else step.last + self.late + self.lag

    def aged(self, step: Step, now: float) -> bool:
        """Whether every permission is that old. Counted from the last one: the first says nothing about others."""
        return now > self.aged_at(step)

    def visible_at(self, step: Step) -> float:
        """Give the instant from which a look shows all that has acted before the last call was permitted or sealed."""
        return -math.inf if step.last is None else step.last + self.lag

    def reversed_by(self, step: Step) -> float:
        """Give the instant after which every reversal is too old to act, and every one that has acted is visible."""
        return -math.inf if step.rev_last is None else step.rev_last + self.late + self.lag

    def late_until(self, step: Step) -> float:
        """Give the instant after which a person's look shows what is asked."""
        if step.question is Question.WAS_IT_REVERSED:
            return self.reversed_by(step)
        return self.visible_at(step) if step.seal is Seal.SILENT else self.aged_at(step)

    def answered(self, step: Step) -> bool:
        """Whether every call was answered, and no copy of one can be under way."""
        return not step.live and not self.provider.duplicates

    def quiet(self, step: Step, now: float) -> bool:
        """Whether nothing that was permitted can still act."""
        return self.answered(step) or self.aged(step, now)

    def wait(self, step: Step) -> Next:
        """Wait until it is quiet; a person is asked where no bound says when that is."""
        at = self.aged_at(step)
        return Next(Act.ASK) if at == math.inf else Next(Act.WAIT, until=at)


def _seconds(span: timedelta | None) -> float:
    return math.inf if span is None else span.total_seconds()


def permitted(step: Step, now: float) -> tuple[Step, int]:
    """Permit one more call that may have the effect."""
    n = step.permitted + 1
    first = now if step.first is None else step.first
    return step._replace(permitted=n, live=step.live | {n}, first=first, last=now), n


def asking(step: Step, question: Question | None = None) -> tuple[Step, Next]:
    """Park the step with a question. Whoever tries again begins with fresh claims."""
    if question is None:
        silent = step.seal is Seal.SILENT
        question = Question.DID_IT_HAPPEN if silent else Question.IS_IT_THERE
        question = Question.WHOSE_IS_THE_KEY if step.seal is Seal.FOREIGN else question
    return step._replace(question=question, doubts=0), Next(Act.ASK)


def arrived(facts: Facts, step: Step) -> Step:
    """Note that an object was seen. Where its key, or a single call, allows no second one, nothing else can come."""
    step = known(step)
    if facts.seals and step.seal is not Seal.FOREIGN:
        return step._replace(seal=Seal.SEALED)
    alone = not facts.has_keys and len(step.live) <= 1
    return step._replace(live=frozenset() if alone else step.live)


def known(step: Step) -> Step:
    """Note that it happened. Whoever was asked whether it did may have looked before it did: their word is void."""
    is_answered = not step.known and step.seal is not Seal.FOREIGN
    return step._replace(known=True, question=None if is_answered else step.question)


def done(step: Step, facts: Facts) -> Step:
    """Note that the step has its effect."""
    seal = Seal.SEALED if facts.seals else step.seal
    return step._replace(phase=Phase.DONE, known=True, seal=seal, question=None)
