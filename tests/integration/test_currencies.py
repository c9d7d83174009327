"""Currencies: the whole of ISO 4217, the same to Python and the database, at the prices that they have."""

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from activities.batch_checkout import BatchCheckout
from activities.inventory import Inventory
from activities.payments import Payments
from devstack.stack import ROOT
from domain import currencies
from domain.bulk import StepInput, pack
from domain.currencies import MINOR_UNITS
from domain.errors import CurrencyMismatch
from domain.model import MAX_LINES, MAX_QUANTITY, format_money
from tests import record_currencies
from tests.conftest import Database, Shop

HIGHEST_PRICE = 10**13


def test_the_table_is_the_standards() -> None:
    date, table = record_currencies.published()
    setup = (ROOT / "setup.sql").read_text("utf-8")

    assert table == MINOR_UNITS
    assert set(table.values()) == {0, 2, 3, 4}
    assert date in (currencies.__doc__ or "")
    assert record_currencies.setup(table, setup) == setup


async def test_the_database_has_the_same_table(database: Database) -> None:
    assert dict(await database.fetch("SELECT code, minor_units FROM currencies")) == MINOR_UNITS


@pytest.mark.parametrize("unknown", ["XXX", "XAU", "EUX", "DEM", "eur", "", "EUR "])
async def test_the_database_refuses_a_currency_that_there_is_not(database: Database, unknown: str) -> None:
    for statement in (
        "INSERT INTO products VALUES ('gift', 'A gift', 100, $1)",
        "INSERT INTO accounts VALUES ('gifted', 'customer', 'Gifted', 0, $1)",
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await database.fetch(statement, unknown)


async def _sold(database: Database, currency: str, price: int, lines: int = 1, balance: int = 9 * 10**18) -> None:
    await database.run(f"""
        INSERT INTO products SELECT 'p-' || n, 'A product', {price}, '{currency}' FROM generate_series(1, {lines}) AS n;
        INSERT INTO inventory (sku, initial, on_hand)
        SELECT 'p-' || n, 1000, 1000 FROM generate_series(1, {lines}) AS n;
        INSERT INTO accounts VALUES ('buyer', 'customer', 'A buyer', {balance}, '{currency}', 'country');
        INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency)
        VALUES ('deposit/buyer', 'deposit', 'bank', 'buyer', {balance}, '{currency}');
        SELECT approve_what_is_there('the test''s own')
    """)


@pytest.mark.parametrize("way", ["alone", "in a batch"])
async def test_the_largest_order_at_the_highest_price_is_bought(shop: Shop, database: Database, way: str) -> None:
    await _sold(database, "IDR", HIGHEST_PRICE, MAX_LINES)
    order = shop.order("buyer", *((f"p-{n}", MAX_QUANTITY) for n in range(1, MAX_LINES + 1)))

    if way == "alone":
        await Inventory(shop.engine).reserve_inventory(order)
        await Payments(shop.engine).charge_payment(order)
    else:
        await BatchCheckout(shop.engine).check_out_orders(StepInput("bulk-1", [pack(order)]))

    total = MAX_LINES * MAX_QUANTITY * HIGHEST_PRICE
    assert await database.value("SELECT total_minor FROM orders") == total
    assert await database.value("SELECT balance_minor FROM accounts WHERE account_id = 'buyer'") == 9 * 10**18 - total
    assert (await shop.audit(at_rest=False)).violation_count == 0


@pytest.mark.parametrize(
    ("currency", "price", "written"),
    [("VND", 10**11, "100000000000 VND"), ("IDR", 10**12, "10000000000.00 IDR"), ("KWD", 1, "0.001 KWD")],
)
async def test_a_house_has_a_price_in_any_currency(
    shop: Shop, engine: AsyncEngine, database: Database, currency: str, price: int, written: str
) -> None:
    await _sold(database, currency, price)

    held = await Inventory(engine).reserve_inventory(shop.order("buyer", ("p-1", 1)))

    assert format_money(held.total_minor, held.currency) == written


async def test_a_price_that_could_overflow_a_total_is_refused(database: Database) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match="products_price_in_range"):
        await database.run(f"INSERT INTO products VALUES ('gold', 'A mountain of it', {HIGHEST_PRICE + 1})")


@pytest.mark.parametrize("lines", [[("p-1", 1)], [("lamp", 1), ("p-1", 1)]])
async def test_who_pays_in_another_currency_is_refused(
    shop: Shop, engine: AsyncEngine, database: Database, lines: list[tuple[str, int]]
) -> None:
    await _sold(database, "JPY", 100)
    order = shop.order("alice", *lines)

    with pytest.raises(CurrencyMismatch, match="alice pays in EUR, the order is priced in JPY"):
        await Inventory(engine).reserve_inventory(order)
    assert await database.value("SELECT count(*) FROM orders") == 0
    report = await BatchCheckout(engine).check_out_orders(StepInput("bulk-1", [pack(order)]))

    [outcome] = report.unpacked()
    assert outcome.reason == "CurrencyMismatch: alice pays in EUR, the order is priced in JPY"
