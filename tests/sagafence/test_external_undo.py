"""External steps on the way back, over HTTP: close, seal or wait, know, reverse, settle."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from sagafence import IdempotencyConflict, StepAlreadyCompensated, UndoOutcome, UndoResult
from sagafence.errors import CallRejected, CompensationImpossible, KeyReused, NotSettledYet, OutcomeUnknown
from sagafence.provider import Happened, Keeps, Key, Never, Provider, Seen, Settles, Stands
from tests.sagafence.bench import HOUR, MINUTE, Bench, NoAnswer, NoCredit
from tests.sagafence.conftest import MakeBench
from tests.sagafence.http_provider import Fault

REPEATING = Provider("p", Settles.BY_REPEATING)
EXPIRING = Provider("p", Settles.BY_REPEATING, keeps_keys_for=HOUR, late_by_at_most=10 * MINUTE)
VOIDING = Provider("p", Settles.BY_VOIDING)
LOOKING_UP = Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR, reversal_is_idempotent=True)
BY_A_PERSON = Provider("p", Settles.BY_A_PERSON, late_by_at_most=HOUR)
EVERY = {"repeat": REPEATING, "expire": EXPIRING, "void": VOIDING, "look": LOOKING_UP, "person": BY_A_PERSON}

REVERSED = UndoResult(UndoOutcome.REVERSED, {"result": 1})
NOTHING = UndoResult(UndoOutcome.NOTHING_TO_UNDO)


async def unheard(step: Bench, *faults: Fault) -> None:
    """Have a do whose outcome stays unknown."""
    step.http.faults += faults
    with pytest.raises((ConnectionError, NoAnswer)):
        await step.do()


@pytest.mark.parametrize("provider", EVERY.values(), ids=EVERY)
async def test_a_step_that_was_heard_is_reversed_once(bench: MakeBench, provider: Provider) -> None:
    step = bench(provider, can_look=provider is LOOKING_UP)
    await step.do()

    first, again = await step.undo(), await step.undo()

    assert (first, step.http.live) == (REVERSED, 0)
    assert again == UndoResult(UndoOutcome.ALREADY_UNDONE, {"result": 1})
    assert step.http.reversals == (0 if provider is VOIDING else 1)
    with pytest.raises(StepAlreadyCompensated):
        await step.do()


@pytest.mark.parametrize("provider", EVERY.values(), ids=EVERY)
async def test_an_undo_without_its_do_leaves_a_tombstone(bench: MakeBench, provider: Provider) -> None:
    """Counterexample 3."""
    step = bench(provider, can_look=provider is LOOKING_UP)

    assert await step.undo() == NOTHING
    with pytest.raises(StepAlreadyCompensated):
        await step.do()

    assert (await step.phase(), step.http.requests) == ("undone", [])


@pytest.mark.parametrize("provider", EVERY.values(), ids=EVERY)
async def test_a_step_that_was_refused_needs_no_undo(bench: MakeBench, provider: Provider) -> None:
    step = bench(provider, can_look=provider is LOOKING_UP)
    step.http.faults.append(Fault.REFUSES_402)
    with pytest.raises(NoCredit):
        await step.do()

    assert await step.undo() == NOTHING
    assert len(step.http.requests) == 1


async def test_an_undo_repeats_the_call_and_reverses_what_it_gets(bench: MakeBench) -> None:
    """Counterexample 6: nobody remembers an id of what was not heard."""
    step = bench(REPEATING)
    await unheard(step, Fault.ACTS_AND_HANGS_UP)

    assert await step.undo() == REVERSED
    assert (step.http.live, len(step.http.things), len(set(step.http.sent("POST")))) == (0, 1, 1)


async def test_a_call_that_arrives_after_the_undo_leaves_nothing(bench: MakeBench) -> None:
    step = bench(REPEATING)
    await unheard(step, Fault.LATE)

    assert await step.undo() == REVERSED  # the undo's own repeat has caused the effect, and claimed the key
    step.http.arrive()

    assert (step.http.live, len(step.http.things)) == (0, 1)


async def test_a_void_refuses_a_call_that_arrives_after_it(bench: MakeBench) -> None:
    step = bench(VOIDING)
    await unheard(step, Fault.LATE)

    await step.undo()

    assert (await step.phase(), step.http.arrive()[0], step.http.live) == ("undone", 402, 0)


async def test_a_stored_error_is_never_taken_for_nothing_done(bench: MakeBench) -> None:
    """Counterexample 7: the provider acts, answers 500, and repeats that answer for ever."""
    step = bench(REPEATING)
    await unheard(step, Fault.ACTS_AND_500)

    with pytest.raises(OutcomeUnknown) as asked:
        await step.undo()

    assert asked.value.details[0]["question"] == "did_it_happen"
    assert (await step.phase(), await step.row("seal"), step.http.live) == ("undoing", "silent", 1)


async def test_a_stored_error_that_nobody_marks_asks_after_some_claims(bench: MakeBench) -> None:
    step = bench(REPEATING)
    step.http.marks_replays = False
    await unheard(step, Fault.ACTS_AND_500)

    for _ in range(4):
        with pytest.raises(NoAnswer):
            await step.undo()
    with pytest.raises(OutcomeUnknown):
        await step.undo()

    assert await step.phase() == "undoing"


async def asked_after_repeats(step: Bench) -> OutcomeUnknown:
    """Have repeats on the way back hear nothing until there is a question."""
    step.http.faults += [Fault.GATEWAY_503] * 5
    for _ in range(4):
        with pytest.raises(NoAnswer):
            await step.undo()
    with pytest.raises(OutcomeUnknown) as asked:
        await step.undo()
    return asked.value


async def test_an_outage_is_waited_out_while_a_repeat_may_tell(bench: MakeBench) -> None:
    """The saga is stuck at the end of the round, not after five calls; each failure from then on says what to do."""
    step = bench(REPEATING)
    await unheard(step, Fault.ACTS_AND_HANGS_UP)
    failures = [await asked_after_repeats(step)]
    step.http.faults += [Fault.GATEWAY_503] * 12
    for _ in range(12):
        with pytest.raises(OutcomeUnknown) as asked:
            await step.undo()
        failures.append(asked.value)

    assert not any(failure.non_retryable for failure in failures)
    assert all("a repeat may tell; the last call heard unknown: NoAnswer: 503" in str(each) for each in failures)
    assert (await step.row("question"), await step.undo(), step.http.live) == ("is_it_there", REVERSED, 0)


async def test_a_repeat_that_may_tell_comes_when_the_provider_wants_it_and_not_where_its_author_gives_up(
    bench: MakeBench,
) -> None:
    step = bench(REPEATING)
    await unheard(step, Fault.ACTS_AND_HANGS_UP)
    await asked_after_repeats(step)
    told: list[tuple[bool, Any]] = []

    for failure in (CallRejected("429", next_retry_delay=MINUTE), ApplicationError("no", non_retryable=True)):

        async def fail(*_: object, failure: Exception = failure) -> int:
            raise failure

        with pytest.raises(OutcomeUnknown) as asked:
            await step.steps.undo(step.key, step.request, replace(step.calls(), do=fail))
        told.append((asked.value.non_retryable, asked.value.next_retry_delay))

    assert told == [(False, MINUTE), (True, None)]


async def test_a_lookup_that_is_away_too_ends_no_repeats_and_there_is_a_question(bench: MakeBench) -> None:
    async def away(*_: object) -> int | None:
        raise NoAnswer("no look")

    step = bench(REPEATING, can_look=True)
    step.look_instead = away
    await unheard(step, Fault.ACTS_AND_HANGS_UP)

    assert "the last call heard unknown: NoAnswer: no look" in str(await asked_after_repeats(step))
    assert (await step.undo(), step.http.live) == (REVERSED, 0)


@pytest.mark.parametrize("can_look", [False, True])
async def test_calls_that_hang_until_their_attempt_is_over_lead_to_a_question(
    bench: MakeBench, *, can_look: bool
) -> None:
    step = bench(REPEATING, can_look=can_look)
    await unheard(step, Fault.LATE)

    hangs = asyncio.Event()

    async def hang(*_: object) -> int:
        hangs.set()
        await asyncio.Event().wait()
        return 0

    hanging = replace(step.calls(), do=hang)
    for _ in range(5 if can_look else 6):
        hangs.clear()
        attempt = asyncio.create_task(step.steps.undo(step.key, step.request, hanging))
        await asyncio.wait_for(hangs.wait(), 20)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
    if can_look:
        with pytest.raises(OutcomeUnknown):
            await step.steps.undo(step.key, step.request, hanging)

    assert await step.row("question") == "is_it_there"
    assert (await step.undo(), step.http.live) == (REVERSED, 0)


async def test_a_success_that_a_repeat_hears_after_another_undo_has_settled_is_no_reversal(
    bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    step = bench(replace(REPEATING, keeps=Keeps.OBJECTS, late_by_at_most=MINUTE))
    await unheard(step, Fault.LATE)
    step.http.faults.append(Fault.WAITS)
    step.http.is_held.clear()
    first = asyncio.create_task(step.undo())
    await asyncio.wait_for(step.http.is_held.wait(), 20)
    await step.grow_older(HOUR)
    step.http.faults.append(Fault.REFUSES_402)
    assert await step.undo() == NOTHING

    step.http.may_go_on.set()

    assert (await first).outcome is not UndoOutcome.REVERSED
    assert await step.row("question") == "came_late"
    assert "a success was heard after it was settled" in caplog.text


async def test_a_person_is_asked_at_once_where_no_repeat_may_be_sent_any_more(bench: MakeBench) -> None:
    step = bench(EXPIRING)
    await unheard(step, Fault.ACTS_AND_HANGS_UP)
    assert not (await asked_after_repeats(step)).non_retryable

    await step.grow_older(HOUR)
    with pytest.raises(OutcomeUnknown) as asked:
        await step.undo()

    assert asked.value.non_retryable
    assert "a repeat may tell" not in str(asked.value)


async def test_a_question_of_a_long_outage_lists_its_first_and_its_last_calls(bench: MakeBench) -> None:
    step = bench(REPEATING)
    await unheard(step, Fault.ACTS_AND_HANGS_UP)
    await step.database.run(
        "INSERT INTO external_calls (saga_id, step, n, kind, live) "
        "SELECT 'saga-1', 'buy', n, 'claim', true FROM generate_series(2, 500) n; "
        "UPDATE external_steps SET permitted = 500"
    )

    asked = await asked_after_repeats(step)

    assert [call["n"] for call in asked.details[0]["calls"]] == [*range(1, 11), *range(496, 506)]


async def test_behind_a_stored_error_a_look_finds_the_effect(bench: MakeBench) -> None:
    step = bench(REPEATING, can_look=True)
    await unheard(step, Fault.ACTS_AND_500)

    assert await step.undo() == REVERSED
    assert step.http.live == 0


async def test_behind_a_stored_error_an_absence_is_final(bench: MakeBench) -> None:
    step = bench(REPEATING, can_look=True)
    await unheard(step, Fault.FAILS_500)

    assert await step.undo() == NOTHING


async def test_an_absence_counts_only_once_nothing_can_arrive(bench: MakeBench) -> None:
    """Counterexample 1."""
    step = bench(LOOKING_UP, can_look=True)
    await unheard(step, Fault.LATE)

    with pytest.raises(NotSettledYet) as early:
        await step.undo()
    step.http.arrive()
    await step.grow_older(HOUR)
    assert await step.undo() == REVERSED

    assert early.value.next_retry_delay is not None
    assert (step.http.live, await step.phase()) == (0, "undone")


async def test_the_wait_is_counted_from_the_last_permission_and_includes_how_far_a_look_lags(bench: MakeBench) -> None:
    """Counterexample 18: from the first send, and without the lag, absence would count too early."""
    step = bench(replace(LOOKING_UP, keeps=Keeps.OBJECTS, sight_lags_by=HOUR), can_look=True)
    await unheard(step, Fault.LATE)
    await step.grow_older(90 * MINUTE)
    await unheard(step, Fault.LATE)
    await step.grow_older(90 * MINUTE)

    with pytest.raises(NotSettledYet):
        await step.undo()

    await step.grow_older(31 * MINUTE)
    assert await step.undo() == NOTHING


async def test_where_nothing_bounds_lateness_an_absence_is_never_believed(bench: MakeBench) -> None:
    step = bench(replace(LOOKING_UP, late_by_at_most=None), can_look=True)
    await unheard(step, Fault.LATE)
    await step.grow_older(10_000 * HOUR)

    with pytest.raises(OutcomeUnknown):
        await step.undo()

    step.http.arrive()
    assert await step.undo() == REVERSED


async def test_an_absence_that_a_success_has_overtaken_does_not_count(bench: MakeBench) -> None:
    """Counterexample 9."""
    step = bench(LOOKING_UP, can_look=True)
    step.http.faults.append(Fault.WAITS)
    looks = 0

    async def look(key: Key, request: Any) -> int | None:
        nonlocal looks
        looks += 1
        found = await step._look(key, request)
        if looks == 1:
            step.http.may_go_on.set()
            with pytest.raises(StepAlreadyCompensated):
                await doing
        return found

    step.look_instead = look
    async with step.held_do() as doing:
        await step.grow_older(2 * HOUR)
        undone = await step.undo()

    assert (undone, step.http.live) == (REVERSED, 0)


async def test_a_success_that_is_heard_after_the_undo_does_not_reopen_the_step(bench: MakeBench) -> None:
    """Counterexample 16."""
    step = bench(REPEATING)
    step.http.faults.append(Fault.ACTS_AND_WAITS)
    async with step.held_do() as doing:
        assert await step.undo() == REVERSED

    with pytest.raises(StepAlreadyCompensated):
        await doing
    assert (await step.phase(), await step.row("question"), step.http.live) == ("undone", None, 0)


async def test_a_success_that_contradicts_a_settled_undo_asks_a_person(bench: MakeBench) -> None:
    step = bench(LOOKING_UP, can_look=True)
    step.http.faults.append(Fault.WAITS)
    async with step.held_do() as doing:
        await step.grow_older(2 * HOUR)  # the declaration is wrong: this call comes later than it allows
        assert await step.undo() == NOTHING

    with pytest.raises(StepAlreadyCompensated):
        await doing
    assert (await step.phase(), await step.row("question")) == ("undone", "came_late")


@pytest.mark.parametrize("fault", [Fault.REJECTS_401, Fault.REJECTS_429, Fault.IN_PROGRESS_409])
async def test_a_claim_that_is_turned_away_claims_nothing(bench: MakeBench, fault: Fault) -> None:
    """Counterexample 11."""
    step = bench(REPEATING)
    await unheard(step, Fault.ACTS_AND_HANGS_UP)
    step.http.faults.append(fault)

    with pytest.raises(CallRejected):
        await step.undo()

    assert (await step.phase(), await step.undo(), step.http.live) == ("undoing", REVERSED, 0)


async def test_a_claim_that_is_turned_away_when_it_is_quiet_proves_nothing_of_the_call_before(bench: MakeBench) -> None:
    step = bench(replace(REPEATING, keeps=Keeps.SUCCESSES, late_by_at_most=HOUR))
    await unheard(step, Fault.ACTS_AND_HANGS_UP)
    await step.grow_older(2 * HOUR)
    step.http.faults.append(Fault.REJECTS_401)

    with pytest.raises(CallRejected):
        await step.undo()

    assert (await step.undo(), step.http.live) == (REVERSED, 0)


async def test_a_stored_refusal_claims_the_key(bench: MakeBench) -> None:
    step = bench(REPEATING)
    await unheard(step, Fault.LATE)
    step.http.faults.append(Fault.REFUSES_402)

    assert await step.undo() == NOTHING
    assert (step.http.arrive()[0], step.http.live) == (402, 0)


async def test_a_refusal_that_is_not_stored_counts_only_when_it_was_quiet_before(bench: MakeBench) -> None:
    """Counterexample 12, its other half. That a declaration which hides effects behind a 5xx is wrong: the model."""
    step = bench(replace(REPEATING, keeps=Keeps.SUCCESSES, late_by_at_most=HOUR))
    await unheard(step, Fault.LATE)
    step.http.faults.append(Fault.REFUSES_402)
    with pytest.raises(NotSettledYet):
        await step.undo()
    assert await step.phase() == "undoing"
    await step.grow_older(2 * HOUR)
    step.http.faults.append(Fault.REFUSES_402)

    assert await step.undo() == NOTHING


@pytest.mark.parametrize("pivot", [False, True], ids=["step", "pivot"])
async def test_a_refusal_that_is_not_stored_asks_a_person_at_once_where_nothing_bounds_lateness(
    bench: MakeBench, *, pivot: bool
) -> None:
    step = bench(replace(REPEATING, keeps=Keeps.SUCCESSES))
    await unheard(step, Fault.LATE)
    step.http.faults.append(Fault.REFUSES_402)

    with pytest.raises(OutcomeUnknown) as asked:
        await (step.settle() if pivot else step.undo())

    assert asked.value.non_retryable
    assert "the last call heard refused: NoCredit" in str(asked.value)
    assert "a repeat may tell" not in str(asked.value)
    assert await step.row("question") == "is_it_there"


async def test_a_void_that_does_not_block_is_repeated_once_it_is_quiet(bench: MakeBench) -> None:
    """Counterexample 13."""
    step = bench(replace(VOIDING, void_blocks=False, late_by_at_most=HOUR))
    await unheard(step, Fault.LATE)

    with pytest.raises(NotSettledYet):
        await step.undo()
    step.http.arrive()
    assert step.http.live == 1
    await step.grow_older(2 * HOUR)
    await step.undo()

    assert (step.http.live, await step.phase()) == (0, "undone")


async def test_an_undo_that_frees_the_key_waits_until_no_call_is_under_way(bench: MakeBench) -> None:
    """Counterexample 14."""
    step = bench(replace(REPEATING, frees_keys=True, late_by_at_most=HOUR))
    await unheard(step, Fault.LATE)
    assert await step.do() == 1

    with pytest.raises(NotSettledYet):
        await step.undo()

    assert (step.http.reversals, len(step.http.sent("POST"))) == (0, 2)
    step.http.arrive()
    await step.grow_older(2 * HOUR)
    assert (await step.undo(), step.http.live) == (REVERSED, 0)


async def test_a_reversal_is_repeated_under_its_own_key_and_never_after_it_expired(bench: MakeBench) -> None:
    """Counterexample 15."""
    step = bench(EXPIRING)
    await step.do()
    step.http.faults.append(Fault.ACTS_AND_HANGS_UP)
    with pytest.raises(ConnectionError):
        await step.undo()
    step.http.faults.append(Fault.ACTS_AND_HANGS_UP)
    with pytest.raises(ConnectionError):
        await step.undo()
    assert (len(set(step.http.sent("DELETE"))), step.http.reversals) == (1, 1)
    await step.grow_older(51 * MINUTE)
    step.http.forget_keys()

    with pytest.raises(OutcomeUnknown) as asked:
        await step.undo()

    assert (asked.value.details[0]["question"], step.http.reversals) == ("was_it_reversed", 1)


async def test_without_keys_a_reversal_that_was_not_heard_is_not_repeated(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await step.do()
    step.http.faults.append(Fault.ACTS_AND_HANGS_UP)
    with pytest.raises(ConnectionError):
        await step.undo()

    with pytest.raises(OutcomeUnknown):
        await step.undo()

    assert step.http.reversals == 1


async def test_a_key_with_other_content_is_never_reversed(bench: MakeBench) -> None:
    step = bench(REPEATING, can_look=True)
    await unheard(step, Fault.LATE)
    step.http.keys[step.http.sent("POST")[0]] = (201, "of somebody else", {"id": 7})

    for _ in range(2):
        with pytest.raises(OutcomeUnknown):
            await step.undo()

    assert "DELETE" not in [method for method, _ in step.http.requests]


async def test_an_undo_that_finds_no_way_back_says_so_for_ever(bench: MakeBench) -> None:
    for provider in (REPEATING, VOIDING):
        step = bench(provider)
        step.key = replace(step.key, saga_id=f"saga of {provider.settles.value}")
        step.http.is_shipped = False
        result = await step.do()
        step.http.is_shipped = True

        first, again = await step.undo(), await step.undo()

        assert first == again == UndoResult(UndoOutcome.IRREVOCABLE, {"result": result})
        assert await step.do() == result


async def test_an_undo_of_another_request_touches_nothing(bench: MakeBench) -> None:
    step = bench(VOIDING)
    await step.do()
    step.key = replace(step.key, fingerprint="of another request")

    with pytest.raises(IdempotencyConflict):
        await step.undo()

    assert step.http.live == 1


async def test_a_person_is_told_all_that_helps(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await unheard(step, Fault.GATEWAY_503)

    with pytest.raises(OutcomeUnknown) as asked:
        await step.undo()

    [told] = asked.value.details
    assert {name: told[name] for name in ("saga_id", "step", "provider", "question")} == {
        "saga_id": "saga-1",
        "step": "buy",
        "provider": "p",
        "question": "is_it_there",
    }
    assert told["late_until"] is not None
    [call] = told["calls"]
    assert (call["kind"], call["status"], call["live"]) == ("do", "unknown: NoAnswer: 503", True)
    assert asked.value.non_retryable


async def test_an_undo_marks_its_saga_in_each_of_its_transactions(bench: MakeBench) -> None:
    step, marked = bench(REPEATING), 0

    async def mark(_: object) -> None:
        nonlocal marked
        marked += 1

    await step.steps.undo(step.key, step.request, step.calls(), mark=mark)

    assert marked == 1


async def test_an_undo_that_the_author_did_not_write_is_named(bench: MakeBench) -> None:
    step = bench(REPEATING)

    with pytest.raises(CompensationImpossible, match="buy of saga-1 has no undo"):
        await step.steps.undo(step.key, step.request, replace(step.calls(), undo=None))


async def test_an_error_of_the_authors_undo_stays_what_it_is(bench: MakeBench) -> None:
    step = bench(REPEATING)
    await step.do()

    async def undo(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await step.steps.undo(step.key, step.request, replace(step.calls(), undo=undo))

    assert await step.undo() == REVERSED


# ------------------------------------------------------------------------------------------------------------- pivots
async def test_a_pivot_that_was_heard_is_settled_as_happened_and_stays(bench: MakeBench) -> None:
    step = bench(VOIDING)
    await step.do()

    assert await step.settle() == Happened(1)
    assert (step.http.live, step.http.sent("POST")) == (1, step.http.sent("POST")[:1])


@pytest.mark.parametrize("fault", [Fault.ACTS_AND_HANGS_UP, Fault.LATE])
async def test_an_unheard_pivot_is_repeated_and_goes_forward(bench: MakeBench, fault: Fault) -> None:
    step = bench(REPEATING)
    await unheard(step, fault)

    assert await step.settle() == Happened(1)
    assert await step.do() == 1
    assert (step.http.live, step.http.reversals) == (1, 0)


async def test_a_pivot_that_was_voided_never_happens(bench: MakeBench) -> None:
    step = bench(VOIDING)
    await unheard(step, Fault.LATE)

    assert await step.settle() == Never()
    assert await step.settle() == Never()
    assert (step.http.arrive()[0], step.http.live) == (402, 0)
    with pytest.raises(StepAlreadyCompensated):
        await step.do()


async def test_a_pivot_that_cannot_be_voided_goes_forward(bench: MakeBench) -> None:
    step = bench(VOIDING)
    await unheard(step, Fault.ACTS_AND_HANGS_UP)
    step.http.is_shipped = True

    assert await step.settle() == Happened(1)
    assert await step.do() == 1


async def test_a_success_that_is_heard_while_the_pivot_is_voided_does_not_count_over_the_void(bench: MakeBench) -> None:
    step = bench(VOIDING)
    step.http.faults.append(Fault.ACTS_AND_WAITS)

    async def void_and_then_hear_the_success(key: Key, request: Any, seen: Seen[int]) -> Stands[int] | None:
        answer = await step._undo(key, request, seen)
        step.http.may_go_on.set()
        with pytest.raises(StepAlreadyCompensated):
            await doing
        return answer

    async with step.held_do() as doing:
        calls = replace(step.calls(), undo=void_and_then_hear_the_success)
        assert await step.steps.settle(step.key, step.request, calls) == Never()

    assert (await step.phase(), step.http.live) == ("never", 0)


async def test_an_unknown_pivot_holds_what_came_before(bench: MakeBench) -> None:
    """Counterexample 18."""
    step = bench(BY_A_PERSON)
    await unheard(step, Fault.LATE)
    await step.grow_older(2 * HOUR)

    for _ in range(2):
        with pytest.raises(OutcomeUnknown):
            await step.settle()

    assert await step.phase() == "settling"


async def test_a_pivot_that_was_never_called_never_happens(bench: MakeBench) -> None:
    step = bench(VOIDING)

    assert await step.settle() == Never()
    with pytest.raises(StepAlreadyCompensated):
        await step.do()


async def test_a_step_that_is_being_settled_as_a_pivot_is_not_reversed(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    await unheard(step, Fault.LATE)
    with pytest.raises(OutcomeUnknown):
        await step.settle()

    with pytest.raises(CompensationImpossible):
        await step.undo()


async def test_a_pivot_whose_void_is_under_way_is_asked_of_the_provider_and_of_no_person(bench: MakeBench) -> None:
    step = bench(Provider("p", Settles.BY_VOIDING, keeps=Keeps.FIRST_ANSWERS))
    step.http.faults += [Fault.WAITS, Fault.LATE]
    async with step.held_do() as doing:
        with pytest.raises(ConnectionError):
            await step.settle()
        step.http.keys[step.http.sent("POST")[0]] = (201, {"size": 4}, {"id": 1})  # by another build
    with pytest.raises(KeyReused):
        await doing

    assert await step.settle() == Never()
    assert await step.row("seal") == "open"
