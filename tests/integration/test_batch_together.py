"""Orders that are checked out in one transaction leave what they leave one by one, and do not hurt their neighbours."""

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Any

import pytest

from activities import batch_together
from activities.batch_checkout import BatchCheckout
from activities.batch_decisions import decide
from activities.inventory import Inventory
from devstack.stack import DevStack
from domain.bulk import DELEGATED, ORDER_ID_CONFLICT, OWNED, Outcome
from domain.model import CheckoutInput, Ending, UndoInput
from sagafence import DatabaseUnavailable, SagaError
from tests.conftest import Database, Shop
from tests.integration.batch_orders import OWN, another_shop, drawn, left_behind, one_by_one, together
from tests.workflow.sagas import violations

SEEDS = range(8)


def statuses(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


_COMPLETED = "(SELECT order_id FROM orders WHERE status = 'completed')"
_LEFT = {
    **{
        table: f"SELECT (to_jsonb(t) - {OWN})::text FROM {table} t WHERE {key} IN {_COMPLETED}"
        for table, key in {
            "orders": "order_id",
            "order_lines": "order_id",
            "reservations": "order_id",
            "transfers": "order_id",
            "shipments": "order_id",
            "order_events": "order_id",
            "step_fence": "saga_id",
        }.items()
    },
    "other orders": f"SELECT order_id, customer, status, reason, ending, fingerprint FROM orders"
    f" WHERE order_id NOT IN {_COMPLETED}",
    "their lines": f"SELECT order_id, sku, quantity FROM order_lines WHERE order_id NOT IN {_COMPLETED}",
    "stock": "SELECT * FROM inventory",
    "money": "SELECT account_id, balance_minor FROM accounts",
}
"""All rows of completed orders; how the others have ended; and what the stock and the money have come to."""


async def left(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    return {name: sorted(tuple(row) for row in await database.fetch(query)) for name, query in _LEFT.items()}


@pytest.mark.parametrize("seed", SEEDS)
async def test_orders_that_are_checked_out_together_leave_what_they_leave_one_by_one(
    stack: DevStack, shop: Shop, seed: int
) -> None:
    orders = drawn(seed, 60)
    cuts = sorted(random.Random(seed).sample(range(1, 60), 2))
    outcomes = []
    async with another_shop(stack, shop) as other:
        for order in orders:
            await one_by_one(other, [order])
        for first, last in zip([0, *cuts], [*cuts, 60], strict=True):
            outcomes += await together(shop, orders[first:last])
        expected = await left(other.database)

    assert await left(shop.database) == expected
    assert await violations(shop) == []
    assert [outcome.order_id for outcome in outcomes] == [order.order_id for order in orders]
    assert set(statuses(outcomes)) == {"completed", "rejected"}
    rows = {
        row[0]: tuple(row)
        for row in await shop.database.fetch(
            "SELECT order_id, status, reason, total_minor, currency, s.tracking_number"
            " FROM orders LEFT JOIN shipments s USING (order_id)"
        )
    }
    assert {outcome.order_id: tuple(vars(outcome).values()) for outcome in outcomes} == rows


async def test_a_repeat_returns_what_the_first_has_done(shop: Shop) -> None:
    orders = drawn(99, 40)
    first = await together(shop, orders)
    before = await left_behind(shop.database)

    assert await together(shop, orders) == first
    assert await left_behind(shop.database) == before


async def test_a_refused_order_has_shut_its_steps_and_had_no_effect(shop: Shop) -> None:
    orders = [shop.order("nobody"), shop.order("bob", ("tea-mug", 2)), shop.order("nemo")]

    outcomes = await together(shop, orders)
    late = [
        await asyncio.gather(Inventory(shop.engine).reserve_inventory(order), return_exceptions=True)
        for order in orders
    ]

    assert [(outcome.reason or "").split(":")[0] for outcome in outcomes] == [
        "UnknownCustomer",
        "InsufficientFunds",
        "UndeliverableAddress",
    ]
    assert [type(error).__name__ for [error] in late] == ["StepAlreadyCompensated"] * 3
    fences = await shop.database.fetch("SELECT saga_id, count(*) FROM step_fence WHERE NOT had_effect GROUP BY 1")
    assert {row[0]: row[1] for row in fences} == {order.order_id: n for n, order in enumerate(orders, 1)}


async def test_what_is_sold_out_within_the_batch_is_refused_to_the_later_order(shop: Shop) -> None:
    outcomes = await together(shop, [shop.order("alice", ("last-one", 1)), shop.order("erin", ("last-one", 1))])

    assert statuses(outcomes) == ["completed", "rejected"]
    assert (outcomes[1].reason or "").startswith("OutOfStock: last-one: 1 wanted, 0 free")


# Orders that are not new ----------------------------------------------------------------------------------


async def test_orders_of_other_sagas_are_left_to_them(shop: Shop) -> None:
    begun, undone, by_hand, new = (shop.order("alice") for _ in range(4))
    await Inventory(shop.engine).reserve_inventory(begun)
    await Inventory(shop.engine).release_inventory(UndoInput(undone, Ending.CANCELLED, "early"))
    await shop.accept_by_hand(by_hand)

    outcomes = await together(shop, [begun, undone, by_hand, new])

    assert statuses(outcomes) == [DELEGATED] * 3 + ["completed"]
    assert {outcome.reason for outcome in outcomes[:3]} == {OWNED}
    assert await shop.order_status(begun) == "reserved"
    assert await shop.order_status(undone) is None


async def test_an_id_that_belongs_to_another_order_is_reported_and_left_alone(shop: Shop) -> None:
    theirs = shop.order("alice")
    await together(shop, [theirs])
    before = await left_behind(shop.database)

    outcomes = await together(shop, [shop.order("erin", ("poster", 2), order_id=theirs.order_id)])

    assert statuses(outcomes) == [ORDER_ID_CONFLICT]
    assert await left_behind(shop.database) == before


async def test_an_order_by_hand_is_left_to_its_own_saga_and_anothers_saga_is_not_begun_for_it(shop: Shop) -> None:
    by_hand = shop.order("alice")
    await shop.accept_by_hand(by_hand)

    outcomes = [
        (await together(shop, [shop.order(customer, lines, order_id=by_hand.order_id)]))[0].status
        for customer, lines in (("nemo", ("tea-mug", 1)), ("alice", ("tea-mug", 2)), ("alice", ("tea-mug", 1)))
    ]

    assert outcomes == [ORDER_ID_CONFLICT, ORDER_ID_CONFLICT, DELEGATED]


async def test_an_order_that_comes_while_its_fence_is_taken_is_looked_at_again(shop: Shop, database: Database) -> None:
    order, neighbour = shop.order("alice"), shop.order("erin", ("poster", 1))
    async with database.locked("SELECT FROM inventory WHERE sku = 'tea-mug' FOR UPDATE"):
        saga = asyncio.create_task(Inventory(shop.engine).reserve_inventory(order))
        await database.until_blocked()  # for the stock: with its fence, which is not committed
        batch = asyncio.create_task(together(shop, [order, neighbour]))
        await database.until_blocked(2)
    await saga

    assert statuses(await batch) == [DELEGATED, "completed"]
    assert await shop.order_status(order) == "reserved"


async def test_all_at_once_beside_each_other_and_beside_sagas_do_each_order_once_and_do_not_deadlock(
    shop: Shop,
) -> None:
    draw = random.Random(3)
    pool = [
        shop.order(
            draw.choice(("alice", "carol", "erin", "frank")),
            (draw.choice(("tea-mug", "lamp", "bag")), draw.choice((1, 2))),
        )
        for _ in range(60)
    ]

    async def batch(some: list[CheckoutInput]) -> None:
        while True:
            with contextlib.suppress(DatabaseUnavailable):  # as Temporal does
                await together(shop, some)
                return

    async def saga(order: CheckoutInput) -> None:
        with contextlib.suppress(SagaError):
            await one_by_one(shop, [order])

    await asyncio.gather(
        *(batch(draw.sample(pool, 30)) for _ in range(6)), *(saga(order) for order in draw.sample(pool, 15))
    )

    assert await violations(shop) == []
    assert await shop.database.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


# What changes meanwhile ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE accounts SET balance_minor = 5 WHERE account_id = 'alice'", "InsufficientFunds"),
        ("UPDATE inventory SET on_hand = 0 WHERE sku = 'tea-mug'", "OutOfStock"),
    ],
)
async def test_what_goes_while_a_batch_decides_is_decided_again(
    shop: Shop, database: Database, change: str, reason: str
) -> None:
    order = shop.order("alice")
    async with database.locked("SELECT FROM accounts FOR UPDATE") as connection:
        batch = asyncio.create_task(together(shop, [order]))
        await database.until_blocked()  # it has read both, and decided
        await connection.execute(change)
    [outcome] = await batch

    assert (outcome.status, (outcome.reason or "").split(":")[0]) == ("rejected", reason)
    assert await database.value("SELECT count(*) FROM step_fence WHERE had_effect") == 0


