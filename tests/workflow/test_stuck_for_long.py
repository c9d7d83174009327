"""A stuck order whose run nears the server's limit of updates: it goes on in another run, and people see one order."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client

from adapters.temporal import DATA_CONVERTER
from client.checkouts import Checkouts
from client.failures import Refused
from domain import policies
from domain.model import CheckoutInput
from sagafence.devservers.temporal import TemporalServer
from tests.attempts import AroundAttempts, Run
from tests.conftest import Database, Shop
from tests.later_sdk import switch_on
from tests.workflow.gates import Gates
from tests.workflow.own_temporal import own_temporal
from tests.workflow.replays import replayer
from tests.workflow.sagas import (
    BREAK_UNDO,
    MEND_UNDO,
    goods_and_money,
    hasty,
    how_it_ended,
    open_incidents,
    reason_of,
    retry,
    until,
    until_another_run,
    until_parked_again,
    until_status,
    violations,
)
from tests.workflow.test_stuck import Handle, stuck_in_pay

LIMIT, SUGGESTED_AT = 6, 3
"""Updates that the server takes for one run, and after how many it suggests another run."""


@pytest.fixture(scope="module")
def few_updates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server of our own, which takes few updates for one run."""
    with own_temporal(
        tmp_path_factory.mktemp("few-updates"),
        **{
            "history.maxTotalUpdates": LIMIT,
            "history.maxTotalUpdates.suggestContinueAsNewThreshold": SUGGESTED_AT / LIMIT,
        },
    ) as server:
        yield server


@pytest.fixture
async def client(few_updates: TemporalServer) -> Client:
    return await Client.connect(few_updates.address, data_converter=DATA_CONVERTER)


@pytest.fixture
def checkouts(shop: Shop) -> Checkouts:
    return Checkouts(shop.client, shop.task_queue, "http://ui")


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))


async def until_parked_in_another_run(shop: Shop, order: CheckoutInput, first: Handle) -> Handle:
    """Wait until a stuck order goes on in another run than its first, and is parked there."""
    await until_another_run(shop, order, first)
    await until_parked_again(shop, order)
    return shop.newest_run(order)


async def retried_often(checkouts: Checkouts, order: CheckoutInput, times: int = SUGGESTED_AT) -> None:
    for _ in range(times):
        assert (await checkouts.retry(order.order_id)).status == "stuck"


async def test_a_stuck_order_is_retried_beyond_the_limit_and_ends_as_ever(shop: Shop, checkouts: Checkouts) -> None:
    before = await goods_and_money(shop.database)
    async with shop.working():
        order, first = await stuck_in_pay(shop)
        waiting = asyncio.create_task(checkouts.outcome(order.order_id, poll_every=3600))
        reason = await reason_of(shop, order)
        await retried_often(checkouts, order, 2 * LIMIT)
        newest = await shop.newest_run(order).describe()
        status = await checkouts.status(order.order_id)
        incidents = await open_incidents(shop, order)
        opened = await shop.database.value("SELECT count(*) FROM incidents")
        cause = await shop.database.value("SELECT cause FROM incidents")
        assert not await checkouts.start(order)
        swept = await shop.sweep()
        with pytest.raises(Refused, match="stuck already"):
            await checkouts.cancel(order.order_id, "too late")
        await until_parked_again(shop, order)  # the next run begins with a round of its own
        await shop.database.run(MEND_UNDO["pay"])
        ended = await checkouts.retry(order.order_id)
        output = await waiting

    assert newest.run_id != first.first_execution_run_id
    assert (newest.typed_search_attributes[policies.ORDER_STATUS], status.status) == ("stuck", "stuck")
    assert newest.typed_search_attributes[policies.FAILED_STEP] == "pay"
    assert (status.reason, incidents, opened) == (reason, [["pay"]], 1)
    assert "injected" in cause
    assert (swept.repaired, swept.parked) == ([], [])
    assert (ended.status, ended.reason, output.status) == ("rejected", reason, "rejected")
    assert await shop.database.value("SELECT count(*) FROM order_events WHERE event = 'retry_requested'") == (
        2 * LIMIT + 1
    )
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


