"""The audit: every check of audit.sql on one snapshot of the database, and the log of what it found."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity

from adapters.database import snapshot
from domain.audit import Anchor, AuditInput, AuditReport, Violation
from domain.policies import AUDIT_VIOLATIONS_SHOWN
from sagafence import transaction

_HEARTBEAT_SECONDS = 5.0
_LOCK_RETRY_SECONDS = 1.0
_CHECK_HEADING = re.compile(r"^-- ([AQ]\d+): (.+)$", re.MULTILINE)

_COUNTS = text("""
    SELECT status, count(*) AS orders FROM orders GROUP BY status ORDER BY status
""")

_NEWEST_EVENT = text("""
    SELECT event_id, order_id, seq, extract(epoch FROM at)::text AS at FROM order_events
     ORDER BY event_id DESC LIMIT 1
""")
_HAS_EVENT = text("""
    SELECT EXISTS (SELECT FROM order_events WHERE event_id = :event_id AND order_id = :order_id AND seq = :seq
                      AND extract(epoch FROM at)::text = :at)
""")

_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtext('checkout audit'))")

_LOCK_FINDINGS = text("SELECT pg_advisory_xact_lock(hashtext('checkout audit_events'))")
# A violation is open where the last event says so. A check of which not every row was listed clears none.
_RECORD = text("""
    WITH found AS (
        SELECT DISTINCT ON (check_id, subject) check_id, subject, detail
          FROM unnest(CAST(:checks AS text[]), CAST(:subjects AS text[]), CAST(:details AS text[]))
               AS f (check_id, subject, detail)
         ORDER BY check_id, subject
    ), last AS (
        SELECT DISTINCT ON (check_id, subject) check_id, subject, event
          FROM audit_events ORDER BY check_id, subject, event_id DESC
    )
    INSERT INTO audit_events (check_id, subject, event, detail)
    SELECT f.check_id, f.subject, 'violated', f.detail
      FROM found f LEFT JOIN last USING (check_id, subject) WHERE last.event IS DISTINCT FROM 'violated'
    UNION ALL
    SELECT last.check_id, last.subject, 'cleared', 'it holds again'
      FROM last LEFT JOIN found f USING (check_id, subject)
     WHERE last.event = 'violated' AND f.check_id IS NULL AND last.check_id = ANY (CAST(:whole AS text[]))
""")

ANCHOR_CHECK = "R1"
_ANCHOR_CLAIM = "what an earlier audit saw is still there"


def audit_checks() -> dict[str, tuple[str, TextClause]]:
    """Read audit.sql: each check's claim and query, by its id."""
    source = (Path(__file__).parent / "audit.sql").read_text(encoding="utf-8")
    _, *parts = _CHECK_HEADING.split(source)
    return {
        name: (claim, text(query.strip().rstrip(";")))
        for name, claim, query in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }


def first_and_count(check: TextClause) -> TextClause:
    """Have Postgres count the rows that break a check, and return no more of them than the audit shows."""
    return text(
        f"WITH broken AS MATERIALIZED ({check.text}) "  # noqa: S608 - of our own file
        f"SELECT *, (SELECT count(*) FROM broken) AS found FROM broken LIMIT {AUDIT_VIOLATIONS_SHOWN}"
    )


class Audit:
    """Activities that read everything, and write no more than what they found."""

    def __init__(self, engine: AsyncEngine, audit_engine: AsyncEngine | None = None) -> None:
        self._engine = engine
        self._audit_engine = audit_engine or engine

    @activity.defn
    async def run_audit(self, audit: AuditInput) -> AuditReport:
        """Run every check of audit.sql on one snapshot. The more orders there ever were, the longer it takes.

        One audit runs at a time: several at once would slow the orders down.
        """
        async with _heartbeat():
            while True:
                report = await self._audit_unless_locked(audit)
                if report is not None:
                    return report
                await asyncio.sleep(_LOCK_RETRY_SECONDS)

    async def _audit_unless_locked(self, audit: AuditInput) -> AuditReport | None:
        checks = audit_checks()
        violations: list[Violation] = []
        count = 0
        parameters = {"at_rest_after": timedelta(seconds=audit.at_rest_after_seconds)}
        async with snapshot(self._audit_engine) as connection:
            # Not waited for: the snapshot is as old as this statement.
            if not (await connection.execute(_TRY_LOCK)).scalar_one():
                return None
            for name, (_, query) in checks.items():
                bound = parameters if ":at_rest_after" in query.text else {}
                rows = (await connection.execute(first_and_count(query), bound)).all()
                count += rows[0].found if rows else 0
                violations += [Violation(name, str(row.subject), str(row.detail)) for row in rows]
            claims = {name: claim for name, (claim, _) in checks.items()}
            if audit.anchor is not None:
                claims[ANCHOR_CHECK] = _ANCHOR_CLAIM
                if not (await connection.execute(_HAS_EVENT, asdict(audit.anchor))).scalar_one():
                    count += 1
                    violations.append(_missing(audit.anchor))
            orders = {row.status: row.orders for row in await connection.execute(_COUNTS)}
            newest = (await connection.execute(_NEWEST_EVENT)).one_or_none()
        anchor = None if newest is None else Anchor(newest.event_id, newest.order_id, newest.seq, newest.at)
        return AuditReport(claims, violations, count, orders, anchor)

    @activity.defn
    async def record_findings(self, report: AuditReport) -> None:
        """Record which violations are new, and which are over, for saga.log. A repeat records nothing."""
        listed = Counter(found.check for found in report.violations)
        async with transaction(self._engine) as connection:
            await connection.execute(_LOCK_FINDINGS)
            await connection.execute(
                _RECORD,
                {
                    "checks": [found.check for found in report.violations],
                    "subjects": [found.subject for found in report.violations],
                    "details": [found.detail for found in report.violations],
                    "whole": [check for check in report.checks if listed[check] < AUDIT_VIOLATIONS_SHOWN],
                },
            )


def _missing(anchor: Anchor) -> Violation:
    return Violation(
        ANCHOR_CHECK,
        anchor.order_id,
        f"its event {anchor.seq} is gone: the database was restored to an earlier instant, or it is another one",
    )


@asynccontextmanager
async def _heartbeat() -> AsyncIterator[None]:
    """Report to Temporal while the block runs, so that a lost attempt is soon retried.

    Each answer says whether the attempt is still wanted: where not, the block is cancelled, and its statement.
    """

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    beating = asyncio.create_task(beat()) if activity.in_activity() else None
    try:
        yield
    finally:
        if beating is not None:
            beating.cancel()
