"""The rules of what a person says: each word leads on, and none counts while a call could still contradict it."""

from sagafence.external_steps.state import Facts, Phase, Question, Seal, Step, done
from sagafence.provider import Verdict

SETTLED_ALREADY = "it is settled already: reverse by hand what came late, and say undone_by_hand"


def said(facts: Facts, step: Step, verdict: Verdict, looked_at: float, changed: float) -> Step | str:
    """Take a person's word on a parked step, or say why it does not count.

    `looked_at` is when they looked, or undid it; `changed`, when a call was last permitted or answered.
    """
    if (why_not := _why_not(facts, step, verdict, looked_at, changed)) is not None:
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


def _why_not(facts: Facts, step: Step, verdict: Verdict, looked_at: float, changed: float) -> str | None:
    if step.question is None:
        return "no person is asked about it"
    if step.question is Question.CAME_LATE:
        return SETTLED_ALREADY if verdict is Verdict.HAPPENED else None
    if verdict is Verdict.NEVER and step.known:
        return "it is known to have happened"
    # Whoever has seen the object has seen that its call arrived; where no second one can act, that is enough.
    alone = not facts.provider.duplicates and (facts.seals or len(step.live) <= 1)
    is_last = verdict is Verdict.HAPPENED or (verdict is Verdict.UNDONE_BY_HAND and step.phase is not Phase.INTENDED)
    if not _nothing_came_after(facts, step, looked_at, changed) and not (alone and is_last):
        return "a call may have acted after that look, or be under way still; look again once none is"
    could_add = bool(step.reversing) and not facts.provider.reversal_is_idempotent
    if could_add and step.rev_last is not None and looked_at <= step.rev_last + facts.late:
        return "a reversal may have acted after that look, or be under way still; look again once none is"
    return None


def _nothing_came_after(facts: Facts, step: Step, looked_at: float, changed: float) -> bool:
    """Whether the look was after all that was sent could act, and showed it."""
    if step.seal is Seal.SILENT and step.last is not None:
        return looked_at > changed and looked_at >= step.last + facts.lag
    if step.seal is not Seal.OPEN or facts.aged(step, looked_at):
        return True
    return facts.answered(step) and looked_at > changed


def _happened(facts: Facts, step: Step) -> Step:
    if step.phase is not Phase.UNDOING:
        return done(step, facts)
    return step._replace(
        known=True, seal=Seal.SEALED, reversing=frozenset(), reversed=False, rev_first=None, rev_last=None
    )
