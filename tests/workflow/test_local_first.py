"""Local attempts: a step is tried where its workflow runs first, and by everybody's rules when that fails.

No saga of this build asks for them; those that were open at the upgrade do, and batches, and sagas of other people.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from client.checkouts import Checkouts
from domain import policies
from domain.model import ExecutionMode
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.workflow.gates import PATIENCE_SECONDS, Gates, lost_report, outage
from tests.workflow.replays import replayer
from tests.workflow.sagas import (
    DOES,
    events_of,
    failure_of,
    goods_and_money,
    how_it_ended,
    until,
    until_tried,
    violations,
)
from workflows.checkout import CheckoutWorkflow

SHORT = timedelta(seconds=1)
ID_OF = {"reserve_inventory": "reserve", "charge_payment": "pay", "ship_order": "ship"}
# Orders that reserve, pay and ship refuse.
REFUSED = {
    "reserve_inventory": ("alice", ("no-such", 1)),
    "charge_payment": ("bob", ("tea-mug", 1)),
    "ship_order": ("nemo", ("lamp", 1)),
}

Handle = WorkflowHandle[Any, Any]


@pytest.fixture
def shop(shop: Shop) -> Shop:
    """The shop, whose orders are those of an earlier build in its local-first mode."""
    return replace(shop, execution_mode=ExecutionMode.LOCAL_FIRST)


async def activities_of(handle: Handle) -> list[str]:
    """Name the ordinary activities of a history by their ids."""
    return [
        event.activity_task_scheduled_event_attributes.activity_id
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    ]


async def requires_replay(handle: Handle) -> None:
    await replayer().replay_workflow(await handle.fetch_history())


# Counts -------------------------------------------------------------------------------------------------


async def test_a_completed_order_is_one_workflow_task_of_eight_events(shop: Shop) -> None:
    async with shop.working():
        handle = await shop.start(shop.order("carol"))
        status = await handle.result()
        history = await handle.fetch_history()

    assert status.status == "completed"
    assert [EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in history.events] == [
        "WORKFLOW_EXECUTION_STARTED",
        "WORKFLOW_TASK_SCHEDULED",
        "WORKFLOW_TASK_STARTED",
        "WORKFLOW_TASK_COMPLETED",
        *["MARKER_RECORDED"] * 3,
        "WORKFLOW_EXECUTION_COMPLETED",
    ]


async def test_both_modes_tell_the_same_of_the_same_order_and_leave_the_same_rows(shop: Shop) -> None:
    told: list[str] = []
    left: list[Any] = []
    async with shop.working():
        for execution_mode in ExecutionMode:
            order = replace(shop, execution_mode=execution_mode).order("carol", ("tea-mug", 2), ("poster", 1))
            before = await goods_and_money(shop.database)
            status = await (await shop.start(order)).result()
            after = await goods_and_money(shop.database)
            left.append([(now[0], now[1], now[2] - was[2]) for was, now in zip(before, after, strict=True)])
            anonymous = str(status).replace(order.order_id, "ORDER").replace(status.tracking_number or "", "PARCEL")
            told.append(anonymous)
            rows = await shop.database.fetch(
                "SELECT event, previous_status, changed_by, reason FROM order_events WHERE order_id = $1 ORDER BY seq",
                order.order_id,
            )
            left[-1].append(tuple(map(tuple, rows)))

    assert told[0] == told[1]
    assert left[0] == left[1]


async def test_a_completed_order_is_listed_as_completed(shop: Shop) -> None:
    order = shop.order("carol")
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    async with shop.working():
        await (await shop.start(order)).result()

    async def is_listed() -> bool:
        return any(
            [
                found.order_id == order.order_id and found.status == "completed"
                async for found in checkouts.list("completed", 1_000)
            ]
        )

    await until(is_listed)


async def test_a_worker_that_shares_the_starters_client_gets_the_first_task_at_once(shop: Shop) -> None:
    order = shop.order("carol")
    async with shop.working():
        await Checkouts(shop.client, shop.task_queue, "http://ui").start(order)
        handle = shop.newest_run(order)
        await handle.result()
        history = await handle.fetch_history()

    assert history.events[0].workflow_execution_started_event_attributes.eager_execution_accepted


# Failures that may pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [outage, lost_report])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", DOES)
async def test_what_may_pass_is_tried_again_as_an_ordinary_activity(
    shop: Shop, name: str, moment: Any, error: Callable[[], Exception]
) -> None:
    order, gates = shop.order("carol"), Gates()
    gates.fail(order, name, moment, times=2, error=error)
    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        status = await handle.result()

    assert status.status == "completed"
    assert await activities_of(handle) == [ID_OF[name]]
    # Once locally, and then by the step's own policy.
    assert {each: gates.attempts_of(order, each) for each in DOES} == dict.fromkeys(DOES, 1) | {name: 3}
    assert await violations(shop) == []
    await requires_replay(handle)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", DOES)
async def test_an_attempt_that_takes_too_long_is_begun_again_and_has_one_effect(
    shop: Shop, name: str, moment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", SHORT)
    order, gates = shop.order("carol"), Gates()
    gate = gates.hold(order, name, moment)

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await until_tried(gates, order, name, times=2)
        gate.open()
        status = await handle.result()

    assert status.status == "completed"
    assert await activities_of(handle) == [ID_OF[name]]
    assert await violations(shop) == []
    await requires_replay(handle)


# Failures that do not pass ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOES)
async def test_a_refusal_is_not_asked_for_twice(shop: Shop, name: str) -> None:
    order, gates = shop.order(*REFUSED[name]), Gates()
    before = await goods_and_money(shop.database)
    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        failure = await failure_of(handle)

    assert failure.type == "OrderRejected"
    assert gates.attempts_of(order, name) == 1
    assert not set(await activities_of(handle)) & set(ID_OF.values())
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
    await requires_replay(handle)


async def test_what_the_step_does_not_retry_is_not_begun_again(shop: Shop) -> None:
    order, gates = shop.order("carol"), Gates()
    gates.fail(order, "charge_payment", error=lambda: DatabaseRefusedStatement("no right to do so: injected"))
    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        failure = await failure_of(handle)

    assert "no right to do so" in failure.message
    assert gates.attempts_of(order, "charge_payment") == 1
    assert "pay" not in await activities_of(handle)


# Cancels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_update", [True, False])
@pytest.mark.parametrize("name", DOES)
async def test_a_cancel_beside_a_local_attempt_undoes_the_order(
    shop: Shop, name: str, by_update: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", SHORT)
    order, gates = shop.order("carol"), Gates()
    before = await goods_and_money(shop.database)
    gate = gates.hold(order, name, "after")
    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        if by_update:
            # It is taken once the local attempt's time is up.
            await asyncio.wait_for(handle.execute_update(CheckoutWorkflow.cancel, "changed my mind"), PATIENCE_SECONDS)
        else:
            await handle.cancel(reason="changed my mind")
        gate.open()
        ended = await how_it_ended(handle)

    assert ended == ("OrderCancelled" if by_update else "CANCELED")
    assert await goods_and_money(shop.database) == before
    assert await shop.order_status(order) == "cancelled"
    assert await violations(shop) == []
    await requires_replay(handle)


class _BreaksWhenCancelled(ActivityInboundInterceptor):
    """Has the first attempt of ship wait for its cancel and then fail of something else, such as a lost connection."""

    has_begun: ClassVar[asyncio.Event]

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        if activity.info().activity_type != "ship_order" or self.has_begun.is_set():
            return await super().execute_activity(input)
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise outage() from None


class _Breaking(Interceptor):
    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _BreaksWhenCancelled(next)


@pytest.mark.parametrize("by_update", [True, False])
async def test_a_cancel_during_a_local_attempt_that_then_fails_is_not_followed_by_another_attempt(
    shop: Shop, by_update: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server tells a worker of a cancel within an attempt only where the workflow task has lasted long.
    monkeypatch.setattr(policies, "LOCAL_ATTEMPT", timedelta(seconds=PATIENCE_SECONDS))
    _BreaksWhenCancelled.has_begun = asyncio.Event()
    order = shop.order("alice")  # her courier takes the parcel at once
    before = await goods_and_money(shop.database)
    async with shop.working(interceptors=(_Breaking(),)):
        handle = await shop.client.start_workflow(
            CheckoutWorkflow.run,
            order,
            id=policies.checkout_workflow_id(order.order_id),
            task_queue=shop.task_queue,
            task_timeout=SHORT,
        )
        await asyncio.wait_for(_BreaksWhenCancelled.has_begun.wait(), PATIENCE_SECONDS)
        if by_update:
            await asyncio.wait_for(handle.execute_update(CheckoutWorkflow.cancel, "changed my mind"), PATIENCE_SECONDS)
        else:
            await handle.cancel(reason="changed my mind")
        ended = await how_it_ended(handle)

    assert ended == ("OrderCancelled" if by_update else "CANCELED")
    assert "ship" not in await activities_of(handle)
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
    await requires_replay(handle)


async def test_a_cancel_that_comes_while_the_last_step_ends_is_heard(shop: Shop) -> None:
    """The server refuses the task that would complete the run, and the steps are asked again with the cancel known."""
    order, gates = shop.order("carol"), Gates()
    before = await goods_and_money(shop.database)
    gate = gates.hold(order, "ship_order", "after")
    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        await handle.cancel(reason="changed my mind")
        gate.open()  # within the time of the local attempt
        ended = await how_it_ended(handle)

    assert ended == "CANCELED"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
    assert "EVENT_TYPE_WORKFLOW_TASK_FAILED" in await events_of(handle)
    await requires_replay(handle)
