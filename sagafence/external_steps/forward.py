"""The rules on the way forward: when a call may be sent, and what its answer means."""

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
    asking,
    done,
    known,
    permitted,
)


def begin_do(facts: Facts, step: Step, now: float) -> tuple[Step, Next]:
    """Permit a call, or say why not."""
    if step.phase is Phase.DONE:
        return step, Next(Act.STORED)
    if step.phase is Phase.NEVER:
        return step, Next(Act.REFUSED)
    if step.phase is not Phase.INTENDED:
        return step, Next(Act.LATE)
    may_send = facts.has_keys or not step.live
    if step.seal is Seal.OPEN and may_send and facts.within_window(step.first, now):
        step, n = permitted(step._replace(question=None), now)
        return step, Next(Act.SEND, n)
    if facts.can_look and step.seal is not Seal.FOREIGN:
        return step, Next(Act.LOOK)
    return asking(step)


def heard_do(facts: Facts, step: Step, n: int, answer: Answer, now: float) -> Step:
    """Record what a forward call heard. Never over a phase that closes the step."""
    counts, less = n in step.live, step._replace(live=step.live - {n})
    if answer is Answer.OK:
        return happened(facts, step, less)
    if not counts or step.phase not in {Phase.INTENDED, *CLOSING}:
        return less if answer is not Answer.UNKNOWN else step
    if answer is Answer.REFUSED:
        if facts.stores_errors and step.seal is Seal.OPEN:
            less = less._replace(seal=Seal.SEALED)
        if step.phase is not Phase.UNDOING and (facts.stores_errors or facts.answered(less)):
            return less._replace(phase=Phase.NEVER, question=None)
        return less
    return about_this_call(facts, step, less, answer, now)


def about_this_call(facts: Facts, step: Step, less: Step, answer: Answer, now: float) -> Step:
    """Note what neither a success nor a refusal says, in a do as in a claim."""
    if answer is Answer.REJECTED:
        return less
    if answer is Answer.KEY_REUSED:
        # A void that is under way decides; a person's word could be made untrue by it.
        is_voided = facts.voids and not facts.provider.frees_keys and step.phase in CLOSING
        return less if step.known or is_voided else less._replace(seal=Seal.FOREIGN)
    if answer is Answer.STORED_FAILURE and facts.stores_errors:
        # What it hides happened before this answer, so a look that is younger by the lag sees it.
        return less if step.seal is not Seal.OPEN else less._replace(seal=Seal.SILENT, last=now)
    return step


def happened(facts: Facts, step: Step, less: Step) -> Step:
    """Record a success: it opens no step that is closed."""
    settles = step.phase is Phase.SETTLING and not facts.voids  # a void under way may have taken it back already
    if step.phase is Phase.INTENDED or settles:
        return done(less, facts)
    if step.phase in CLOSING:
        seal = Seal.SEALED if facts.seals and step.seal is not Seal.FOREIGN else step.seal
        return known(less)._replace(seal=seal)
    contradicts = step.phase is Phase.NEVER or (step.phase is Phase.UNDONE and not step.known)
    if contradicts and not facts.voids:
        return less._replace(question=Question.CAME_LATE)
    return less


def looked_do(
    facts: Facts, step: Step, *, found: bool, token: tuple[object, ...], looked_at: float
) -> tuple[Step, Next]:
    """Use what a look before a further call found. `looked_at` was taken before the look."""
    if step.phase is not Phase.INTENDED or step.seal is Seal.FOREIGN:
        return step, Next(Act.AGAIN)
    if found:
        return done(step._replace(live=frozenset()), facts), Next(Act.STORED)
    if step.token() != token:
        return step, Next(Act.AGAIN)
    if step.seal is Seal.SILENT or (facts.has_keys and facts.quiet(step, looked_at)):
        # The key may be forgotten, or about to be: a refusal that it still holds would be taken for a new one.
        return asking(step)
    if facts.quiet(step, looked_at):
        return step._replace(live=frozenset(), first=None, last=None), Next(Act.AGAIN)
    following = facts.wait(step)
    return asking(step) if following.act is Act.ASK else (step, following)
