"""Many sagas of one external step at the hands of a provider that does whatever it likes within its declaration."""

import asyncio
import random
from dataclasses import replace

import pytest

from sagafence.errors import NotSettledYet, OutcomeUnknown, SagaError
from sagafence.provider import Happened, Never, Provider, Settles
from tests.sagafence.bench import HOUR, Bench, NoAnswer
from tests.sagafence.conftest import MakeBench
from tests.sagafence.http_provider import Fault

PROVIDERS = {
    "repeat": Provider("p", Settles.BY_REPEATING),
    "void": Provider("p", Settles.BY_VOIDING),
    "look": Provider("p", Settles.BY_LOOKING_UP, late_by_at_most=HOUR, reversal_is_idempotent=True),
    "void again": Provider("p", Settles.BY_VOIDING, void_blocks=False, late_by_at_most=HOUR),
}
_FAULTS = [
    *[Fault.NONE] * 4,
    Fault.ACTS_AND_HANGS_UP,
    Fault.LATE,
    Fault.GATEWAY_503,
    Fault.REFUSES_402,
    Fault.REJECTS_401,
    Fault.IN_PROGRESS_409,
]
_SAGAS = 40


async def tried(step: Bench) -> None:
    """Make some attempts, as Temporal would: until one succeeds or fails for good."""
    for _ in range(3):
        try:
            await step.do()
        except SagaError as failed:
            if failed.non_retryable:
                return
        except (ConnectionError, NoAnswer):
            continue
        else:
            return


async def settled(step: Bench, chance: random.Random, *, pivot: bool) -> object:
    """Undo or settle to the end; what is late arrives now and then, and at the latest when it may."""
    while True:
        try:
            return await (step.settle() if pivot else step.undo())
        except NotSettledYet:
            while step.http.late:
                step.http.arrive()
            await step.grow_older(2 * HOUR)
        except OutcomeUnknown:
            raise  # all of these can be settled without a person
        except (SagaError, ConnectionError, NoAnswer):
            if step.http.late and chance.random() < 0.5:
                step.http.arrive()


@pytest.mark.parametrize("pivot", [False, True], ids=["undone", "pivot"])
@pytest.mark.parametrize("kind", PROVIDERS)
async def test_our_books_and_the_providers_are_equal_in_the_end(bench: MakeBench, kind: str, *, pivot: bool) -> None:
    step, chance = bench(PROVIDERS[kind]), random.Random(f"{kind} {pivot}")
    step.can_look = kind == "look"
    for number in range(_SAGAS):
        step.key = replace(step.key, saga_id=f"saga-{number}")
        step.http.faults.clear()
        step.http.faults.extend(chance.choices(_FAULTS, k=4))
        before = step.http.live
        async with asyncio.TaskGroup() as attempts:
            attempts.create_task(tried(step))
            if chance.random() < 0.5:
                attempts.create_task(tried(step))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.02)
                outcome = await settled(step, chance, pivot=pivot)
        outcome = await settled(step, chance, pivot=pivot)
        while step.http.late:  # the last of it, after all
            step.http.arrive()

        phase = await step.database.value("SELECT phase FROM external_steps WHERE saga_id = $1", step.key.saga_id)
        told = (isinstance(outcome, Happened), isinstance(outcome, Never))
        assert step.http.live - before == (1 if phase == "done" else 0), (number, phase)
        assert told == ((phase == "done", phase == "never") if pivot else (False, False))
        assert pivot or phase == "undone"
