"""Sagas with effects elsewhere whose runs are reset: no provider is asked twice for what it has done."""

import asyncio

import pytest
from temporalio.client import WorkflowFailureError

from tests.resets import number_of_tasks, reset_to_task
from tests.sagafence.elsewhere import Elsewhere
from tests.sagafence.elsewhere_story import Fulfil
from tests.sagafence.http_provider import Fault, HttpProvider
from tests.sagafence.scenes import ended

_TASKS = pytest.mark.parametrize("task", [0, -1], ids=["first", "last"])


async def test_a_saga_that_completed_and_is_reset_to_whichever_task_calls_no_provider_again(
    elsewhere: Elsewhere,
) -> None:
    async with elsewhere.working():
        handle = await elsewhere.start()
        first = await handle.result()
        requests = elsewhere.requests()
        for task in range(await number_of_tasks(elsewhere.client, handle)):
            assert await (await reset_to_task(elsewhere.client, handle, task)).result() == first

    assert (await elsewhere.held(), elsewhere.requests()) == ((1, 1, 1, 1), requests)


_HELD = pytest.mark.parametrize("fault", [Fault.ACTS_AND_WAITS, Fault.WAITS])


@_TASKS
@_HELD
@pytest.mark.parametrize("where", ["crm", "mail"])
async def test_a_saga_that_is_reset_while_a_provider_is_called_has_its_effects_there_once(
    elsewhere: Elsewhere, where: str, fault: Fault, task: int
) -> None:
    provider = getattr(elsewhere, where)
    provider.faults.append(fault)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await provider.is_held.wait()
        again = await reset_to_task(elsewhere.client, handle, task)
        results = await again.result()
        provider.may_go_on.set()
        await until_answered(provider)

    assert results == [1, 1, 1, 1]
    assert await elsewhere.held() == (1, 1, 1, 1)
    assert len(set(provider.sent("POST"))) == 1


@_TASKS
@_HELD
async def test_a_pivot_that_was_called_before_a_reset_is_voided_or_found_to_stand_and_not_called_again(
    elsewhere: Elsewhere, fault: Fault, task: int
) -> None:
    elsewhere.billing.faults.append(fault)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.billing.is_held.wait()
        elsewhere.billing.is_shipped = stands = fault is Fault.ACTS_AND_WAITS and task == 0
        again = await reset_to_task(elsewhere.client, handle, task)
        if stands:
            await again.result()
        else:
            with pytest.raises(WorkflowFailureError):
                await again.result()
        elsewhere.billing.may_go_on.set()
        await until_answered(elsewhere.billing)

    assert await elsewhere.held() == ((1, 1, 1, 1) if stands else (0, 0, 0, 0))
    assert len([key for key in elsewhere.billing.sent("POST") if key]) == 1


@_TASKS
@_HELD
async def test_a_saga_that_is_reset_while_a_provider_reverses_is_undone_there_once(
    elsewhere: Elsewhere, fault: Fault, task: int
) -> None:
    elsewhere.billing.faults.append(Fault.REFUSES_402)
    elsewhere.crm.faults.extend([Fault.NONE, fault])
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.crm.is_held.wait()
        again = await reset_to_task(elsewhere.client, handle, task)
        with pytest.raises(WorkflowFailureError):
            await again.result()
        elsewhere.crm.may_go_on.set()
        await until_answered(elsewhere.crm)

    assert await elsewhere.held() == (0, 0, 0, 0)
    assert (len(elsewhere.crm.things), elsewhere.crm.reversals, len(elsewhere.billing.things)) == (1, 1, 0)


async def until_answered(provider: HttpProvider) -> None:
    """Wait until the request that was held has had its effect, if it has one, and its answer."""
    async with asyncio.timeout(20):
        while provider.open:
            await asyncio.sleep(0.005)


@_TASKS
async def test_a_saga_that_is_reset_while_its_pivot_is_unknown_undoes_nothing_before_that_is_settled(
    elsewhere: Elsewhere, task: int
) -> None:
    elsewhere.billing.faults.extend([Fault.LATE] + [Fault.REJECTS_429] * 6)
    async with elsewhere.working():
        handle = await elsewhere.start()
        await elsewhere.until(handle, "stuck")
        again = await reset_to_task(elsewhere.client, handle, task)
        await elsewhere.until(again, "stuck")
        held = await elsewhere.held()
        elsewhere.billing.faults.clear()
        await again.execute_update(Fulfil.retry)
        await ended(again)
        arrived, *_ = elsewhere.billing.arrive()

    assert held == (1, 1, 0, 0)
    assert (await elsewhere.held(), arrived) == ((0, 0, 0, 0), 402)
