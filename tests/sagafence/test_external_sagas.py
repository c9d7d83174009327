"""Whole sagas with effects at providers over HTTP: lost answers, an unknown pivot, second runs, an operator's word."""

from dataclasses import replace

import pytest
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from sagafence import Keeps, Resolution, UndoOutcome, Verdict
from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.elsewhere_steps import Order
from tests.sagafence.elsewhere_story import Fulfil
from tests.sagafence.http_provider import Fault
from tests.sagafence.scenes import just_now
from tests.sagafence.trips import BEFORE_ITS_FIRST_TASK, call_late

ALL, NONE = (1, 1, 1, 1), (0, 0, 0, 0)


async def test_every_effect_happens_once(elsewhere: Elsewhere) -> None:
    async with elsewhere.working():
        handle = await elsewhere.start()
        results = await handle.result()

    assert results == [1, 1, 1, 1]
    assert await elsewhere.held() == ALL
    assert await elsewhere.saga_state() == "ended"


@pytest.mark.parametrize("fault", [Fault.FAILS_500, Fault.ACTS_AND_HANGS_UP, Fault.LATE, Fault.GATEWAY_503])
@pytest.mark.parametrize("where", ["crm", "mail"])
async def test_a_call_whose_answer_is_lost_is_repeated_under_its_key(
    elsewhere: Elsewhere, where: str, fault: Fault
) -> None:
    provider = getattr(elsewhere, where)
    provider.keeps = Keeps.SUCCESSES if fault is Fault.FAILS_500 else Keeps.FIRST_ANSWERS
    provider.faults.append(fault)
    async with elsewhere.working():
        await (await elsewhere.start()).result()
        for _ in range(len(provider.late)):
            provider.arrive()

    assert await elsewhere.held() == ALL
    assert len(set(provider.sent("POST"))) == 1


async def test_a_provider_that_refuses_has_everything_undone(elsewhere: Elsewhere) -> None:
    elsewhere.billing.faults.append(Fault.REFUSES_402)
    async with elsewhere.working():
        handle = await elsewhere.start()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()

    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.message == "Refused: no"
    assert failed.value.cause.details == ("bill",)
    assert await elsewhere.held() == NONE


async def test_a_step_that_acted_and_was_never_heard_is_undone_beside_its_sibling(elsewhere: Elsewhere) -> None:
    elsewhere.crm.faults.extend([Fault.ACTS_AND_HANGS_UP] * 3)
    async with elsewhere.working():
        handle = await elsewhere.start()
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    assert await elsewhere.held() == NONE


async def test_a_pivot_that_happened_unheard_is_found_out_and_the_saga_goes_on(elsewhere: Elsewhere) -> None:
    elsewhere.billing.faults.append(Fault.ACTS_AND_HANGS_UP)
    elsewhere.billing.is_shipped = True
    async with elsewhere.working():
        await (await elsewhere.start()).result()

    assert await elsewhere.held() == ALL


async def test_while_a_pivot_is_unknown_nothing_before_it_is_undone(elsewhere: Elsewhere) -> None:
    elsewhere.billing.faults.extend([Fault.LATE] + [Fault.REJECTS_429] * 3)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.until(handle, "stuck")
        held, state = await elsewhere.held(), await elsewhere.saga_state()
        await handle.execute_update(Fulfil.retry)
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        arrived, *_ = elsewhere.billing.arrive()

    assert (held, state) == ((1, 1, 0, 0), "at_pivot")
    assert arrived == 402, "the key is void: what comes late finds it so"
    assert await elsewhere.held() == NONE


async def test_a_cancel_of_a_second_run_undoes_nothing_while_the_pivot_of_the_first_is_unknown(
    elsewhere: Elsewhere,
) -> None:
    elsewhere.billing.faults.extend([Fault.ACTS_AND_HANGS_UP] + [Fault.REJECTS_429] * 3)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.until(handle, "stuck")
        await handle.terminate("lost")
        elsewhere.billing.is_shipped = True
        again = await elsewhere.start(handle.id)
        await again.cancel()
        await again.result()

    assert await elsewhere.held() == ALL


async def test_a_round_goes_on_past_the_question_while_a_repeat_may_tell(elsewhere: Elsewhere) -> None:
    do, first_round, of_the_second = [Fault.ACTS_AND_HANGS_UP, *[Fault.GATEWAY_503] * 2], 3, 2
    elsewhere.crm.faults.extend(do + [Fault.GATEWAY_503] * (first_round + of_the_second))
    async with elsewhere.working():
        handle = await elsewhere.start()
        stuck = await elsewhere.until(handle, "stuck")
        after = await handle.execute_update(Fulfil.retry)
        with pytest.raises(WorkflowFailureError):
            await handle.result()

    assert [step.detail for step in stuck.steps if step.state == "stuck"] == ["NoAnswer: 503"]
    assert after.state != "stuck"
    assert await elsewhere.held() == NONE


