"""A batch leaves what the sagas of its orders would have left, whatever they are refused for."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from activities.batch import Changed, until_unchanged
from activities.batch_steps import Batches
from activities.batch_unwind import BatchUnwind
from activities.inventory import Inventory
from activities.orders import Orders
from activities.payments import Payments
from activities.shipping import Shipping
from adapters.database import create_engine
from devstack.stack import DevStack
from domain.bulk import ORDER_ID_CONFLICT, Outcome, StepInput, StepReport, UnwindInput, pack
from domain.model import CheckoutInput, Ending, OrderLine, Step, UndoInput
from sagafence import DatabaseRefusedStatement, DatabaseUnavailable, SagaError
from tests.conftest import Database, Shop, cloned_database
from tests.workflow.sagas import goods_and_money, violations

CARRIER = "bulk-test"
SEEDS = range(8)
# Many orders for little stock and little money, some for what is not there, for nobody, or to nowhere.
CUSTOMERS = ("alice", "alice", "bob", "carol", "erin", "erin", "frank", "nemo", "nobody", "shop")
SKUS = ("tea-mug", "tea-mug", "lamp", "lamp", "last-one", "bag", "no-such", "poster")


# The same orders, one by one and together ---------------------------------------------------------------


def drawn(seed: int, count: int) -> list[CheckoutInput]:
    draw = random.Random(seed)

    def lines() -> tuple[OrderLine, ...]:
        skus = draw.sample(SKUS, draw.choice((1, 1, 2, 3)))
        return tuple(OrderLine(sku, draw.choice((1, 1, 2, 5))) for sku in skus)

    return [CheckoutInput(f"b-{seed}-{number:03d}", draw.choice(CUSTOMERS), lines()) for number in range(count)]


async def one_by_one(shop: Shop, orders: Sequence[CheckoutInput]) -> None:
    """Do what the sagas of these orders do, step by step."""
    inventory, payments, shipping = Inventory(shop.engine), Payments(shop.engine), Shipping(shop.engine)
    does = {
        Step.RESERVE: inventory.reserve_inventory,
        Step.PAY: payments.charge_payment,
        Step.SHIP: shipping.ship_order,
    }
    undoes = {
        Step.RESERVE: inventory.release_inventory,
        Step.PAY: payments.refund_payment,
        Step.SHIP: shipping.cancel_shipment,
    }
    refused: list[tuple[Step, UndoInput]] = []
    going = list(orders)
    for step, do in does.items():
        for order in list(going):
            try:
                await do(order)
            except SagaError as refusal:
                going.remove(order)
                reason = f"{type(refusal).__name__}: {refusal.message}"
                refused.append((step, UndoInput(order, Ending.REJECTED, reason)))
    for failed, undo in refused:
        steps = list(Step)
        for step in reversed(steps[: steps.index(failed) + 1]):
            await undoes[step](undo)
        await Orders(shop.engine).close_order(undo)


def asked(orders: Sequence[CheckoutInput]) -> StepInput:
    return StepInput(CARRIER, [pack(order) for order in orders])


def unwinding(orders: Sequence[CheckoutInput], step: Step, reason: str = "why") -> UnwindInput:
    count = len(orders)
    return UnwindInput([pack(order) for order in orders], [step.value] * count, [reason] * count, ["rejected"] * count)


async def together(shop: Shop, orders: Sequence[CheckoutInput]) -> list[Outcome]:
    """Do what the workflow of a batch does with these orders."""
    batches = Batches(shop.engine)
    going = {order.order_id: order for order in orders}
    refused: list[tuple[CheckoutInput, Step, str]] = []
    ended: list[Outcome] = []
    for step, do in {
        Step.RESERVE: batches.reserve_orders,
        Step.PAY: batches.charge_orders,
        Step.SHIP: batches.ship_orders,
    }.items():
        report = await do(asked(list(going.values())))
        assert not report.delegated
        assert not report.missing_step
        refused += [(going.pop(order_id), step, reason) for order_id, reason in report.refused.items()]
        ended += report.ended
        for outcome in report.ended:
            del going[outcome.order_id]
    assert not going
    undone = await BatchUnwind(shop.engine).unwind_orders(
        UnwindInput(
            [pack(order) for order, _, _ in refused],
            [step.value for _, step, _ in refused],
            [reason for _, _, reason in refused],
            ["rejected"] * len(refused),
        )
    )
    assert not undone.delegated
    return ended + undone.ended


OWN = "'{created_at,updated_at,at,handed_over_at,event_id,txid,carrier}'::text[]"
"""Instants, and numbers given in the sequence of writing: no two ways to write a row have these in common."""


async def left_behind(database: Database) -> dict[str, list[str]]:
    """Every row of every table, but for instants, and numbers given in the sequence of writing."""
    return await database.every_row(f"(to_jsonb(t) - {OWN})::text")


@asynccontextmanager
async def another_shop(stack: DevStack, shop: Shop) -> AsyncIterator[Shop]:
    with cloned_database(stack) as database:
        engine = create_engine(database.url)
        yield Shop(shop.client, engine, database)
        await engine.dispose()


@pytest.mark.parametrize("seed", SEEDS)
async def test_orders_that_are_done_together_leave_what_they_leave_one_by_one(
    stack: DevStack, shop: Shop, seed: int
) -> None:
    orders = drawn(seed, 60)
    cuts = sorted(random.Random(seed).sample(range(1, 60), 2))
    parts = [orders[a:b] for a, b in zip([0, *cuts], [*cuts, 60], strict=True)]
    async with another_shop(stack, shop) as other:
        outcomes = []
        for part in parts:
            await one_by_one(other, part)
            outcomes += await together(shop, part)
        expected = await left_behind(other.database)

    assert await left_behind(shop.database) == expected
    assert await violations(shop) == []
    rows = await shop.database.fetch("SELECT order_id, status, reason, total_minor, currency FROM orders")
    assert {outcome.order_id: outcome.status for outcome in outcomes} == {row[0]: row[1] for row in rows}
    assert {(o.order_id, o.reason, o.total_minor, o.currency) for o in outcomes} == {(r[0], *r[2:]) for r in rows}
    assert {outcome.status for outcome in outcomes} == {"completed", "rejected"}


# Repeats and races --------------------------------------------------------------------------------------


async def test_every_step_may_be_repeated(shop: Shop) -> None:
    orders = drawn(99, 40)
    first = await together(shop, orders)
    before = await left_behind(shop.database)

    again = await Batches(shop.engine).reserve_orders(asked(orders))

    assert sorted(again.ended, key=str) == sorted(first, key=str)
    assert again == StepReport(ended=again.ended)
    assert await left_behind(shop.database) == before


@pytest.mark.parametrize("step", [Step.RESERVE, Step.PAY])
async def test_a_step_whose_report_was_lost_answers_the_same_again(shop: Shop, step: Step) -> None:
    orders = [shop.order("alice"), shop.order("erin"), shop.order("bob"), shop.order("nobody")]
    batches = Batches(shop.engine)
    answers = [await batches.reserve_orders(asked(orders)), await batches.reserve_orders(asked(orders))]
    if step is Step.PAY:
        answers = [await batches.charge_orders(asked(orders[:3])), await batches.charge_orders(asked(orders[:3]))]

    assert answers[0] == answers[1]
    assert len(answers[0].refused) == 1


async def test_orders_that_a_saga_carries_meanwhile_are_done_once(shop: Shop) -> None:
    orders = [shop.order("alice"), shop.order("erin"), shop.order("frank")]
    await Inventory(shop.engine).reserve_inventory(orders[0])
    await one_by_one(shop, orders[1:2])

    outcomes = await together(shop, orders)

    assert [outcome.status for outcome in outcomes] == ["completed"] * 3
    assert await violations(shop) == []
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE kind = 'capture'") == 3


async def test_an_id_that_belongs_to_another_order_is_reported_and_left_alone(shop: Shop) -> None:
    theirs = shop.order("alice")
    await one_by_one(shop, [theirs])
    before = await left_behind(shop.database)
    ours = shop.order("erin", ("poster", 2), order_id=theirs.order_id)

    report = await Batches(shop.engine).reserve_orders(asked([ours]))
    undone = await BatchUnwind(shop.engine).unwind_orders(unwinding([ours], Step.RESERVE))

    assert [outcome.status for outcome in report.ended] == [ORDER_ID_CONFLICT]
    assert [outcome.status for outcome in undone.ended] == [ORDER_ID_CONFLICT]
    assert await left_behind(shop.database) == before


async def test_an_order_whose_label_was_cancelled_has_no_parcel_to_follow(shop: Shop) -> None:
    order, asked_for = shop.order("carol"), "cancelled: found it cheaper"
    await one_by_one(shop, [order])
    undo = UndoInput(order, Ending.CANCELLED, asked_for)
    await Shipping(shop.engine).cancel_shipment(undo)
    await Payments(shop.engine).refund_payment(undo)
    await Inventory(shop.engine).release_inventory(undo)
    await Orders(shop.engine).close_order(undo)

    [outcome] = (await Batches(shop.engine).reserve_orders(asked([order]))).ended

    assert (outcome.status, outcome.reason, outcome.tracking_number) == ("cancelled", asked_for, None)


@pytest.mark.parametrize("lines", [(), (("poster", 2),)])
async def test_an_order_that_comes_while_its_fence_is_taken_is_looked_at_again(
    shop: Shop, database: Database, lines: tuple[tuple[str, int], ...]
) -> None:
    """Whoever took the fence has the id: this very order's saga, or that of another order."""
    theirs = shop.order("alice")
    ours = shop.order("alice", *lines, order_id=theirs.order_id)
    async with database.locked("SELECT FROM inventory FOR UPDATE"):
        saga = asyncio.create_task(Inventory(shop.engine).reserve_inventory(theirs))
        await database.until_blocked()  # for the stock: with its fence, which is not committed
        batch = asyncio.create_task(Batches(shop.engine).reserve_orders(asked([ours])))
        await database.until_blocked(2)
    await saga
    report = await batch

    assert [outcome.status for outcome in report.ended] == ([ORDER_ID_CONFLICT] if lines else [])
    assert report.delegated == ([] if lines else [ours.order_id])
    assert await shop.order_status(ours) == "reserved"


