"""Temporal and the database agree, at rest, on every order that has a saga of its own or was to have one."""

from datetime import datetime
from typing import NamedTuple

from temporalio.client import Client, WorkflowExecutionStatus

from domain.policies import ORDER_STATUS, order_id_of
from tests.soak.book import Book
from tests.soak.model import NEVER_BEGUN
from tests.soak.plan import Plan

_AGREES = {
    WorkflowExecutionStatus.COMPLETED: {"completed"},
    WorkflowExecutionStatus.FAILED: {"rejected", "cancelled"},
    WorkflowExecutionStatus.CANCELED: {"cancelled"},
}


class Run(NamedTuple):
    begun: datetime
    closed: WorkflowExecutionStatus | None
    said: str | None


async def newest_runs(client: Client) -> dict[str, Run]:
    """List the newest run of every order that has a saga of its own."""
    newest: dict[str, Run] = {}
    async for run in client.list_workflows("WorkflowType = 'Checkout'", page_size=1_000):
        order_id = order_id_of(run.id)
        if order_id not in newest or newest[order_id].begun < run.start_time:
            newest[order_id] = Run(run.start_time, run.status, run.typed_search_attributes.get(ORDER_STATUS))
    return newest


def disagreements(plan: Plan, book: Book, runs: dict[str, Run], statuses: dict[str, str]) -> list[str]:
    """Compare how every order's last run closed, and what its caller was told, with its row."""
    problems = [
        f"{name} has a row and no run, and came in no batch"
        for name in sorted(statuses.keys() - runs.keys())
        if plan.batch_of(plan.number_of(name)) is None
    ]
    for number in sorted(book.acknowledged):
        name, ending = plan.order_id(number), book.endings.get(number)
        run = runs.get(name)
        if run is None and plan.batch_of(number) is None:
            problems.append(f"{name} was acknowledged, and Temporal does not know it")
        elif ending == NEVER_BEGUN:
            if name in statuses or (run and run.closed is not WorkflowExecutionStatus.TERMINATED):
                problems.append(f"{name} was never begun, and yet: {statuses.get(name)}, {run}")
        elif ending != statuses.get(name):
            problems.append(f"{name}: its caller was told {ending}, the database says {statuses.get(name)}")
    found = (_disagreement(plan, book, name, run, statuses.get(name)) for name, run in runs.items())
    return problems + [problem for problem in found if problem]


def _disagreement(plan: Plan, book: Book, name: str, run: Run, status: str | None) -> str | None:
    planned = plan.order(plan.number_of(name))
    if run.closed is WorkflowExecutionStatus.TERMINATED:
        is_planned = planned.interruption is not None and planned.interruption.kind == "terminate"
        return None if is_planned else f"{name} was terminated, and nobody did it"
    is_strangers = planned.batch is not None and planned.second_start == "other" and planned.number not in book.taken
    if is_strangers and run.said == "rejected":
        status = "rejected"  # the other content came too late and was refused; what the batch brought stands
    if run.closed is None or status not in _AGREES.get(run.closed, set()) or (run.said and run.said != status):
        return f"{name}: its run is {run.closed} ({run.said}), the database says {status}"
    return None
