"""The rules of what a person says: each word leads on, and none counts while a call could still contradict it."""

import math
from datetime import UTC, datetime

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
        return SETTLED_ALREADY if verdict is Verdict.HAPPENED else _unless_after(looked_at, changed)
    if verdict is Verdict.NEVER and step.known:
        return f"it is known to have happened; where nothing of it is left, say {Verdict.UNDONE_BY_HAND}"
    # Whoever has seen the object has seen that its call arrived; where no second one can act, that is enough.
    alone = not facts.provider.duplicates and (facts.seals or len(step.live) <= 1)
    is_last = verdict is Verdict.HAPPENED or (verdict is Verdict.UNDONE_BY_HAND and step.phase is not Phase.INTENDED)
    if not (alone and is_last):
        why_not = _something_may_have_come(facts, step, looked_at, changed)
    else:
        why_not = None if verdict is Verdict.HAPPENED else _unless_after(looked_at, changed)
    if why_not:
        return why_not
    could_add = bool(step.reversing) and not facts.provider.reversal_is_idempotent
    return _unless_after(looked_at, facts.reversed_by(step), "a reversal") if could_add else None


def _something_may_have_come(facts: Facts, step: Step, looked_at: float, changed: float) -> str | None:
    """Say until when what was sent may act, where the look was before that; `changed` shows all that is answered."""
    if step.seal is Seal.OPEN and not facts.answered(step):
        return _unless_after(looked_at, facts.aged_at(step))
    if step.seal is Seal.OPEN and facts.aged(step, looked_at):
        return None
    if step.seal is Seal.SILENT and looked_at < facts.visible_at(step):
        return _look_again(facts.visible_at(step))
    return _unless_after(looked_at, changed)


def _unless_after(looked_at: float, instant: float, call: str = "a call") -> str | None:
    return None if looked_at > instant else _look_again(instant, call)


def _look_again(instant: float, call: str = "a call") -> str:
    if instant == math.inf:
        return f"{call} may be under way still, and nothing bounds how late it is: the provider has no late_by_at_most"
    after = datetime.fromtimestamp(math.ceil(instant), UTC).isoformat()
    return f"{call} may have acted after that look, or be under way still: look again after {after}"


def _happened(facts: Facts, step: Step) -> Step:
    if step.phase is not Phase.UNDOING:
        return done(step, facts)
    return step._replace(
        known=True, seal=Seal.SEALED, reversing=frozenset(), reversed=False, rev_first=None, rev_last=None
    )
