"""Looking up what the rows of a file name, before anything of it is begun."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity

from adapters.database import snapshot
from domain.names import KnownOrder, NamesInput, NamesReport

_UNKNOWN_SKUS = text("""
    SELECT asked.name FROM unnest(CAST(:names AS text[])) AS asked (name)
     WHERE NOT EXISTS (SELECT FROM products p WHERE p.sku = asked.name)
""")
_UNKNOWN_CUSTOMERS = text("""
    SELECT asked.name FROM unnest(CAST(:names AS text[])) AS asked (name)
     WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.account_id = asked.name AND a.kind = 'customer')
""")
_KNOWN_ORDERS = text("""
    SELECT order_id, status, fingerprint FROM orders WHERE order_id = ANY (CAST(:names AS text[]))
""")


class Names:
    """Activities that only read."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def look_up_names(self, asked: NamesInput) -> NamesReport:
        """Tell which of these names nobody knows, and which orders are there already."""
        async with snapshot(self._engine) as connection:
            skus = await connection.scalars(_UNKNOWN_SKUS, {"names": asked.skus})
            customers = await connection.scalars(_UNKNOWN_CUSTOMERS, {"names": asked.customers})
            orders = await connection.execute(_KNOWN_ORDERS, {"names": asked.order_ids})
            return NamesReport(
                list(skus), list(customers), [KnownOrder(row.order_id, row.status, row.fingerprint) for row in orders]
            )
