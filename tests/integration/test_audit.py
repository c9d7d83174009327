"""The checker is checked: every check reports the damage it is for, and nothing in a healthy database."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from activities.audit import Audit, audit_checks
from activities.inventory import Inventory
from activities.orders import OperatorNote, Orders, ParkInput
from activities.payments import Payments
from activities.shipping import Shipping
from adapters.database import create_engine
from devstack.stack import DATABASE, ROLE, ROOT, DevStack, psql
from domain.audit import AuditInput, AuditReport
from domain.model import CheckoutInput, Ending, OrderLine, UndoInput
from tests.conftest import Database, Shop


@dataclass(frozen=True)
class Damage:
    """Something that must never happen, done by a superuser, and whom the check must name."""

    check: str
    subject: str
    claim: str
    sql: str


_DAMAGES = [
    Damage(*row.split(" | "))
    for row in """
A1 | poster | stock vanishes | UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'poster'
A1 | lamp | stock appears | UPDATE inventory SET on_hand = on_hand + 1 WHERE sku = 'lamp'
A1 | poster | a consumed row vanishes | DELETE FROM reservations WHERE order_id = 'shipped' AND sku = 'poster'
A1 | lamp | a delivery is missing | UPDATE inventory SET received = received + 5 WHERE sku = 'lamp'
A1 | lamp | a delivery is counted twice | UPDATE inventory SET received = received + 5, on_hand = on_hand + 10 WHERE \
    sku = 'lamp'
A2 | lamp | the counter is above | UPDATE inventory SET reserved = 1 WHERE sku = 'lamp'
A2 | poster | the counter is below | UPDATE reservations SET state = 'held' WHERE order_id = 'shipped' AND sku = \
    'poster'
A3 | lamp | oversold | ALTER TABLE inventory DROP CONSTRAINT inventory_never_oversold; UPDATE inventory SET reserved \
    = 21 WHERE sku = 'lamp'
A3 | lamp | negative on hand | ALTER TABLE inventory DROP CONSTRAINT inventory_never_oversold; ALTER TABLE inventory \
    DROP CONSTRAINT inventory_never_negative; UPDATE inventory SET on_hand = -1, reserved = -1 WHERE sku = 'lamp'
A3 | lamp | negative reserved | ALTER TABLE inventory DROP CONSTRAINT inventory_never_negative; UPDATE inventory SET \
    reserved = -1 WHERE sku = 'lamp'
A4 | bob | money appears | UPDATE accounts SET balance_minor = balance_minor + 1 WHERE account_id = 'bob'
A4 | bob | a transfer vanishes | DELETE FROM transfers WHERE transfer_id = 'deposit/bob'
A4 | x | an amount is negative | ALTER TABLE transfers DROP CONSTRAINT transfers_amount_is_positive; INSERT INTO \
    transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency) VALUES ('x', NULL, \
    'deposit', 'bank', 'bob', -1, 'EUR')
A4 | x | an account pays itself | ALTER TABLE transfers DROP CONSTRAINT transfers_between_two_accounts; INSERT INTO \
    transfers (transfer_id, order_id, kind, debit_account, credit_account, amount_minor, currency) VALUES ('x', NULL, \
    'deposit', 'bank', 'bank', 1, 'EUR')
A5 | unwound | two of capture | DROP INDEX transfers_once_per_order; INSERT INTO transfers SELECT 'x', order_id, \
    kind, debit_account, credit_account, amount_minor, currency FROM transfers WHERE order_id = 'unwound' AND kind = \
    'capture'
A5 | unwound | two of refund | DROP INDEX transfers_once_per_order; INSERT INTO transfers SELECT 'x', order_id, kind, \
    debit_account, credit_account, amount_minor, currency FROM transfers WHERE order_id = 'unwound' AND kind = \
    'refund'
A6 | shipped | another amount is captured | UPDATE transfers SET amount_minor = 1 WHERE order_id = 'shipped'
A6 | refused | an order without a total is captured | INSERT INTO transfers (transfer_id, order_id, kind, \
    debit_account, credit_account, amount_minor, currency) VALUES ('x', 'refused', 'capture', 'carol', 'shop', 1, \
    'EUR')
A6 | unwound | another amount is refunded | UPDATE transfers SET amount_minor = 1 WHERE order_id = 'unwound' AND kind \
    = 'refund'