async def test_an_order_that_was_undone_before_it_was_done_is_left_to_its_saga(shop: Shop) -> None:
    order = shop.order()
    await Inventory(shop.engine).release_inventory(UndoInput(order, Ending.CANCELLED, "early"))

    report = await Batches(shop.engine).reserve_orders(asked([order]))

    assert report == StepReport(delegated=[order.order_id])
    assert await shop.order_status(order) is None


async def test_orders_by_hand_and_orders_that_are_stuck_are_left_to_their_sagas(shop: Shop) -> None:
    by_hand, stuck = shop.order("alice"), shop.order("erin")
    await shop.accept_by_hand(by_hand)
    await Inventory(shop.engine).reserve_inventory(stuck)
    await shop.database.run(f"UPDATE orders SET status = 'stuck', reason = 'why' WHERE order_id = '{stuck.order_id}'")
    batches, both = Batches(shop.engine), [by_hand, stuck]

    reserved = await batches.reserve_orders(asked(both))
    undone = await BatchUnwind(shop.engine).unwind_orders(unwinding(both, Step.SHIP))

    ids = [order.order_id for order in both]
    assert (reserved, undone) == (StepReport(delegated=ids), StepReport(delegated=ids))
    assert (await batches.charge_orders(asked([stuck]))).delegated == [stuck.order_id]


