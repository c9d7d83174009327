"""The rules on the way back: close, seal or wait until it is quiet, know, reverse, settle."""

import math

from sagafence.external_steps.forward import about_this_call, happened, heard_do
from sagafence.external_steps.state import (
    CLOSING,
    Act,
    Answer,
    Facts,
    Next,
    Phase,
    Question,
    Seal,
    Step,
    arrived,
    asking,
    done,
    permitted,
)

CLAIMS_BEFORE_ASKING = 5
"""How many claims in a row may settle nothing before a look is tried, or a question put down for a person.

Counted when they are permitted: one that hangs until its attempt is over is never heard.
"""


def settled(step: Step, *, pivot: bool) -> tuple[Step, Next]:
    """Close the step for good: no effect is left, and none can come."""
    phase = Phase.NEVER if pivot else Phase.UNDONE
    return step._replace(phase=phase, question=None), Next(Act.SETTLED)


def begin_undo(  # noqa: PLR0911 - one way out for each way to settle
    facts: Facts, step: Step, now: float, *, pivot: bool
) -> tuple[Step, Next]:
    """Close the step for new calls, and say how to settle it. A pivot is settled and never reversed."""
    if step.phase is Phase.INTENDED and not step.permitted:
        return settled(step, pivot=pivot)
    if (ending := _is_over(step, pivot=pivot)) is not None:
        return ending
    step = step._replace(phase=Phase.SETTLING if pivot else Phase.UNDOING)
    if step.seal is Seal.FOREIGN:
        return asking(step)
    if facts.provider.frees_keys and not facts.quiet(step, now):
        return step, facts.wait(step)
    if (ending := _without_asking(facts, step, now, pivot=pivot)) is not None:
        return ending
    if facts.voids:
        # The provider is asked, so no person is: a void under way may yet make their word untrue.
        n = step.permitted + 1
        return step._replace(permitted=n, question=None), Next(Act.VOID, n, was_quiet=facts.quiet(step, now))
    if facts.may_repeat(step, now) and (step.doubts < CLAIMS_BEFORE_ASKING or not facts.can_look):
        was_quiet = facts.quiet(step, now)
        question = Question.IS_IT_THERE if step.doubts >= CLAIMS_BEFORE_ASKING else step.question
        step, n = permitted(step._replace(doubts=step.doubts + 1, question=question), now)
        return step, Next(Act.SEND, n, was_quiet=was_quiet)
    return (step, Next(Act.LOOK)) if facts.can_look else asking(step)


def _is_over(step: Step, *, pivot: bool) -> tuple[Step, Next] | None:
    if step.phase is Phase.DONE and (pivot or step.stands):
        return step, Next(Act.FORWARD)
    if step.phase in {Phase.UNDONE, Phase.RESOLVED} or (pivot and step.phase is Phase.NEVER):
        return step, Next(Act.SETTLED)
    if step.phase is Phase.NEVER:
        return settled(step, pivot=False) if step.question is None else asking(step, step.question)
    if step.phase is (Phase.UNDOING if pivot else Phase.SETTLING):
        return step, Next(Act.IMPOSSIBLE)
    return None


def _without_asking(facts: Facts, step: Step, now: float, *, pivot: bool) -> tuple[Step, Next] | None:
    """Use what is known whatever the network still does."""
    final = step.seal is Seal.SEALED or facts.answered(step)
    if not final or step.seal is Seal.SILENT:
        return None
    if not step.known or step.reversed:
        return settled(step, pivot=pivot)
    return None if facts.voids else reversal(facts, step, now)


def reversal(facts: Facts, step: Step, now: float) -> tuple[Step, Next]:
    """Permit a reversal, unless it could reverse twice."""
    if not facts.provider.reversal_is_idempotent:
        repeats = bool(step.reversing) or step.reversed
        if repeats and not (facts.has_keys and facts.within_window(step.rev_first, now)):
            return asking(step, Question.WAS_IT_REVERSED)
    n = step.permitted + 1
    first = now if step.rev_first is None else step.rev_first
    step = step._replace(permitted=n, reversing=step.reversing | {n}, rev_first=first, rev_last=now)
    return step, Next(Act.REVERSE, n)