A6 | unwound | somebody else is refunded | UPDATE transfers SET credit_account = 'bob' WHERE order_id = 'unwound' AND \
    kind = 'refund'
A6 | unwound | nothing was captured before a refund | DELETE FROM transfers WHERE kind = 'capture' AND order_id = \
    'unwound'
A6 | shipped | the lines have another price | UPDATE order_lines SET unit_price_minor = 1 WHERE order_id = 'shipped'
A7 | shipped | a parcel is unpaid | DELETE FROM transfers WHERE kind = 'capture' AND order_id = 'shipped'
A7 | shipped | a parcel is refunded | INSERT INTO transfers (transfer_id, order_id, kind, debit_account, \
    credit_account, amount_minor, currency) VALUES ('x', 'shipped', 'refund', 'shop', 'carol', 4600, 'EUR')
A8 | shipped | less is reserved than ordered | UPDATE order_lines SET quantity = 9 WHERE order_id = 'shipped' AND sku \
    = 'poster'
A8 | shipped | a line is not reserved | DELETE FROM reservations WHERE order_id = 'shipped' AND sku = 'poster'
A8 | shipped | more is reserved than ordered | DELETE FROM order_lines WHERE order_id = 'shipped' AND sku = 'poster'
A9 | shipped | reserve took effect without its fence | DELETE FROM step_fence WHERE saga_id = 'shipped' AND step = \
    'reserve'
A9 | shipped | pay took effect without its fence | DELETE FROM step_fence WHERE saga_id = 'shipped' AND step = 'pay'
A9 | shipped | ship took effect without its fence | DELETE FROM step_fence WHERE saga_id = 'shipped' AND step = \
    'ship'
A9 | shipped | reserve is undone, but its effect stands | UPDATE step_fence SET phase = 'undone' WHERE saga_id = \
    'shipped' AND step = 'reserve'
A9 | shipped | pay is undone, but its effect stands | UPDATE step_fence SET phase = 'undone' WHERE saga_id = \
    'shipped' AND step = 'pay'
A9 | shipped | ship is undone, but its effect stands | UPDATE step_fence SET phase = 'undone' WHERE saga_id = \
    'shipped' AND step = 'ship'
A9 | ghost | reserve is done without an effect | INSERT INTO step_fence VALUES ('ghost', 'reserve', 'done', true, \
    'f', '{}')
A9 | ghost | pay is done without an effect | INSERT INTO step_fence VALUES ('ghost', 'pay', 'done', true, 'f', '{}')
A9 | ghost | ship is done without an effect | INSERT INTO step_fence VALUES ('ghost', 'ship', 'done', true, 'f', \
    '{}')
A10 | shipped | reserve rose from the dead | UPDATE step_fence SET phase = 'undone', had_effect = false WHERE saga_id \
    = 'shipped' AND step = 'reserve'
A10 | shipped | pay rose from the dead | UPDATE step_fence SET phase = 'undone', had_effect = false WHERE saga_id = \
    'shipped' AND step = 'pay'
A10 | shipped | ship rose from the dead | UPDATE step_fence SET phase = 'undone', had_effect = false WHERE saga_id = \
    'shipped' AND step = 'ship'
A11 | shipped | an event is missing | DELETE FROM order_events WHERE order_id = 'shipped' AND seq = 2
A11 | shipped | the newest event is missing | DELETE FROM order_events WHERE order_id = 'shipped' AND seq = 3
A11 | shipped | the first event is missing | DELETE FROM order_events WHERE order_id = 'shipped' AND seq = 1
A11 | shipped | the numbers have a gap | UPDATE order_events SET seq = 4 WHERE order_id = 'shipped' AND seq = 3; \
    UPDATE orders SET event_seq = 4 WHERE order_id = 'shipped'
A11 | shipped | an event lies about its past | UPDATE order_events SET previous_status = 'stuck' WHERE order_id = \
    'shipped' AND seq = 2
A11 | shipped | an order moved illegally | UPDATE orders SET status = 'cancelled', event_seq = 4 WHERE order_id = \
    'shipped'; INSERT INTO order_events (order_id, seq, event, previous_status, status, changed_by) VALUES \
    ('shipped', 4, 'cancelled', 'completed', 'cancelled', 'somebody')
