"""A workflow that a fault meets, a saga or a batch: where its operation was then, and what is left in the end."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from temporalio.api.enums.v1 import EventType, PendingActivityState, WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from activities.audit import Audit
from adapters.database import create_engine
from domain.audit import AuditInput
from domain.bulk import Outcome
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id
from tests.conftest import Database
from tests.faults.lab.batch_cells import BatchCell
from tests.faults.lab.cells import Boundary, Cell
from tests.faults.lab.control import ControlServer, Report


@dataclass(frozen=True)
class Before:
    """What proves where an operation was just before the fault."""

    report: Report
    """The attempt, as its worker reported it."""
    backend_pid: int | None
    """The server process that worked for it, if any did."""
    backend_state: str | None
    """`active`, `idle` or `idle in transaction`."""
    has_written: bool
    """Whether that server process holds a transaction that has written."""
    fence: dict[tuple[str, str], str]
    """The phase of each fence row, by order and step, as other sessions see it."""
    pending: tuple[str, int] | None
    """The activity's state and attempt, as Temporal sees them; None once it has a result."""
    is_reported: bool
    """Whether the history has the operation's result and no later workflow task that ended."""


_C = TypeVar("_C", Cell, BatchCell)


@dataclass(kw_only=True, eq=False)
class Target(Generic[_C]):
    cell: _C
    orders: list[CheckoutInput]
    """One, or one of each fate."""
    name: str
    """What the database knows it by: the order's id, or what the ids of all orders of a batch begin with."""
    subject: str
    """What the control server knows it by: the order's id, or the batch's workflow id."""
    handle: WorkflowHandle[Any, Any]
    """Of the first run."""
    newest: WorkflowHandle[Any, Any]
    """Of whichever run is the newest."""
    noted: Before | None = None

    @property
    def operation(self) -> str:
        return self.cell.operation.value

    @property
    def order_ids(self) -> list[str]:
        return [order.order_id for order in self.orders]

    @property
    def before(self) -> Before:
        assert self.noted is not None
        return self.noted


AnyTarget = Target[Cell] | Target[BatchCell]


async def pending(target: AnyTarget) -> tuple[str, int] | None:
    description = await target.handle.describe()
    for activity in description.raw_description.pending_activities:
        if activity.activity_type.name == target.operation:
            name = PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_")
            return name, activity.attempt
    return None


async def history(handle: WorkflowHandle[Any, Any]) -> list[HistoryEvent]:
    return [event async for event in handle.fetch_history_events()]


async def is_reported(target: AnyTarget) -> bool:
    """Read in the history whether the operation has its result and no workflow task has seen it."""
    events = await history(target.handle)
    scheduled = {
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
        and event.activity_task_scheduled_event_attributes.activity_type.name == target.operation
    }
    reported = [
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        and event.activity_task_completed_event_attributes.scheduled_event_id in scheduled
    ]
    seen = [event.event_id for event in events if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED]
    return bool(reported) and max(seen) < reported[-1]


@dataclass(frozen=True)
class Traces:
    outcome: Outcome | None
    """As its row has it; None where there is no row."""
    fence: dict[str, str]
    """The phase of each step's row."""
    effects: set[str]
    """The steps that ever had their effect."""
    moves: list[str]
    """The order's statuses, one after the other."""
    transfers: list[str]
    reservations: list[str]
    shipments: list[str]
    spent: int
    """What its customer has paid and not got back."""
    is_of_batch: bool
    """Whether a batch has written its row."""
    has_saga: bool
    """Whether there was ever a saga of this order alone."""

    @property
    def status(self) -> str | None:
        return self.outcome.status if self.outcome else None


@dataclass(frozen=True)
class Shelf:
    """What the orders have left of the goods that are theirs alone."""

    gone: int
    reserved: int


@dataclass(frozen=True)
class Aftermath:
    cell: Cell | BatchCell
    name: str
    order_ids: list[str]
    before: Before
    proof: str | None
    """Of the fault's effect; None when it had none."""
    answer: str | None
    """What became of the attempt that the fault met."""
    attempts: int
    worker_pids: set[int]
    """Who tried it, or saw its result."""
    run_status: str
    """Of the newest run of the workflow."""
    task_failures: list[str]
    """Why workflow tasks failed, in the first run and the newest."""
    traces: list[Traces]
    shelf: Shelf
    reported: list[Outcome]
    """Of a batch: what the next load of the same orders reported, in their sequence."""


