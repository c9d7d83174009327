"""Six sagas of one run, each brought to its operation and to the boundary at which the fault will strike."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy

from domain.model import CheckoutInput, CheckoutStatus, OrderLine
from domain.policies import checkout_workflow_id
from embedded.stack import DevStack
from tests.conftest import Database
from tests.faults.lab.cells import BEFORE, STEP_OF, Boundary, Cell, Group, Operation, order_id_for
from tests.faults.lab.crew import Crew
from tests.faults.lab.desk import Desk, Report, Stop
from tests.faults.lab.wire import Gate, Moment, Proxy
from workflows.checkout import CheckoutWorkflow

BALANCE = 100_000
STOCK = 10
QUANTITY = 2
PRICE = 1_000

_PATIENCE_SECONDS = 90.0


@dataclass(frozen=True)
class Standing:
    """What proves where an operation stood just before the strike."""

    report: Report
    """The attempt, as its worker reported it."""
    backend_pid: int | None
    """The server process that worked for it, if any did."""
    backend_state: str | None
    """`active`, `idle` or `idle in transaction`."""
    has_written: bool
    """Whether that server process holds a transaction that has written."""
    phase: str | None
    """Of the step's fence row, as anybody else sees it."""
    pending: tuple[str, int] | None
    """The activity's state and attempt, as Temporal sees them; None once it has a result."""
    is_reported: bool
    """Whether the history has the operation's result and no later workflow task that ended."""


@dataclass
class Saga:
    """One order, and how to reach its workflow."""

    cell: Cell
    order: CheckoutInput
    handle: WorkflowHandle[Any, CheckoutStatus]
    """Of the first run."""
    newest: WorkflowHandle[Any, CheckoutStatus]
    """Of whichever run is the newest."""
    standing: Standing | None = None

    @property
    def order_id(self) -> str:
        return self.order.order_id

    @property
    def stood(self) -> Standing:
        assert self.standing is not None
        return self.standing


