"""Money and stock come in by a person's word, which is kept: who, when, why, how much."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack.stack import ROOT, DevStack, psql
from tests.conftest import Database, Shop

OPERATOR = "checkout_operator"
_SETUP = ("-v", "ON_ERROR_STOP=1", "-f", str(ROOT / "setup.sql"))
_APPROVED = (
    "SELECT kind, subject, amount, currency, reference, reason, approved_by FROM approvals"
    " WHERE reason <> 'demo.sql' ORDER BY approval_id"
)


@pytest.fixture
async def operator(database: Database, stack: DevStack) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A person with psql."""
    connection = await asyncpg.connect(stack.postgres.url(database.name, OPERATOR, driver="postgresql"))
    yield connection
    await connection.close()


async def test_a_deposit_is_money_a_transfer_and_an_approval(
    shop: Shop, operator: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    transfer = await operator.fetchval("SELECT deposit('bob', 700, 'EUR', 'paid at the counter', 'till-17')")

    assert transfer == "deposit/till-17"
    assert await shop.database.value("SELECT balance_minor FROM accounts WHERE account_id = 'bob'") == 1200
    assert [tuple(row) for row in await shop.database.fetch(_APPROVED)] == [
        ("deposit", "bob", 700, "EUR", "till-17", "paid at the counter", OPERATOR)
    ]
    assert (await shop.audit()).violations == []


async def test_a_delivery_is_stock_and_an_approval(shop: Shop, operator: "asyncpg.Connection[asyncpg.Record]") -> None:
    await operator.execute("INSERT INTO products (sku, name, unit_price_minor) VALUES ('stool', 'Stool', 4500)")

    counts = [
        await operator.fetchval(f"SELECT deliver({arguments})")
        for arguments in (
            "'stool', 5, 'the joiner came'",
            "'stool', -1, 'one is broken'",
            "'lamp', 5, 'a pallet', 'p1'",
        )
    ]

    assert counts == [5, 4, 25]
    assert [tuple(row) for row in await shop.database.fetch(_APPROVED)] == [
        ("delivery", "stool", 5, None, None, "the joiner came", OPERATOR),
        ("delivery", "stool", -1, None, None, "one is broken", OPERATOR),
        ("delivery", "lamp", 5, None, "p1", "a pallet", OPERATOR),
    ]
    assert (await shop.audit()).violations == []


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("deposit('bob', 1, 'EUR', 'x', 'once')", "deposit once was made already"),
        ("deliver('lamp', 1, 'x', 'once')", "delivery once was made already"),
        ("deposit('nobody', 1, 'EUR', 'x')", "there is no customer nobody with money in EUR"),
        ("deposit('bob', 1, 'USD', 'x')", "there is no customer bob with money in USD"),
        ("deposit('shop', 1, 'EUR', 'x')", "there is no customer shop with money in EUR"),
        ("deposit(NULL, 1, 'EUR', 'x')", "there is no customer <NULL> with money in EUR"),
        ("deposit('bob', 0, 'EUR', 'x')", "a deposit of 0 is none"),
        ("deposit('bob', -5, 'EUR', 'x')", "a deposit of -5 is none"),
        ("deposit('bob', NULL, 'EUR', 'x')", "a deposit of nothing is none"),
        ("deposit('bob', 1, 'EUR', ' ')", "a deposit needs a reason"),
        ("deposit('bob', 1, 'EUR', NULL)", "a deposit needs a reason"),
        ("deliver('nothing', 1, 'x')", "there is no product nothing"),
        ("deliver('lamp', 0, 'x')", "a delivery of nothing is none"),
        ("deliver('lamp', NULL, 'x')", "a delivery of nothing is none"),
        ("deliver('lamp', 1, '')", "a delivery needs a reason"),
        ("deliver('lamp', -21, 'x')", "inventory_never_"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_changes_nothing(
    shop: Shop, operator: "asyncpg.Connection[asyncpg.Record]", call: str, expected: str
) -> None:
    await operator.execute("SELECT deposit('bob', 3, 'EUR', 'x', 'once'), deliver('lamp', 3, 'x', 'once')")
    await operator.execute("SELECT deliver('lamp', -3, 'x')")

    with pytest.raises(asyncpg.PostgresError, match=expected):
        await operator.execute(f"SELECT {call}")

    assert len(await shop.database.fetch(_APPROVED)) == 3
    assert await shop.database.value("SELECT on_hand FROM inventory WHERE sku = 'lamp'") == 20
    assert (await shop.audit()).violations == []


@pytest.mark.parametrize("role", ["postgres", "checkout_owner", OPERATOR, "checkout"])
@pytest.mark.parametrize(
    "statement", ["UPDATE approvals SET reason = 'x'", "DELETE FROM approvals", "TRUNCATE approvals"]
)
async def test_an_approval_stays_as_it_is_for_everybody(database: Database, role: str, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await database.run(f"SET ROLE {role}; {statement}")

    assert await database.value("SELECT count(*) FROM approvals WHERE reason = 'demo.sql'") == 224


async def test_what_is_there_at_the_upgrade_is_approved_once_and_nothing_after_it(shop: Shop, stack: DevStack) -> None:
    name = shop.database.name
    await shop.database.run("SELECT deposit('bob', 5, 'EUR', 'a second one'), deliver('cap', 2, 'x')")
    await shop.database.run("DROP TABLE approvals; UPDATE schema_version SET version = 2")

    psql(stack.postgres, name, *_SETUP)
    after = await shop.audit()
    found = await shop.database.fetch(_APPROVED + " LIMIT 1000")
    by_hand = (
        "INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency)"
        " VALUES ('by-hand', 'deposit', 'bank', 'bob', 7, 'EUR');"
        "UPDATE accounts SET balance_minor = balance_minor + 7 WHERE account_id = 'bob'"
    )
    await shop.database.run(by_hand)
    psql(stack.postgres, name, *_SETUP)
    expected = [(v.check, v.subject, v.detail) for v in (await shop.audit()).violations]
    vouched = await shop.database.value("SELECT approve_what_is_there('it was for the broken mug')")

    assert after.violations == []
    assert {row["reason"] for row in found} == {"found at upgrade"}
    assert {row["approved_by"] for row in found} == {"postgres"}
    assert {tuple(row)[:3] for row in found if row["subject"] in {"bob", "cap"}} == {
        ("deposit", "bob", 505),
        ("delivery", "cap", 52),
    }
    assert len(found) == 224
    assert expected == [("A12", "bob", "deposited 512 EUR, approved 505")]
    assert vouched == 1
    assert (await shop.audit()).violations == []


async def test_what_was_approved_and_never_came_can_be_vouched_for_too(shop: Shop) -> None:
    await shop.database.run(
        "INSERT INTO approvals (kind, subject, amount, currency, reason) VALUES ('deposit', 'bob', 7, 'EUR', 'x');"
        "INSERT INTO approvals (kind, subject, amount, reason) VALUES ('delivery', 'lamp', 3, 'x')"
    )

    vouched = await shop.database.value("SELECT approve_what_is_there('neither ever came')")

    assert vouched == 2
    assert (await shop.audit()).violations == []