A11 | shipped | an order moved without an event | UPDATE orders SET status = 'unwinding' WHERE order_id = 'shipped'
A11 | refused | an order has no log | DELETE FROM order_events WHERE order_id = 'refused'
A12 | bob | money was given without an approval | INSERT INTO transfers (transfer_id, order_id, kind, debit_account, \
    credit_account, amount_minor, currency) VALUES ('x', NULL, 'deposit', 'bank', 'bob', 7, 'EUR'); UPDATE accounts \
    SET balance_minor = balance_minor + 7 WHERE account_id = 'bob'
A12 | nobody | an approved deposit was never made | INSERT INTO approvals (kind, subject, amount, currency, reason) \
    VALUES ('deposit', 'nobody', 7, 'EUR', 'x')
A12 | bob | money was given in another currency than approved | UPDATE transfers SET currency = 'USD' WHERE \
    transfer_id = 'deposit/bob'
A13 | lamp | stock was delivered without an approval | UPDATE inventory SET received = received + 5, on_hand = \
    on_hand + 5 WHERE sku = 'lamp'
A13 | lamp | counting began with more than was approved | UPDATE inventory SET initial = initial + 5, on_hand = \
    on_hand + 5 WHERE sku = 'lamp'
A13 | cap | approved goods are not on record | DELETE FROM inventory WHERE sku = 'cap'
Q1 | shipped | an order rests as pending | UPDATE orders SET status = 'pending', updated_at = now() WHERE order_id = \
    'shipped'
Q1 | shipped | an order rests as reserved | UPDATE orders SET status = 'reserved', updated_at = now() WHERE order_id \
    = 'shipped'
Q1 | shipped | an order rests as paid | UPDATE orders SET status = 'paid', updated_at = now() WHERE order_id = \
    'shipped'
Q1 | shipped | an order rests as unwinding | UPDATE orders SET status = 'unwinding', updated_at = now() WHERE \
    order_id = 'shipped'
Q2 | shipped | an order that is completed holds stock | UPDATE reservations SET state = 'held' WHERE order_id = \
    'shipped'; UPDATE orders SET status = 'completed' WHERE order_id = 'shipped'
Q2 | shipped | an order that is rejected holds stock | UPDATE reservations SET state = 'held' WHERE order_id = \
    'shipped'; UPDATE orders SET status = 'rejected' WHERE order_id = 'shipped'
Q2 | shipped | an order that is cancelled holds stock | UPDATE reservations SET state = 'held' WHERE order_id = \
    'shipped'; UPDATE orders SET status = 'cancelled' WHERE order_id = 'shipped'
Q3 | shipped | completed and not captured | DELETE FROM transfers WHERE kind = 'capture' AND order_id = 'shipped'
Q3 | shipped | completed and refunded | INSERT INTO transfers (transfer_id, order_id, kind, debit_account, \
    credit_account, amount_minor, currency) VALUES ('x', 'shipped', 'refund', 'shop', 'carol', 4600, 'EUR')
Q3 | shipped | completed and not shipped | DELETE FROM shipments WHERE order_id = 'shipped'
Q3 | shipped | completed and its label cancelled | UPDATE shipments SET state = 'cancelled' WHERE order_id = \
    'shipped'
Q4 | shipped | an order that is rejected has a step that stands | UPDATE orders SET status = 'rejected' WHERE \
    order_id = 'shipped'
Q4 | shipped | an order that is cancelled has a step that stands | UPDATE orders SET status = 'cancelled' WHERE \
    order_id = 'shipped'
Q4 | shipped | an order ended and its stock stands without a fence | UPDATE orders SET status = 'rejected' WHERE \
    order_id = 'shipped'; DELETE FROM step_fence WHERE saga_id = 'shipped'; DELETE FROM shipments; DELETE FROM \
    transfers WHERE order_id = 'shipped'
Q4 | shipped | an order ended and its payment stands without a fence | UPDATE orders SET status = 'rejected' WHERE \
    order_id = 'shipped'; DELETE FROM step_fence WHERE saga_id = 'shipped'; DELETE FROM shipments; DELETE FROM \
    reservations WHERE order_id = 'shipped'
Q4 | shipped | an order ended and its parcel stands without a fence | UPDATE orders SET status = 'rejected' WHERE \
    order_id = 'shipped'; DELETE FROM step_fence WHERE saga_id = 'shipped'; DELETE FROM transfers WHERE order_id = \
    'shipped'; DELETE FROM reservations WHERE order_id = 'shipped'
Q7 | parked | stuck and nobody knows | UPDATE incidents SET closed_at = now(), resolution = 'shrug' WHERE order_id = \
    'parked'