@dataclass(frozen=True)
class Inspection:
    violations: list[str]
    """Each begins with the order, or the goods or the customer that are named after it."""
    unfinished: list[str]
    open_transactions: int
    """Those that the service's role has left behind."""

    def violations_for(self, name: str, others: set[str]) -> list[str]:
        return [
            violation
            for violation in self.violations
            if name in violation or not any(other in violation for other in others)
        ]


async def inspect(database: Database) -> Inspection:
    engine = create_engine(database.url, pool_size=1, has_long_statements=True)
    try:
        report = await Audit(engine).run_audit(AuditInput(0.0))
    finally:
        await engine.dispose()
    unfinished = "SELECT order_id FROM orders WHERE status NOT IN ('completed', 'rejected', 'cancelled')"
    return Inspection(
        [f"{found.subject}: {found.check}, {found.detail}" for found in report.violations],
        [row[0] for row in await database.fetch(unfinished)],
        await database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'checkout' "
            "AND xact_start IS NOT NULL"
        ),
    )


async def collect(
    target: AnyTarget,
    client: Client,
    database: Database,
    control: ControlServer,
    proof: str | None,
    reported: list[Outcome],
) -> Aftermath:
    description = await target.newest.describe()
    assert description.status is not None
    return Aftermath(
        cell=target.cell,
        name=target.name,
        order_ids=target.order_ids,
        before=target.before,
        proof=proof,
        answer=control.answer_of(target.before.report),
        attempts=len(control.attempts_of(target.subject, target.operation)),
        worker_pids={
            report.worker_pid
            for report in control.reports
            if report.subject == target.subject
            and report.operation == target.operation
            and report.boundary in {Boundary.B1, Boundary.B5}
        },
        run_status=description.status.name,
        task_failures=[
            WorkflowTaskFailedCause.Name(event.workflow_task_failed_event_attributes.cause)
            for handle in {target.handle, target.newest}
            for event in await history(handle)
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
        ],
        traces=[await _traces(order, client, database) for order in target.orders],
        shelf=await _shelf(target.orders[0], database),
        reported=reported,
    )


async def _traces(order: CheckoutInput, client: Client, database: Database) -> Traces:
    async def column(query: str) -> list[Any]:
        return [row[0] for row in await database.fetch(query, order.order_id)]

    rows = await database.fetch(
        "SELECT order_id, status, reason, total_minor, currency, (SELECT tracking_number FROM shipments s "
        "WHERE s.order_id = o.order_id AND s.state <> 'cancelled'), batch_workflow_id "
        "FROM orders o WHERE order_id = $1",
        order.order_id,
    )
    fence = await database.fetch("SELECT step, phase, had_effect FROM step_fence WHERE saga_id = $1", order.order_id)
    return Traces(
        outcome=next((Outcome(*row[:-1]) for row in rows), None),
        fence={row["step"]: row["phase"] for row in fence},
        effects={row["step"] for row in fence if row["had_effect"]},
        moves=await column("SELECT event FROM order_events WHERE order_id = $1 ORDER BY seq"),
        transfers=await column("SELECT kind FROM transfers WHERE order_id = $1 ORDER BY kind"),
        reservations=await column("SELECT state FROM reservations WHERE order_id = $1"),
        shipments=await column("SELECT state FROM shipments WHERE order_id = $1"),
        spent=await database.value(
            "SELECT (SELECT sum(amount_minor)::bigint FROM transfers WHERE credit_account = $1 AND kind = 'deposit') "
            "- balance_minor FROM accounts WHERE account_id = $1",
            order.customer,
        ),
        is_of_batch=any(row["batch_workflow_id"] for row in rows),
        has_saga=await _has_saga(order, client),
    )


async def _has_saga(order: CheckoutInput, client: Client) -> bool:
    try:
        await client.get_workflow_handle(checkout_workflow_id(order.order_id)).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


async def _shelf(order: CheckoutInput, database: Database) -> Shelf:
    [row] = await database.fetch(
        "SELECT initial - on_hand AS gone, reserved FROM inventory WHERE sku = $1", order.lines[0].sku
    )
    return Shelf(row["gone"], row["reserved"])
