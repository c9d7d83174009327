"""What is left when a struck saga has ended and every worker is gone."""

from dataclasses import dataclass
from typing import Any

from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause

from activities.maintenance import Maintenance
from adapters.database import create_engine
from domain.maintenance import AuditInput
from tests.conftest import Database
from tests.faults.lab.cells import STEP_OF, Boundary, Cell
from tests.faults.lab.desk import Desk
from tests.faults.lab.scene import BALANCE, STOCK, Saga, Standing, history


@dataclass(frozen=True)
class Aftermath:
    """All that a cell is judged by."""

    cell: Cell
    order_id: str
    standing: Standing
    """Before the strike."""
    proof: str | None
    """Of the fault's effect; None when it had none."""
    answer: str | None
    """What became of the attempt that was struck."""
    attempts: int
    """How often the operation was tried."""
    worker_pids: set[int]
    """Who tried it, or saw its result."""
    run_status: str
    """Of the newest run of the workflow."""
    task_failures: list[str]
    """Why workflow tasks failed, in the first run and the newest."""
    status: str | None
    """Of the order."""
    had_effect: bool
    """Whether the operation's step ever had its effect."""
    fence: dict[str, str]
    """The phase of each step's row."""
    moves: list[str]
    """The order's statuses, one after the other."""
    transfers: list[str]
    reservations: list[str]
    shipments: list[str]
    spent: int
    """What the customer's balance has lost."""
    gone: int
    """What the shelf has lost."""
    reserved: int
    """What the shelf still holds for the order."""


@dataclass(frozen=True)
class Inspection:
    """What the whole database looks like after a run."""

    violations: list[str]
    """Each begins with the order, or the goods or the customer that are named after it."""
    unfinished: list[str]
    """Orders that have not ended."""
    open_transactions: int
    """Those that the service's role has left behind."""

    def violations_for(self, order_id: str, others: set[str]) -> list[str]:
        """Give what concerns this order, and what concerns no order of the run in particular."""
        return [
            violation
            for violation in self.violations
            if order_id in violation or not any(other in violation for other in others)
        ]


async def inspect(database: Database) -> Inspection:
    """Audit everything, with nothing counted as still moving."""
    engine = create_engine(database.url, pool_size=1, is_patient=True)
    try:
        report = await Maintenance(engine).run_audit(AuditInput(0.0))
    finally:
        await engine.dispose()
    return Inspection(
        [f"{found.subject}: {found.check}, {found.detail}" for found in report.violations],
        [
            row[0]
            for row in await database.fetch(
                "SELECT order_id FROM orders WHERE status NOT IN ('completed', 'rejected', 'cancelled')"
            )
        ],
        await database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'checkout' "
            "AND xact_start IS NOT NULL"
        ),
    )


async def look(saga: Saga, database: Database, desk: Desk, proof: str | None) -> Aftermath:
    """Collect what is left of one saga."""
    order_id = saga.order_id

    async def column(query: str) -> list[Any]:
        return [row[0] for row in await database.fetch(query, order_id)]

    fence = await database.fetch("SELECT step, phase, had_effect FROM step_fence WHERE saga_id = $1", order_id)
    description = await saga.newest.describe()
    assert description.status is not None
    return Aftermath(
        cell=saga.cell,
        order_id=order_id,
        standing=saga.stood,
        proof=proof,
        answer=desk.answer_of(saga.stood.report),
        attempts=len(desk.attempts_of(order_id, saga.cell.operation)),
        worker_pids={
            report.worker_pid
            for report in desk.reports
            if report.order_id == order_id
            and report.operation == saga.cell.operation
            and report.boundary in {Boundary.B1, Boundary.B5}
        },
        run_status=description.status.name,
        task_failures=await _task_failures(saga),
        status=next(iter(await column("SELECT status FROM orders WHERE order_id = $1")), None),
        had_effect=any(row["had_effect"] for row in fence if row["step"] == STEP_OF[saga.cell.operation]),
        fence={row["step"]: row["phase"] for row in fence},
        moves=await column("SELECT event FROM order_events WHERE order_id = $1 ORDER BY seq"),
        transfers=await column("SELECT kind FROM transfers WHERE order_id = $1 ORDER BY kind"),
        reservations=await column("SELECT state FROM reservations WHERE order_id = $1"),
        shipments=await column("SELECT state FROM shipments WHERE order_id = $1"),
        spent=BALANCE
        - (await database.value("SELECT balance_minor FROM accounts WHERE account_id = $1", saga.order.customer)),
        gone=STOCK - (await database.value("SELECT on_hand FROM inventory WHERE sku = $1", saga.order.lines[0].sku)),
        reserved=await database.value("SELECT reserved FROM inventory WHERE sku = $1", saga.order.lines[0].sku),
    )


async def _task_failures(saga: Saga) -> list[str]:
    return [
        WorkflowTaskFailedCause.Name(event.workflow_task_failed_event_attributes.cause)
        for handle in {saga.handle, saga.newest}
        for event in await history(handle)
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
    ]