async def test_a_zone_that_is_no_longer_served_when_the_fences_are_written_is_decided_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = shop.order("alice")

    def decide_amiss(*given: Any) -> Any:
        monkeypatch.setattr(batch_together, "decide", decide)
        return [each._replace(zone="atlantis") for each in decide(*given)]  # a zone that is not served

    monkeypatch.setattr(batch_together, "decide", decide_amiss)
    assert statuses(await together(shop, [order])) == ["completed"]
    assert await shop.database.value("SELECT zone FROM shipments") != "atlantis"


async def test_an_order_that_is_undone_while_a_batch_refuses_it_is_left_to_its_saga(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, usual = shop.order("nobody"), batch_together._write_fences

    async def late(*given: Any) -> Any:
        monkeypatch.setattr(batch_together, "_write_fences", usual)
        await Inventory(shop.engine).release_inventory(UndoInput(order, Ending.CANCELLED, "early"))
        return await usual(*given)

    monkeypatch.setattr(batch_together, "_write_fences", late)
    assert statuses(await together(shop, [order])) == [DELEGATED]
    assert await shop.order_status(order) is None


# Neighbours ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "slow"),
    [
        ("accounts WHERE account_id = 'erin'", "account erin"),
        ("inventory WHERE sku = 'lamp'", "stock lamp"),
    ],
)
async def test_a_locked_row_makes_its_own_order_wait_and_not_the_others(
    shop: Shop, database: Database, rows: str, slow: str
) -> None:
    orders = [shop.order("alice"), shop.order("erin", ("lamp", 1)), shop.order("carol", ("poster", 1))]
    async with database.locked(f"SELECT FROM {rows} FOR UPDATE"):
        outcomes = await together(shop, orders)

    assert statuses(outcomes) == ["completed", DELEGATED, "completed"]
    assert outcomes[1].reason == f"locked by another transaction: {slow}"
    assert await shop.order_status(orders[1]) is None
    assert await database.value("SELECT count(*) FROM step_fence WHERE saga_id = $1", orders[1].order_id) == 0


