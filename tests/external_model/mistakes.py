"""Mistakes that the model must find: each replaces one rule, or drops one assumption, and names what must break."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sagafence.external_steps import backward, forward, verdicts
from sagafence.external_steps.state import Act, Answer, Facts, Next, Phase, Seal, Step, done
from tests.external_model.scenes import FIRST, LOOK, OBJECTS, PERSON, REPEAT, SUCCESSES, VOID, provider
from tests.external_model.world import Rules, Scene


@dataclass(frozen=True)
class Mistake:
    name: str
    breaks: str
    scene: Scene
    counterexample: str = ""
    """The number in the list that the protocol came with."""


# ------------------------------------------------------------------------------------------------------ rules, replaced
def believes(
    *,
    aged: bool = False,
    window: bool = False,
    lag: bool = False,
    first: bool = False,
    stores: bool = False,
    **provider_is: Any,
) -> Callable[..., Facts]:
    """Make facts that believe what is not so."""

    class Believes(Facts):
        def __init__(self, declared: Any, *, can_look: bool) -> None:
            super().__init__(replace(declared, **provider_is), can_look=can_look)
            self.lag = 0 if lag else self.lag
            self.stores_errors = self.stores_errors or stores

        def within_window(self, first_at: float | None, now: float) -> bool:
            return window or super().within_window(first_at, now)

        def aged_at(self, step: Step) -> float:
            if aged:
                return -math.inf
            return super().aged_at(step._replace(last=step.first)) if first else super().aged_at(step)

    return Believes


def takes(rule: Any, wrong: set[Answer], right: Answer) -> Any:
    """Take answers for another."""

    def taking(facts: Facts, step: Step, sent: Any, answer: Answer, now: float, **more: Any) -> Any:
        return rule(facts, step, sent, right if answer in wrong else answer, now, **more)

    return taking


def new_key_for_each_attempt(facts: Facts, step: Step, now: float) -> tuple[Step, Next]:
    after, following = forward.begin_do(facts, step, now)
    return (after._replace(generation=after.permitted), following) if following.act is Act.SEND else (after, following)


def no_tombstone(facts: Facts, step: Step, now: float, *, pivot: bool) -> tuple[Step, Next]:
    return backward.begin_undo(facts, step, now, pivot=pivot) if step.permitted else (step, Next(Act.SETTLED))


def no_fence(facts: Facts, step: Step, now: float) -> tuple[Step, Next]:
    after, following = forward.begin_do(facts, step._replace(phase=Phase.INTENDED), now)
    return after._replace(phase=step.phase), following


def remembered_id_alone(facts: Facts, step: Step, now: float, *, pivot: bool) -> tuple[Step, Next]:
    after, following = backward.begin_undo(facts, step, now, pivot=pivot)
    return backward.settled(after, pivot=pivot) if following.act is Act.SEND and not after.known else (after, following)


def counted_calls(facts: Facts, step: Step, n: int, answer: Answer, now: float) -> Step:
    return forward.heard_do(facts, step, min(step.live, default=n), answer, now)


def stale_absence(facts: Facts, step: Step, now: float, *, found: bool, pivot: bool, **_: Any) -> tuple[Step, Next]:
    if found or not facts.quiet(step, now) or step.phase is not Phase.UNDOING:
        return backward.looked_undo(facts, step, now, found=found, token=step.token(), looked_at=now, pivot=pivot)
    return backward.settled(step, pivot=pivot)


def window_from_the_last_call(facts: Facts, step: Step, now: float) -> tuple[Step, Next]:
    return forward.begin_do(facts, step._replace(first=step.last), now)


def void_once(facts: Facts, step: Step, sent: Next, answer: Answer, *, pivot: bool) -> tuple[Step, Next]:
    return backward.heard_void(facts, step, sent._replace(was_quiet=True), answer, pivot=pivot)


def new_key_for_each_reversal(facts: Facts, step: Step, now: float, *, pivot: bool) -> tuple[Step, Next]:
    after, following = backward.begin_undo(facts, step, now, pivot=pivot)
    return (
        (after._replace(generation=after.permitted), following) if following.act is Act.REVERSE else (after, following)
    )


def reverses_after_expiry(facts: Facts, step: Step, now: float, *, pivot: bool) -> tuple[Step, Next]:
    return backward.begin_undo(facts, step._replace(rev_first=None), now, pivot=pivot)


def done_over_undone(facts: Facts, step: Step, n: int, answer: Answer, now: float) -> Step:
    return done(step, facts) if answer is Answer.OK else forward.heard_do(facts, step, n, answer, now)


def hasty_word(facts: Facts, step: Step, verdict: Any, looked_at: float, changed: float) -> Step | str:
    return verdicts.said(facts, step._replace(live=frozenset()), verdict, looked_at, changed)


def word_beside_a_reversal(facts: Facts, step: Step, verdict: Any, looked_at: float, changed: float) -> Step | str:
    return verdicts.said(facts, step._replace(reversing=frozenset()), verdict, looked_at, changed)


def look_of_before(facts: Facts, step: Step, verdict: Any, _looked_at: float, changed: float) -> Step | str:
    return verdicts.said(facts, step, verdict, 0, changed)


def look_before_a_reversal(facts: Facts, step: Step, verdict: Any, looked_at: float, changed: float) -> Step | str:
    return verdicts.said(facts, step._replace(rev_last=None), verdict, looked_at, changed)


def look_before_the_answer(facts: Facts, step: Step, verdict: Any, looked_at: float, _changed: float) -> Step | str:
    return verdicts.said(facts, step, verdict, looked_at, -math.inf)


def sends_again(facts: Facts, step: Step, now: float) -> tuple[Step, Next]:
    after, following = forward.begin_do(facts, step._replace(live=frozenset()), now)
    return after._replace(live=after.live | step.live), following


def unwinds_meanwhile(facts: Facts, step: Step, now: float, *, pivot: bool) -> tuple[Step, Next]:
    after, following = backward.begin_undo(facts, step, now, pivot=pivot)
    return after, Next(Act.SETTLED) if following.act is Act.ASK else following


def success_over_a_void(facts: Facts, step: Step, n: int, answer: Answer, now: float) -> Step:
    is_late = answer is Answer.OK and step.phase is Phase.SETTLING
    return done(step, facts) if is_late else forward.heard_do(facts, step, n, answer, now)


def question_stays_beside_a_void(facts: Facts, step: Step, now: float, *, pivot: bool) -> tuple[Step, Next]:
    after, following = backward.begin_undo(facts, step, now, pivot=pivot)
    return (after._replace(question=step.question), following) if following.act is Act.VOID else (after, following)


def window_begins_anew(facts: Facts, step: Step, *, found: bool, token: Any, looked_at: float) -> tuple[Step, Next]:
    after, following = forward.looked_do(facts, step, found=found, token=token, looked_at=looked_at)
    if following.act is Act.ASK and not found and step.seal is Seal.OPEN and facts.quiet(step, looked_at):
        return step._replace(live=frozenset(), first=None, last=None), Next(Act.AGAIN)
    return after, following


K = provider(REPEAT)
_ADDITIVE: dict[str, Any] = {"reversal_is_idempotent": False}


def _wrong(declared: Any, **more: Any) -> Scene:
    rules = Rules(**{name: more.pop(name) for name in list(more) if name in Rules.__dataclass_fields__})
    return Scene("", declared, rules=rules, **({"faults": 0} | more))


_UNSURE = {Answer.UNKNOWN, Answer.STORED_FAILURE}
_LOOK1 = provider(LOOK, late=1)

MISTAKES = (
    Mistake("absence is believed at once", "E3", _wrong(_LOOK1, look=True, facts=believes(aged=True)), "1"),
    Mistake("each attempt has a new key", "E1", _wrong(K, begin_do=new_key_for_each_attempt), "2"),
    Mistake("an undo before the do leaves no tombstone", "E3", _wrong(K, begin_undo=no_tombstone), "3"),
    Mistake("a do does not ask the fence", "E3", _wrong(K, begin_do=no_fence), "4"),
    Mistake(
        "a 500 means not done",
        "E2",
        _wrong(K, faults=1, heard_do=takes(forward.heard_do, {Answer.UNKNOWN}, Answer.REFUSED)),
        "5",
    ),
    Mistake("the undo reverses a remembered id alone", "E", _wrong(K, begin_undo=remembered_id_alone), "6"),
    Mistake(
        "a claim's 500 means not done",
        "E",
        _wrong(K, faults=1, heard_claim=takes(backward.heard_claim, _UNSURE, Answer.REFUSED)),
        "7",
    ),
    Mistake(
        "calls are counted, not numbered",
        "E",
        _wrong(_LOOK1, look=True, dos=3, faults=1, heard_do=counted_calls),
        "8",
    ),
    Mistake(
        "an absence is used after a success", "E", _wrong(provider(LOOK), look=True, looked_undo=stale_absence), "9"
    ),
    Mistake(
        "an expired key is sent",
        "E1",
        _wrong(provider(REPEAT, kept=2, late=1), facts=believes(window=True)),
        "10",
    ),
    Mistake(
        "the window is counted from the last call",
        "E1",
        _wrong(provider(REPEAT, kept=3, late=1), dos=3, undos=0, begin_do=window_from_the_last_call),
        "10",
    ),
    Mistake(
        "what is about one call is taken for a refusal",
        "E2",
        _wrong(K, faults=1, heard_do=takes(forward.heard_do, {Answer.REJECTED}, Answer.REFUSED)),
        "11",
    ),
    Mistake(
        "a claim that is turned away is taken for a refusal",
        "E",
        _wrong(K, faults=1, heard_claim=takes(backward.heard_claim, {Answer.REJECTED}, Answer.REFUSED)),
        "11",
    ),
    Mistake(
        "a claim that is turned away when it is quiet settles",
        "E",
        _wrong(
            provider(REPEAT, SUCCESSES, late=1),
            faults=1,
            five_acts=False,
            heard_claim=takes(backward.heard_claim, {Answer.REJECTED}, Answer.REFUSED),
        ),
    ),
    Mistake("an error hides an effect that no key keeps", "E1", _wrong(provider(REPEAT, SUCCESSES), faults=1), "12"),
    Mistake(
        "a refusal that is not stored claims the key",
        "E",
        _wrong(provider(REPEAT, SUCCESSES), faults=1, five_acts=False, facts=believes(stores=True)),
        "12",
    ),
    Mistake(
        "one void where voids do not block",
        "E3",
        _wrong(provider(VOID, late=1, void_blocks=False), heard_void=void_once),
        "13",
    ),
    Mistake(
        "an undo frees the key while a call is under way",
        "E",
        _wrong(provider(REPEAT, OBJECTS, late=1, frees_keys=True), facts=believes(frees_keys=False)),
        "14",
    ),
    Mistake(
        "a void frees the key while a call is under way",
        "E",
        _wrong(
            provider(VOID, FIRST, late=1, void_blocks=False, frees_keys=True),
            facts=believes(frees_keys=False, void_blocks=True),
        ),
        "14",
    ),
    Mistake(
        "each reversal has a new key",
        "reversed",
        _wrong(provider(REPEAT, **_ADDITIVE), undos=2, begin_undo=new_key_for_each_reversal),
        "15",
    ),
    Mistake(
        "a reversal is repeated after its key expired",
        "reversed",
        _wrong(provider(REPEAT, kept=2, late=1, **_ADDITIVE), dos=1, undos=2, begin_undo=reverses_after_expiry),
        "15",
    ),
    Mistake("done is recorded over undone", "E2", _wrong(K, heard_do=done_over_undone), "16"),
    Mistake(
        "a person's never counts while a call is under way",
        "E",
        _wrong(provider(PERSON), said=hasty_word),
        "17",
    ),
    Mistake(
        "after the pivot: the next key on a hasty never",
        "E1",
        _wrong(provider(PERSON), dos=3, undos=0, said=hasty_word),
        "17",
    ),
    Mistake(
        "undone by hand while a reversal is under way",
        "reversed",
        _wrong(provider(PERSON, late=1, **_ADDITIVE), undos=2, said=word_beside_a_reversal),
    ),
    Mistake(
        "a look counts that is older than what was under way",
        "E",
        _wrong(provider(PERSON, late=1), said=look_of_before),
    ),
    Mistake(
        "a look that is older than a reversal counts",
        "reversed",
        _wrong(provider(PERSON, late=1, **_ADDITIVE), dos=1, undos=3, said=look_before_a_reversal),
    ),
    Mistake(
        "a look from before an answer was heard counts",
        "E",
        _wrong(provider(PERSON, FIRST), faults=1, said=look_before_the_answer),
    ),
    Mistake("without keys it is sent again", "E1", _wrong(provider(PERSON), begin_do=sends_again), "18"),
    Mistake(
        "the wait is counted from the first call",
        "E",
        _wrong(provider(LOOK, OBJECTS, late=2, frees_keys=True), look=True, facts=believes(first=True)),
        "18",
    ),
    Mistake(
        "how far a look lags is ignored",
        "E",
        _wrong(provider(LOOK, late=1, lag=2), look=True, dos=1, facts=believes(lag=True)),
        "18",
    ),
    Mistake(
        "an unknown pivot, and the rest is undone",
        "E4",
        _wrong(provider(PERSON), pivot=True, begin_undo=unwinds_meanwhile),
        "18",
    ),
    Mistake("a worker pauses for longer than declared", "E3", _wrong(_LOOK1, look=True, pauses=True)),
    Mistake(
        "copies that nobody declared",
        "E",
        _wrong(provider(REPEAT, duplicates=True), faults=1, facts=believes(duplicates=False)),
    ),
    Mistake(
        "a success counts over a void",
        "E2",
        _wrong(provider(VOID), pivot=True, heard_do=success_over_a_void),
    ),
    Mistake(
        "a person is asked while a void is under way",
        "E2",
        _wrong(provider(VOID), pivot=True, faults=1, begin_undo=question_stays_beside_a_void),
    ),
    Mistake(
        "the window begins anew after a look",
        "E",
        _wrong(provider(REPEAT, kept=2, late=1), look=True, faults=1, looked_do=window_begins_anew),
    ),
)
