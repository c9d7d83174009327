"""The test kit on steps side by side, a point of no return in the middle and a provider: no false alarm, no bug missed.

The saga is in tests/faults/moving.py: correct, or with one of the mistakes that people make.
"""

import asyncio
from collections.abc import Sequence

import pytest
from temporalio.client import Client

from sagafence.testing import BrokenPromise, Case, check, matrix
from tests.faults.moving import LOCAL_FIRST, STEPS, STEPS_LOCAL_FIRST, moves
from tests.faults.share import share

MATRIX = matrix(STEPS, can_be_retried=True)
LOCAL_FIRST_CASES = [
    case for case in matrix(STEPS_LOCAL_FIRST, can_be_retried=True) if case.step is None or case.step.is_local_first
]
BY_NAME = {str(case): case for case in MATRIX}

# In which cases each mistake shows; the first is the one that `make test` plays.
SHOWS = {
    "an undo trusts the id that it remembers": [
        "van-provider-acts-then-500-for-good",
        "van-provider-answers-late",
    ],
    "a new key per attempt": [
        "van-provider-acts-then-500",
        "van-provider-acts-in-silence",
        "letter-provider-acts-then-500",
    ],
    "500 means not done": ["van-provider-acts-then-500", "van-provider-acts-then-500-for-good"],
    "no tombstone": ["key-do-late", "van-do-late", "deposit-do-late"],
    "a sibling is not awaited": [
        "key-beside-a-refusal-before",
        "key-beside-a-refusal-after",
        "van-beside-a-refusal-before",
        "lift-beside-a-refusal-after",
    ],
    "the stack is undone while the pivot is unknown": [
        "deposit-provider-acts-then-500-for-good",
        "deposit-provider-answers-late",
    ],
    "an undo looks, and believes that there is nothing": ["van-provider-acts-late"],
    "a step after the pivot is given up": ["letter-do-stuck", "note-do-stuck"],
    "undone in the order of the steps": ["van-undo-repeated"],
}


async def _broken_in(client: Client, fault: str, cases: Sequence[Case]) -> dict[str, str]:
    """Play the cases, four at a time, and give those in which a promise broke, with the message."""
    found: dict[str, str] = {}
    seats = asyncio.Semaphore(4)

    async def play(case: Case) -> None:
        async with seats, moves(client, fault) as saga:
            try:
                await check(case, saga)
            except BrokenPromise as broken:
                found[str(case)] = str(broken)

    await asyncio.gather(*(play(case) for case in cases))
    return found


@pytest.mark.parametrize("case", share(MATRIX, every=13))
async def test_a_correct_saga_keeps_its_promises(client: Client, case: Case) -> None:
    async with moves(client) as saga:
        await check(case, saga)


@pytest.mark.parametrize("case", share(LOCAL_FIRST_CASES, every=11))
async def test_a_correct_saga_whose_steps_are_local_first_keeps_its_promises(client: Client, case: Case) -> None:
    async with moves(client, LOCAL_FIRST) as saga:
        await check(case, saga)


@pytest.mark.parametrize("fault", SHOWS)
async def test_a_mistake_is_caught(client: Client, fault: str) -> None:
    cases = [BY_NAME[name] for name in SHOWS[fault][:1]]

    found = await _broken_in(client, fault, cases)

    assert set(found) == {str(case) for case in cases}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", SHOWS)
async def test_a_mistake_is_caught_wherever_it_shows(client: Client, fault: str) -> None:
    cases = [BY_NAME[name] for name in SHOWS[fault]]

    assert set(await _broken_in(client, fault, cases)) == {str(case) for case in cases}
