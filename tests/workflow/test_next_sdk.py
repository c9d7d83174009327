"""The waits of a saga with the activation flag of later SDKs: a cancel of the server's interrupts no unwind.

The tests of other modules that are named here run in both ways: there with the flag off, and here with it on. They are
those to which it could make a difference; tests/faults/test_next_sdk.py runs all the others in this way too.
"""

import asyncio
from datetime import timedelta

import pytest

from domain import policies
from domain.model import CheckoutStatus
from tests.conftest import Shop
from tests.later_sdk import is_of_a_later_sdk, later_sdk
from tests.workflow import test_cancel, test_checkout, test_stuck
from tests.workflow.gates import Gates
from tests.workflow.replays import replayer
from tests.workflow.sagas import (
    MEND_UNDO,
    goods_and_money,
    how_it_ended,
    resolve,
    retry,
    until_it_has_heard_of_its_cancel,
    violations,
)
from tests.workflow.test_stuck import Handle, state_of, stuck_in_pay

_hasty_undos, ship_gives_up_soon = test_stuck._hasty_undos, test_stuck.ship_gives_up_soon

test_a_cancel_by_temporal_before_any_worker_runs_leaves_a_cancelled_order = (
    test_cancel.test_a_cancel_by_temporal_before_any_worker_runs_leaves_a_cancelled_order
)
test_a_refusal_that_arrives_together_with_temporals_cancel_is_a_rejection = (
    test_cancel.test_a_refusal_that_arrives_together_with_temporals_cancel_is_a_rejection
)
test_a_cancel_by_temporal_during_an_unwind_changes_nothing = (
    test_cancel.test_a_cancel_by_temporal_during_an_unwind_changes_nothing
)
test_a_cancel_by_temporal_while_stuck_leaves_the_order_open_and_stuck = (
    test_cancel.test_a_cancel_by_temporal_while_stuck_leaves_the_order_open_and_stuck
)
test_an_unwind_that_is_cancelled_survives_a_worker_without_memory = (
    test_checkout.test_an_unwind_that_is_cancelled_survives_a_worker_without_memory
)
test_a_cancel_while_the_way_forward_is_written_changes_nothing = (
    test_stuck.test_a_cancel_while_the_way_forward_is_written_changes_nothing
)
__all__ = ["later_sdk"]


async def cancelled_while_stuck(shop: Shop) -> Handle:
    """Have Temporal cancel a stuck order, and see that the saga has heard of it."""
    _, handle = await stuck_in_pay(shop)
    await handle.cancel(reason="too late")
    await until_it_has_heard_of_its_cancel(handle)
    return handle


async def require_undone(shop: Shop, handle: Handle, before: list[tuple[object, ...]]) -> None:
    """See that the order has ended as if nobody had cancelled it, and that its history replays, whatever the SDK."""
    assert await how_it_ended(handle) == "OrderRejected"
    assert await shop.database.value("SELECT status FROM orders") == "rejected"
    assert (await shop.database.value("SELECT reason FROM orders")).startswith("UndeliverableAddress: ")
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
    assert await is_of_a_later_sdk(handle)
    await replayer().replay_workflow(await handle.fetch_history())


async def test_a_stuck_order_with_a_cancel_and_a_retry_ends_undone(shop: Shop) -> None:
    before = await goods_and_money(shop.database)
    async with shop.working():
        handle = await cancelled_while_stuck(shop)
        in_vain = await retry(handle)
        await shop.database.run(MEND_UNDO["pay"])
        answer = await retry(handle)
        await require_undone(shop, handle, before)

    assert [state_of(status, "pay") for status in (in_vain, answer)] == ["stuck", "undone"]


async def test_a_cancel_while_an_update_is_still_answered_changes_nothing(shop: Shop) -> None:
    await test_stuck.test_a_cancel_while_an_update_is_still_answered_changes_nothing(shop)


async def test_a_retry_is_answered_although_a_cancel_comes_while_its_round_runs(shop: Shop) -> None:
    before, gates = await goods_and_money(shop.database), Gates()
    async with shop.working(interceptors=(gates,)):
        order, handle = await stuck_in_pay(shop)
        await shop.database.run(MEND_UNDO["pay"])
        gate = gates.hold(order, "refund_payment", "before")
        retrying = asyncio.create_task(retry(handle))
        await gate.reached()
        await handle.cancel(reason="too late")
        await handle.query("status")
        gate.open()
        answer = await retrying
        await require_undone(shop, handle, before)

    assert state_of(answer, "pay") == "undone"


async def test_a_stuck_order_tries_again_by_itself_although_it_was_cancelled(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", timedelta(milliseconds=300))
    monkeypatch.setattr(policies, "STUCK_RETRY_LONGEST", timedelta(milliseconds=300))
    before = await goods_and_money(shop.database)
    async with shop.working():
        handle = await cancelled_while_stuck(shop)
        await shop.database.run(MEND_UNDO["pay"])
        await require_undone(shop, handle, before)


async def test_a_resolution_after_a_cancel_ends_the_stuck_order(shop: Shop) -> None:
    async with shop.working():
        handle = await cancelled_while_stuck(shop)
        answer = await resolve(handle, "pay")
        ended = await how_it_ended(handle)

    assert isinstance(answer, CheckoutStatus)
    assert ended == "OrderRejected"
    assert await shop.database.value("SELECT status FROM orders") == "rejected"
    assert await is_of_a_later_sdk(handle)


async def test_a_stuck_order_that_was_cancelled_leaves_the_memory_of_a_worker_and_goes_on_in_another(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    before = await goods_and_money(shop.database)
    async with shop.working(max_cached_workflows=0):
        handle = await cancelled_while_stuck(shop)
        await retry(handle)
    await shop.database.run(MEND_UNDO["pay"])
    async with shop.working(max_cached_workflows=0):
        await retry(handle)
        await require_undone(shop, handle, before)

    assert "Failed running eviction" not in caplog.text
    assert [record.message for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
