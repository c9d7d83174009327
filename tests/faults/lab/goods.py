"""Customers and goods of their own for the orders of a run: none waits for another."""

import uuid

from domain.model import CheckoutInput, OrderLine
from tests.conftest import Database
from tests.faults.lab.batch_cells import BatchCell, Fate
from tests.faults.lab.cells import Cell

BALANCE = 100_000
STOCK = 10
QUANTITY = 2
PRICE = 1_000

_ZONE_OF = {Fate.LABEL: "country", Fate.REFUSED_AT_SHIP: "atlantis"}


async def new_order(database: Database, cell: Cell) -> CheckoutInput:
    order_id = _new_name(cell)
    customer, sku = f"customer-{order_id}", f"sku-{order_id}"
    await database.run(_goods(sku) + _customer(customer, cell.zone, BALANCE))
    return CheckoutInput(order_id, customer, (OrderLine(sku, QUANTITY),), lane=cell.group.lane)


async def new_batch(database: Database, cell: BatchCell) -> tuple[str, list[CheckoutInput]]:
    """Make a batch for the same goods: its name, and an order of each fate in their sequence."""
    name = _new_name(cell)
    sku, orders, wanted = f"sku-{name}", [], _goods(f"sku-{name}")
    for fate in Fate:
        order_id = f"{name}-{fate}"
        balance = 1 if fate is Fate.REFUSED_AT_PAY else BALANCE
        quantity = STOCK + 1 if fate is Fate.REFUSED_AT_RESERVE else QUANTITY
        wanted += _customer(f"customer-{order_id}", _ZONE_OF.get(fate, "city"), balance)
        orders.append(CheckoutInput(order_id, f"customer-{order_id}", (OrderLine(sku, quantity),)))
    await database.run(wanted)
    return name, orders


def _new_name(cell: Cell | BatchCell) -> str:
    return f"cell-{cell.operation}-{uuid.uuid4().hex[:12]}"


def _goods(sku: str) -> str:
    return (
        f"INSERT INTO products (sku, name, unit_price_minor) VALUES ('{sku}', 'Of a cell', {PRICE});"
        f"INSERT INTO inventory (sku, initial, on_hand) VALUES ('{sku}', {STOCK}, {STOCK});"
        f"INSERT INTO approvals (kind, subject, amount, reason) VALUES ('delivery', '{sku}', {STOCK}, 'of a cell');"
    )


def _customer(customer: str, zone: str, balance: int) -> str:
    return (
        "INSERT INTO accounts (account_id, kind, name, balance_minor, delivery_zone) "
        f"VALUES ('{customer}', 'customer', 'Of a cell', {balance}, '{zone}');"
        "INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency) "
        f"VALUES ('deposit/{customer}', 'deposit', 'bank', '{customer}', {balance}, 'EUR');"
        "INSERT INTO approvals (kind, subject, amount, currency, reason) "
        f"VALUES ('deposit', '{customer}', {balance}, 'EUR', 'of a cell');"
    )