@pytest.mark.parametrize("step", [Step.PAY, Step.SHIP])
async def test_a_step_that_the_database_has_forgotten_is_reported(shop: Shop, step: Step) -> None:
    order, batches = shop.order(), Batches(shop.engine)
    do = batches.charge_orders if step is Step.PAY else batches.ship_orders
    if step is Step.SHIP:
        await batches.reserve_orders(asked([order]))

    assert await do(asked([order])) == StepReport(missing_step=[order.order_id])


@pytest.mark.parametrize("failed", [Step.RESERVE, Step.SHIP])
async def test_an_unwind_takes_back_what_stands_and_shuts_the_rest_however_little_it_knows(
    shop: Shop, failed: Step
) -> None:
    paid, reserved, new = shop.order("alice"), shop.order("erin"), shop.order("frank")
    batches, before = Batches(shop.engine), await goods_and_money(shop.database)
    await batches.reserve_orders(asked([paid, reserved]))
    await batches.charge_orders(asked([paid]))

    report = await BatchUnwind(shop.engine).unwind_orders(unwinding([paid, reserved, new], failed))
    late = await batches.ship_orders(asked([paid, reserved, new]))

    assert [outcome.status for outcome in report.ended] == ["rejected"] * 3
    assert late == StepReport(ended=report.ended)
    assert await goods_and_money(shop.database) == before
    assert await violations(shop) == []
    if failed is Step.SHIP:
        assert await shop.database.value("SELECT count(*) FROM step_fence WHERE phase = 'undone'") == 9


