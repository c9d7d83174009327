"""The sagas and batches of one run, each brought to its operation and to the boundary where the fault comes."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any, Protocol

from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy

from client.batches import delegated_outcome
from client.checkouts import Checkouts
from devstack.stack import DevStack
from domain.bulk import DELEGATED, Batch, Outcome, digest, pack
from domain.model import CheckoutInput, OrderLine
from domain.policies import bulk_workflow_id, checkout_workflow_id
from sagafence.devservers.process import ChildProcess
from tests.conftest import Database
from tests.faults.lab.batch_cells import BatchCell, BatchOperation, Fate, is_heard_at_once
from tests.faults.lab.cells import BEFORE, Boundary, Cell, Fault, Group, Operation
from tests.faults.lab.control import ControlServer
from tests.faults.lab.proxy import Moment, Proxy
from tests.faults.lab.target import AnyTarget, Before, Target, is_reported, pending
from tests.faults.lab.worker import ARMED, ATTEMPT_SECONDS, CONTROL_PORT
from tests.workers import Workers, behind
from workflows.bulk import BulkCheckoutWorkflow
from workflows.checkout import CheckoutWorkflow

BALANCE = 100_000
STOCK = 20
QUANTITY = 2
PRICE = 1_000

_ZONE_OF = {Fate.LABEL: "country", Fate.REFUSED_AT_SHIP: "atlantis"}


async def new_order(database: Database, cell: Cell) -> CheckoutInput:
    order_id = _new_name(cell)
    customer, sku = f"customer-{order_id}", f"sku-{order_id}"
    await database.run(_goods(sku) + _customer(customer, cell.zone, BALANCE))
    return CheckoutInput(order_id, customer, (OrderLine(sku, QUANTITY),))


async def new_batch(database: Database, cell: BatchCell) -> tuple[str, list[CheckoutInput]]:
    """Make a batch for the same goods: its name, and an order of each fate in their sequence."""
    name = _new_name(cell)
    sku, orders, wanted = f"sku-{name}", [], _goods(f"sku-{name}")
    for fate in cell.fates:
        order_id = f"{name}-{fate}"
        balance = 1 if fate is Fate.REFUSED_AT_PAY else BALANCE
        quantity = STOCK + 1 if fate is Fate.REFUSED_AT_RESERVE else QUANTITY
        wanted += _customer(f"customer-{order_id}", _ZONE_OF.get(fate, "city"), balance)
        orders.append(CheckoutInput(order_id, f"customer-{order_id}", (OrderLine(sku, quantity),)))
        if fate is Fate.BY_HAND:
            wanted += _by_hand(orders[-1])
    await database.run(wanted)
    return name, orders


def _new_name(cell: Cell | BatchCell) -> str:
    return f"cell-{cell.operation}-{uuid.uuid4().hex[:12]}"


def _goods(sku: str) -> str:
    return (
        f"INSERT INTO products (sku, name, unit_price_minor) VALUES ('{sku}', 'Of a cell', {PRICE});"
        f"INSERT INTO inventory (sku, initial, on_hand) VALUES ('{sku}', {STOCK}, {STOCK});"
        f"INSERT INTO approvals (kind, subject, amount, reason) VALUES ('delivery', '{sku}', {STOCK}, 'of a cell');"
    )


def _customer(customer: str, zone: str, balance: int) -> str:
    return (
        "INSERT INTO accounts (account_id, kind, name, balance_minor, delivery_zone) "
        f"VALUES ('{customer}', 'customer', 'Of a cell', {balance}, '{zone}');"
        "INSERT INTO transfers (transfer_id, kind, debit_account, credit_account, amount_minor, currency) "
        f"VALUES ('deposit/{customer}', 'deposit', 'bank', '{customer}', {balance}, 'EUR');"
        "INSERT INTO approvals (kind, subject, amount, currency, reason) "
        f"VALUES ('deposit', '{customer}', {balance}, 'EUR', 'of a cell');"
    )


def _by_hand(order: CheckoutInput) -> str:
    [line] = order.lines
    return (
        f"INSERT INTO orders (order_id, customer) VALUES ('{order.order_id}', '{order.customer}');"
        "INSERT INTO order_lines (order_id, sku, quantity) "
        f"VALUES ('{order.order_id}', '{line.sku}', {line.quantity});"
    )


_PATIENCE_SECONDS = 90.0
_HEARS_NOTHING = timedelta(seconds=60)
"""A workflow task that may take so long asks the server for nothing before it has ended."""


class Hold(Protocol):
    """What an operation stands at: a gate of the proxy or of the control server."""

    async def reached(self) -> None: ...

    def open(self) -> None: ...


class Scene:
    def __init__(
        self,
        group: Group,
        stack: DevStack,
        client: Client,
        database: Database,
        proxy: Proxy,
        control: ControlServer,
        workers: Workers,
        *,
        attempt_seconds: float,
        task_timeout: timedelta,
    ) -> None:
        self.group = group
        self.stack = stack
        self.client = client
        self.database = database
        self.proxy = proxy
        self.control = control
        self.workers = workers
        self.task_queue = f"cells-{uuid.uuid4().hex[:12]}"
        self.sagas: list[Target[Cell]] = []
        self.batches: list[Target[BatchCell]] = []
        self._attempt_seconds = attempt_seconds
        self._task_timeout = task_timeout
        self._places: dict[str, Hold] = {}
        self._under_way: list[Hold] = []
        """Where the sagas of orders stand that a batch has, too."""

    def start_worker(self) -> ChildProcess:
        return self.workers.start(
            *("-m", "tests.faults.lab.worker"),
            **behind(self.stack, self.database.url, postgres=self.proxy),
            **{CONTROL_PORT: str(self.control.port), ATTEMPT_SECONDS: str(self._attempt_seconds)},
            CHECKOUT_TASK_QUEUE=self.task_queue,
        )

    async def stage(self) -> None:
        """Bring all to their boundaries, at once, and note what proves that they are there."""
        if not self.group.is_local:
            await self._stage_sagas()
        else:
            await self._start_batch(BatchCell(self.group))
        for place in self._places.values():
            await place.reached()
        await asyncio.gather(*(self._note_before(target) for target in self.targets))

    async def _stage_sagas(self) -> None:
        orders = {operation: await new_order(self.database, Cell(self.group, operation)) for operation in Operation}
        approaches = {
            operation: self.control.hold(orders[operation].order_id, before, Boundary.B4)
            for operation, before in BEFORE.items()
        }
        for operation in approaches:
            await self._start(operation, orders[operation])
        for approach in approaches.values():
            await approach.reached()
        # Only a cancel brings a saga to undoing a shipment that could be made.
        [shipped] = [saga for saga in self.sagas if saga.cell.operation is Operation.CANCEL_SHIPMENT]
        await shipped.handle.execute_update("cancel", "changed my mind")
        for operation, order in orders.items():
            self._hold(order.order_id, order.order_id, operation)
        for approach in approaches.values():
            approach.open()
        await self._start(Operation.RESERVE, orders[Operation.RESERVE])

    @property
    def targets(self) -> list[AnyTarget]:
        return [*self.sagas, *self.batches]

    def let_go(self) -> None:
        for place in self._places.values():
            place.open()

    async def answered(self) -> None:
        await self.control.heard(
            lambda _: all(self.control.answer_of(each.before.report) is not None for each in self.targets)
        )

    async def ended(self) -> None:
        """Wait until the newest runs are closed, or have had time enough: their cells will say so."""
        await self._closed([each.newest for each in self.targets])
        for place in self._under_way:
            place.open()
        # An order of a batch has a saga of its own where the batch or a sweep has given it one.
        if own := [checkout_workflow_id(order_id) for batch in self.batches for order_id in batch.order_ids]:
            await self._closed([self.client.get_workflow_handle(name) for name in own])

    async def _closed(self, runs: list[WorkflowHandle[Any, Any]]) -> None:
        results = [asyncio.create_task(run.result()) for run in runs]
        _, open_still = await asyncio.wait(results, timeout=_PATIENCE_SECONDS)
        for result in open_still:
            result.cancel()
        await asyncio.gather(*results, return_exceptions=True)

    async def load_meanwhile(self) -> None:
        """Load every batch a second time, while the last attempts of the first load are held up."""
        checkouts = Checkouts(self.client, self.task_queue, "")
        async with asyncio.timeout(_PATIENCE_SECONDS):
            for batch in self.batches:
                await checkouts.process(batch.orders)

    async def load_again(self) -> dict[str, list[Outcome]]:
        """Ask for every batch once more, as a second load of its file does, and give what is reported."""
        checkouts = Checkouts(self.client, self.task_queue, "")

        async def reported(orders: list[CheckoutInput]) -> list[Outcome]:
            outcomes = zip(orders, await checkouts.process(orders), strict=True)
            # An order by hand, and those of a batch whose attempts go to a stopped worker's open polls until its
            # time is up.
            return [
                await delegated_outcome(checkouts, order) if outcome.status == DELEGATED else outcome
                for order, outcome in outcomes
            ]

        async with asyncio.timeout(_PATIENCE_SECONDS):
            return {batch.operation: await reported(batch.orders) for batch in self.batches}

    async def _start(self, operation: Operation, order: CheckoutInput) -> None:
        handle = await self.client.start_workflow(
            CheckoutWorkflow.run,
            order,
            id=checkout_workflow_id(order.order_id),
            task_queue=self.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            task_timeout=self._task_timeout,
            memo={ARMED: operation.value},
        )
        cell, name = Cell(self.group, operation), order.order_id
        first, newest = self._runs(handle)
        self.sagas.append(Target(cell=cell, orders=[order], name=name, subject=name, handle=first, newest=newest))

    async def _start_batch(self, cell: BatchCell) -> None:
        name, orders = await new_batch(self.database, cell)
        for fate, order in zip(cell.fates, orders, strict=True):
            if fate is Fate.UNDER_WAY:
                await self._bring_under_way(order)
        workflow_id = bulk_workflow_id(digest(orders))
        self._hold(name, workflow_id, cell.operation)
        is_deaf = cell.group.fault is Fault.CANCELLED and not is_heard_at_once(cell)
        handle = await self.client.start_workflow(
            BulkCheckoutWorkflow.run,
            Batch([pack(order) for order in orders]),
            id=workflow_id,
            task_queue=self.task_queue,
            task_timeout=_HEARS_NOTHING if is_deaf else self._task_timeout,
            memo={ARMED: cell.operation.value},
        )
        first, newest = self._runs(handle)
        self.batches.append(
            Target(cell=cell, orders=orders, name=name, subject=workflow_id, handle=first, newest=newest)
        )

    async def _bring_under_way(self, order: CheckoutInput) -> None:
        place = self.control.hold(order.order_id, Operation.CHARGE, Boundary.B1)
        await self.client.start_workflow(
            CheckoutWorkflow.run,
            order,
            id=checkout_workflow_id(order.order_id),
            task_queue=self.task_queue,
            task_timeout=self._task_timeout,
        )
        await place.reached()
        self._under_way.append(place)

    def _runs(self, handle: WorkflowHandle[Any, Any]) -> tuple[WorkflowHandle[Any, Any], WorkflowHandle[Any, Any]]:
        """Give the run that was started, and whichever is the newest."""
        first = self.client.get_workflow_handle(handle.id, run_id=handle.result_run_id)
        return first, self.client.get_workflow_handle(handle.id)

    def _hold(self, name: str, subject: str, operation: Operation | BatchOperation) -> None:
        place: Hold
        match self.group.boundary:
            case Boundary.B2:
                place = self.proxy.hold((name, operation.value), Moment.EXECUTED)
            case Boundary.B3:
                place = self.proxy.hold((name, operation.value), Moment.COMMITTED)
            case boundary:
                place = self.control.hold(subject, operation, boundary)
        self._places[operation] = place

    async def _note_before(self, target: AnyTarget) -> None:
        errands = [errand for errand in self.proxy.errands if errand.work == (target.name, target.operation)]
        backend_pid = errands[-1].backend_pid if errands else None
        backends = await self.database.fetch(
            "SELECT state, backend_xid IS NOT NULL AS has_written FROM pg_stat_activity WHERE pid = $1", backend_pid
        )
        fence = await self.database.fetch(
            "SELECT saga_id, step, phase FROM step_fence WHERE saga_id = ANY ($1::text[])", target.order_ids
        )
        target.noted = Before(
            # An attempt that has not ended is the last that began.
            report=self.control.attempts_of(target.subject, target.operation)[-1],
            backend_pid=backend_pid,
            backend_state=backends[0]["state"] if backends else None,
            has_written=bool(backends) and backends[0]["has_written"],
            fence={(row["saga_id"], row["step"]): row["phase"] for row in fence},
            pending=await pending(target),
            is_reported=await is_reported(target),
        )
