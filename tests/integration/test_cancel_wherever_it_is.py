"""A cancel of an order that has no saga of its own: honoured, or refused with a reason, and never lost."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from client.orders import Orders
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id
from tests.integration.commands import Desk, Ran
from tests.workflow.bulk_scenes import between_steps, gates_of, start_batch
from tests.workflow.gates import Gates
from tests.workflow.sagas import goods_and_money, reason_of, violations

WHY = ("--reason", "found it cheaper", "--by", "anna@desk")
REASON = "cancelled: anna@desk: found it cheaper"


def cancelling(run_starter: Desk, order: CheckoutInput, *options: str) -> "asyncio.Task[Ran]":
    return asyncio.create_task(run_starter("cancel", order.order_id, *WHY, "--json", *options))


# By hand ------------------------------------------------------------------------------------------------


async def test_an_order_by_hand_is_cancelled_before_anybody_begins_it(run_starter: Desk) -> None:
    shop, order = run_starter.shop, run_starter.shop.order()
    before = await goods_and_money(shop.database)
    await shop.accept_by_hand(order)
    async with shop.working():
        ran = await cancelling(run_starter, order)
        again = await cancelling(run_starter, order)
        other = await run_starter("cancel", order.order_id, "--reason", "another reason")
        swept = await shop.sweep()

    assert (ran.code, ran.document["status"], ran.document["reason"]) == (0, "cancelled", REASON)
    assert ran.document["workflow_id"] == checkout_workflow_id(order.order_id)
    assert (again.code, other.code) == (0, 3)
    assert (await shop.order_status(order), await reason_of(shop, order)) == ("cancelled", REASON)
    assert (swept.started, swept.repaired) == ([], [])
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []


async def test_a_cancel_beside_a_sweep_that_begins_the_order_is_the_sagas(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, gates, order = run_starter.shop, Gates(), run_starter.shop.order()
    gate = gates.hold(order, "charge_payment", "before")
    await shop.accept_by_hand(order)
    by_hand: Callable[..., Awaitable[object]] = Orders._undo_by_hand

    async with shop.working(interceptors=(gates,)):
        loop = asyncio.get_running_loop()

        async def swept_first(*arguments: object) -> object:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(shop.sweep(), loop))
            asyncio.run_coroutine_threadsafe(gate.reached(), loop).add_done_callback(
                lambda _: loop.call_soon_threadsafe(loop.call_later, 0.5, gate.open)
            )
            return await by_hand(*arguments)

        monkeypatch.setattr(Orders, "_undo_by_hand", swept_first)
        ran = await cancelling(run_starter, order)

    assert (ran.code, ran.document["status"], ran.document["reason"]) == (0, "cancelled", REASON)
    assert await violations(shop) == []


async def test_an_order_by_hand_that_no_saga_can_take_is_not_cancelled_and_that_is_said(run_starter: Desk) -> None:
    await run_starter.shop.database.run("INSERT INTO orders (order_id, customer) VALUES ('no-lines', 'alice')")
    async with run_starter.shop.working():
        ran = await run_starter("cancel", "no-lines", *WHY)

    assert ran.code == 3
    assert "no saga can take order no-lines, nor undo it: the order has no lines" in ran.err


# Elsewhere ----------------------------------------------------------------------------------------------


async def test_what_only_asked_for_a_taken_id_is_not_what_is_cancelled(run_starter: Desk) -> None:
    shop, order = run_starter.shop, run_starter.shop.order()
    other = shop.order("bob", ("poster", 1), order_id=order.order_id)
    async with shop.working():
        await (await start_batch(shop, [order])).result()
        await run_starter("start", "--order-id", other.order_id, "--customer", "bob", "--line", "poster:1")
        ran = await run_starter("cancel", order.order_id, *WHY)

    assert (ran.code, ran.err) == (3, f"refused: order {order.order_id} is completed already\n")


async def test_a_cancel_before_a_batch_of_an_earlier_build_has_left_its_order_to_a_saga_is_told_to_come_back(
    run_starter: Desk,
) -> None:
    shop, gates, order = run_starter.shop, Gates(), run_starter.shop.order()
    batch = gates_of(shop, [order])
    await between_steps(shop, batch.order_id, [order])
    gate = gates.hold(batch, "check_out_orders", "before")
    async with shop.working(interceptors=(gates,)):
        handle = await start_batch(shop, [order])
        await gate.reached()
        early = await cancelling(run_starter, order)
        gate.open()
        await handle.result()

    assert early.code == 3
    assert "its batch has not given it to a saga of its own yet: repeat the request" in early.err


@pytest.mark.parametrize("verb", [("retry",), ("resolve", "--step", "pay", "--reason", "slip 77")])
async def test_an_order_of_a_batch_that_has_ended_has_nothing_to_mend(run_starter: Desk, verb: tuple[str, ...]) -> None:
    shop, order = run_starter.shop, run_starter.shop.order()
    async with shop.working():
        await (await start_batch(shop, [order])).result()
        ran = await run_starter(verb[0], order.order_id, *verb[1:])

    assert (ran.code, ran.out) == (3, "")
    assert f"order {order.order_id} is completed, not stuck" in ran.err


@pytest.mark.parametrize("verb", ["cancel", "retry", "resolve"])
async def test_nobody_acts_under_a_name_that_cannot_be_kept(run_starter: Desk, verb: str) -> None:
    more = {"cancel": ("--reason", "x"), "retry": (), "resolve": ("--step", "pay", "--reason", "x")}[verb]

    ran = [await run_starter(verb, "order-1", *more, "--by", name) for name in ("", " ", "a\x1b[1m", "a" * 101)]

    assert [one.code for one in ran] == [2, 2, 2, 2]
    assert all("--by: a name has 1 to 100 printable characters" in one.err for one in ran)