class _LosesTheEnding(AroundAttempts):
    """After each park, the order's row says no longer how the order is to end."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def attempt(self, info: activity.Info, arguments: Any, run: Run) -> Any:  # noqa: ARG002 - the hook's
        answer = await run()
        if info.activity_type == "park_order":
            await self._database.run("SET session_replication_role = replica; UPDATE orders SET ending = NULL")
        return answer


async def test_another_run_ends_the_order_as_the_first_would_where_its_row_has_lost_the_ending(
    shop: Shop, checkouts: Checkouts
) -> None:
    async with shop.working(interceptors=(_LosesTheEnding(shop.database),)):
        order, first = await stuck_in_pay(shop)
        await retried_often(checkouts, order)
        await until_parked_in_another_run(shop, order, first)
        await shop.database.run(MEND_UNDO["pay"])

        assert (await checkouts.retry(order.order_id)).status == "rejected"


async def test_an_order_that_temporal_cancelled_ends_as_cancelled_in_another_run(
    shop: Shop, checkouts: Checkouts
) -> None:
    await shop.database.run(BREAK_UNDO["pay"])
    gates, order = Gates(), shop.order("alice")
    gate = gates.hold(order, "charge_payment", "after")

    async with shop.working(interceptors=(gates,)):
        first = await shop.start(order)
        await gate.reached()
        await first.cancel(reason="changed my mind")
        gate.open()
        await until_status(shop, order, "stuck")
        await retried_often(checkouts, order)
        newest = await until_parked_in_another_run(shop, order, first)
        await shop.database.run(MEND_UNDO["pay"])
        ended = await checkouts.retry(order.order_id)
        closed = await how_it_ended(newest)

    assert (ended.status, ended.reason) == ("cancelled", "cancelled: changed my mind")
    assert closed == "OrderCancelled"
    assert await shop.order_status(order) == "cancelled"
    assert await violations(shop) == []


async def test_a_step_that_was_resolved_stays_so_and_a_repeat_of_the_resolve_joins_the_first(
    shop: Shop, checkouts: Checkouts
) -> None:
    await shop.database.run(BREAK_UNDO["reserve"])
    async with shop.working():
        order, first = await stuck_in_pay(shop)
        await checkouts.resolve(order.order_id, "pay", "refunded at the bank")
        await retried_often(checkouts, order, SUGGESTED_AT - 1)
        await until_parked_in_another_run(shop, order, first)
        again = await checkouts.resolve(order.order_id, "pay", "refunded at the bank")
        fence = await shop.database.value("SELECT phase FROM step_fence WHERE step = 'pay'")
        incidents = await open_incidents(shop, order)
        ended = await checkouts.resolve(order.order_id, "reserve", "counted")

    assert (again.status, fence, incidents) == ("stuck", "resolved", [["reserve"]])
    assert ended.status == "rejected"
    assert await shop.database.value("SELECT count(*) FROM order_events WHERE event = 'step_resolved'") == 2
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'refund'") == 0


async def test_a_run_waits_for_the_answers_that_it_owes_and_rounds_go_on_meanwhile(
    shop: Shop, checkouts: Checkouts
) -> None:
    gates = Gates()
    async with shop.working(interceptors=(gates,)):
        order, first = await stuck_in_pay(shop)
        await retried_often(checkouts, order, SUGGESTED_AT - 1)
        noting = gates.hold(order, "note_retry", "before")
        asked = [asyncio.create_task(retry(shop.newest_run(order))) for _ in range(2)]
        await noting.reached()
        await until_parked_again(shop, order)
        assert (await shop.newest_run(order).describe()).run_id == first.first_execution_run_id
        noting.open()
        answers = await asyncio.gather(*asked)
        newest = await until_parked_in_another_run(shop, order, first)
        await newest.terminate()

    assert [answer.status for answer in answers] == ["stuck", "stuck"]
    history = await shop.client.get_workflow_handle(first.id, run_id=first.first_execution_run_id).fetch_history()
    await replayer().replay_workflow(history)


async def test_an_update_that_comes_before_the_next_runs_first_task_is_taken_by_it(
    shop: Shop, checkouts: Checkouts
) -> None:
    async with shop.working():
        order, first = await stuck_in_pay(shop)
        await retried_often(checkouts, order, SUGGESTED_AT - 1)
    async with shop.working(max_cached_workflows=0):
        retrying = asyncio.create_task(checkouts.retry(order.order_id))

        async def is_in_another_run() -> bool:
            return (await shop.newest_run(order).describe()).run_id != first.first_execution_run_id

        await until(is_in_another_run)
        answers = await asyncio.gather(*(retry(shop.newest_run(order)) for _ in range(3)), return_exceptions=True)
        await retrying
        await until_parked_again(shop, order)
        await shop.newest_run(order).terminate()

    assert [answer for answer in answers if isinstance(answer, BaseException)] == []


@pytest.mark.parametrize("is_later_sdk", [False, True], ids=["this SDK", "a later SDK"])
async def test_a_cancel_by_temporal_while_stuck_changes_nothing_in_another_run(
    shop: Shop, checkouts: Checkouts, monkeypatch: pytest.MonkeyPatch, is_later_sdk: bool
) -> None:
    before = await goods_and_money(shop.database)
    if is_later_sdk:
        switch_on(monkeypatch)
    async with shop.working():
        order, first = await stuck_in_pay(shop)
        await first.cancel(reason="too late")
        await retried_often(checkouts, order)
        await until_parked_in_another_run(shop, order, first)
        await shop.database.run(MEND_UNDO["pay"])
        ended = await checkouts.retry(order.order_id)

    assert ended.status == "rejected"
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