async def test_an_order_whose_own_row_is_locked_waits_without_the_others(shop: Shop, database: Database) -> None:
    orders = [shop.order("alice") for _ in range(5)]
    by_hand = f"INSERT INTO orders (order_id, customer) VALUES ('{orders[1].order_id}', 'alice')"
    async with database.locked(by_hand):
        outcomes = await together(shop, orders)

    assert statuses(outcomes) == ["completed", DELEGATED, *["completed"] * 3]
    assert "locked by another transaction" in (outcomes[1].reason or "")


async def test_rows_that_are_free_again_when_they_are_looked_for_are_tried_again(
    shop: Shop, database: Database
) -> None:
    order = shop.order("alice")
    async with database.locked("SELECT FROM accounts FOR UPDATE"):
        batch = asyncio.create_task(together(shop, [order]))
        await database.until_blocked()
    assert statuses(await batch) == ["completed"]


async def test_a_row_that_is_locked_for_an_instant_only_does_not_count_as_locked(
    shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, usual = shop.order("alice"), BatchCheckout._locked
    was_seen, is_free = asyncio.Event(), asyncio.Event()

    async def locked(self: BatchCheckout, orders: Sequence[CheckoutInput]) -> Any:
        found = await usual(self, orders)
        was_seen.set()
        await is_free.wait()
        return found

    monkeypatch.setattr(BatchCheckout, "_locked", locked)
    async with database.locked("SELECT FROM accounts FOR UPDATE"):
        batch = asyncio.create_task(together(shop, [order]))
        await was_seen.wait()
    is_free.set()
    assert statuses(await batch) == ["completed"]


@pytest.mark.parametrize("fault", ["RAISE EXCEPTION 'injected'", "RAISE EXCEPTION 'injected' USING ERRCODE = '23514'"])
async def test_a_poison_order_is_left_alone_and_the_others_are_completed(shop: Shop, fault: str) -> None:
    orders = [shop.order("alice") for _ in range(20)]
    await shop.database.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.order_id = '{orders[7].order_id}' THEN {fault}; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON shipments FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    outcomes = await together(shop, orders)

    assert [n for n, outcome in enumerate(outcomes) if outcome.status != "completed"] == [7]
    assert outcomes[7].status == DELEGATED
    assert "injected" in (outcomes[7].reason or "")
    assert await violations(shop) == []
