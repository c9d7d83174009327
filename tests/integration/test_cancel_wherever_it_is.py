"""A cancel of an order that has no saga of its own: honoured, or refused with a reason, and never lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from client import executions
from client.orders import Orders
from domain import policies
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id
from sagafence import DatabaseRefusedStatement
from tests.integration.commands import Desk, Ran
from tests.workflow.bulk_scenes import BulkHandle, gates_of, start_batch
from tests.workflow.gates import Gate, Gates, Moment
from tests.workflow.replays import replayer
from tests.workflow.sagas import events_of, goods_and_money, hasty, how_it_ended, reason_of, until, violations
from workflows.bulk import BulkCheckoutWorkflow

ACCEPTED = "EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED"
WHY = ("--reason", "found it cheaper", "--by", "anna@desk")
REASON = "cancelled: anna@desk: found it cheaper"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "BATCH", hasty(policies.BATCH, give_up_ms=2_000))


def cancelling(run_starter: Desk, order: CheckoutInput, *options: str) -> "asyncio.Task[Ran]":
    return asyncio.create_task(run_starter("cancel", order.order_id, *WHY, "--json", *options))


async def until_accepted(batch: BulkHandle) -> None:
    async def is_accepted() -> bool:
        return ACCEPTED in await events_of(batch)

    await until(is_accepted)


@asynccontextmanager
async def cancelled_at(
    gate: Gate, run_starter: Desk, gates: Gates, orders: list[CheckoutInput]
) -> AsyncIterator[tuple[BulkHandle, Ran]]:
    """Cancel the first order of a batch that stands before a gate; give the batch, and what the command said."""
    async with run_starter.shop.working(interceptors=(gates,)):
        batch = await start_batch(run_starter.shop, orders)
        await gate.reached()
        asking = cancelling(run_starter, orders[0])
        await until_accepted(batch)
        gate.open()
        yield batch, await asking


# In a batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "moment"), [("charge_orders", "before"), ("charge_orders", "after")])
async def test_one_order_of_a_batch_is_undone_and_the_others_complete(
    run_starter: Desk, name: str, moment: Moment
) -> None:
    shop, gates = run_starter.shop, Gates()
    orders = [shop.order("alice", ("tea-mug", 2)), shop.order("carol", ("poster", 1))]
    key = gates_of(shop, orders)
    gates.fail(key, name, times=1)  # its second attempt is an activity: an update is taken meanwhile
    gate = gates.hold(key, name, moment)
    async with cancelled_at(gate, run_starter, gates, orders) as (batch, ran):
        again = await cancelling(run_starter, orders[0])
        other = await run_starter("cancel", orders[0].order_id, "--reason", "another reason")
        await replayer(BulkCheckoutWorkflow).replay_workflow(await batch.fetch_history())

    assert [await shop.order_status(order) for order in orders] == ["cancelled", "completed"]
    assert (ran.code, ran.document["status"], ran.document["reason"]) == (0, "cancelled", REASON)
    assert ran.document["workflow_id"] == batch.id
    assert again == ran, "a repeat joins the request"
    assert (other.code, other.err) == (3, f"refused: order {orders[0].order_id} is cancelled already\n")
    assert await violations(shop) == []


async def test_a_cancel_that_lost_to_the_parcel_does_not_end_with_0(run_starter: Desk) -> None:
    shop, gates, orders = run_starter.shop, Gates(), [run_starter.shop.order()]
    key = gates_of(shop, orders)
    gates.fail(key, "ship_orders", times=1)
    gate = gates.hold(key, "ship_orders", "before")
    async with cancelled_at(gate, run_starter, gates, orders) as (batch, ran):
        late = await run_starter("cancel", orders[0].order_id, "--reason", "another reason")
        await batch.result()

    assert await shop.order_status(orders[0]) == "completed"
    assert (ran.code, ran.document["status"]) == (3, "completed")
    assert (late.code, late.err) == (3, f"refused: order {orders[0].order_id} is completed already\n")


async def test_an_order_that_is_cancelled_while_its_batch_hands_it_over_is_undone_by_its_own_saga(
    run_starter: Desk,
) -> None:
    shop, gates = run_starter.shop, Gates()
    orders = [shop.order("alice", ("tea-mug", 2)), shop.order("carol", ("poster", 1))]
    key = gates_of(shop, orders)
    gates.fail(key, "charge_orders", times=1)
    gates.fail(key, "charge_orders", "after", error=lambda: DatabaseRefusedStatement("no right: injected"))
    gate = gates.hold(key, "charge_orders", "after")
    async with cancelled_at(gate, run_starter, gates, orders) as (_, ran):
        again = await cancelling(run_starter, orders[0])
        ended = await how_it_ended(shop.newest_run(orders[1]))
        given = await executions.order_of(shop.client, checkout_workflow_id(orders[0].order_id))

    assert given is not None
    assert given.repair, "it was begun to be undone, and not cancelled on its way"
    assert (ran.code, ran.document["status"], ran.document["reason"]) == (0, "cancelled", REASON)
    assert ran.document["workflow_id"] == checkout_workflow_id(orders[0].order_id)
    assert (again.code, ended) == (0, "completed")
    assert await violations(shop) == []


async def test_a_batch_that_is_cancelled_as_a_whole_refuses_to_cancel_one_of_it(run_starter: Desk) -> None:
    shop, gates, orders = run_starter.shop, Gates(), [run_starter.shop.order()]
    key = gates_of(shop, orders)
    gates.fail(key, "charge_orders", times=1)
    charge = gates.hold(key, "charge_orders", "before")
    undo = gates.hold(key, "unwind_orders", "before")
    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, orders)
        await charge.reached()
        await batch.cancel(reason="the supplier is gone")
        charge.open()
        await undo.reached()
        ran = await run_starter("cancel", orders[0].order_id, *WHY)
        undo.open()
        await batch.result()

    assert (ran.code, ran.out) == (3, "")
    assert "is being undone already, with its whole batch" in ran.err
    assert await reason_of(shop, orders[0]) == "cancelled: the supplier is gone"


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
