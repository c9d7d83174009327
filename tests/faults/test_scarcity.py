"""Many orders for too little stock and too little money, and orders that want the same rows in opposite sequence."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from activities.inventory import Inventory
from activities.payments import Payments
from activities.shipping import Shipping
from adapters.database import create_engine
from client.failures import NoWorker, Refused
from domain.model import CheckoutInput, Ending, UndoInput
from sagafence import DatabaseUnavailable, StepAlreadyCompensated
from tests.conftest import Database, Shop
from tests.faults.callers import PATIENCE_SECONDS, checkouts_of, ends_either_way
from tests.workflow.sagas import until, violations

T = TypeVar("T")

ALL = pytest.mark.exhaustive
HOT = [f"item-{n:03d}" for n in range(1, 11)]
_STOCK = "SELECT sku, initial, on_hand, reserved FROM inventory WHERE sku = ANY ($1) ORDER BY sku"


async def stock(database: Database, free: dict[str, int]) -> None:
    """Have so many of each of these SKUs, and no more."""
    await database.run(
        ";".join(f"UPDATE inventory SET initial = {n}, on_hand = {n} WHERE sku = '{sku}'" for sku, n in free.items())
        + "; SELECT approve_what_is_there('so many and no more')"
    )


async def left(database: Database, skus: Sequence[str]) -> dict[str, int]:
    """Count how many are free; nothing may be held any more."""
    rows = await database.fetch(_STOCK, list(skus))
    assert [row["reserved"] for row in rows] == [0] * len(skus)
    return {row["sku"]: row["on_hand"] for row in rows}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("rounds", "buyers", "items"), [(2, 15, 4), pytest.param(1, 30, 1, marks=ALL), pytest.param(4, 40, 7, marks=ALL)]
)
async def test_the_last_items_go_to_as_many_buyers_as_there_are_items(
    shop: Shop, rounds: int, buyers: int, items: int
) -> None:
    skus = HOT[:rounds]
    await stock(shop.database, dict.fromkeys(skus, items))

    async with shop.working():
        for sku in skus:
            ends = await ends_either_way(shop, [shop.order(f"buyer-{n:03d}", (sku, 1)) for n in range(1, buyers + 1)])
            assert Counter(end.status for end in ends) == {"completed": items, "rejected": buyers - items}
            assert all("OutOfStock" in (end.reason or "") for end in ends if end.status == "rejected")

    assert await left(shop.database, skus) == dict.fromkeys(skus, 0)
    assert await violations(shop) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("buyers", [24, pytest.param(120, marks=ALL)])
async def test_an_order_of_several_skus_gets_all_of_them_or_none(shop: Shop, buyers: int) -> None:
    draw = random.Random(buyers)
    plenty, scarce = buyers * 3, buyers // 4
    await stock(shop.database, {sku: scarce if n % 2 else plenty for n, sku in enumerate(HOT)})
    orders = [
        shop.order(f"buyer-{n % 100 + 1:03d}", *((sku, draw.randint(1, 2)) for sku in draw.sample(HOT, 3)))
        for n in range(buyers)
    ]

    async with shop.working():
        ends = await ends_either_way(shop, orders)

    free = await left(shop.database, HOT)
    completed = [order for order, end in zip(orders, ends, strict=True) if end.status == "completed"]
    rejected = [order for order, end in zip(orders, ends, strict=True) if end.status == "rejected"]
    assert len(completed) + len(rejected) == buyers
    assert completed
    assert rejected
    sold = Counter[str]()
    for order in completed:
        sold.update({line.sku: line.quantity for line in order.lines})
    assert free == {sku: (scarce if n % 2 else plenty) - sold[sku] for n, sku in enumerate(HOT)}
    # Nothing was given back, so what is missing for an order now was missing then, or was held by one that got it.
    for order in rejected:
        assert any(free[line.sku] < line.quantity for line in order.lines), order
    assert await violations(shop) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("orders", [20, pytest.param(100, marks=ALL)])
async def test_a_balance_that_many_orders_race_for_pays_for_as_many_as_it_can(shop: Shop, orders: int) -> None:
    affordable = 20_000 // 1_200

    async with shop.working():
        ends = await ends_either_way(shop, [shop.order("erin", ("tea-mug", 1)) for _ in range(orders)])

    assert Counter(end.status for end in ends) == {"completed": affordable, "rejected": orders - affordable}
    assert all("InsufficientFunds" in (end.reason or "") for end in ends if end.status == "rejected")
    balance = "SELECT balance_minor FROM accounts WHERE account_id = 'erin'"
    assert await shop.database.value(balance) == 20_000 - affordable * 1_200
    assert await left(shop.database, ["tea-mug"]) == {"tea-mug": 1_000 - affordable}
    assert await violations(shop) == []


@pytest.fixture
async def long_query_engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """Waits for a lock as long as it takes: a timeout would break a deadlock before Postgres finds it."""
    await database.run(f"ALTER ROLE checkout IN DATABASE \"{database.name}\" SET lock_timeout = '50s'")
    made = create_engine(database.url, pool_size=30, has_long_statements=True)
    yield made
    await made.dispose()


def opposing(shop: Shop, count: int, customers: Sequence[str]) -> list[CheckoutInput]:
    """Make orders of 2 to 8 of the ten hot SKUs; every other one names them the other way round."""
    draw = random.Random(count)
    orders = [
        shop.order(draw.choice(customers), *((sku, 1) for sku in draw.sample(HOT, draw.randint(2, 8))))
        for _ in range(count)
    ]
    for order in orders[::2]:  # the value sorts its lines; the database must not rely on it
        object.__setattr__(order, "lines", tuple(reversed(order.lines)))
    return orders


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [60, pytest.param(400, marks=ALL)])
async def test_steps_and_undos_of_opposing_orders_never_deadlock(
    shop: Shop, database: Database, long_query_engine: AsyncEngine, count: int
) -> None:
    await database.run("UPDATE delivery_zones SET hands_over_at_once = false")
    orders = opposing(shop, count, ["buyer-001", "buyer-002", "buyer-003", "buyer-004"])
    at_once = asyncio.Semaphore(12)

    async def there_and_back(order: CheckoutInput, steps: int) -> None:
        async with at_once:
            await _there_and_back(long_query_engine, order, steps)

    await asyncio.gather(*(there_and_back(order, 1 + n % 3) for n, order in enumerate(orders)))

    await _require_no_deadlock(database, long_query_engine)
    assert set((await left(database, HOT)).values()) == {1_000_000}
    assert (await shop.audit(at_rest=False)).violations == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [30, pytest.param(150, marks=ALL)])
async def test_sagas_of_opposing_orders_with_refusals_and_cancels_never_deadlock_and_all_end(
    shop: Shop, database: Database, long_query_engine: AsyncEngine, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    # Bob cannot pay, and nobody delivers to Nemo: their stock, and Nemo's money, go back while others come.
    await database.run(
        "UPDATE accounts SET balance_minor = 10000000 WHERE account_id IN ('carol', 'nemo');"
        "UPDATE transfers SET amount_minor = 10000000 WHERE transfer_id IN ('deposit/carol', 'deposit/nemo');"
        "SELECT approve_what_is_there('enough for all of it')"
    )
    orders = opposing(shop, count, ["buyer-001", "carol", "carol", "nemo", "bob"])
    shop.engine = long_query_engine
    checkouts, at_once = checkouts_of(shop), asyncio.Semaphore(30)

    async def buy(number: int, order: CheckoutInput) -> str:
        async with at_once:
            await checkouts.start(order)
            if number % 3 == 0:
                with contextlib.suppress(Refused, NoWorker):  # it has ended, or no worker answered in time
                    await checkouts.cancel(order.order_id, "found it cheaper")
            return (await checkouts.outcome(order.order_id, poll_every=PATIENCE_SECONDS)).status

    async with shop.working(max_concurrent_activities=60):
        ends = await asyncio.gather(*(buy(number, order) for number, order in enumerate(orders)))

    assert set(ends) == {"completed", "rejected", "cancelled"}
    assert "40P01" not in caplog.text
    await _require_no_deadlock(database, long_query_engine)
    sold = [line.sku for order, end in zip(orders, ends, strict=True) if end == "completed" for line in order.lines]
    assert sum((await left(database, HOT)).values()) == 10 * 1_000_000 - len(sold)
    assert await violations(shop) == []


async def _there_and_back(engine: AsyncEngine, order: CheckoutInput, steps: int) -> None:
    """Do the first steps, the last of them beside its own undo, and undo them; everything twice at once."""
    inventory, payments, shipping = Inventory(engine), Payments(engine), Shipping(engine)
    undo = UndoInput(order, Ending.CANCELLED, "a reason")
    does = (inventory.reserve_inventory, payments.charge_payment, shipping.ship_order)[:steps]
    undos = (inventory.release_inventory, payments.refund_payment, shipping.cancel_shipment)[:steps]
    for do in does[:-1]:
        one, other = await asyncio.gather(*(_retried(partial(do, order)) for _ in range(2)))
        assert one == other
    for reverse in reversed(undos):
        # The last step races its own undo; after that, late attempts to reserve race the others.
        late = does[-1] if reverse is undos[-1] else inventory.reserve_inventory
        await asyncio.gather(
            *(_answered_or_refused(partial(late, order)) for _ in range(2)),
            *(_retried(partial(reverse, undo)) for _ in range(2)),
        )


async def _answered_or_refused(operation: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(StepAlreadyCompensated):
        await _retried(operation)


async def _retried(operation: Callable[[], Awaitable[T]]) -> T:
    """Try again after an outage, as Temporal does. A deadlock would be one of them."""
    while True:
        try:
            return await operation()
        except DatabaseUnavailable as outage:
            if "40P01" in outage.message:
                raise


async def _require_no_deadlock(database: Database, engine: AsyncEngine) -> None:
    await engine.dispose()  # a session hands its counters in when it ends

    async def are_gone() -> bool:
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'checkout'"
        return bool(await database.value(sessions) == 0)

    await until(are_gone)
    assert await database.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
