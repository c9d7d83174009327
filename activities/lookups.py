"""Reading for callers: one order by its id, the newest orders, and which names of a file exist. Writes nothing."""

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity

from adapters import order_query
from adapters.database import snapshot
from domain.lookup import PAGE, KnownOrder, LookupAnswer, LookupInput, NamesInput, NamesReport, OrderRecord
from domain.model import ENDINGS
from sagafence import single_statement

_COLUMNS = """
    o.order_id, o.status, o.reason, o.total_minor, o.currency, o.batch_workflow_id, o.fingerprint,
    o.created_at, o.updated_at
"""
# By the first event of each order, since its number says how new the order is. A search ends after so many events, be
# there enough orders among them or not: it costs the same however many orders there ever were.
_EVENTS_LOOKED_AT = 50_000
_NEWEST = text(f"""
    SELECT {_COLUMNS}, e.event_id
      FROM (SELECT event_id, order_id FROM order_events
             WHERE event_id < :before AND event_id >= :oldest AND seq = 1 ORDER BY event_id DESC) AS e
     CROSS JOIN LATERAL (SELECT * FROM orders WHERE orders.order_id = e.order_id LIMIT 1) AS o
     WHERE cardinality(CAST(:statuses AS text[])) = 0 OR o.status = ANY (CAST(:statuses AS text[]))
     ORDER BY e.event_id DESC LIMIT :limit
""")  # noqa: S608 - put together from our own constants
_EVENTS = text("SELECT min(event_id) AS first, max(event_id) AS last FROM order_events")
# These have an index of their own, so that one which has waited for months is found as well.
_UNFINISHED = text(f"""
    SELECT {_COLUMNS} FROM orders o
     WHERE o.status IN ('pending', 'reserved', 'paid', 'unwinding', 'stuck')
       AND o.status = ANY (CAST(:statuses AS text[]))
     ORDER BY o.updated_at DESC, o.order_id DESC LIMIT :limit
""")  # noqa: S608 - as above

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


class Lookups:
    """The activity that returns what Temporal may not have: orders, with and without a workflow of their own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def look_up_orders(self, asked: LookupInput) -> LookupAnswer:
        """Return one order, or the newest."""
        if asked.order_id:
            return LookupAnswer([order] if (order := await self._one(asked.order_id)) else [])
        limit = max(1, min(asked.limit, PAGE))
        statuses = set(asked.statuses)
        if statuses and not statuses & ENDINGS:
            return await self._unfinished(asked.statuses, limit)
        return await self._newest(asked, limit)

    async def _one(self, order_id: str) -> OrderRecord | None:
        async with snapshot(self._engine) as connection:
            found = await order_query.find_order(connection, order_id)
        return found.record if found else None

    async def _newest(self, asked: LookupInput, limit: int) -> LookupAnswer:
        async with single_statement(self._engine) as connection:
            events = (await connection.execute(_EVENTS)).one()
            if events.last is None:
                return LookupAnswer()
            before = asked.before or events.last + 1
            oldest = before - _EVENTS_LOOKED_AT
            given = {"before": before, "oldest": oldest, "statuses": asked.statuses, "limit": limit}
            rows = (await connection.execute(_NEWEST, given)).all()
        orders = [order_query.record(row) for row in rows]
        if len(rows) == limit:
            return LookupAnswer(orders, next_before=rows[-1].event_id)
        return LookupAnswer(orders, is_cut=oldest > events.first)

    async def _unfinished(self, statuses: Sequence[str], limit: int) -> LookupAnswer:
        async with single_statement(self._engine) as connection:
            rows = (await connection.execute(_UNFINISHED, {"statuses": list(statuses), "limit": limit})).all()
        return LookupAnswer([order_query.record(row) for row in rows], is_cut=len(rows) == PAGE)


class Names:
    """The activity that checks what the rows of a file name, before any order of it is started."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def look_up_names(self, asked: NamesInput) -> NamesReport:
        """Return which of these names do not exist, and which orders exist already."""
        async with snapshot(self._engine) as connection:
            skus = await connection.scalars(_UNKNOWN_SKUS, {"names": asked.skus})
            customers = await connection.scalars(_UNKNOWN_CUSTOMERS, {"names": asked.customers})
            orders = await connection.execute(_KNOWN_ORDERS, {"names": asked.order_ids})
            return NamesReport(
                list(skus), list(customers), [KnownOrder(row.order_id, row.status, row.fingerprint) for row in orders]
            )
