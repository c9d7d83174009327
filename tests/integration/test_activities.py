"""What is special about each step, and what is written about an order as a whole."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from activities import inventory, payments, shipping
from activities.inventory import Inventory
from activities.orders import OperatorNote, Orders, OrderState, ParkInput
from activities.payments import Payments
from activities.shipping import Shipping
from activities.steps import refusal
from devstack.stack import DevStack
from domain.errors import (
    CurrencyMismatch,
    DatabaseContradictsHistory,
    InsufficientFunds,
    OrderIdConflict,
    OutOfStock,
    UndeliverableAddress,
    UnknownCustomer,
    UnknownSku,
)
from domain.model import CheckoutInput, Ending, Reservation, Step, UndoInput
from sagafence import (
    CompensationImpossible,
    DatabaseRefusedStatement,
    InvalidInput,
    SagaError,
    StepAlreadyCompensated,
    UndoOutcome,
    UndoResult,
    single_statement,
)
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


async def test_stock_that_is_sold_while_an_order_waits_for_it_reserves_nothing_at_all(
    shop: Shop, database: Database
) -> None:
    order = shop.order("alice", ("tea-mug", 1), ("last-one", 1))

    async with database.locked("UPDATE inventory SET on_hand = 0, initial = 0 WHERE sku = 'last-one'"):
        waiting = asyncio.create_task(reserve(shop, order))
        await database.until_blocked()
    sold = await database.every_row()
    with pytest.raises(OutOfStock) as refused:
        await waiting

    assert refused.value.message == "last-one: 1 wanted, 0 free"
    assert await database.every_row() == sold
    assert sold["step_fence"] == sold["reservations"] == sold["orders"] == []


async def test_the_last_of_its_kind_is_sold_once_to_twenty_buyers_at_once(shop: Shop, database: Database) -> None:
    orders = [shop.order(f"buyer-{n:03d}", ("last-one", 1)) for n in range(1, 21)]

    async with database.locked("SELECT FROM inventory WHERE sku = 'last-one' FOR UPDATE"):
        buying = [asyncio.create_task(reserve(shop, order)) for order in orders]
        await database.until_blocked(2)  # each has seen that there is one
    answers = await asyncio.gather(*buying, return_exceptions=True)

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
    connections = asyncio.Semaphore(engine.pool.size())  # type: ignore[attr-defined]

    async def go(order: CheckoutInput) -> None:
        async with connections:
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
        (
            _AS_IT_IS,
            "alice",
            (("poster", 2), ("lamp", 21), ("last-one", 2), *_MUG),
            OutOfStock,
            "lamp: 21 wanted, 20 free; last-one: 2 wanted, 1 free",
        ),
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
    refusal: type[SagaError],
    message: str,
) -> None:
    await shop.database.run(given)
    before = await shop.database.every_row()

    with pytest.raises(refusal) as refused:
        await reserve(shop, shop.order(customer, *lines))

    assert (refused.value.type, refused.value.message) == (refusal.__name__, message)
    assert refused.value.non_retryable
    assert await shop.database.every_row() == before


async def test_the_first_saga_takes_an_order_that_was_written_by_hand(shop: Shop) -> None:
    order = shop.order("alice", ("poster", 2), ("tea-mug", 1))
    await shop.accept_by_hand(order)

    reservation = await reserve(shop, order)
    moves = await log_of(shop.database, order)
    await complete(shop, order)

    assert reservation == Reservation(2 * 1700 + 1200, "EUR")
    assert moves == [(1, "pending", "pending", "accept"), (2, "reserved", "reserved", "reserve")]
    assert await shop.order_status(order) == "completed"
    assert (await shop.audit()).violations == []


async def test_an_order_that_was_written_by_hand_is_refused_for_the_reason_that_any_order_would_be(shop: Shop) -> None:
    order = shop.order("alice", ("lamp", 21))
    await shop.accept_by_hand(order)

    with pytest.raises(OutOfStock, match="lamp: 21 wanted, 20 free"):
        await reserve(shop, order)

    assert await shop.order_status(order) == "pending"


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
    before = await shop.database.every_row()

    with pytest.raises(OrderIdConflict):
        await reserve(shop, shop.order(customer, *lines, order_id=by_hand.order_id))

    assert await shop.database.every_row() == before


async def test_an_order_that_was_written_by_hand_without_lines_is_not_taken(shop: Shop) -> None:
    order = shop.order()
    await shop.database.run(f"INSERT INTO orders (order_id, customer) VALUES ('{order.order_id}', 'alice')")

    with pytest.raises(OrderIdConflict):
        await reserve(shop, order)


async def test_an_ended_order_is_not_reserved_again(shop: Shop) -> None:
    order = shop.order()
    await Orders(shop.engine).close_order(undo(order))
    ended = await shop.database.every_row()

    with pytest.raises(StepAlreadyCompensated):
        await reserve(shop, order)

    assert await shop.database.every_row() == ended


# Pay ----------------------------------------------------------------------------------------------------


async def test_a_payment_above_the_balance_is_declined_and_moves_nothing(shop: Shop) -> None:
    await shop.database.run("UPDATE accounts SET balance_minor = 500 WHERE account_id = 'bob'")
    order = shop.order("bob", ("tea-mug", 1))
    await reserve(shop, order)
    before = await shop.database.every_row()

    with pytest.raises(InsufficientFunds) as refused:
        await Payments(shop.engine).charge_payment(order)

    assert refused.value.message == "bob has 5.00 EUR, the order costs 12.00 EUR"
    assert refused.value.non_retryable
    assert await shop.database.every_row() == before


async def test_a_balance_is_spent_once_by_orders_that_pay_at_once(shop: Shop, database: Database) -> None:
    await shop.database.run(
        "UPDATE accounts SET balance_minor = 3600 WHERE account_id = 'bob';"
        "UPDATE transfers SET amount_minor = 3600 WHERE transfer_id = 'deposit/bob';"
        "SELECT approve_what_is_there('the test''s own')"
    )
    orders = [shop.order("bob", ("tea-mug", 1)) for _ in range(10)]
    await asyncio.gather(*(reserve(shop, order) for order in orders))

    async with database.locked("SELECT FROM accounts WHERE account_id = 'bob' FOR UPDATE"):
        paying = [asyncio.create_task(Payments(shop.engine).charge_payment(order)) for order in orders]
        await database.until_blocked(4)  # each has seen that there is enough, and it is for three
    answers = await asyncio.gather(*paying, return_exceptions=True)

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


async def test_a_customer_who_is_gone_cannot_pay(shop: Shop) -> None:
    order = shop.order("zoe")
    await shop.database.run("INSERT INTO accounts (account_id, kind, name) VALUES ('zoe', 'customer', 'Zoe')")
    await reserve(shop, order)
    await shop.database.run("DELETE FROM accounts WHERE account_id = 'zoe'")
    before = await shop.database.every_row()

    with pytest.raises(UnknownCustomer, match="there is no customer zoe"):
        await Payments(shop.engine).charge_payment(order)

    assert await shop.database.every_row() == before


async def test_a_constraint_that_is_not_ours_refuses_a_payment_at_once(shop: Shop) -> None:
    order = shop.order()
    await reserve(shop, order)
    await shop.database.run("ALTER TABLE transfers ADD CONSTRAINT somebodys CHECK (amount_minor < 100) NOT VALID")
    before = await shop.database.every_row()

    with pytest.raises(DatabaseRefusedStatement, match="somebodys"):
        await Payments(shop.engine).charge_payment(order)

    assert await shop.database.every_row() == before


@pytest.mark.parametrize("step", [Payments.charge_payment, Shipping.ship_order])
async def test_a_step_whose_order_is_gone_says_that_the_database_has_forgotten_the_step_before(
    shop: Shop, step: Callable[[Any, CheckoutInput], Awaitable[Any]]
) -> None:
    room = Payments(shop.engine) if step is Payments.charge_payment else Shipping(shop.engine)
    before = await shop.database.every_row()

    with pytest.raises(DatabaseContradictsHistory) as found:
        await step(room, shop.order())

    assert found.value.non_retryable

    assert await shop.database.every_row() == before


async def test_an_unpaid_order_is_not_shipped(shop: Shop) -> None:
    order = shop.order()
    await reserve(shop, order)
    before = await shop.database.every_row()

    with pytest.raises(DatabaseContradictsHistory, match="step pay"):
        await Shipping(shop.engine).ship_order(order)

    assert await shop.database.every_row() == before


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
    before = await shop.database.every_row()

    with pytest.raises(UndeliverableAddress) as refused:
        await Shipping(shop.engine).ship_order(order)

    assert refused.value.message == f"no carrier delivers to {customer} in zone {zone}"
    assert refused.value.non_retryable
    assert await shop.database.every_row() == before


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
    before = await shop.database.every_row()

    answers = [await Shipping(shop.engine).cancel_shipment(undo(order)) for _ in range(2)]

    expected = {
        "tracking_number": stored.tracking_number,
        "carrier": stored.carrier,
        "is_handed_over": stored.is_handed_over,
    }
    assert answers == [UndoResult(UndoOutcome.IRREVOCABLE, expected)] * 2
    assert await shop.database.every_row() == before
    assert (await shop.audit()).violations == []


async def _label_stands(shop: Shop) -> CheckoutInput:
    order = shop.order("carol")
    await complete(shop, order)
    return order


@pytest.mark.parametrize("gone", [_courier_took_it, _warehouse_handed_it_over, _label_stands])
async def test_money_and_stock_of_a_parcel_that_is_gone_stay_where_they_are(shop: Shop, gone: _Gone) -> None:
    order = await gone(shop)
    before = await shop.database.every_row()

    for take_back in (Payments(shop.engine).refund_payment, Inventory(shop.engine).release_inventory):
        with pytest.raises(CompensationImpossible) as impossible:
            await take_back(undo(order))
        assert impossible.value.non_retryable

    assert await shop.database.every_row() == before


@pytest.mark.parametrize("customer", ["alice", "carol"])
@pytest.mark.parametrize("taken_back", ["payment", "stock"])
async def test_what_is_taken_back_waits_for_a_shipment_in_flight_and_is_then_refused(
    shop: Shop, database: Database, customer: str, taken_back: str
) -> None:
    order = shop.order(customer)
    await pay(shop, order)

    async with database.locked("SELECT FROM inventory WHERE sku = 'tea-mug' FOR UPDATE"):
        shipping = asyncio.create_task(Shipping(shop.engine).ship_order(order))
        await database.until_blocked()
        taking_back = asyncio.create_task(
            Payments(shop.engine).refund_payment(undo(order))
            if taken_back == "payment"
            else Inventory(shop.engine).release_inventory(undo(order))
        )
        await database.until_blocked(2)
    await shipping
    with pytest.raises(CompensationImpossible):
        await taking_back

    assert await shop.order_status(order) == "completed"
    assert (await shop.audit()).violations == []


@pytest.mark.parametrize("step", ["ship", "pay"])
async def test_a_step_waits_for_the_undo_of_the_step_before_it_and_is_then_refused(shop: Shop, step: str) -> None:
    order = shop.order("alice")
    await (pay if step == "ship" else reserve)(shop, order)
    undoes: dict[str, Callable[[], Awaitable[UndoResult]]] = {
        "ship": lambda: Payments(shop.engine).refund_payment(undo(order)),
        "pay": lambda: Inventory(shop.engine).release_inventory(undo(order)),
    }
    does: dict[str, Callable[[], Awaitable[Any]]] = {
        "ship": lambda: Shipping(shop.engine).ship_order(order),
        "pay": lambda: Payments(shop.engine).charge_payment(order),
    }
    row = {"ship": "accounts WHERE account_id = 'alice' FOR NO KEY UPDATE", "pay": "inventory FOR UPDATE"}[step]

    async with shop.database.locked(f"SELECT FROM {row}"):
        undoing = asyncio.ensure_future(undoes[step]())
        await shop.database.until_blocked()
        doing = asyncio.ensure_future(does[step]())
        await shop.database.until_blocked(2)
    undone = await undoing
    with pytest.raises(StepAlreadyCompensated):
        await doing

    assert undone.outcome == UndoOutcome.REVERSED
    left = {"ship": "shipments", "pay": "transfers WHERE order_id IS NOT NULL"}[step]
    assert await shop.database.value(f"SELECT count(*) FROM {left}") == 0
    assert (await shop.audit(at_rest=False)).violations == []


async def test_a_label_is_cancelled_or_handed_over_but_never_both(shop: Shop, database: Database) -> None:
    order = shop.order("carol")
    await complete(shop, order)

    async with database.locked("UPDATE shipments SET state = 'handed_over', handed_over_at = now()"):
        cancelling = asyncio.create_task(Shipping(shop.engine).cancel_shipment(undo(order)))
        await database.until_blocked()
    answer = await cancelling

    assert answer.outcome == UndoOutcome.IRREVOCABLE
    assert await shop.order_status(order) == "completed"
    assert (await shop.audit()).violations == []


# One round trip -----------------------------------------------------------------------------------------


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
    closed = await shop.database.every_row()

    state = await Orders(shop.engine).close_order(undo(order, "another reason", Ending.CANCELLED))

    assert state == OrderState("rejected", "the first reason")
    assert await shop.database.every_row() == closed


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
    before = await shop.database.every_row()

    state = await Orders(shop.engine).close_order(undo(order))

    tracking_number = await shop.database.value("SELECT tracking_number FROM shipments")
    assert state == OrderState("completed", None, tracking_number)
    assert await shop.database.every_row() == before


async def test_a_stranger_under_an_orders_id_can_change_nothing_of_it(shop: Shop) -> None:
    order, orders = shop.order("carol", ("lamp", 1)), Orders(shop.engine)
    await reserve(shop, order)
    await orders.park_order(ParkInput(undo(order), ["reserve"], "a cause"))
    stranger = shop.order("alice", ("poster", 2), order_id=order.order_id)
    before = await shop.database.every_row()

    for attempt in (
        orders.close_order(undo(stranger)),
        orders.park_order(ParkInput(undo(stranger), ["pay"], "another cause")),
        orders.complete_order(stranger),
        orders.note_retry(OperatorNote(stranger, "request 1")),
        orders.resolve_step(OperatorNote(stranger, "settled by hand", "reserve")),
        orders.resolve_step(OperatorNote(stranger, "settled by hand", "pay")),
    ):
        with pytest.raises(OrderIdConflict):
            await attempt

    assert await shop.database.every_row() == before


@pytest.mark.parametrize("end", ["close_order", "park_order"])
async def test_an_order_that_comes_while_a_stranger_ends_its_id_is_left_alone(
    shop: Shop, database: Database, end: str
) -> None:
    order, orders = shop.order("carol", ("lamp", 1)), Orders(shop.engine)
    stranger = undo(shop.order("alice", ("poster", 2), order_id=order.order_id))

    async with database.locked(f"INSERT INTO orders (order_id, customer) VALUES ('{order.order_id}', 'carol')") as own:
        await own.execute("INSERT INTO order_lines VALUES ($1, 'lamp', 1)", order.order_id)
        ending: Awaitable[OrderState] = (
            orders.close_order(stranger)
            if end == "close_order"
            else orders.park_order(ParkInput(stranger, ["reserve"], "a cause"))
        )
        waiting = asyncio.ensure_future(ending)
        await database.until_blocked()
    with pytest.raises(OrderIdConflict):
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

    assert state == OrderState("paid", active_steps=["pay"])
    assert await shop.database.value("SELECT count(*) FROM incidents") == 0


async def test_parking_at_once_opens_one_incident(shop: Shop) -> None:
    order = shop.order()
    park = ParkInput(undo(order), ["reserve"], "a cause")

    states = await asyncio.gather(*(Orders(shop.engine).park_order(park) for _ in range(5)))

    assert states == [OrderState("stuck", "a reason", nothing_active=True)] * 5
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
    before = await shop.database.every_row()

    state = await Orders(shop.engine).park_order(ParkInput(undo(order), ["ship"], "a cause"))

    tracking_number = await shop.database.value("SELECT tracking_number FROM shipments")
    assert state == OrderState("completed", None, tracking_number)
    assert await shop.database.every_row() == before


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
    resolved = await shop.database.every_row()
    with pytest.raises(StepAlreadyCompensated):
        await reserve(shop, order)
    with pytest.raises(StepAlreadyCompensated):
        await Payments(shop.engine).charge_payment(order)

    assert await shop.database.every_row() == resolved
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
    note = OperatorNote(order, "request 1")

    async with database.locked("SELECT FROM orders FOR UPDATE"):
        attempts = [asyncio.create_task(Orders(shop.engine).note_retry(note)) for _ in range(2)]
        await database.until_blocked(2)
    await asyncio.gather(*attempts)

    assert [event for _, event, _, _ in await log_of(database, order)] == ["stuck", "retry_requested"]
    assert (await shop.audit(at_rest=False)).violations == []


async def test_a_resolution_that_names_no_step_is_invalid_input(shop: Shop) -> None:
    with pytest.raises(InvalidInput):
        await Orders(shop.engine).resolve_step(OperatorNote(shop.order(), "a reason"))


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
        assert await refusal(order, Step.RESERVE, inventory._FACTS, inventory._refuse, connection) is None
        await reserve(shop, order)
        assert await refusal(order, Step.PAY, payments._FACTS, payments._refuse, connection) is None
        await pay(shop, order)
        assert await refusal(order, Step.SHIP, shipping._FACTS, shipping._refuse, connection) is None