async def test_a_parcel_that_went_out_meanwhile_stays_out(shop: Shop) -> None:
    order = shop.order()
    await together(shop, [order])

    report = await BatchUnwind(shop.engine).unwind_orders(unwinding([order], Step.SHIP))

    assert [outcome.status for outcome in report.ended] == ["completed"]
    assert await violations(shop) == []


async def test_batches_that_want_the_same_little_at_once_sell_it_once_and_do_not_deadlock(shop: Shop) -> None:
    draw = random.Random(7)

    def few() -> list[CheckoutInput]:
        wanted = [[("lamp", 1), ("bag", 2)], [("bag", 1), ("last-one", 1)], [("last-one", 1), ("lamp", 2)]]
        return [shop.order(draw.choice(("alice", "erin", "frank")), *draw.choice(wanted)) for _ in range(20)]

    async def carry(orders: list[CheckoutInput]) -> list[Outcome]:
        while True:
            with contextlib.suppress(DatabaseUnavailable):  # as Temporal does
                return await together(shop, orders)

    carried: list[Any] = await asyncio.gather(*(carry(few()) for _ in range(6)))

    sold = sum(outcome.status == "completed" for outcomes in carried for outcome in outcomes)
    assert sold > 0
    assert await violations(shop) == []
    assert await shop.database.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


# What changes meanwhile --------------------------------------------------------------------------------


async def test_a_batch_that_never_finds_its_facts_as_it_decided_is_tried_again_later(shop: Shop) -> None:
    tries: list[int] = []

    async def attempt(_connection: AsyncConnection) -> None:
        tries.append(1)
        raise Changed("the stock")

    with pytest.raises(DatabaseUnavailable, match="since it was read: the stock"):
        await until_unchanged(shop.engine, attempt)

    assert len(tries) == 5


async def test_an_order_that_somebody_undoes_while_its_fence_is_taken_is_not_charged(
    shop: Shop, database: Database
) -> None:
    order = shop.order("alice")
    await Batches(shop.engine).reserve_orders(asked([order]))
    async with database.locked("SELECT FROM orders FOR UPDATE") as connection:
        charging = asyncio.create_task(Batches(shop.engine).charge_orders(asked([order])))
        await database.until_blocked()  # with its fence, for the order's row
        await connection.execute("UPDATE orders SET status = 'unwinding', changed_by = 'release'")
    report = await charging

    assert report.delegated == [order.order_id]
    assert await database.value("SELECT count(*) FROM transfers WHERE kind = 'capture'") == 0
    assert await database.value("SELECT count(*) FROM step_fence WHERE step = 'pay'") == 0


