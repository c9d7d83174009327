"""The audit, the sweep and saga.log on a database with a million orders.

    .venv/bin/python -m benchmarks.million [--orders 1000000] [--unfinished 10000] [--rounds 3]

The orders are made up, row for row as the product would have left them (benchmarks/past.py). The audit and the sweep
are the product's own activities, on the connections that a worker gives them; what is to be bounded is explained.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import asyncpg

from activities.maintenance import Maintenance
from adapters.database import create_audit_engine, create_engine
from adapters.telemetry import leave
from benchmarks import machine, past, plans
from benchmarks.report import spread, table, tell, verdict
from devstack.stack import DATABASE, DevStack, make_database
from domain.maintenance import AuditInput, UnfinishedInput, UnfinishedPage
from domain.policies import AUDIT, MAINTENANCE, SWEEP_BATCH


async def measure(stack: DevStack, chosen: argparse.Namespace) -> bool:
    """Fill, measure and print; tell whether every target is met."""
    url = stack.postgres.url(DATABASE, driver="postgresql")
    begun = time.perf_counter()
    await past.make_up(url, chosen.orders, unfinished=chosen.unfinished)
    tell(f"filled in {time.perf_counter() - begun:.0f} s")
    connection = await asyncpg.connect(url)
    patient, audit = (
        create_engine(stack.database_url, pool_size=2, is_patient=True),
        create_audit_engine(stack.database_url),
    )
    try:
        size = await connection.fetchval("SELECT pg_database_size(current_database())")
        maintenance = Maintenance(patient, audit)
        audits: list[float] = []
        violations = 0
        for _ in range(chosen.rounds):
            begun = time.perf_counter()
            violations += (await maintenance.run_audit(AuditInput())).violation_count
            audits.append(time.perf_counter() - begun)
            tell(f"audited in {audits[-1]:.1f} s")
        begun = time.perf_counter()
        found, pages = await _sweep(maintenance)
        swept = time.perf_counter() - begun
        rows, are_bounded = await _bounded(connection)
    finally:
        await connection.close()
        await patient.dispose()
        await audit.dispose()
    limit = AUDIT.start_to_close.total_seconds()
    kept = {
        f"an audit of {limit:.0f} s at most": max(audits) < limit,
        "no violation": violations == 0,
        f"all {chosen.unfinished} unfinished orders found": found == chosen.unfinished,
        f"a page of the sweep within {MAINTENANCE.start_to_close.total_seconds():.0f} s": swept / pages < 60,
        "nothing that is bounded reads a table from end to end": are_bounded,
    }
    print(
        f"{machine.described([])}\n{chosen.orders} orders that have ended and {chosen.unfinished} that have not, "
        f"{size / 2**30:.2f} GiB.\n\n"
        f"The whole audit takes {spread(audits, '.1f')} s, median of {chosen.rounds} rounds; a sweep "
        f"finds the unfinished ones in {pages} pages, {swept / pages * 1000:.0f} ms each.\n\n"
        + table(["statement", "rows read", "ms", "read from end to end"], rows)
        + f"\n\nTargets: {'; '.join(verdict(what, is_met) for what, is_met in kept.items())}."
    )
    return all(kept.values())


async def _sweep(maintenance: Maintenance) -> tuple[int, int]:
    """Go through all pages as the workflow does; count orders and pages."""
    found = pages = 0
    place: UnfinishedPage | None = None
    while place is None or place.next_at is not None:
        after = {} if place is None else {"after_at": str(place.next_at), "after_id": place.next_id}
        place = await maintenance.find_unfinished(UnfinishedInput(SWEEP_BATCH, 60.0, **after))
        # Whose lines do not fit their fingerprint is told as malformed: those that are made up have none that does.
        found, pages = found + len(place.orders) + len(place.malformed), pages + 1
    return found, pages


async def _bounded(connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[list[list[str]], bool]:
    rows, are_bounded = [], True
    for statement in await plans.bounded(connection):
        scanned = await plans.scanned(connection, statement)
        are_bounded = are_bounded and not scanned
        begun = time.perf_counter()
        read = await plans.rows_read(connection, statement)
        took = (time.perf_counter() - begun) * 1000
        rows.append([statement.name, str(read), f"{took:.0f}", ", ".join(sorted(scanned)) or "nothing"])
    return rows, are_bounded


def main() -> int:
    """Measure on a Postgres of our own; nothing else runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=1_000_000)
    parser.add_argument("--unfinished", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="checkout-million-") as folder:
        stack = DevStack(Path(folder))
        try:
            stack.postgres.start()
            make_database(stack.postgres, DATABASE)
            return 0 if asyncio.run(measure(stack, chosen)) else 1
        finally:
            stack.stop()


if __name__ == "__main__":
    leave(main())