async def test_a_verdict_that_does_not_count_yet_is_refused_with_its_reason(elsewhere: Elsewhere) -> None:
    elsewhere.billing.faults.extend([Fault.LATE] + [Fault.REJECTS_429] * 3)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.until(handle, "stuck")
        said = Resolution("bill", Verdict.NEVER, "ann", "I think so", looked_at=just_now())
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update(Fulfil.resolve, said)
        await handle.terminate("the test is over")

    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.message.startswith("the resolution was not taken: VerdictRefused: bill of ")


@pytest.mark.parametrize("verdict", Verdict)
async def test_a_word_that_does_not_say_when_they_looked_is_refused(elsewhere: Elsewhere, verdict: Verdict) -> None:
    elsewhere.crm.faults.extend([Fault.ACTS_AND_500, *[Fault.GATEWAY_503] * 6])
    said = Resolution("tenant", verdict, "ann", "I looked", 1)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.until(handle, "stuck")
        for looked_at in ("", "yesterday", "2026-11-30", "2026-11-30T09:00:00"):
            with pytest.raises(WorkflowUpdateFailedError) as refused:
                await handle.execute_update(Fulfil.resolve, replace(said, looked_at=looked_at))
            assert isinstance(refused.value.cause, ApplicationError)
            assert 'say when you looked, or undid it: "looked_at": "2026-' in refused.value.cause.message
            assert looked_at in refused.value.cause.message
        await handle.terminate("the test is over")


async def test_an_operator_settles_what_nobody_can_find_out(elsewhere: Elsewhere) -> None:
    elsewhere.mail.faults.append(Fault.ACTS_AND_500)
    happened = Resolution("mail", Verdict.HAPPENED, "ann", "it is in their log", 1, just_now())
    async with elsewhere.working():
        handle = await elsewhere.start()
        stuck = await elsewhere.until(handle, "stuck")
        with pytest.raises(WorkflowUpdateFailedError) as without:
            await handle.execute_update(Fulfil.resolve, replace(happened, result=None))
        await handle.execute_update(Fulfil.resolve, happened)
        results = await handle.result()

    assert "say what its result is" in str(without.value.cause)
    assert results == [1, 1, 1, 1]
    assert stuck.steps[-1].detail.startswith("OutcomeUnknown: ")
    [row] = await elsewhere.database.fetch("SELECT step, verdict, who, why FROM saga_verdicts")
    assert tuple(row) == ("mail", "happened", "ann", "it is in their log")
    assert await elsewhere.held() == ALL


async def test_a_step_that_was_refused_and_heard_to_have_acted_later_is_asked_of_a_person_by_a_later_run_too(
    elsewhere: Elsewhere,
) -> None:
    elsewhere.billing.faults.append(Fault.WAITS)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.billing.is_held.wait()
        await handle.terminate("lost")
    await elsewhere.database.run("UPDATE external_steps SET phase = 'never' WHERE step = 'bill'")
    await elsewhere.database.run("UPDATE sagas SET state = 'open'")
    late = "UPDATE external_steps SET phase = 'never', question = 'came_late', result = NULL WHERE step = 'tenant'"
    await elsewhere.database.run(late)
    again = await elsewhere.start(handle.id)
    await again.cancel()
    async with elsewhere.working():
        stuck = await elsewhere.until(again, "stuck")
        await again.terminate("the test is over")

    assert [step.step for step in stuck.steps if step.state == "stuck"] == ["tenant"]


async def test_a_second_run_that_is_cancelled_before_its_first_step_reverses_what_the_first_may_have_done_elsewhere(
    elsewhere: Elsewhere,
) -> None:
    elsewhere.crm.faults.append(Fault.ACTS_AND_WAITS)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.crm.is_held.wait()
        await handle.terminate("lost")
        again = await elsewhere.start(handle.id, delay=BEFORE_ITS_FIRST_TASK)
        await again.cancel()
        with pytest.raises(WorkflowFailureError):
            await again.result()
        held, state = await elsewhere.held(), await elsewhere.saga_state()
        elsewhere.crm.may_go_on.set()

    assert (held, state) == (NONE, "ended")


async def test_an_undo_that_outlives_its_run_takes_nothing_back_at_the_provider_past_the_pivot(
    elsewhere: Elsewhere,
) -> None:
    async with elsewhere.working():
        handle = await elsewhere.start()
        await handle.result()
        undone = await call_late(handle, elsewhere.activities(), "delete", Order(handle.id, 3))

    assert undone.outcome is UndoOutcome.IRREVOCABLE
    assert await elsewhere.held() == ALL
