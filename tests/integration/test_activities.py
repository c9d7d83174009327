"""What is special about each step, and what is written about an order as a whole."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from activities import inventory, payments, shipping
from activities.inventory import Inventory
from activities.orders import OperatorNote, Orders, OrderState, ParkInput
from activities.payments import Payments
from activities.shipping import Shipping
from adapters.database import single_statement
from adapters.schema import tables
from devstack.stack import DevStack
from domain.errors import (
    CheckoutError,
    CompensationImpossible,
    CurrencyMismatch,
    DatabaseContradictsHistory,
    IdempotencyMismatch,
    InsufficientFunds,
    InvalidInput,
    OutOfStock,
    StepAlreadyCompensated,
    UndeliverableAddress,
    UnknownCustomer,
    UnknownSku,
)
from domain.model import CheckoutInput, Ending, OrderLine, Reservation, UndoInput
from domain.undo import UndoOutcome, UndoResult
from tests.conftest import Database, Shop
from tests.statements import log_statements, statements_sent

_MUG = (("tea-mug", 1),)
_AS_IT_IS = "SELECT"


async def reserve(shop: Shop, order: CheckoutInput) -> Reservation:
    return await Inventory(shop.engine).reserve_inventory(order)


async def pay(shop: Shop, order: CheckoutInput) -> None:
    await reserve(shop, order)
    await Payments(shop.engine).charge_payment(order)


async def complete(shop: Shop, order: CheckoutInput) -> None:
    await pay(shop, order)
    await Shipping(shop.engine).ship_order(order)


async def every_row(database: Database) -> dict[str, list[str]]:
    return {
        table: [row[0] for row in await database.fetch(f"SELECT t::text FROM {table} t ORDER BY 1")]
        for table in sorted(tables())
    }


async def log_of(database: Database, order: CheckoutInput) -> list[tuple[Any, ...]]:
    rows = await database.fetch(
        "SELECT seq, event, status, changed_by FROM order_events WHERE order_id = $1 ORDER BY seq",
        order.order_id,
    )
    return [tuple(row) for row in rows]


def undo(order: CheckoutInput, reason: str = "a reason", ending: Ending = Ending.REJECTED) -> UndoInput:
    return UndoInput(order, ending, reason)


# Reserve ------------------------------------------------------------------------------------------------


async def test_an_order_of_a_hundred_lines_is_reserved_and_priced_by_the_server(shop: Shop) -> None:
    order = shop.order("alice", *((f"item-{n:03d}", n) for n in range(1, 101)))

    reservation = await reserve(shop, order)

    assert reservation == Reservation(sum(n * (100 + 7 * n) for n in range(1, 101)), "EUR")
    assert await shop.database.value("SELECT count(*) FROM reservations WHERE state = 'held'") == 100
    assert (await shop.audit(at_rest=False)).violations == []


async def test_one_missing_line_reserves_nothing_at_all(shop: Shop) -> None:
    order = shop.order("alice", ("poster", 2), ("lamp", 21), ("last-one", 2), ("tea-mug", 1))
    before = await every_row(shop.database)

    with pytest.raises(OutOfStock) as refused:
        await reserve(shop, order)

    assert refused.value.message == "lamp: 21 wanted, 20 free; last-one: 2 wanted, 1 free"
    assert await every_row(shop.database) == before


async def test_stock_that_is_sold_while_an_order_waits_for_it_reserves_nothing_at_all(
    shop: Shop, database: Database
) -> None:
    order = shop.order("alice", ("tea-mug", 1), ("last-one", 1))
    faster = await asyncpg.connect(database.admin_url)

    try:
        async with faster.transaction():
            await faster.execute("UPDATE inventory SET on_hand = 0, initial = 0 WHERE sku = 'last-one'")
            waiting = asyncio.create_task(reserve(shop, order))
            await _until_blocked(database)
    finally:
        await faster.close()
    sold = await every_row(database)
    with pytest.raises(OutOfStock) as refused:
        await waiting

    assert refused.value.message == "last-one: 1 wanted, 0 free"
    assert await every_row(database) == sold
    assert sold["step_fence"] == sold["reservations"] == sold["orders"] == []


async def test_the_last_of_its_kind_is_sold_once_to_twenty_buyers_at_once(shop: Shop) -> None:
    orders = [shop.order(f"buyer-{n:03d}", ("last-one", 1)) for n in range(1, 21)]

    answers = await asyncio.gather(*(reserve(shop, order) for order in orders), return_exceptions=True)

    assert sorted(type(answer).__name__ for answer in answers) == ["OutOfStock"] * 19 + ["Reservation"]
    assert await shop.database.value("SELECT on_hand - reserved FROM inventory WHERE sku = 'last-one'") == 0
    assert await shop.database.value("SELECT count(*) FROM reservations") == 1
    assert (await shop.audit(at_rest=False)).violations == []


async def test_orders_that_name_the_same_skus_the_other_way_round_do_not_deadlock(
    shop: Shop, database: Database, engine: AsyncEngine
) -> None:
    skus = [f"item-{n:03d}" for n in range(1, 11)]
    orders = [shop.order(f"buyer-{n:03d}", *((sku, 1) for sku in skus)) for n in range(1, 101)]
    for order in orders[::2]:  # the value sorts its lines; the database must not rely on it
        object.__setattr__(order, "lines", tuple(reversed(order.lines)))

    # As many at once as there are connections: waiting for one has a limit, and nobody tries again here.
    lanes = asyncio.Semaphore(engine.pool.size())  # type: ignore[attr-defined]

    async def go(order: CheckoutInput) -> None:
        async with lanes:
            await _there_and_back(shop, order)

    await asyncio.gather(*(go(order) for order in orders))
    await engine.dispose()  # a session hands its counters in when it ends
    await _until_alone(database)

    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await database.value(deadlocks) == 0
    assert await database.value("SELECT sum(reserved) + sum(initial - on_hand) FROM inventory") == 0


async def _there_and_back(shop: Shop, order: CheckoutInput) -> None:
    await complete(shop, order)
    # The couriers of town would not give these back.
    await shop.database.run(
        f"UPDATE shipments SET state = 'label', handed_over_at = NULL WHERE order_id = '{order.order_id}'"
    )
    await Shipping(shop.engine).cancel_shipment(undo(order))
    await Payments(shop.engine).refund_payment(undo(order))
    await Inventory(shop.engine).release_inventory(undo(order))


@pytest.mark.parametrize(
    ("given", "customer", "lines", "refusal", "message"),
    [
        (_AS_IT_IS, "nobody", _MUG, UnknownCustomer, "there is no customer nobody"),
        (_AS_IT_IS, "bank", _MUG, UnknownCustomer, "there is no customer bank"),
        (_AS_IT_IS, "shop", _MUG, UnknownCustomer, "there is no customer shop"),
        (_AS_IT_IS, "alice", (("unicorn", 1),), UnknownSku, "the catalogue has no unicorn"),
        (_AS_IT_IS, "alice", (("dodo", 1), *_MUG, ("unicorn", 1)), UnknownSku, "the catalogue has no dodo, unicorn"),
        (_AS_IT_IS, "alice", (("lamp", 21),), OutOfStock, "lamp: 21 wanted, 20 free"),
        (
            "INSERT INTO products VALUES ('never-stocked', 'No inventory row', 100)",
            "alice",
            (("never-stocked", 1),),
            OutOfStock,
            "never-stocked: 1 wanted, 0 free",
        ),
        (
            "UPDATE products SET currency = 'USD' WHERE sku = 'tea-mug'",
            "alice",
            (("poster", 1), *_MUG),
            CurrencyMismatch,
            "alice pays in EUR, the order is priced in USD",
        ),
        (
            "UPDATE accounts SET currency = 'JPY' WHERE account_id = 'alice'",
            "alice",
            _MUG,
            CurrencyMismatch,
            "alice pays in JPY, the order is priced in EUR",
        ),
    ],
)
async def test_what_cannot_be_reserved_is_refused_by_name_and_leaves_no_row(
    shop: Shop,
    given: str,
    customer: str,
    lines: tuple[tuple[str, int], ...],
    refusal: type[CheckoutError],
    message: str,
) -> None:
    await shop.database.run(given)
    before = await every_row(shop.database)

    with pytest.raises(refusal) as refused:
        await reserve(shop, shop.order(customer, *lines))

    assert (refused.value.type, refused.value.message) == (refusal.__name__, message)
    assert refused.value.non_retryable
    assert await every_row(shop.database) == before


async def test_the_first_saga_takes_an_order_that_was_written_by_hand(shop: Shop) -> None:
    order = shop.order("alice", ("poster", 2), ("tea-mug", 1))
    await shop.accept_by_hand(order)

    reservation = await reserve(shop, order)

    assert reservation == Reservation(2 * 1700 + 1200, "EUR")
    assert await log_of(shop.database, order) == [
        (1, "pending", "pending", "accept"),
        (2, "reserved", "reserved", "reserve"),
    ]
    assert (await shop.audit(at_rest=False)).violations == []


async def test_an_order_that_was_written_by_hand_is_refused_for_the_reason_that_any_order_would_be(shop: Shop) -> None:
    order = shop.order("alice", ("lamp", 21))
    await shop.accept_by_hand(order)

    with pytest.raises(OutOfStock, match="lamp: 21 wanted, 20 free"):
        await reserve(shop, order)

    assert await shop.order_status(order) == "pending"


async def test_an_order_that_was_written_by_hand_can_be_carried_to_its_end(shop: Shop) -> None:
    order = shop.order("alice", ("poster", 2), ("tea-mug", 1))
    await shop.accept_by_hand(order)

    await complete(shop, order)

    assert await shop.order_status(order) == "completed"
    assert (await shop.audit()).violations == []


@pytest.mark.parametrize(
    ("customer", "lines"),
    [
        ("bob", (("poster", 2), ("tea-mug", 1))),
        ("alice", (("poster", 2),)),
        ("alice", (("poster", 2), ("tea-mug", 2))),
        ("alice", (("poster", 2), ("tea-mug", 1), ("lamp", 1))),
        ("alice", (("poster", 2), ("lamp", 1))),
    ],
)
async def test_an_order_that_was_written_by_hand_is_not_taken_with_other_content(
    shop: Shop, customer: str, lines: tuple[tuple[str, int], ...]
) -> None:
    by_hand = shop.order("alice", ("poster", 2), ("tea-mug", 1))
    await shop.accept_by_hand(by_hand)
    before = await every_row(shop.database)

    with pytest.raises(IdempotencyMismatch):
        await reserve(shop, shop.order(customer, *lines, order_id=by_hand.order_id))

    assert await every_row(shop.database) == before


async def test_an_order_that_was_written_by_hand_without_lines_is_not_taken(shop: Shop) -> None:
    order = shop.order()
    await shop.database.run(f"INSERT INTO orders (order_id, customer) VALUES ('{order.order_id}', 'alice')")

    with pytest.raises(IdempotencyMismatch):
        await reserve(shop, order)


async def test_an_ended_order_is_not_reserved_again(shop: Shop) -> None:
    order = shop.order()
    await Orders(shop.engine).close_order(undo(order))
    ended = await every_row(shop.database)

    with pytest.raises(StepAlreadyCompensated):
        await reserve(shop, order)

    assert await every_row(shop.database) == ended


# Pay ----------------------------------------------------------------------------------------------------


async def test_a_payment_above_the_balance_is_declined_and_moves_nothing(shop: Shop) -> None:
    await shop.database.run("UPDATE accounts SET balance_minor = 500 WHERE account_id = 'bob'")
    order = shop.order("bob", ("tea-mug", 1))
    await reserve(shop, order)
    before = await every_row(shop.database)

    with pytest.raises(InsufficientFunds) as refused:
        await Payments(shop.engine).charge_payment(order)

    assert refused.value.message == "bob has 5.00 EUR, the order costs 12.00 EUR"
    assert refused.value.non_retryable
    assert await every_row(shop.database) == before


async def test_a_balance_is_spent_once_by_orders_that_pay_at_once(shop: Shop) -> None:
    await shop.database.run(
        "UPDATE accounts SET balance_minor = 3600 WHERE account_id = 'bob';"
        "UPDATE transfers SET amount_minor = 3600 WHERE transfer_id = 'deposit/bob';"
        "SELECT approve_what_is_there('the test''s own')"
    )
    orders = [shop.order("bob", ("tea-mug", 1)) for _ in range(10)]
    await asyncio.gather(*(reserve(shop, order) for order in orders))

    answers = await asyncio.gather(
        *(Payments(shop.engine).charge_payment(order) for order in orders), return_exceptions=True
    )

    assert sorted(type(answer).__name__ for answer in answers) == ["InsufficientFunds"] * 7 + ["Payment"] * 3
    assert await shop.database.value("SELECT balance_minor FROM accounts WHERE account_id = 'bob'") == 0
    assert (await shop.audit(at_rest=False)).violations == []


async def test_a_price_that_changes_on_the_way_changes_nothing_for_the_order(shop: Shop) -> None:
    order = shop.order("carol", ("poster", 2), ("tea-mug", 1))
    before = await shop.database.value("SELECT balance_minor FROM accounts WHERE account_id = 'carol'")
    reservation = await reserve(shop, order)
    await shop.database.run("UPDATE products SET unit_price_minor = unit_price_minor * 2")

    payment = await Payments(shop.engine).charge_payment(order)
    charged = await shop.database.value("SELECT balance_minor FROM accounts WHERE account_id = 'carol'")
    await shop.database.run("UPDATE products SET unit_price_minor = unit_price_minor * 2")
    await Payments(shop.engine).refund_payment(undo(order))

    assert payment.amount_minor == reservation.total_minor == before - charged
    assert await shop.database.value("SELECT balance_minor FROM accounts WHERE account_id = 'carol'") == before
    assert (await shop.audit(at_rest=False)).violations == []


@pytest.mark.parametrize("step", [Payments.charge_payment, Shipping.ship_order])
async def test_a_step_whose_order_is_gone_says_that_the_database_has_forgotten_the_step_before(
    shop: Shop, step: Callable[[Any, CheckoutInput], Awaitable[Any]]
) -> None:
    room = Payments(shop.engine) if step is Payments.charge_payment else Shipping(shop.engine)
    before = await every_row(shop.database)

    with pytest.raises(DatabaseContradictsHistory) as found:
        await step(room, shop.order())

    assert found.value.non_retryable

    assert await every_row(shop.database) == before


async def test_an_unpaid_order_is_not_shipped(shop: Shop) -> None:
    order = shop.order()
    await reserve(shop, order)
    before = await every_row(shop.database)

    with pytest.raises(DatabaseContradictsHistory, match="step pay"):
        await Shipping(shop.engine).ship_order(order)

    assert await every_row(shop.database) == before


# Ship ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "customer", "zone"),
    [
        (_AS_IT_IS, "nemo", "atlantis"),
        ("UPDATE accounts SET delivery_zone = NULL WHERE account_id = 'alice'", "alice", "(none)"),
        ("UPDATE accounts SET delivery_zone = 'moon' WHERE account_id = 'alice'", "alice", "moon"),
    ],
)
async def test_a_parcel_to_where_nobody_delivers_is_refused_and_leaves_no_row(
    shop: Shop, given: str, customer: str, zone: str
) -> None:
    order = shop.order(customer)
    await pay(shop, order)
    await shop.database.run(given)
    before = await every_row(shop.database)

    with pytest.raises(UndeliverableAddress) as refused:
        await Shipping(shop.engine).ship_order(order)

    assert refused.value.message == f"nobody delivers to {customer} in zone {zone}"
    assert refused.value.non_retryable
    assert await every_row(shop.database) == before


async def _courier_took_it(shop: Shop) -> CheckoutInput:
    order = shop.order("alice")
    await complete(shop, order)
    return order


async def _warehouse_handed_it_over(shop: Shop) -> CheckoutInput:
    order = shop.order("carol")
    await complete(shop, order)
    await shop.database.run("UPDATE shipments SET state = 'handed_over', handed_over_at = now()")
    return order


_GONE = pytest.mark.parametrize("gone", [_courier_took_it, _warehouse_handed_it_over])
_Gone = Callable[[Shop], Awaitable[CheckoutInput]]


@_GONE
async def test_a_parcel_that_is_gone_is_irrevocable_and_stays_as_it_is(shop: Shop, gone: _Gone) -> None:
    order = await gone(shop)
    stored = await Shipping(shop.engine).ship_order(order)
    before = await every_row(shop.database)

    answers = [await Shipping(shop.engine).cancel_shipment(undo(order)) for _ in range(2)]

    expected = {
        "tracking_number": stored.tracking_number,
        "carrier": stored.carrier,
        "is_handed_over": stored.is_handed_over,
    }
    assert answers == [UndoResult(UndoOutcome.IRREVOCABLE, expected)] * 2
    assert await every_row(shop.database) == before
    assert (await shop.audit()).violations == []


@_GONE
async def test_the_money_for_a_parcel_that_is_gone_cannot_be_refunded(shop: Shop, gone: _Gone) -> None:
    order = await gone(shop)
    before = await every_row(shop.database)

    with pytest.raises(CompensationImpossible) as impossible:
        await Payments(shop.engine).refund_payment(undo(order))

    assert impossible.value.non_retryable
    assert await every_row(shop.database) == before


@_GONE
async def test_the_stock_of_a_parcel_that_is_gone_cannot_be_released(shop: Shop, gone: _Gone) -> None:
    order = await gone(shop)
    before = await every_row(shop.database)

    with pytest.raises(CompensationImpossible) as impossible:
        await Inventory(shop.engine).release_inventory(undo(order))

    assert impossible.value.non_retryable
    assert await every_row(shop.database) == before


async def test_nothing_is_refunded_or_released_while_a_label_still_stands(shop: Shop) -> None:
    order = shop.order("carol")
    await complete(shop, order)
    before = await every_row(shop.database)

    with pytest.raises(CompensationImpossible):
        await Payments(shop.engine).refund_payment(undo(order))
    with pytest.raises(CompensationImpossible):
        await Inventory(shop.engine).release_inventory(undo(order))

    assert await every_row(shop.database) == before


@pytest.mark.parametrize("customer", ["alice", "carol"])
@pytest.mark.parametrize("taken_back", ["payment", "stock"])
async def test_what_is_taken_back_waits_for_a_shipment_in_flight_and_is_then_refused(
    shop: Shop, database: Database, customer: str, taken_back: str
) -> None:
    order = shop.order(customer)
    await pay(shop, order)
    holder = await asyncpg.connect(database.admin_url)

    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM inventory WHERE sku = 'tea-mug' FOR UPDATE")
            shipping = asyncio.create_task(Shipping(shop.engine).ship_order(order))
            await _until_blocked(database)
            taking_back = asyncio.create_task(
                Payments(shop.engine).refund_payment(undo(order))
                if taken_back == "payment"
                else Inventory(shop.engine).release_inventory(undo(order))
            )
            await _until_blocked(database, sessions=2)
    finally:
        await holder.close()
    await shipping
    with pytest.raises(CompensationImpossible):
        await taking_back

    assert await shop.order_status(order) == "completed"
    assert (await shop.audit()).violations == []


async def test_a_shipment_waits_for_a_refund_in_flight_and_is_then_refused(shop: Shop, database: Database) -> None:
    order = shop.order("alice")
    await pay(shop, order)
    holder = await asyncpg.connect(database.admin_url)

    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM accounts WHERE account_id = 'alice' FOR NO KEY UPDATE")
            refunding = asyncio.create_task(Payments(shop.engine).refund_payment(undo(order)))
            await _until_blocked(database)
            shipping = asyncio.create_task(Shipping(shop.engine).ship_order(order))
            await _until_blocked(database, sessions=2)
    finally:
        await holder.close()
    refunded = await refunding
    with pytest.raises(StepAlreadyCompensated):
        await shipping

    assert refunded.outcome == UndoOutcome.REVERSED
    assert await database.value("SELECT count(*) FROM shipments") == 0
    assert (await shop.audit(at_rest=False)).violations == []


async def test_a_payment_waits_for_a_release_in_flight_and_is_then_refused(shop: Shop, database: Database) -> None:
    order = shop.order("alice")
    await reserve(shop, order)
    holder = await asyncpg.connect(database.admin_url)

    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM inventory WHERE sku = 'tea-mug' FOR UPDATE")
            releasing = asyncio.create_task(Inventory(shop.engine).release_inventory(undo(order)))
            await _until_blocked(database)
            paying = asyncio.create_task(Payments(shop.engine).charge_payment(order))
            await _until_blocked(database, sessions=2)
    finally:
        await holder.close()
    released = await releasing
    with pytest.raises(StepAlreadyCompensated):
        await paying

    assert released.outcome == UndoOutcome.REVERSED
    assert await database.value("SELECT count(*) FROM transfers WHERE order_id IS NOT NULL") == 0
    assert (await shop.audit(at_rest=False)).violations == []


async def test_a_label_is_cancelled_or_handed_over_but_never_both(shop: Shop, database: Database) -> None:
    order = shop.order("carol")
    await complete(shop, order)
    warehouse = await asyncpg.connect(database.admin_url)

    try:
        async with warehouse.transaction():
            await warehouse.execute("UPDATE shipments SET state = 'handed_over', handed_over_at = now()")
            cancelling = asyncio.create_task(Shipping(shop.engine).cancel_shipment(undo(order)))
            await _until_blocked(database)
    finally:
        await warehouse.close()
    answer = await cancelling

    assert answer.outcome == UndoOutcome.IRREVOCABLE
    assert await shop.order_status(order) == "completed"
    assert (await shop.audit()).violations == []


# One round trip -----------------------------------------------------------------------------------------


async def test_each_step_of_the_happy_path_executes_one_statement_in_autocommit(
    shop: Shop, engine: AsyncEngine
) -> None:
    order = shop.order("alice", ("poster", 2), ("tea-mug", 1))
    seen: list[tuple[str, str]] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append((connection.get_execution_options()["isolation_level"], statement.split(maxsplit=1)[0]))

    await complete(shop, order)

    assert seen == [("AUTOCOMMIT", "WITH")] * 3


async def test_the_server_sees_one_statement_for_each_step_and_no_transaction_block(
    shop: Shop, database: Database, stack: DevStack
) -> None:
    await log_statements(database)
    await complete(shop, shop.order("alice", ("poster", 1)))  # connects, and prepares the statements

    with statements_sent(stack) as statements:
        await complete(shop, shop.order("alice", ("poster", 1)))

    assert statements == ["WITH"] * 3


# The end of an unwind -----------------------------------------------------------------------------------


async def test_closing_an_order_that_never_had_a_row_writes_what_was_asked_for_and_why(shop: Shop) -> None:
    order = shop.order("nobody", ("unicorn", 3), ("tea-mug", 1))

    state = await Orders(shop.engine).close_order(undo(order, "UnknownSku: the catalogue has no unicorn"))

    assert state == OrderState("rejected", "UnknownSku: the catalogue has no unicorn")
    [row] = await shop.database.fetch("SELECT customer, status, reason, ending, total_minor FROM orders")
    assert tuple(row) == ("nobody", "rejected", state.reason, "rejected", None)
    lines = await shop.database.fetch("SELECT sku, quantity FROM order_lines ORDER BY sku")
    assert [tuple(line) for line in lines] == [("tea-mug", 1), ("unicorn", 3)]
    assert await log_of(shop.database, order) == [(1, "rejected", "rejected", "close")]
    assert (await shop.audit()).violations == []


async def test_closing_again_changes_nothing_whatever_is_asked_for(shop: Shop) -> None:
    order = shop.order()
    await Orders(shop.engine).close_order(undo(order, "the first reason"))
    closed = await every_row(shop.database)

    state = await Orders(shop.engine).close_order(undo(order, "another reason", Ending.CANCELLED))

    assert state == OrderState("rejected", "the first reason")
    assert await every_row(shop.database) == closed


async def test_an_order_ends_the_way_its_unwind_began(shop: Shop) -> None:
    order = shop.order()
    await reserve(shop, order)
    await Inventory(shop.engine).release_inventory(undo(order, "cancelled: by Alice", Ending.CANCELLED))

    state = await Orders(shop.engine).close_order(undo(order, "swept", Ending.REJECTED))

    assert state == OrderState("cancelled", "cancelled: by Alice")
    assert [event for _, event, _, _ in await log_of(shop.database, order)] == [
        "reserved",
        "unwinding",
        "cancelled",
    ]
    assert (await shop.audit()).violations == []


async def test_a_completed_order_is_not_closed_as_anything_else(shop: Shop) -> None:
    order = shop.order()
    await complete(shop, order)
    before = await every_row(shop.database)

    state = await Orders(shop.engine).close_order(undo(order))

    tracking_number = await shop.database.value("SELECT tracking_number FROM shipments")
    assert state == OrderState("completed", None, tracking_number)
    assert await every_row(shop.database) == before


async def test_a_stranger_under_an_orders_id_can_change_nothing_of_it(shop: Shop) -> None:
    order, orders = shop.order("carol", ("lamp", 1)), Orders(shop.engine)
    await reserve(shop, order)
    await orders.park_order(ParkInput(undo(order), ["reserve"], "a cause"))
    stranger = shop.order("alice", ("poster", 2), order_id=order.order_id)
    before = await every_row(shop.database)

    for attempt in (
        orders.close_order(undo(stranger)),
        orders.park_order(ParkInput(undo(stranger), ["pay"], "another cause")),
        orders.complete_order(stranger),
        orders.note_retry(OperatorNote(stranger, "request 1")),
        orders.resolve_step(OperatorNote(stranger, "settled by hand", "reserve")),
        orders.resolve_step(OperatorNote(stranger, "settled by hand", "pay")),
    ):
        with pytest.raises(IdempotencyMismatch):
            await attempt

    assert await every_row(shop.database) == before


@pytest.mark.parametrize("end", ["close_order", "park_order"])
async def test_an_order_that_comes_while_a_stranger_ends_its_id_is_left_alone(
    shop: Shop, database: Database, end: str
) -> None:
    order, orders = shop.order("carol", ("lamp", 1)), Orders(shop.engine)
    stranger = undo(shop.order("alice", ("poster", 2), order_id=order.order_id))
    by_hand = await asyncpg.connect(database.admin_url)

    try:
        async with by_hand.transaction():
            await by_hand.execute("INSERT INTO orders (order_id, customer) VALUES ($1, 'carol')", order.order_id)
            await by_hand.execute("INSERT INTO order_lines VALUES ($1, 'lamp', 1)", order.order_id)
            ending: Awaitable[OrderState] = (
                orders.close_order(stranger)
                if end == "close_order"
                else orders.park_order(ParkInput(stranger, ["reserve"], "a cause"))
            )
            waiting = asyncio.ensure_future(ending)
            await _until_blocked(database)
    finally:
        await by_hand.close()
    with pytest.raises(IdempotencyMismatch):
        await waiting

    assert await log_of(database, order) == [(1, "pending", "pending", "accept")]
    assert await database.value("SELECT count(*) FROM order_lines") == 1
    assert await database.value("SELECT count(*) FROM incidents") == 0


async def test_a_full_unwind_leaves_a_gap_free_log(shop: Shop) -> None:
    order = shop.order("carol")
    await complete(shop, order)

    await Shipping(shop.engine).cancel_shipment(undo(order))
    await Payments(shop.engine).refund_payment(undo(order))
    await Inventory(shop.engine).release_inventory(undo(order))
    await Orders(shop.engine).close_order(undo(order))

    assert await log_of(shop.database, order) == [
        (1, "reserved", "reserved", "reserve"),
        (2, "paid", "paid", "pay"),
        (3, "completed", "completed", "ship"),
        (4, "unwinding", "unwinding", "undo ship"),
        (5, "rejected", "rejected", "close"),
    ]
    assert (await shop.audit()).violations == []


# Stuck --------------------------------------------------------------------------------------------------


async def test_parking_opens_one_incident_and_parking_again_brings_it_up_to_date(shop: Shop) -> None:
    order = shop.order()
    await pay(shop, order)
    await Orders(shop.engine).park_order(ParkInput(undo(order), ["pay", "reserve"], "the first cause"))
    await Payments(shop.engine).refund_payment(undo(order))

    state = await Orders(shop.engine).park_order(ParkInput(undo(order), ["reserve"], "the newer cause"))

    assert state == OrderState("stuck", "a reason")
    incidents = await shop.database.fetch("SELECT steps, cause, closed_at FROM incidents")
    assert [tuple(incident) for incident in incidents] == [(["reserve"], "the newer cause", None)]
    moves = [event for _, event, _, _ in await log_of(shop.database, order)]
    assert moves == ["reserved", "paid", "stuck", "unwinding", "stuck"]


async def test_an_order_is_not_parked_while_a_step_stands_that_its_saga_does_not_know(shop: Shop) -> None:
    order = shop.order()
    await pay(shop, order)

    state = await Orders(shop.engine).park_order(ParkInput(undo(order), ["reserve"], "a cause"))

    assert state == OrderState("paid", standing=["pay"])
    assert await shop.database.value("SELECT count(*) FROM incidents") == 0


async def test_parking_at_once_opens_one_incident(shop: Shop) -> None:
    order = shop.order()
    park = ParkInput(undo(order), ["reserve"], "a cause")

    states = await asyncio.gather(*(Orders(shop.engine).park_order(park) for _ in range(5)))

    assert states == [OrderState("stuck", "a reason", nothing_stands=True)] * 5
    assert await shop.database.value("SELECT count(*) FROM incidents") == 1
    assert await log_of(shop.database, order) == [(1, "stuck", "stuck", "park")]
    assert (await shop.audit()).violations == []


async def test_closing_a_parked_order_closes_its_incident(shop: Shop) -> None:
    order = shop.order()
    await reserve(shop, order)
    await Orders(shop.engine).park_order(ParkInput(undo(order), ["reserve"], "a cause"))

    await Inventory(shop.engine).release_inventory(undo(order))
    state = await Orders(shop.engine).close_order(undo(order))

    assert state.status == "rejected"
    [incident] = await shop.database.fetch("SELECT closed_at, resolution FROM incidents")
    assert incident["closed_at"] is not None
    assert incident["resolution"]
    assert (await shop.audit()).violations == []


@_GONE
async def test_parking_an_order_whose_parcel_is_gone_answers_completed(shop: Shop, gone: _Gone) -> None:
    order = await gone(shop)
    before = await every_row(shop.database)

    state = await Orders(shop.engine).park_order(ParkInput(undo(order), ["ship"], "a cause"))

    tracking_number = await shop.database.value("SELECT tracking_number FROM shipments")
    assert state == OrderState("completed", None, tracking_number)
    assert await every_row(shop.database) == before


async def test_a_cause_of_any_length_can_be_parked(shop: Shop) -> None:
    order = shop.order()

    await Orders(shop.engine).park_order(ParkInput(undo(order), ["reserve"], "x" * 100_000))

    assert await shop.database.value("SELECT length(cause) FROM incidents") == 1000


async def test_a_resolved_step_never_acts_again(shop: Shop) -> None:
    order = shop.order()
    await reserve(shop, order)
    await Orders(shop.engine).park_order(ParkInput(undo(order), ["pay", "reserve"], "a cause"))

    for step in ("pay", "reserve"):
        await Orders(shop.engine).resolve_step(OperatorNote(order, "counted by hand", step))
    resolved = await every_row(shop.database)
    with pytest.raises(StepAlreadyCompensated):
        await reserve(shop, order)
    with pytest.raises(StepAlreadyCompensated):
        await Payments(shop.engine).charge_payment(order)

    assert await every_row(shop.database) == resolved
    released = await Inventory(shop.engine).release_inventory(undo(order))
    refunded = await Payments(shop.engine).refund_payment(undo(order))
    assert {released.outcome, refunded.outcome} == {UndoOutcome.ALREADY_UNDONE}
    assert await shop.database.value("SELECT reserved FROM inventory WHERE sku = 'tea-mug'") == 1


async def test_resolving_a_step_is_logged_once_however_often_it_is_repeated(shop: Shop) -> None:
    order = shop.order()
    await reserve(shop, order)
    await Orders(shop.engine).park_order(ParkInput(undo(order), ["reserve"], "a cause"))

    for _ in range(3):
        await Orders(shop.engine).resolve_step(OperatorNote(order, "counted by hand", "reserve"))

    assert await shop.database.value("SELECT phase FROM step_fence WHERE step = 'reserve'") == "resolved"
    assert (await log_of(shop.database, order))[2:] == [(3, "step_resolved", "stuck", "operator")]
    assert (await shop.audit(at_rest=False)).violations == []


async def test_a_retry_is_logged_once_however_often_it_is_repeated(shop: Shop) -> None:
    order = shop.order()
    await Orders(shop.engine).park_order(ParkInput(undo(order), ["reserve"], "a cause"))

    for request in ("request 1", "request 1", "request 2", "request 1"):
        await Orders(shop.engine).note_retry(OperatorNote(order, request))

    rows = await shop.database.fetch("SELECT seq, event, reason FROM order_events ORDER BY seq")
    assert [tuple(row) for row in rows] == [
        (1, "stuck", "a reason"),
        (2, "retry_requested", "request 1"),
        (3, "retry_requested", "request 2"),
    ]
    assert (await shop.audit(at_rest=False)).violations == []


async def test_a_retry_is_logged_once_when_an_abandoned_attempt_is_still_writing_it(
    shop: Shop, database: Database
) -> None:
    order = shop.order()
    await Orders(shop.engine).park_order(ParkInput(undo(order), ["reserve"], "a cause"))
    other = await asyncpg.connect(database.admin_url)
    note = OperatorNote(order, "request 1")

    try:
        async with other.transaction():
            await other.execute("SELECT FROM orders FOR UPDATE")
            attempts = [asyncio.create_task(Orders(shop.engine).note_retry(note)) for _ in range(2)]
            await _until_blocked(database, sessions=2)
    finally:
        await other.close()
    await asyncio.gather(*attempts)

    assert [event for _, event, _, _ in await log_of(database, order)] == ["stuck", "retry_requested"]
    assert (await shop.audit(at_rest=False)).violations == []


async def test_a_resolution_that_names_no_step_is_invalid_input(shop: Shop) -> None:
    with pytest.raises(InvalidInput):
        await Orders(shop.engine).resolve_step(OperatorNote(shop.order(), "a reason"))


async def test_equal_orders_are_equal_however_their_lines_are_written(shop: Shop) -> None:
    first = shop.order("alice", ("poster", 1), ("tea-mug", 2))
    again = CheckoutInput(
        first.order_id, "alice", (OrderLine("tea-mug", 1), OrderLine("poster", 1), OrderLine("tea-mug", 1))
    )

    assert await reserve(shop, first) == await reserve(shop, again)


async def _until_blocked(database: Database, sessions: int = 1) -> None:
    """Return once that many of the service's sessions wait for a lock."""
    blocked = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND usename = 'checkout' AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(1.4):  # then the service's lock timeout ends the wait
        while await database.value(blocked) < sessions:
            await asyncio.sleep(0.005)


async def _until_alone(database: Database) -> None:
    """Return once the service has no session left."""
    async with asyncio.timeout(5):
        while await database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'checkout'"
        ):
            await asyncio.sleep(0.01)


# Reasons that have passed -------------------------------------------------------------------------------


async def test_a_step_that_was_refused_for_a_reason_that_has_passed_has_none_any_more(shop: Shop) -> None:
    order = shop.order("carol")

    async with single_statement(shop.engine) as connection:
        assert await inventory._refusal(connection, order) is None
        await reserve(shop, order)
        assert await payments._refusal(connection, order) is None
        await pay(shop, order)
        assert await shipping._refusal(connection, order) is None
