"""The sagas and batches of one run, each brought to its operation and to the boundary where the fault will strike."""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy

from client.batches import carried_on
from client.checkouts import Checkouts
from devstack.stack import DevStack
from domain.bulk import HANDED_OVER, Batch, BatchReport, Outcome, digest, pack
from domain.model import CheckoutInput, CheckoutStatus
from domain.policies import bulk_workflow_id, checkout_workflow_id
from tests.conftest import Database
from tests.faults.lab.batch_cells import BatchCell, BatchOperation, batch_operations, is_heard_at_once
from tests.faults.lab.cells import BEFORE, Boundary, Cell, Fault, Group, Operation
from tests.faults.lab.crew import Crew
from tests.faults.lab.desk import Desk, Stop
from tests.faults.lab.goods import new_batch, new_order
from tests.faults.lab.struck import Load, Saga, Standing, Struck, is_reported, pending
from tests.faults.lab.wire import Gate, Moment, Proxy
from tests.faults.lab.worker import ARMED
from workflows.bulk import BulkCheckoutWorkflow
from workflows.checkout import CheckoutWorkflow

_PATIENCE_SECONDS = 90.0
_HEARS_NOTHING = timedelta(seconds=60)
"""A workflow task that may take so long asks the server for nothing before it has ended."""


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
        self.loads: list[Load] = []
        self._task_timeout = task_timeout
        self._places: dict[str, Stop | Gate] = {}

    async def stage(self) -> None:
        """Bring all to their boundaries, at once, and note what proves that they stand there."""
        await (self._stage_fast() if self.group.is_fast else self._stage_classic())
        for operation in batch_operations(self.group):
            await self._start_batch(BatchCell(self.group, operation))
        for place in self._places.values():
            await place.reached()
        await asyncio.gather(*(self._note_standing(struck) for struck in self.struck))

    async def _stage_fast(self) -> None:
        for operation in self.group.operations:
            order = await new_order(self.database, Cell(self.group, operation))
            self._places[operation] = self._bar(order.order_id, order.order_id, operation)
            await self._start(operation, order)

    async def _stage_classic(self) -> None:
        orders = {operation: await new_order(self.database, Cell(self.group, operation)) for operation in Operation}
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
        for operation, order in orders.items():
            self._places[operation] = self._bar(order.order_id, order.order_id, operation)
        for approach in approaches.values():
            approach.open()
        await self._start(Operation.RESERVE, orders[Operation.RESERVE])

    @property
    def struck(self) -> list[Saga | Load]:
        """All that the fault strikes."""
        return [*self.sagas, *self.loads]

    def saga(self, operation: Operation) -> Saga:
        [found] = [saga for saga in self.sagas if saga.cell.operation is operation]
        return found

    def let_go(self) -> None:
        """Open every gate and every stop."""
        for place in self._places.values():
            place.open()

    async def answered(self) -> None:
        """Wait until every attempt that was held up has ended in its worker."""
        await self.desk.heard(lambda _: all(self.desk.answer_of(each.stood.report) is not None for each in self.struck))

    async def ended(self) -> None:
        """Wait until the newest runs are closed, or have had time enough: their cells will say so."""
        # An order of a batch has a saga of its own where a sweep has given it one.
        own = [checkout_workflow_id(order_id) for load in self.loads for order_id in load.order_ids]
        runs = [each.newest for each in self.struck] + [self.client.get_workflow_handle(name) for name in own]
        results = [asyncio.create_task(run.result()) for run in runs]
        _, open_still = await asyncio.wait(results, timeout=_PATIENCE_SECONDS)
        for result in open_still:
            result.cancel()
        await asyncio.gather(*results, return_exceptions=True)

    async def load_again(self) -> dict[str, list[Outcome]]:
        """Ask for every batch once more, as a second load of its file does, and give what is told."""
        checkouts = Checkouts(self.client, self.crew.task_queue, "")

        async def told(load: Load) -> list[Outcome]:
            orders = list(load.orders.values())
            outcomes = zip(orders, await checkouts.carry(orders), strict=True)
            # A batch whose attempts go to a stopped worker's open polls until its time is up hands its orders over.
            return [
                await carried_on(checkouts, order) if outcome.status == HANDED_OVER else outcome
                for order, outcome in outcomes
            ]

        async with asyncio.timeout(_PATIENCE_SECONDS):
            return {load.operation: await told(load) for load in self.loads}

    # On the way ------------------------------------------------------------------------------------------

    async def _start(self, operation: Operation, order: CheckoutInput) -> None:
        workflow_id = checkout_workflow_id(order.order_id)
        handle = await self.client.start_workflow(
            CheckoutWorkflow.run,
            order,
            id=workflow_id,
            task_queue=self.crew.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            task_timeout=self._task_timeout,
            memo={ARMED: operation.value},
        )
        self.sagas.append(
            Saga(
                cell=Cell(self.group, operation),
                order=order,
                name=order.order_id,
                subject=order.order_id,
                handle=self._run(handle, handle.result_run_id, CheckoutStatus),
                newest=self._run(handle, None, CheckoutStatus),
            )
        )

    async def _start_batch(self, cell: BatchCell) -> None:
        name, orders = await new_batch(self.database, cell)
        workflow_id = bulk_workflow_id(digest(orders.values()))
        self._places[cell.operation] = self._bar(name, workflow_id, cell.operation)
        is_deaf = cell.group.fault is Fault.CANCELLED and not is_heard_at_once(cell)
        handle = await self.client.start_workflow(
            BulkCheckoutWorkflow.run,
            Batch([pack(order) for order in orders.values()]),
            id=workflow_id,
            task_queue=self.crew.task_queue,
            task_timeout=_HEARS_NOTHING if is_deaf else self._task_timeout,
            memo={ARMED: cell.operation.value},
        )
        self.loads.append(
            Load(
                cell=cell,
                orders=orders,
                name=name,
                subject=workflow_id,
                handle=self._run(handle, handle.result_run_id, BatchReport),
                newest=self._run(handle, None, BatchReport),
            )
        )

    def _run(self, handle: WorkflowHandle[Any, Any], run_id: str | None, kind: type) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(handle.id, run_id=run_id, result_type=kind)

    def _bar(self, name: str, subject: str, operation: Operation | BatchOperation) -> Stop | Gate:
        match self.group.boundary:
            case Boundary.B2:
                return self.proxy.hold((name, operation.value), Moment.EXECUTED)
            case Boundary.B3:
                return self.proxy.hold((name, operation.value), Moment.COMMITTED)
            case boundary:
                return self.desk.stop(subject, operation, boundary)

    async def _note_standing(self, struck: Struck) -> None:
        errands = [errand for errand in self.proxy.errands if errand.work == (struck.name, struck.operation)]
        backend_pid = errands[-1].backend_pid if errands else None
        backends = await self.database.fetch(
            "SELECT state, backend_xid IS NOT NULL AS has_written FROM pg_stat_activity WHERE pid = $1", backend_pid
        )
        fence = await self.database.fetch(
            "SELECT saga_id, step, phase FROM step_fence WHERE saga_id = ANY ($1::text[])", struck.order_ids
        )
        struck.standing = Standing(
            # An attempt that has not ended is the last that began.
            report=self.desk.attempts_of(struck.subject, struck.operation)[-1],
            backend_pid=backend_pid,
            backend_state=backends[0]["state"] if backends else None,
            has_written=bool(backends) and backends[0]["has_written"],
            fence={(row["saga_id"], row["step"]): row["phase"] for row in fence},
            pending=await pending(struck),
            is_reported=await is_reported(struck),
        )