async def test_money_that_goes_while_a_batch_decides_is_not_spent_again(shop: Shop, database: Database) -> None:
    order = shop.order("alice")
    await Batches(shop.engine).reserve_orders(asked([order]))
    async with database.locked("SELECT FROM orders FOR UPDATE") as connection:
        charging = asyncio.create_task(Batches(shop.engine).charge_orders(asked([order])))
        await database.until_blocked()  # it has read the balance, and decided
        await connection.execute("UPDATE accounts SET balance_minor = 5 WHERE account_id = 'alice'")
    report = await charging

    assert list(report.refused) == [order.order_id]
    assert report.refused[order.order_id].startswith("InsufficientFunds: ")
    assert await database.value("SELECT balance_minor FROM accounts WHERE account_id = 'alice'") == 5
    assert await database.value("SELECT count(*) FROM step_fence WHERE step = 'pay'") == 0


OPEN_ACCOUNT = "INSERT INTO accounts (account_id, kind, name, balance_minor) VALUES ('zoe', 'customer', 'Zoe', 100000)"
CLOSE_ACCOUNT = "DELETE FROM accounts WHERE account_id = 'zoe'"


@pytest.mark.parametrize("when", ["before the batch charges", "while it decides"])
async def test_a_customer_who_is_gone_is_refused_and_the_others_are_charged(
    shop: Shop, database: Database, when: str
) -> None:
    orders = [shop.order("zoe"), shop.order("alice")]
    await database.run(OPEN_ACCOUNT)
    await Batches(shop.engine).reserve_orders(asked(orders))
    if when == "while it decides":
        async with database.locked("SELECT FROM orders FOR UPDATE") as connection:
            charging = asyncio.create_task(Batches(shop.engine).charge_orders(asked(orders)))
            await database.until_blocked()
            await connection.execute(CLOSE_ACCOUNT)
        report = await charging
    else:
        await database.run(CLOSE_ACCOUNT)
        report = await Batches(shop.engine).charge_orders(asked(orders))

    assert report.refused == {orders[0].order_id: "UnknownCustomer: there is no customer zoe"}
    assert await shop.order_status(orders[1]) == "paid"


async def test_a_constraint_that_refuses_one_of_the_orders_is_no_outage(shop: Shop) -> None:
    async def attempt(connection: AsyncConnection) -> None:
        await connection.execute(text("UPDATE inventory SET reserved = on_hand + 1 WHERE sku = 'lamp'"))

    with pytest.raises(DatabaseRefusedStatement, match="one of the orders cannot be written") as refused:
        await until_unchanged(shop.engine, attempt)

    assert "inventory_never_oversold" in refused.value.message


async def test_nothing_is_undone_of_an_order_whose_parcel_is_out_whatever_its_row_says(shop: Shop) -> None:
    order = shop.order()
    await together(shop, [order])
    await shop.database.run("SET session_replication_role = replica; UPDATE orders SET status = 'paid'")
    before = await left_behind(shop.database)

    with pytest.raises(DatabaseUnavailable):
        await BatchUnwind(shop.engine).unwind_orders(unwinding([order], Step.SHIP))

    assert await left_behind(shop.database) == before


async def test_an_order_that_comes_while_a_stranger_is_undone_under_its_id_is_left_alone(
    shop: Shop, database: Database
) -> None:
    stranger = shop.order("erin")
    async with database.locked(
        "INSERT INTO orders (order_id, customer, status, changed_by, fingerprint, total_minor, currency)"
        f" VALUES ('{stranger.order_id}', 'alice', 'reserved', 'reserve', 'another', 100, 'EUR')"
    ):
        undoing = asyncio.create_task(BatchUnwind(shop.engine).unwind_orders(unwinding([stranger], Step.RESERVE)))
        await database.until_blocked()
    report = await undoing

    assert [outcome.status for outcome in report.ended] == [ORDER_ID_CONFLICT]
    assert await shop.order_status(stranger) == "reserved"
    assert await database.value("SELECT count(*) FROM step_fence") == 0