Q7 | parked | completed and still an incident | UPDATE orders SET status = 'completed' WHERE order_id = 'parked'
Q7 | parked | rejected and still an incident | UPDATE orders SET status = 'rejected' WHERE order_id = 'parked'
Q7 | parked | cancelled and still an incident | UPDATE orders SET status = 'cancelled' WHERE order_id = 'parked'
Q7 | parked | stuck, and another step stands | UPDATE incidents SET steps = '{pay}' WHERE order_id = 'parked'
""".strip().splitlines()
]


async def test_every_check_has_damage_that_it_must_report() -> None:
    assert {damage.check for damage in _DAMAGES} == set(audit_checks())


@pytest.mark.parametrize("damage", _DAMAGES, ids=lambda damage: f"{damage.check}-{damage.claim}")
async def test_damage_is_reported(busy: Database, damage: Damage) -> None:
    _, query = audit_checks()[damage.check]

    async with busy.connected() as connection:
        transaction = connection.transaction()
        await transaction.start()
        before = await connection.fetch(query.text.replace(":at_rest_after", "'0'"))
        await connection.execute("SET LOCAL session_replication_role = replica; " + damage.sql)
        after = await connection.fetch(query.text.replace(":at_rest_after", "'0'"))
        await transaction.rollback()  # the next damage needs a healthy database

    assert before == []
    assert damage.subject in {row["subject"] for row in after}


# One damage for each check, as many in one database as do not hide each other.
_TOGETHER = [
    [damage for damage in _DAMAGES if damage.claim in claims]
    for claims in (
        (
            *("stock vanishes", "the counter is above", "oversold", "money appears", "two of capture"),
            *("another amount is captured", "less is reserved than ordered", "reserve took effect without its fence"),
            *("pay rose from the dead", "an event is missing", "an approved deposit was never made"),
            *("approved goods are not on record", "an order rests as pending", "stuck and nobody knows"),
        ),
        ("a parcel is unpaid", "an order that is completed holds stock", "completed and not captured"),
        ("an order that is rejected has a step that stands",),
    )
]


@pytest.mark.parametrize("damages", _TOGETHER, ids=["one", "two", "three"])
async def test_the_activity_reports_what_the_checks_find(shop: Shop, damages: list[Damage]) -> None:
    await _do_business(shop.engine)
    for damage in damages:
        await shop.database.run("SET session_replication_role = replica; " + damage.sql)

    report = await shop.audit()

    assert {damage.check for together in _TOGETHER for damage in together} == set(audit_checks())
    assert {(each.check, each.subject) for each in damages} <= {(v.check, v.subject) for v in report.violations}


async def test_a_fresh_database_has_no_violations(shop: Shop) -> None:
    report = await shop.audit()

    assert report == AuditReport({id_: claim for id_, (claim, _) in audit_checks().items()}, [], 0, {})


async def test_orders_of_every_ending_have_no_violations(shop: Shop) -> None:
    await _do_business(shop.engine)

    report = await shop.audit()

    assert report.violations == []
    assert report.violation_count == 0
    assert report.orders == {"completed": 1, "rejected": 2, "cancelled": 1, "stuck": 1}


async def test_an_order_on_its_way_is_not_at_rest_until_it_has_was_idle(shop: Shop) -> None:
    await Inventory(shop.engine).reserve_inventory(shop.order("carol", order_id="open"))

    recent = await Audit(shop.engine).run_audit(AuditInput(3600.0))
    later = await Audit(shop.engine).run_audit(AuditInput(0.0))

    assert recent.violations == []
    assert [(v.check, v.subject) for v in later.violations] == [("Q1", "open")]


async def test_a_delivery_is_accounted_for(shop: Shop) -> None:
    await shop.database.run("SELECT deliver('tea-mug', 5, 'the potter came')")
    await _complete(shop.engine, shop.order("carol", ("tea-mug", 2)))

    assert (await shop.audit()).violations == []

    await shop.database.run("UPDATE inventory SET received = 0 WHERE sku = 'tea-mug'")
    report = await shop.audit()
    assert [(v.check, v.subject, v.detail) for v in report.violations] == [
        ("A1", "tea-mug", "on hand 1003, accounted for 998"),
        ("A13", "tea-mug", "initial and received 1000, approved 1005"),
    ]


@pytest.mark.parametrize(
    ("resolved", "otherwise"),
    [
        (("ship", "pay", "reserve"), ["A9", "Q4"]),
        # Sent back by hand and refunded by us, paid back by hand, put back by hand.
        (("ship",), ["A7", "A9", "Q4"]),
        (("pay",), ["A9", "Q4"]),
        (("reserve",), ["A9", "Q2", "Q4"]),
    ],
    ids=["all", "ship", "pay", "reserve"],
)
async def test_what_an_operator_vouched_for_is_not_counted_against_the_order(
    resolved: tuple[str, ...], otherwise: list[str], shop: Shop
) -> None:
    order = shop.order("carol")
    await _complete(shop.engine, order)
    undo = UndoInput(order, Ending.REJECTED, "a reason")
    await Orders(shop.engine).park_order(ParkInput(undo, list(resolved), "a cause"))
    for step in resolved:
        await Orders(shop.engine).resolve_step(OperatorNote(order, "settled by hand", step))
    if "ship" not in resolved:
        await Shipping(shop.engine).cancel_shipment(undo)
    if "pay" not in resolved:
        await Payments(shop.engine).refund_payment(undo)
    if "reserve" not in resolved:
        await Inventory(shop.engine).release_inventory(undo)

    state = await Orders(shop.engine).close_order(undo)

    assert state.status == "rejected"
    assert (await shop.audit()).violations == []
    # The same effects without anybody's word are violations.
    await shop.database.run("UPDATE step_fence SET phase = 'undone' WHERE phase = 'resolved'")
    assert sorted({v.check for v in (await shop.audit()).violations}) == otherwise


async def test_the_audit_needs_no_right_to_write(shop: Shop, database: Database) -> None:
    await database.run("REVOKE INSERT, UPDATE ON ALL TABLES IN SCHEMA public FROM checkout")

    report = await shop.audit()

    assert report.violation_count == 0


async def test_the_audit_can_be_run_by_hand(database: Database, stack: DevStack) -> None:
    await database.run("UPDATE inventory SET on_hand = on_hand - 1 WHERE sku = 'lamp'")

    arguments = ("-v", "ON_ERROR_STOP=1", "-v", "at_rest_after='1 hour'", "-At")
    printed = psql(stack.postgres, database.name, *arguments, "-f", str(ROOT / "activities" / "audit.sql"))

    assert printed == "lamp|on hand 19, accounted for 20\n"


@pytest.fixture(scope="module")
async def busy(stack: DevStack) -> AsyncIterator[Database]:
    """One database for all damages, each of which is rolled back."""
    name = f"busy_{uuid.uuid4().hex[:8]}"
    psql(stack.postgres, "postgres", "-c", f'CREATE DATABASE "{name}" TEMPLATE "{DATABASE}"')
    database = Database(name, stack.postgres.url(name, ROLE), stack.postgres.url(name, driver="postgresql"))
    engine = create_engine(database.url)
    await _do_business(engine)
    await engine.dispose()
    yield database
    psql(stack.postgres, "postgres", "-c", f'DROP DATABASE "{name}" WITH (FORCE)')


async def _do_business(engine: AsyncEngine) -> None:
    """Ship one order, refuse one, unwind one, cancel one and park one."""
    goods = (OrderLine("poster", 2), OrderLine("tea-mug", 1))
    shipped, refused, unwound, cancelled, parked = (
        CheckoutInput(order_id, "carol", goods) for order_id in ("shipped", "refused", "unwound", "cancelled", "parked")
    )
    orders, inventory = Orders(engine), Inventory(engine)
    await _complete(engine, shipped)
    await orders.close_order(UndoInput(refused, Ending.REJECTED, "a reason"))
    await _complete(engine, unwound)
    for order, ending in ((unwound, Ending.REJECTED), (cancelled, Ending.CANCELLED)):
        undo = UndoInput(order, ending, "a reason")
        await Shipping(engine).cancel_shipment(undo)
        await Payments(engine).refund_payment(undo)
        await inventory.release_inventory(undo)
        await orders.close_order(undo)
    await inventory.reserve_inventory(parked)
    await orders.park_order(ParkInput(UndoInput(parked, Ending.REJECTED, "a reason"), ["reserve"], "a cause"))


async def _complete(engine: AsyncEngine, order: CheckoutInput) -> None:
    await Inventory(engine).reserve_inventory(order)
    await Payments(engine).charge_payment(order)
    await Shipping(engine).ship_order(order)
