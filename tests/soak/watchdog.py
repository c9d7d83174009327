"""Notices that nothing moves any more, and writes down what explains it."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from temporalio.client import Client

from domain.bulk import digest
from domain.policies import bulk_workflow_id, checkout_workflow_id
from tests.soak.auditor import PER_ORDER
from tests.soak.book import Book
from tests.soak.harness import Harness, SoakFailed
from tests.soak.injector import FaultInjector
from tests.soak.plan import Plan

_HISTORIES = 50
_TICK_SECONDS = 0.25
_QUESTION_SECONDS = 30.0

_TABLES = {
    "unfinished-orders": "SELECT * FROM orders WHERE status NOT IN ('completed', 'rejected', 'cancelled')"
    " ORDER BY updated_at LIMIT 1000",
    "fence-rows": "SELECT f.* FROM step_fence f LEFT JOIN orders o ON o.order_id = f.saga_id"
    " WHERE o.status IS NULL OR o.status NOT IN ('completed', 'rejected', 'cancelled') LIMIT 3000",
    "incidents": "SELECT * FROM incidents WHERE closed_at IS NULL LIMIT 1000",
    "sessions": "SELECT *, pg_blocking_pids(pid) AS blocked_by FROM pg_stat_activity",
    "locks": "SELECT * FROM pg_locks",
}


class Watchdog:
    def __init__(self, book: Book, injector: FaultInjector, *, timeout_seconds: float) -> None:
        self._book = book
        self._injector = injector
        self._timeout_seconds = timeout_seconds
        self.windows: list[int] = []
        """Orders that ended in each stretch of `timeout_seconds`."""

    async def run(self) -> None:
        """Watch until cancelled. Time in which no order can move does not count.

        Raises:
            SoakFailed: no order has ended for too long.
        """
        ended, quiet, last = len(self._book.endings), 0.0, time.monotonic()
        window_ends, window_began = last + self._timeout_seconds, ended
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            quiet += 0 if self._injector.has_downtime else now - last
            last = now
            if len(self._book.endings) > ended:
                ended, quiet = len(self._book.endings), 0.0
            if now > window_ends:
                self.windows.append(ended - window_began)
                window_ends, window_began = now + self._timeout_seconds, ended
            if quiet > self._timeout_seconds:
                raise SoakFailed(f"no order has ended for {quiet:.0f} s; {ended} of {self._book.plan.orders} have")


async def dump(
    folder: Path,
    why: str,
    harness: Harness,
    client: Client,
    plan: Plan,
    book: Book,
    injector: FaultInjector,
    opened: set[int],
) -> None:
    """Write what explains a failure afterwards. What cannot be asked any more is named as such."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)

    def write(name: str, document: Any) -> None:
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")

    async def attempt(name: str, ask: Callable[[], Awaitable[Any]]) -> None:
        try:
            async with asyncio.timeout(_QUESTION_SECONDS):
                write(name, await ask())
        except Exception as error:  # noqa: BLE001 - a dump says what it can
            write(name, {"cannot be told": f"{type(error).__name__}: {error}"})

    write(
        "why", {"why": why, "seed": plan.seed, "ended": len(book.endings), "open": len(opened), "counts": book.counts}
    )
    write("plan", plan.document())
    write("faults", [{"at": one.at, "evidence": one.evidence, "fault": vars(one.fault)} for one in injector.injected])
    (folder / "workers.txt").write_text(harness.workers.tails(200), encoding="utf-8")
    for name, query in _TABLES.items():
        await attempt(name, lambda query=query: _rows(harness, query))  # type: ignore[misc]
    chosen = [*sorted(book.suspects), *sorted(opened - book.suspects)][:_HISTORIES]
    workflows = {f"workflow-{plan.order_id(number)}": checkout_workflow_id(plan.order_id(number)) for number in chosen}
    for batch in {plan.batch_of(number) for number in chosen} - {None}:
        assert batch is not None
        content = [plan.order(number).order for number in batch.numbers]
        workflows[f"batch-{content[0].order_id}"] = bulk_workflow_id(digest(content))
    for name, workflow_id in workflows.items():
        await attempt(name, lambda workflow_id=workflow_id: _workflow(client, workflow_id))  # type: ignore[misc]
    for order_id in map(plan.order_id, chosen):
        await attempt(f"rows-{order_id}", lambda order_id=order_id: _order(harness, order_id))  # type: ignore[misc]


async def _rows(harness: Harness, query: str) -> list[dict[str, Any]]:
    async with harness.asking() as connection:
        return [dict(row) for row in await connection.fetch(query)]


async def _order(harness: Harness, order_id: str) -> dict[str, Any]:
    async with harness.asking() as connection:
        return {
            table: [dict(row) for row in await connection.fetch(f"SELECT * FROM {table} WHERE {key} = $1", order_id)]
            for table, key in PER_ORDER.items()
        }


async def _workflow(client: Client, workflow_id: str) -> dict[str, Any]:
    handle = client.get_workflow_handle(workflow_id)
    description = await handle.describe()
    history = await handle.fetch_history()
    return {
        "status": str(description.status),
        "pending activities": [str(pending) for pending in description.raw_description.pending_activities],
        "history": json.loads(history.to_json()),
    }
