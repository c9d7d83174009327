"""The rules of what a person says: each word leads on, and none counts while a call could still contradict it."""

from sagafence.external_steps.state import Facts, Phase, Question, Seal, Step, done
from sagafence.provider import Verdict

SETTLED_ALREADY = "it is settled already: reverse by hand what came late, and say undone_by_hand"


def said(facts: Facts, step: Step, verdict: Verdict, now: float) -> Step | str:
    """Take a person's word on a parked step, or say why it does not count yet."""
    if (why_not := _why_not(facts, step, verdict, now)) is not None:
        return why_not
    if step.question is Question.CAME_LATE:
        return step._replace(question=None)
    step = step._replace(question=None, doubts=0)
    if verdict is Verdict.HAPPENED:
        return _happened(facts, step)
    if step.phase is Phase.UNDOING:
        # Only after "never" does a success that is heard yet contradict what was said.
        return step._replace(phase=Phase.UNDONE if verdict is Verdict.NEVER else Phase.RESOLVED)
    if step.phase is Phase.SETTLING:
        return step._replace(phase=Phase.NEVER)
    # Not closed: the next attempt is sent under the next key.
    return Step(permitted=step.permitted, generation=step.generation + 1)


def _why_not(facts: Facts, step: Step, verdict: Verdict, now: float) -> str | None:
    if step.question is None:
        return "no person is asked about it"
    if step.question is Question.CAME_LATE:
        return SETTLED_ALREADY if verdict is Verdict.HAPPENED else None
    # Whoever has seen the object has seen that its call arrived; where no second one can act, that is enough.
    alone = not facts.provider.duplicates and (facts.seals or len(step.live) <= 1)
    is_last = verdict is Verdict.HAPPENED or (verdict is Verdict.UNDONE_BY_HAND and step.phase is not Phase.INTENDED)
    nothing_comes = step.seal is not Seal.OPEN or facts.quiet(step, now)
    if not nothing_comes and not (alone and is_last):
        return "a call may still be under way, and could act after this word"
    could_add = bool(step.reversing) and not facts.provider.reversal_is_idempotent
    if could_add and step.rev_last is not None and now <= step.rev_last + facts.late:
        return "a reversal may still be under way"
    return None


def _happened(facts: Facts, step: Step) -> Step:
    if step.phase is not Phase.UNDOING:
        return done(step, facts)
    return step._replace(
        known=True, seal=Seal.SEALED, reversing=frozenset(), reversed=False, rev_first=None, rev_last=None
    )
