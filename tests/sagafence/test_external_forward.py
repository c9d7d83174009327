"""External steps on the way forward, over HTTP: intent, permission, call, record."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sagafence import CompensationImpossible, IdempotencyConflict, InvalidInput, StepAlreadyCompensated
from sagafence.errors import CallRejected, NotSettledYet, OutcomeUnknown
from sagafence.external_steps import Calls
from sagafence.provider import Keeps, Provider, Settles
from tests.sagafence.bench import HOUR, MINUTE, NoAnswer, NoCredit
from tests.sagafence.conftest import MakeBench
from tests.sagafence.http_provider import Fault

REPEATING = Provider("p", Settles.BY_REPEATING)
EXPIRING = Provider("p", Settles.BY_REPEATING, keeps_keys_for=HOUR, late_by_at_most=10 * MINUTE)
VOIDING = Provider("p", Settles.BY_VOIDING)
LOOKING_UP = Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR, reversal_is_idempotent=True)
BY_A_PERSON = Provider("p", Settles.BY_A_PERSON, late_by_at_most=HOUR)


async def test_a_step_has_its_effect_once_and_a_repeat_gets_the_first_result(bench: MakeBench) -> None:
    step = bench(REPEATING)

    first, second = await step.do(), await step.do()

    assert (first, second, len(step.http.sent("POST")), step.http.live) == (1, 1, 1, 1)
    assert await step.phase() == "done"


async def test_the_intent_is_committed_before_the_call(bench: MakeBench) -> None:
    """Counterexample 4."""
    step, seen = bench(REPEATING), []

    async def look_at_the_rows() -> None:
        seen.append((await step.phase(), await step.calls_made()))

    step.http.before_each = look_at_the_rows

    await step.do()

    assert seen == [("intended", [("do", True, None)])]


@pytest.mark.parametrize("fault", [Fault.ACTS_AND_HANGS_UP, Fault.LATE, Fault.REJECTS_429])
async def test_every_attempt_sends_the_same_key_and_the_stored_request(bench: MakeBench, fault: Fault) -> None:
    """Counterexample 2."""
    step = bench(REPEATING)
    step.http.faults.append(fault)
    with pytest.raises((ConnectionError, CallRejected)):
        await step.do()
    step.request = {"size": 4}  # an input that drifted under the same fingerprint

    await step.do()
    if step.http.late:
        step.http.arrive()

    assert len(set(step.http.sent("POST"))) == 1
    assert [thing["body"] for thing in step.http.things.values()] == [{"size": 3}]


async def test_no_two_steps_requests_or_sagas_share_a_key(bench: MakeBench) -> None:
    step = bench(REPEATING)

    for key in (
        step.key,
        replace(step.key, step="sell"),
        replace(step.key, saga_id="saga-2"),
        replace(step.key, saga_id="saga-3", fingerprint="of another"),
    ):
        step.key = key
        await step.do()

    assert len(set(step.http.sent("POST"))) == 4


async def test_attempts_side_by_side_have_one_effect_and_one_result(bench: MakeBench) -> None:
    step = bench(REPEATING)

    results = await asyncio.gather(*(step.do() for _ in range(8)))

    assert (set(results), step.http.live) == ({1}, 1)


@pytest.mark.parametrize("fault", [Fault.ACTS_AND_HANGS_UP, Fault.GATEWAY_503, Fault.LATE])
async def test_an_answer_that_was_not_heard_is_neither_a_success_nor_a_failure(bench: MakeBench, fault: Fault) -> None:
    """Counterexample 5."""
    step = bench(REPEATING)
    step.http.faults.append(fault)

    with pytest.raises((NoAnswer, ConnectionError)):
        await step.do()

    assert await step.phase() == "intended"
    [(_, is_live, _)] = await step.calls_made()
    assert is_live


@pytest.mark.parametrize("provider", [VOIDING, BY_A_PERSON], ids=["void", "person"])
async def test_without_keys_an_unknown_call_is_never_sent_again(bench: MakeBench, provider: Provider) -> None:
    """Counterexample 18: a 503 may come from a gateway, while the request goes on."""
    step = bench(provider)
    step.http.faults.append(Fault.GATEWAY_503)
    with pytest.raises(NoAnswer):
        await step.do()

    with pytest.raises(OutcomeUnknown):
        await step.do()

    step.http.arrive()
    assert (len(step.http.sent("POST")), step.http.live) == (1, 1)


async def test_a_call_that_was_turned_away_is_sent_again_without_keys_too(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    step.http.faults.append(Fault.REJECTS_429)
    with pytest.raises(CallRejected):
        await step.do()

    assert await step.do() == 1
    assert [status for _, _, status in await step.calls_made()] == ["rejected: CallRejected: 429", "ok"]


async def test_a_refusal_is_raised_again_under_its_own_name(bench: MakeBench) -> None:
    step = bench(REPEATING)
    step.http.faults.append(Fault.REFUSES_402)
    with pytest.raises(NoCredit):
        await step.do()

    with pytest.raises(Exception, match="no") as again:
        await step.do()

    assert (getattr(again.value, "type", None), getattr(again.value, "non_retryable", None)) == ("NoCredit", True)
    assert (await step.phase(), len(step.http.sent("POST"))) == ("never", 1)


@pytest.mark.parametrize("fault", [Fault.REJECTS_401, Fault.REJECTS_429, Fault.IN_PROGRESS_409])
async def test_what_is_about_one_call_is_not_taken_for_the_providers_refusal(bench: MakeBench, fault: Fault) -> None:
    """Counterexample 11."""
    step = bench(REPEATING)
    step.http.faults += [Fault.LATE, fault]
    with pytest.raises(ConnectionError):
        await step.do()

    with pytest.raises(CallRejected):
        await step.do()

    assert await step.phase() == "intended"
    assert [is_live for _, is_live, _ in await step.calls_made()] == [True, False]
    assert await step.do() == 1


async def test_a_late_refusal_of_one_call_says_nothing_of_another_that_is_under_way(bench: MakeBench) -> None:
    """Counterexample 8: calls are numbered, not counted."""
    step = bench(LOOKING_UP, can_look=True)
    step.http.faults += [Fault.WAITS, Fault.REFUSES_402]
    async with step.held_do() as first:
        await step.grow_older(2 * HOUR)  # the first call counts for dead, and a look finds nothing
        step.http.faults.clear()
        step.http.faults.append(Fault.LATE)
        with pytest.raises(ConnectionError):
            await step.do()
        step.http.faults.append(Fault.REFUSES_402)

    with pytest.raises(NoCredit):
        await first
    assert await step.phase() == "intended"
    assert [is_live for _, is_live, _ in await step.calls_made()] == [False, True]
    step.http.arrive()
    assert await step.do() == 1


async def test_a_lookup_finds_what_was_not_heard(bench: MakeBench) -> None:
    step = bench(LOOKING_UP, can_look=True)
    step.http.faults.append(Fault.ACTS_AND_HANGS_UP)
    with pytest.raises(ConnectionError):
        await step.do()

    assert await step.do() == 1
    assert len(step.http.sent("POST")) == 1


async def test_what_a_lookup_does_not_find_is_sent_again_only_once_it_cannot_arrive_any_more(bench: MakeBench) -> None:
    step = bench(LOOKING_UP, can_look=True)
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.do()

    with pytest.raises(NotSettledYet) as early:
        await step.do()

    delay = early.value.next_retry_delay
    assert delay is not None
    assert timedelta(minutes=58) < delay < timedelta(minutes=61)
    assert len(step.http.sent("POST")) == 1
    step.http.late.clear()
    await step.grow_older(HOUR)
    assert await step.do() == 1


async def test_an_old_key_is_not_sent_however_young_its_last_call_is(bench: MakeBench) -> None:
    """Counterexample 10: keys that expire in an hour, requests that may be late by ten minutes."""
    step = bench(EXPIRING)
    step.http.faults += [Fault.ACTS_AND_HANGS_UP, Fault.ACTS_AND_HANGS_UP]
    with pytest.raises(ConnectionError):
        await step.do()
    await step.grow_older(40 * MINUTE)
    with pytest.raises(ConnectionError):
        await step.do()
    await step.grow_older(11 * MINUTE)
    step.http.forget_keys()

    with pytest.raises(OutcomeUnknown):
        await step.do()

    assert (len(step.http.sent("POST")), len(step.http.things)) == (2, 1)


async def test_a_key_with_other_content_is_never_sent_again_and_a_person_is_asked(bench: MakeBench) -> None:
    step = bench(REPEATING)
    step.http.faults.append(Fault.LATE)
    with pytest.raises(ConnectionError):
        await step.do()
    step.http.keys[step.http.sent("POST")[0]] = (201, "of somebody else", {"id": 7})

    with pytest.raises(OutcomeUnknown) as asked:
        await step.do()
    with pytest.raises(OutcomeUnknown):
        await step.do()

    assert asked.value.details[0]["question"] == "whose_is_the_key"
    assert len(step.http.sent("POST")) == 2


async def test_another_request_under_the_same_id_is_refused(bench: MakeBench) -> None:
    step = bench(REPEATING)
    await step.do()
    step.key = replace(step.key, fingerprint="of another request")

    for attempt in (step.do, step.undo, step.settle):
        with pytest.raises(IdempotencyConflict):
            await attempt()

    assert (await step.phase(), step.http.live) == ("done", 1)


async def test_a_saga_that_has_ended_sends_nothing(bench: MakeBench) -> None:
    step = bench(REPEATING)

    async def has_ended(_: object) -> bool:
        return False

    with pytest.raises(StepAlreadyCompensated):
        await step.steps.do(step.key, step.request, step.calls(), enter=has_ended)

    assert step.http.requests == []
    assert await step.database.fetch("SELECT FROM external_steps") == []


async def test_a_request_that_is_no_json_is_refused_before_anything_is_sent(bench: MakeBench) -> None:
    step = bench(REPEATING)
    step.request = {"size": object()}

    with pytest.raises(InvalidInput, match="JSON"):
        await step.do()

    assert step.http.requests == []


async def test_a_request_with_what_postgres_cannot_store_is_stored_and_sent_without_it(bench: MakeBench) -> None:
    step = bench(REPEATING)
    step.request = {"name": "a\0b\ud800"}

    await step.do()

    assert step.http.things[1]["body"] == {"name": "a\ufffdb?"}


async def test_a_refusal_that_the_provider_does_not_keep_closes_nothing_while_another_call_is_under_way(
    bench: MakeBench,
) -> None:
    """Counterexample 12, its first half: where successes alone are kept, a refusal is about its own call."""
    step = bench(replace(REPEATING, keeps=Keeps.SUCCESSES))
    step.http.faults += [Fault.LATE, Fault.REFUSES_402]
    with pytest.raises(ConnectionError):
        await step.do()
    with pytest.raises(NoCredit):
        await step.do()

    assert await step.phase() == "intended"
    step.http.arrive()
    assert await step.do() == 1


async def test_what_was_heard_is_recorded_although_the_attempt_is_cancelled(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    step.http.faults.append(Fault.ACTS_AND_WAITS)
    async with step.held_do() as doing, step.database.locked("SELECT FROM external_steps FOR UPDATE"):
        step.http.may_go_on.set()
        await step.database.until_blocked()
        doing.cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await doing
    assert (await step.do(), len(step.http.sent("POST"))) == (1, 1)


async def test_what_was_heard_is_recorded_although_postgres_drops_its_sessions_meanwhile(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)

    async def drop_sessions() -> None:
        await step.database.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'checkout'")

    step.http.before_each = drop_sessions

    assert (await step.do(), await step.phase()) == (1, "done")


async def test_a_result_that_is_no_json_leaves_the_step_unknown_and_says_why(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    calls = replace(step.calls(), dump=lambda _: object())

    with pytest.raises(TypeError, match="JSON"):
        await step.steps.do(step.key, step.request, calls)

    assert await step.phase() == "intended"
    with pytest.raises(OutcomeUnknown):
        await step.do()


async def test_a_step_without_a_result_is_known_to_be_done(bench: MakeBench) -> None:
    step = bench(BY_A_PERSON)
    calls: Calls[Any] = replace(step.calls(), dump=lambda _: None, load=lambda kept: kept)

    results: list[object] = [await step.steps.do(step.key, step.request, calls) for _ in range(2)]

    assert (results, await step.phase(), len(step.http.sent("POST"))) == ([None, None], "done", 1)


async def test_a_step_without_the_look_that_its_provider_settles_by_sends_nothing(bench: MakeBench) -> None:
    step = bench(LOOKING_UP)

    with pytest.raises(CompensationImpossible, match="give the step buy a look"):
        await step.do()

    assert step.http.requests == []


async def test_a_step_that_only_goes_forward_needs_no_undo(bench: MakeBench) -> None:
    step = bench(VOIDING)

    assert await step.steps.do(step.key, step.request, replace(step.calls(), undo=None)) == 1
    with pytest.raises(CompensationImpossible, match="give the pivot buy an undo"):
        await step.steps.settle(step.key, step.request, replace(step.calls(), undo=None))