def heard_claim(  # noqa: PLR0911, PLR0913 - an answer, and what held when its call was permitted
    facts: Facts, step: Step, sent: Next, answer: Answer, now: float, *, pivot: bool
) -> tuple[Step, Next]:
    """Record what the repeated request heard."""
    if step.phase not in CLOSING:
        return heard_do(facts, step, sent.n, answer, now), Next(Act.AGAIN)
    n, less = sent.n, step._replace(live=step.live - {sent.n})
    if answer is Answer.OK:
        if not facts.seals and sent.was_quiet:
            # What was permitted before is too old to act; another undo's claim, permitted since, is not.
            less = less._replace(live=frozenset(other for other in less.live if other > n))
        return happened(facts, step, less), Next(Act.AGAIN)
    if answer is Answer.REFUSED and not step.known:
        # A refusal that is not stored was decided past the key: whatever was quiet by then had not acted.
        alone = not facts.provider.duplicates and (not less.live or (sent.was_quiet and step.permitted == n))
        if facts.stores_errors or alone:
            return settled(less, pivot=pivot)
        if facts.late < math.inf:
            return less, facts.wait(less)
        # Refused, and what was permitted before may still act: a repeat hears the same.
        return _unsettled(facts, less._replace(doubts=CLAIMS_BEFORE_ASKING))
    noted = about_this_call(facts, step, less, answer, now)
    if noted.known or facts.answered(noted) or noted.seal is not step.seal:
        return noted, Next(Act.AGAIN)
    return _unsettled(facts, noted)


def _unsettled(facts: Facts, step: Step) -> tuple[Step, Next]:
    if step.doubts < CLAIMS_BEFORE_ASKING:
        return step, Next(Act.ASK if step.question is Question.IS_IT_THERE else Act.RETRY)
    return (step, Next(Act.AGAIN)) if facts.can_look else asking(step)


def heard_void(facts: Facts, step: Step, sent: Next, answer: Answer, *, pivot: bool) -> tuple[Step, Next]:
    """Record what a void heard."""
    if step.phase not in CLOSING:
        return step, Next(Act.AGAIN)
    if answer is Answer.STANDS:
        return done(step, facts)._replace(stands=True), Next(Act.FORWARD)
    if answer is not Answer.OK:
        return step, Next(Act.RETRY)
    if (facts.provider.void_blocks and not facts.provider.frees_keys) or sent.was_quiet:
        return settled(step, pivot=pivot)
    return step, facts.wait(step)


def heard_reversal(facts: Facts, step: Step, n: int, answer: Answer) -> tuple[Step, Next]:
    """Record what a reversal heard."""
    if answer in {Answer.UNKNOWN, Answer.STORED_FAILURE, Answer.KEY_REUSED}:
        return step, Next(Act.RETRY)
    step = step._replace(reversing=step.reversing - {n})
    if step.phase is not Phase.UNDOING:
        return step, Next(Act.AGAIN)
    if answer is Answer.STANDS:
        return done(step, facts)._replace(stands=True), Next(Act.FORWARD)
    if answer is not Answer.OK:
        return step, Next(Act.RETRY)
    step = step._replace(reversed=True)
    if step.seal is Seal.SEALED or facts.answered(step):
        return settled(step, pivot=False)
    return step, Next(Act.AGAIN)


def look_failed(facts: Facts, step: Step, now: float) -> tuple[Step, Next]:
    """Go on with repeats where a look tells nothing either, and put the question down."""
    if step.phase not in CLOSING or not facts.may_repeat(step, now):
        return step, Next(Act.RETRY)
    return asking(step)


def looked_undo(  # noqa: PLR0911, PLR0913 - a look, and when it was
    facts: Facts, step: Step, now: float, *, found: bool, token: tuple[object, ...], looked_at: float, pivot: bool
) -> tuple[Step, Next]:
    """Use what a look found: presence always, absence only once nothing can come. `looked_at` is before the look."""
    if step.phase not in CLOSING or step.seal is Seal.FOREIGN:
        return step, Next(Act.AGAIN)
    if found and pivot:
        return done(step, facts), Next(Act.AGAIN)
    if found:
        return reversal(facts, arrived(facts, step), now)
    if step.token() != token:
        return step, Next(Act.AGAIN)
    if step.seal is Seal.SILENT:
        if looked_at >= facts.visible_at(step):
            return settled(step, pivot=pivot)
        return step, Next(Act.WAIT, until=facts.visible_at(step))
    if facts.aged(step, looked_at):
        return settled(step, pivot=pivot)
    following = facts.wait(step)
    return asking(step) if following.act is Act.ASK else (step, following)