class Scene:
    """Everything that a strike can reach."""

    def __init__(
        self,
        group: Group,
        stack: DevStack,
        client: Client,
        database: Database,
        proxy: Proxy,
        desk: Desk,
        crew: Crew,
        *,
        task_timeout: timedelta,
    ) -> None:
        self.group = group
        self.stack = stack
        self.client = client
        self.database = database
        self.proxy = proxy
        self.desk = desk
        self.crew = crew
        self.sagas: list[Saga] = []
        self._task_timeout = task_timeout
        self._places: dict[Operation, Stop | Gate] = {}

    async def stage(self) -> None:
        """Bring the sagas to their boundaries, all at once, and note what proves that they stand there."""
        await (self._stage_fast() if self.group.is_fast else self._stage_classic())
        for place in self._places.values():
            await place.reached()
        await asyncio.gather(*(self._note_standing(saga) for saga in self.sagas))

    async def _stage_fast(self) -> None:
        for operation in self.group.operations:
            order = await self._new_order(operation)
            self._places[operation] = self._bar(order.order_id, operation)
            await self._start(operation, order)

    async def _stage_classic(self) -> None:
        orders = {operation: await self._new_order(operation) for operation in Operation}
        approaches = {
            operation: self.desk.stop(orders[operation].order_id, before, Boundary.B4)
            for operation, before in BEFORE.items()
        }
        for operation in approaches:
            await self._start(operation, orders[operation])
        for approach in approaches.values():
            await approach.reached()
        # Only a cancel brings a saga to undoing a shipment that could be made.
        await self.saga(Operation.CANCEL_SHIPMENT).handle.execute_update("cancel", "changed my mind")
        self._places = {operation: self._bar(order.order_id, operation) for operation, order in orders.items()}
        for approach in approaches.values():
            approach.open()
        await self._start(Operation.RESERVE, orders[Operation.RESERVE])

    def saga(self, operation: Operation) -> Saga:
        [found] = [saga for saga in self.sagas if saga.cell.operation is operation]
        return found

    def let_go(self) -> None:
        """Open every gate and every stop."""
        for place in self._places.values():
            place.open()

    async def answered(self) -> None:
        """Wait until every attempt that was held up has ended in its worker."""
        await self.desk.heard(lambda _: all(self.desk.answer_of(saga.stood.report) is not None for saga in self.sagas))

    async def ended(self) -> None:
        """Wait until the newest run of every saga is closed, or has had time enough: its cell will say so."""
        results = [asyncio.create_task(saga.newest.result()) for saga in self.sagas]
        _, open_still = await asyncio.wait(results, timeout=_PATIENCE_SECONDS)
        for result in open_still:
            result.cancel()
        await asyncio.gather(*results, return_exceptions=True)

    # On the way ------------------------------------------------------------------------------------------

    async def _new_order(self, operation: Operation) -> CheckoutInput:
        """Give each saga a customer and goods of its own: they do not wait for one another."""
        order_id = order_id_for(operation)
        customer, sku = f"customer-{order_id}", f"sku-{order_id}"
        await self.database.run(
            f"INSERT INTO products (sku, name, unit_price_minor) VALUES ('{sku}', 'Of {operation}', {PRICE});"
            f"INSERT INTO inventory (sku, initial, on_hand) VALUES ('{sku}', {STOCK}, {STOCK});"
            "INSERT INTO accounts (account_id, kind, name, balance_minor, delivery_zone) "
            f"VALUES ('{customer}', 'customer', 'Of {operation}', {BALANCE}, '{Cell(self.group, operation).zone}');"
            "INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency) "
            f"VALUES ('deposit/{customer}', 'deposit', 'bank', '{customer}', {BALANCE}, 'EUR');"
        )
        return CheckoutInput(order_id, customer, (OrderLine(sku, QUANTITY),), lane=self.group.lane)

    async def _start(self, operation: Operation, order: CheckoutInput) -> None:
        workflow_id = checkout_workflow_id(order.order_id)
        handle = await self.client.start_workflow(
            CheckoutWorkflow.run,
            order,
            id=workflow_id,
            task_queue=self.crew.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            task_timeout=self._task_timeout,
        )
        first = self.client.get_workflow_handle(workflow_id, run_id=handle.result_run_id, result_type=CheckoutStatus)
        newest = self.client.get_workflow_handle(workflow_id, result_type=CheckoutStatus)
        self.sagas.append(Saga(Cell(self.group, operation), order, first, newest))

    def _bar(self, order_id: str, operation: Operation) -> Stop | Gate:
        work = (order_id, operation.value)
        match self.group.boundary:
            case Boundary.B2:
                return self.proxy.hold(work, Moment.EXECUTED)
            case Boundary.B3:
                return self.proxy.hold(work, Moment.COMMITTED)
            case boundary:
                return self.desk.stop(order_id, operation, boundary)

    async def _note_standing(self, saga: Saga) -> None:
        operation, order_id = saga.cell.operation, saga.order_id
        errands = [errand for errand in self.proxy.errands if errand.work == (order_id, operation.value)]
        backend_pid = errands[-1].backend_pid if errands else None
        backends = await self.database.fetch(
            "SELECT state, backend_xid IS NOT NULL AS has_written FROM pg_stat_activity WHERE pid = $1", backend_pid
        )
        phases = await self.database.fetch(
            "SELECT phase FROM step_fence WHERE saga_id = $1 AND step = $2", order_id, STEP_OF[operation]
        )
        saga.standing = Standing(
            # An attempt that has not ended is the last that began.
            report=self.desk.attempts_of(order_id, operation)[-1],
            backend_pid=backend_pid,
            backend_state=backends[0]["state"] if backends else None,
            has_written=bool(backends) and backends[0]["has_written"],
            phase=phases[0]["phase"] if phases else None,
            pending=await pending(saga),
            is_reported=await is_reported(saga),
        )


async def pending(saga: Saga) -> tuple[str, int] | None:
    """Ask Temporal how a saga's operation stands."""
    description = await saga.handle.describe()
    for activity in description.raw_description.pending_activities:
        if activity.activity_type.name == saga.cell.operation:
            name = PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_")
            return name, activity.attempt
    return None


async def history(handle: WorkflowHandle[Any, Any]) -> list[HistoryEvent]:
    return [event async for event in handle.fetch_history_events()]


async def is_reported(saga: Saga) -> bool:
    """Read in the history whether the operation has its result and no workflow task has seen it."""
    events = await history(saga.handle)
    scheduled = {
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
        and event.activity_task_scheduled_event_attributes.activity_type.name == saga.cell.operation
    }
    reported = [
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        and event.activity_task_completed_event_attributes.scheduled_event_id in scheduled
    ]
    seen = [event.event_id for event in events if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED]
    return bool(reported) and max(seen) < reported[-1]
