"""Reading the whole database: the audit of every invariant, and the search for unfinished orders."""

import re
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity

from adapters.database import snapshot
from domain.errors import InvalidInput
from domain.maintenance import AuditInput, AuditReport, UnfinishedInput, UnfinishedPage, Violation
from domain.model import CheckoutInput, OrderLine
from domain.policies import AUDIT_VIOLATIONS_SHOWN

_CHECK_HEADING = re.compile(r"^-- ([AQ]\d+): (.+)$", re.MULTILINE)

_COUNTS = text("""
    SELECT status, count(*) AS orders FROM orders GROUP BY status ORDER BY status
""")

# Orders by hand (`pending`) are taken as soon as they have lines; others only once they have stood still.
_UNFINISHED = text("""
    SELECT o.order_id, o.customer, o.status, o.updated_at, o.fingerprint,
           array_agg(l.sku ORDER BY l.sku) AS skus, array_agg(l.quantity ORDER BY l.sku) AS quantities
      FROM orders o JOIN order_lines l USING (order_id)
     WHERE o.status IN ('pending', 'reserved', 'paid', 'unwinding', 'stuck')
       AND (o.updated_at, o.order_id) > (CAST(:after_at AS timestamptz), :after_id)
       AND (o.status = 'pending' OR o.updated_at <= now() - CAST(:stood_still AS interval))
     GROUP BY o.order_id ORDER BY o.updated_at, o.order_id LIMIT :limit
""")


class Maintenance:
    """Activities that read everything and write nothing."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn
    async def run_audit(self, audit: AuditInput) -> AuditReport:
        """Run every check of audit.sql on one snapshot."""
        checks = audit_checks()
        violations: list[Violation] = []
        count = 0
        parameters = {"at_rest_after": timedelta(seconds=audit.at_rest_after_seconds)}
        async with snapshot(self._engine) as connection:
            for name, (_, query) in checks.items():
                bound = parameters if ":at_rest_after" in query.text else {}
                rows = (await connection.execute(query, bound)).all()
                count += len(rows)
                violations += [
                    Violation(name, str(row.subject), str(row.detail)) for row in rows[:AUDIT_VIOLATIONS_SHOWN]
                ]
            orders = {row.status: row.orders for row in await connection.execute(_COUNTS)}
        return AuditReport({name: claim for name, (claim, _) in checks.items()}, violations, count, orders)

    @activity.defn
    async def find_unfinished(self, page: UnfinishedInput) -> UnfinishedPage:
        """List one page of orders that are not at an ending and have not moved for a while."""
        async with snapshot(self._engine) as connection:
            rows = (
                await connection.execute(
                    _UNFINISHED,
                    {
                        "after_at": datetime.fromisoformat(page.after_at),
                        "after_id": page.after_id,
                        "stood_still": timedelta(seconds=page.stood_still_seconds),
                        "limit": page.limit,
                    },
                )
            ).all()
        orders: list[CheckoutInput] = []
        malformed: list[str] = []
        for row in rows:
            lines = tuple(OrderLine(sku, n) for sku, n in zip(row.skus, row.quantities, strict=True))
            try:
                order = CheckoutInput(row.order_id, row.customer, lines, repair=row.status != "pending")
            except InvalidInput as problem:
                malformed.append(f"{row.order_id}: {problem.message}")
                continue
            if row.fingerprint in {None, order.fingerprint}:
                orders.append(order)
            else:
                malformed.append(f"{row.order_id}: its lines were changed after a saga took it; put them back")
        if len(rows) < page.limit:
            return UnfinishedPage(orders, malformed)
        return UnfinishedPage(orders, malformed, rows[-1].updated_at.isoformat(), rows[-1].order_id)


def audit_checks() -> dict[str, tuple[str, TextClause]]:
    """Read audit.sql: each check's claim and query, by its id."""
    source = (Path(__file__).parent / "audit.sql").read_text(encoding="utf-8")
    _, *parts = _CHECK_HEADING.split(source)
    return {
        name: (claim, text(query.strip().rstrip(";")))
        for name, claim, query in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }
