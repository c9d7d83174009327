"""What has to hold when everything is at rest: in the database, in Temporal, between the two, and in the log."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import UnsandboxedWorkflowRunner

from activities.audit import audit_checks
from client.checkouts import Checkouts
from domain.policies import checkout_workflow_id
from tests.soak.book import Book
from tests.soak.harness import Harness
from tests.soak.model import Effect, Picture, differences
from tests.soak.plan import Plan, PlannedOrder
from tests.soak.promises import Promises, disagreements, newest_runs
from tests.workflow.replays import replayer
from workflows.bulk import BulkCheckoutWorkflow
from workflows.checkout import CheckoutWorkflow

_SHOWN = 20
_PATIENCE_SECONDS = 120.0
_LEAKS = {
    "transactions left open": "SELECT pid::text, state FROM pg_stat_activity"
    " WHERE state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()",
    "prepared transactions": "SELECT gid, prepared::text FROM pg_prepared_xacts",
    "advisory locks": "SELECT pid::text, objid::text FROM pg_locks WHERE locktype = 'advisory'",
    "locks nobody waits to release": "SELECT l.pid::text, l.mode FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
    " WHERE a.usename = 'checkout' AND a.state = 'idle' AND l.locktype <> 'virtualxid'",
    "orders still stuck": "SELECT order_id, reason FROM orders WHERE status = 'stuck'",
    "open incidents": "SELECT order_id, cause FROM incidents WHERE closed_at IS NULL",
}
# Any instant counts here, however short: what was parked or taken back, and fixed before the check.
_PARKED = "SELECT order_id, string_agg(cause, '; ') AS why FROM incidents GROUP BY order_id"
_TAKEN_BACK = (
    "SELECT order_id, string_agg(changed_by || ': ' || coalesce(reason, ''), '; ') AS why FROM order_events"
    " WHERE previous_status = 'completed' GROUP BY order_id"
)
_ASKED_FOR = {"cancel", "update"}
_EFFECTS = """
    SELECT o.order_id, o.status,
           coalesce((SELECT sum(CASE t.kind WHEN 'capture' THEN amount_minor ELSE -amount_minor END)
                       FROM transfers t WHERE t.order_id = o.order_id), 0)::bigint AS paid,
           coalesce(sum(r.quantity) FILTER (WHERE r.state = 'consumed'), 0)::bigint AS gone,
           coalesce(sum(r.quantity) FILTER (WHERE r.state = 'held'), 0)::bigint AS held
      FROM orders o LEFT JOIN reservations r USING (order_id)
     GROUP BY o.order_id
