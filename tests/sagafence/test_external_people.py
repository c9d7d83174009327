"""What a person says of an external step whose outcome is unknown: each word is logged, and leads on."""

import pytest

from sagafence import InvalidInput, StepAlreadyCompensated, UndoOutcome, UndoResult
from sagafence.errors import OutcomeUnknown, VerdictRefused
from sagafence.provider import Happened, Never, Provider, Settles, Verdict
from tests.sagafence.bench import HOUR, Bench, NoAnswer
from tests.sagafence.conftest import MakeBench
from tests.sagafence.http_provider import Fault

BY_A_PERSON = Provider("p", Settles.BY_A_PERSON, late_by_at_most=HOUR)
REPEATING = Provider("p", Settles.BY_REPEATING)


async def parked(step: Bench, *, pivot: bool = False, acts: bool = True) -> None:
    """Leave the step with a question."""
    step.http.faults.append(Fault.ACTS_AND_HANGS_UP if acts else Fault.LATE)
    with pytest.raises((ConnectionError, NoAnswer)):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await (step.settle() if pivot else step.undo())


async def test_never_does_not_count_while_a_call_may_be_under_way(bench: MakeBench) -> None:
    """Counterexample 17."""
    step = bench(BY_A_PERSON)
    await parked(step, acts=False)

    with pytest.raises(VerdictRefused, match="under way"):
        await step.resolve(Verdict.NEVER)
    assert await step.database.fetch("SELECT FROM saga_verdicts") == []
    await step.grow_older(2 * HOUR)
    await step.resolve(Verdict.NEVER)

    assert (await step.phase(), await step.undo()) == ("resolved", UndoResult(UndoOutcome.ALREADY_UNDONE))


async def test_happened_is_reversed(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    await step.resolve(Verdict.HAPPENED, 1)

    assert (await step.undo(), step.http.live) == (UndoResult(UndoOutcome.REVERSED, {"result": 1}), 0)


async def test_undone_by_hand_ends_it(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    await step.resolve(Verdict.UNDONE_BY_HAND, who="ann", why="cancelled in their console")

    assert (await step.undo()).outcome is UndoOutcome.ALREADY_UNDONE
    with pytest.raises(StepAlreadyCompensated):
        await step.do()
    [logged] = await step.database.fetch("SELECT verdict, who, why FROM saga_verdicts")
    assert tuple(logged) == ("undone_by_hand", "ann", "cancelled in their console")


async def test_a_pivot_that_happened_goes_forward(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step, pivot=True)

    await step.resolve(Verdict.HAPPENED, 1)

    assert (await step.settle(), await step.do(), step.http.live) == (Happened(1), 1, 1)


async def test_a_pivot_that_never_happened_unwinds(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step, pivot=True, acts=False)
    await step.grow_older(2 * HOUR)

    await step.resolve(Verdict.NEVER)

    assert await step.settle() == Never()


async def test_a_forward_step_that_never_happened_is_sent_under_the_next_key(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await step.do()
    with pytest.raises(VerdictRefused):
        await step.resolve(Verdict.NEVER)
    await step.grow_older(2 * HOUR)

    await step.resolve(Verdict.NEVER)

    assert await step.do() == 1
    assert len(set(step.http.sent("POST"))) == 2
    assert await step.row("key") == step.http.sent("POST")[1]


async def test_a_forward_step_that_happened_is_done_with_what_the_person_says(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    step.http.faults.append(Fault.ACTS_AND_HANGS_UP)
    with pytest.raises(ConnectionError):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await step.do()

    await step.resolve(Verdict.HAPPENED, 1)

    assert (await step.do(), len(step.http.sent("POST"))) == (1, 1)


async def test_behind_a_stored_error_every_word_counts_at_once(bench: MakeBench) -> None:
    step = bench(REPEATING)
    step.http.faults.append(Fault.FAILS_500)
    with pytest.raises(NoAnswer):
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await step.undo()

    await step.resolve(Verdict.NEVER)

    assert (await step.undo()).outcome is UndoOutcome.ALREADY_UNDONE


async def test_undone_by_hand_does_not_count_while_a_reversal_may_be_under_way(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await step.do()
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.undo()
    with pytest.raises(OutcomeUnknown):
        await step.undo()

    with pytest.raises(VerdictRefused, match="reversal"):
        await step.resolve(Verdict.UNDONE_BY_HAND)

    await step.grow_older(2 * HOUR)
    await step.resolve(Verdict.UNDONE_BY_HAND)


async def test_a_reversal_that_never_arrived_is_sent_again_when_a_person_says_that_it_still_stands(
    bench: MakeBench,
) -> None:
    step = bench(BY_A_PERSON)
    await step.do()
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.undo()
    with pytest.raises(OutcomeUnknown):
        await step.undo()
    await step.grow_older(2 * HOUR)

    await step.resolve(Verdict.HAPPENED)

    assert ((await step.undo()).outcome, step.http.reversals) == (UndoOutcome.REVERSED, 1)


async def test_a_success_that_came_after_all_is_closed_by_a_person(bench: MakeBench) -> None:
    step = bench(Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR), can_look=True)
    step.http.faults.append(Fault.WAITS)
    async with step.held_do():
        await step.grow_older(2 * HOUR)
        await step.undo()

    with pytest.raises(VerdictRefused, match="by hand"):
        await step.resolve(Verdict.HAPPENED, 1)
    await step.resolve(Verdict.UNDONE_BY_HAND)

    assert (await step.phase(), await step.row("question")) == ("undone", None)


@pytest.mark.parametrize("verdict", Verdict)
async def test_nobody_is_asked_about_a_step_that_is_done(bench: MakeBench, verdict: Verdict) -> None:
    step = bench(BY_A_PERSON)
    with pytest.raises(VerdictRefused, match="never called"):
        await step.resolve(verdict, 1)
    await step.do()

    with pytest.raises(VerdictRefused, match="no person is asked"):
        await step.resolve(verdict, 1)

    assert await step.phase() == "done"


async def test_a_verdict_that_is_repeated_because_its_answer_was_lost_is_logged_once(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    for _ in range(2):
        await step.resolve(Verdict.HAPPENED, 1)

    assert await step.database.value("SELECT count(*) FROM saga_verdicts") == 1


async def test_a_verdict_says_who_and_why(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await parked(step)

    for who, why in (("", "I looked"), ("ann", " ")):
        with pytest.raises(InvalidInput):
            await step.resolve(Verdict.HAPPENED, 1, who=who, why=why)
