"""A shop of its own for measurements: a thousand SKUs, a thousand customers, and orders that want what they are told.

The customers are as many as the SKUs, so that where orders wait for each other, it is for stock.
"""

import itertools
import random

from devstack.stack import DATABASE, DevStack, psql
from domain.model import CheckoutInput, OrderLine

SIZE = 1_000
LAST_ITEMS = 20
"""How many there are of SKU `scarce`."""

_OPEN = f"""
INSERT INTO products (sku, name, unit_price_minor)
SELECT 'hot-' || lpad(n::text, 4, '0'), 'Hot item ' || n, 100 FROM generate_series(1, {SIZE}) AS n
UNION ALL SELECT 'scarce', 'Soon gone', 100 ON CONFLICT DO NOTHING;
INSERT INTO inventory (sku, initial, on_hand)
SELECT sku, n, n FROM (SELECT sku, CASE sku WHEN 'scarce' THEN {LAST_ITEMS} ELSE 100000000 END AS n FROM products
 WHERE sku LIKE 'hot-%' OR sku = 'scarce') AS s ON CONFLICT DO NOTHING;
WITH opened AS (
    INSERT INTO accounts (account_id, kind, name, balance_minor, delivery_zone)
    SELECT 'crowd-' || lpad(n::text, 4, '0'), 'customer', 'One of many', 1000000000, 'city'
      FROM generate_series(1, {SIZE}) AS n
    ON CONFLICT DO NOTHING RETURNING account_id, balance_minor
)
INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency)
SELECT 'deposit/' || account_id, 'deposit', 'bank', account_id, balance_minor, 'EUR' FROM opened;
SELECT approve_what_is_there('a crowd and what it buys');
"""

_numbers = itertools.count(1)


def open_shop(stack: DevStack) -> None:
    """Put the SKUs and the customers into the stack's database."""
    psql(stack.postgres, DATABASE, "-v", "ON_ERROR_STOP=1", "-c", _OPEN)


def orders(count: int, seed: int, *, skus: int, lines: int = 1) -> list[CheckoutInput]:
    """Draw orders of so many lines each, one of each SKU, from the first so many SKUs; ids are never used before."""
    draw, number = random.Random(seed), next(_numbers)
    return [
        CheckoutInput(
            f"crowd-{number}-{place}",
            f"crowd-{draw.randint(1, SIZE):04d}",
            tuple(OrderLine(f"hot-{sku:04d}", 1) for sku in draw.sample(range(1, skus + 1), lines)),
        )
        for place in range(count)
    ]


def rush(count: int) -> list[CheckoutInput]:
    """Give orders that all want the SKU of which there are few, each from another customer."""
    number = next(_numbers)
    return [
        CheckoutInput(f"rush-{number}-{place}", f"crowd-{1 + place % SIZE:04d}", (OrderLine("scarce", 1),))
        for place in range(count)
    ]