"""


class Verdict:
    def __init__(self, harness: Harness, client: Client, checkouts: Checkouts, plan: Plan, book: Book) -> None:
        self._harness = harness
        self._client = client
        self._checkouts = checkouts
        self._plan = plan
        self._book = book
        self.problems: dict[str, list[str]] = {}
        self.replayed = 0
        self.picture_size = 0
        self.outcomes_compared = 0
        self._promises = Promises(harness, client, plan)
        self._with_sagas: set[str] = set()

    async def reach(self, every: int) -> None:
        self.problems["orders without an ending"] = [
            self._plan.order_id(number) for number in range(self._plan.orders) if number not in self._book.endings
        ]
        self.problems["sweep at rest"] = await self._sweep()
        self.problems["audit, A* and Q*"] = await self._audit()
        self.problems["P11: completed orders stay so"] = await self._taken_back()
        self.problems["nobody healthy was parked"] = await self._parked()
        statuses = await self._compare()
        await self._agree(statuses)
        self.problems["Q8: nothing leaked"] = await self._leaks()
        self.problems["saga.log is order_events"] = await self._log()
        self.problems["histories replay"] = await self._replay(every)

    @property
    def is_clean(self) -> bool:
        return not any(self.problems.values())

    async def _sweep(self) -> list[str]:
        report = await self._checkouts.sweep(timedelta(0), timedelta(seconds=_PATIENCE_SECONDS))
        found = [*report.started, *report.repaired, *report.parked, *report.malformed]
        return [f"still found by a sweep: {name}" for name in found]

    async def _audit(self) -> list[str]:
        found = []
        async with (
            self._harness.asking() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            for name, (claim, query) in audit_checks().items():
                rows = await connection.fetch(query.text.replace(":at_rest_after", "'0'"))
                found += [f"{name} ({claim}): {row['subject']}: {row['detail']}" for row in rows]
        return found

    async def _taken_back(self) -> list[str]:
        async with self._harness.asking() as connection:
            rows = await connection.fetch(_TAKEN_BACK)
        return [
            f"{row['order_id']} was taken back from completed: {row['why']}"
            for row in rows
            if not self._planned(row["order_id"]).interruptions & _ASKED_FOR
        ]

    async def _parked(self) -> list[str]:
        async with self._harness.asking() as connection:
            rows = await connection.fetch(_PARKED)
        return [
            f"{row['order_id']} was parked: {row['why']}" for row in rows if not self._planned(row["order_id"]).broken
        ]

    def _planned(self, order_id: str) -> PlannedOrder:
        return self._plan.order(self._plan.number_of(order_id))

    async def _compare(self) -> dict[str, str]:
        found = Picture()
        async with (
            self._harness.asking() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            expected = self._book.model.picture()
            for row in await connection.fetch("SELECT sku, on_hand, reserved FROM inventory"):
                if row["sku"] in expected.on_hand:
                    found.on_hand[row["sku"]], found.reserved[row["sku"]] = row["on_hand"], row["reserved"]
            for row in await connection.fetch("SELECT account_id, balance_minor FROM accounts WHERE kind = 'customer'"):
                if row["account_id"] in expected.balances:
                    found.balances[row["account_id"]] = row["balance_minor"]
            found.shop = await connection.fetchval(
                "SELECT coalesce(sum(CASE credit_account WHEN 'shop' THEN amount_minor ELSE -amount_minor END), 0)"
                " FROM transfers WHERE 'shop' IN (credit_account, debit_account)"
            )
            async for row in connection.cursor(_EFFECTS, prefetch=2_000):
                found.effects[row["order_id"]] = Effect(row["status"], row["paid"], row["gone"], row["held"])
        self.problems["the model equals the database"] = differences(expected, found)
        self._book.suspects |= {
            self._plan.number_of(name)
            for name in {*expected.effects, *found.effects}
            if expected.effects.get(name) != found.effects.get(name)
        }
        self.picture_size = sum(len(part) for part in (found.on_hand, found.reserved, found.balances, found.effects))
        return {name: effect.status for name, effect in found.effects.items()}

    async def _agree(self, statuses: dict[str, str]) -> None:
        """Compare what Temporal says with every row; visibility lags, so ask until it has caught up."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            runs = await newest_runs(self._client)
            sagas = disagreements(self._plan, self._book, runs, statuses)
            reports = await self._promises.broken(runs.keys())
            if not (sagas or reports) or time.monotonic() > deadline:
                break
            await asyncio.sleep(2)
        self.problems["Q5 and Q6: Temporal agrees"] = sagas
        self.problems["every batch's report is true"] = reports
        self.outcomes_compared = self._promises.compared
        self._with_sagas = set(runs)

    async def _leaks(self) -> list[str]:
        """Look for what was left behind; a query of the service's that is under way is none."""
        deadline = time.monotonic() + _PATIENCE_SECONDS / 4
        while True:
            found: list[str] = []
            async with self._harness.asking() as connection:
                for name, query in _LEAKS.items():
                    found += [f"{name}: {tuple(row)}" for row in await connection.fetch(query)]
            if not found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.5)

    async def _log(self) -> list[str]:
        """Read saga.log: every event once, each order's in their sequence, and nothing else."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        async with self._harness.asking() as connection:
            wanted = {
                row["order_id"]: row["seq"]
                for row in await connection.fetch("SELECT order_id, max(seq) AS seq FROM order_events GROUP BY 1")
            }
        while True:
            problems, output = await asyncio.to_thread(self._read_log)
            behind = [
                f"{name}: {wanted.get(name, 0)} events, {output[name]} of them told"
                for name in sorted({*wanted, *output})
                if wanted.get(name, 0) != output[name]
            ]
            if problems or not behind or time.monotonic() > deadline:
                return problems + behind
            await asyncio.sleep(1)

    def _read_log(self) -> tuple[list[str], Counter[str]]:
        output: Counter[str] = Counter()
        problems = []
        line_shape = re.compile(r"\S+Z (\S+) #(\d+) .* pos=\d+\.\d+\n")
        with self._harness.saga_log.open(encoding="utf-8") as log:
            for number, text in enumerate(log, start=1):
                found = line_shape.fullmatch(text)
                if found is None:
                    problems.append(f"line {number} is malformed: {text[:200]!r}")
                    continue
                output[found[1]] += 1
                if output[found[1]] != int(found[2]):
                    problems.append(f"line {number}: {found[1]} #{found[2]} comes as its number {output[found[1]]}")
        return problems, output

    async def _replay(self, every: int) -> list[str]:
        replaying = replayer(CheckoutWorkflow, BulkCheckoutWorkflow, runner=UnsandboxedWorkflowRunner())
        problems: list[str] = []
        async with replaying.workflow_replay_iterator(self._histories(every, problems)) as results:
            async for result in results:
                self.replayed += 1
                if result.replay_failure is not None:
                    problems.append(f"{result.history.workflow_id}: {result.replay_failure!r}")
        return problems

    async def _histories(self, every: int, problems: list[str]) -> AsyncIterator[WorkflowHistory]:
        """Fetch the newest run's history of a part, and those of all runs of what is special.

        A saga stands for one order and a batch for dozens, most of which have no saga: so there is more of both
        than one in so many.
        """
        sagas, batches = sorted(self._with_sagas), sorted(self._promises.workflows)
        special = {self._plan.order_id(number) for number in self._book.special} & self._with_sagas
        chosen = {checkout_workflow_id(name): name in special for name in {*sagas[:: max(1, every // 4)], *special}}
        chosen |= dict.fromkeys(batches[:: max(1, every // 10)], False)
        chosen |= {name: True for name, batch in self._promises.workflows.items() if batch and batch.interruption}
        for workflow_id, is_special in chosen.items():
            run_ids: list[str | None] = [None]
            if is_special:
                run_ids = [run.run_id async for run in self._client.list_workflows(f"WorkflowId = '{workflow_id}'")]
            for run_id in run_ids:
                history = await self._client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
                if any(event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED for event in history.events):
                    yield history
                else:  # a replayer would wait for its first task for ever
                    problems.append(f"{workflow_id}: run {run_id} has never had a workflow task")


def shown(problems: dict[str, list[str]]) -> dict[str, Any]:
    return {
        claim: {"problems": len(found), "first": found[:_SHOWN]} if found else "holds"
        for claim, found in problems.items()
    }
