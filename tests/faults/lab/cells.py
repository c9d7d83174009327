"""The cells: six operations, five boundaries, eight faults; and how each of them has to end.

240 in the activity mode. In the fast one the undos are the same, and a step has no result in the history before the
next one is done: three steps, four boundaries, eight faults, 96 cells.

A batch's steps are tried within its workflow task, and its undo is an ordinary activity. So eight faults meet the three
steps in the runs of the local-first mode, at four boundaries, and the undo in those of the activity mode, at five:
136 cells. Each has a batch of five orders that meet every outcome.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from domain.model import ExecutionMode, Step


class Operation(StrEnum):
    RESERVE = "reserve_inventory"
    CHARGE = "charge_payment"
    SHIP = "ship_order"
    CANCEL_SHIPMENT = "cancel_shipment"
    REFUND = "refund_payment"
    RELEASE = "release_inventory"


class Boundary(StrEnum):
    """How far an operation has come when the fault comes."""

    B1 = "B1"
    """Its SQL has not been sent."""
    B2 = "B2"
    """Its SQL has run and is not committed."""
    B3 = "B3"
    """It is committed, and the worker has not read the reply."""
    B4 = "B4"
    """The reply is read, and its result is not reported to Temporal."""
    B5 = "B5"
    """The result is in the history, and the next workflow task has not run."""


class Fault(StrEnum):
    WORKER_KILLED = "worker_killed"
    WORKER_STOPPED = "worker_stopped"
    BACKEND_TERMINATED = "backend_terminated"
    POSTGRES_RESTARTED = "postgres_restarted"
    CONNECTION_CUT = "connection_cut"
    TEMPORAL_KILLED = "temporal_killed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"


_CLASSIC_IN_EVERY_RUN = {Fault.WORKER_KILLED, Fault.CONNECTION_CUT, Fault.TEMPORAL_KILLED, Fault.CANCELLED}


@dataclass(frozen=True)
class Group:
    """The cells that share one run, because one fault can meet several sagas at once."""

    fault: Fault
    boundary: Boundary
    execution_mode: ExecutionMode = ExecutionMode.ACTIVITY

    def __str__(self) -> str:
        return f"{self.fault}-{self.boundary}" + ("-fast" if self.is_fast else "")

    @property
    def is_fast(self) -> bool:
        return self.execution_mode is ExecutionMode.LOCAL_FIRST

    @property
    def operations(self) -> tuple[Operation, ...]:
        return tuple(operation for operation in Operation if not self.is_fast or operation not in UNDOS)

    @property
    def is_in_every_run(self) -> bool:
        """One group of each fault is, in modes and at boundaries that take turns."""
        # A killed worker or Temporal meets a result that is not reported, a cut connection an unread commit.
        if self.is_fast == (self.fault in _CLASSIC_IN_EVERY_RUN):
            return False
        boundaries = FAST_BOUNDARIES if self.is_fast else tuple(Boundary)
        return boundaries.index(self.boundary) == (list(Fault).index(self.fault) + 3) % len(boundaries)


@dataclass(frozen=True)
class Cell:
    group: Group
    operation: Operation

    def __str__(self) -> str:
        return f"{self.group}-{self.operation}"

    @property
    def zone(self) -> str:
        """Where the order is to be delivered, which decides whether it can be, and be called back."""
        if self.group.is_fast and self.operation is Operation.RESERVE:
            # All its steps are done before a cancel is heard: only a label can be called back then.
            return "country"
        return ZONE_OF[self.operation]


FAST_BOUNDARIES = tuple(boundary for boundary in Boundary if boundary is not Boundary.B5)
GROUPS = [Group(fault, boundary) for fault in Fault for boundary in Boundary] + [
    Group(fault, boundary, ExecutionMode.LOCAL_FIRST) for fault in Fault for boundary in FAST_BOUNDARIES
]

STEP_OF = {
    Operation.RESERVE: "reserve",
    Operation.CHARGE: "pay",
    Operation.SHIP: "ship",
    Operation.CANCEL_SHIPMENT: "ship",
    Operation.REFUND: "pay",
    Operation.RELEASE: "reserve",
}
UNDOS = frozenset({Operation.CANCEL_SHIPMENT, Operation.REFUND, Operation.RELEASE})
CELLS = [Cell(group, operation) for group in GROUPS for operation in group.operations]
BEFORE = {
    Operation.CHARGE: Operation.RESERVE,
    Operation.SHIP: Operation.CHARGE,
    Operation.CANCEL_SHIPMENT: Operation.SHIP,
    Operation.REFUND: Operation.CANCEL_SHIPMENT,
    Operation.RELEASE: Operation.REFUND,
}
"""The operation whose end brings a saga to the one that a cell is about."""
ZONE_OF = {
    # The courier takes the parcel at once: ship is the pivot.
    Operation.RESERVE: "city",
    Operation.SHIP: "city",
    # The parcel is a label that can be cancelled, by a cancel that comes when ship has begun, too.
    Operation.CHARGE: "country",
    Operation.CANCEL_SHIPMENT: "country",
    # No zone delivers there: ship is refused, and everything undone.
    Operation.REFUND: "atlantis",
    Operation.RELEASE: "atlantis",
}

_ORDER_ID = re.compile(rb"cell-[a-z_]+-[0-9a-f]+")


def recognise(sql: str, values: Sequence[bytes | None]) -> tuple[str, str] | None:
    """Name the order and operation of the statement that writes a fence row."""
    if "INSERT INTO step_fence" not in sql:
        return None
    given = [value for value in values if value is not None]
    order_ids = {value.decode() for value in given if _ORDER_ID.fullmatch(value)}
    if not order_ids:
        return None  # an order of a batch
    [order_id] = order_ids
    is_undo = "'done', true" not in sql
    [operation] = [
        operation for operation, step in STEP_OF.items() if (operation in UNDOS) is is_undo and step.encode() in given
    ]
    return order_id, operation.value


@dataclass(frozen=True)
class Ending:
    status: str
    run_status: str
    """Of the newest run of its workflow."""
    had_effect: bool = True
    """Whether the step ever took effect; otherwise its fence row is a tombstone."""


def is_cancelled_by_temporal(cell: Cell) -> bool:
    """Which of the two ways to cancel a cell uses; each operation meets both.

    An update waits for a workflow task, and at B5 the next one is held up: there the step after the operation
    could be faster.
    """
    if cell.group.boundary is Boundary.B5 and cell.operation not in UNDOS:
        return True
    place = list(Operation).index(cell.operation) + list(Boundary).index(cell.group.boundary)
    return place % 2 == 0


def is_early(boundary: Boundary) -> bool:
    return boundary in {Boundary.B1, Boundary.B2}


def ending_of(cell: Cell) -> Ending:
    fault, operation = cell.group.fault, cell.operation
    if fault is Fault.TERMINATED:
        return _ending_when_terminated(cell)
    if operation is Operation.CANCEL_SHIPMENT:
        # It was being cancelled by an update. A cancel through Temporal comes on top, and names the ending.
        is_both = fault is Fault.CANCELLED and is_cancelled_by_temporal(cell)
        return Ending("cancelled", "CANCELED" if is_both else "FAILED")
    if operation in UNDOS:
        return Ending("rejected", "FAILED")
    if fault is Fault.CANCELLED and operation is not Operation.SHIP:
        return Ending("cancelled", "CANCELED" if is_cancelled_by_temporal(cell) else "FAILED")
    # Not cancelled, or the courier has the parcel.
    return Ending("completed", "COMPLETED")


def is_finished_by_its_task(cell: Cell) -> bool:
    """Whether the order of a terminated run goes on to its end.

    The one workflow task of the local-first mode does not hear of the termination before it has done all steps, and no
    sweep finds an order that has not begun.
    """
    is_begun = cell.operation is not Operation.RESERVE or not is_early(cell.group.boundary)
    return cell.group.is_fast and cell.group.fault is Fault.TERMINATED and not is_begun


def _ending_when_terminated(cell: Cell) -> Ending:
    boundary, operation = cell.group.boundary, cell.operation
    if is_finished_by_its_task(cell):
        return Ending("completed", "TERMINATED")
    if operation is Operation.SHIP:
        if boundary is Boundary.B1:
            return Ending("cancelled", "FAILED", had_effect=False)
        # Once it is committed there is nothing to repair; before, the repair finds the parcel gone.
        return Ending("completed", "COMPLETED" if boundary is Boundary.B2 else "TERMINATED")
    if operation is Operation.CHARGE and boundary is Boundary.B1:
        return Ending("cancelled", "FAILED", had_effect=False)
    return Ending("rejected" if operation in {Operation.REFUND, Operation.RELEASE} else "cancelled", "FAILED")


def sweeps_that_repair(cell: Cell) -> list[int]:
    """Number the sweeps that repair a terminated order.

    The first comes while its last attempt is held up, the second when that has ended, the third finds nothing. An
    order whose row does not exist yet, or says `completed`, is not found.
    """
    is_shipped = cell.operation is Operation.SHIP and not is_early(cell.group.boundary)
    if is_shipped or is_finished_by_its_task(cell):
        return []
    is_hidden = cell.operation in {Operation.RESERVE, Operation.CANCEL_SHIPMENT} and is_early(cell.group.boundary)
    return [2] if is_hidden else [1]


RETURNED = "returned"
_CUTS_CONNECTIONS = frozenset({Fault.BACKEND_TERMINATED, Fault.POSTGRES_RESTARTED, Fault.CONNECTION_CUT})
_ANSWERS_WHEN_CUT: dict[Boundary, set[str | None]] = {
    Boundary.B1: {RETURNED, "DatabaseUnavailable"},  # the attempt may open a connection of its own
    Boundary.B2: {"DatabaseUnavailable"},
    Boundary.B3: {"DatabaseUnavailable"},
    Boundary.B4: {RETURNED},
}


def answers_of(cell: Cell) -> set[str | None]:
    """Say what may become of the attempt that the fault meets: RETURNED, an error's name, or None for no answer."""
    if cell.group.fault is Fault.TERMINATED and not ending_of(cell).had_effect:
        return {"StepAlreadyCompensated"}
    return usual_answers(cell.group)


def usual_answers(group: Group) -> set[str | None]:
    """Say what may become of an attempt that no repair has forestalled; see `answers_of`."""
    if group.boundary is Boundary.B5:
        return {RETURNED}
    if group.fault is Fault.WORKER_KILLED:
        return {None}
    if group.fault in _CUTS_CONNECTIONS:
        return _ANSWERS_WHEN_CUT[group.boundary]
    if group.fault is Fault.WORKER_STOPPED and group.boundary is Boundary.B2:
        return {"DatabaseUnavailable"}  # the role's transaction timeout was faster
    return {RETURNED}


def costs_the_attempt(group: Group) -> bool | None:
    """Whether the fault makes the operation be tried again; None where it may or may not."""
    fault, boundary = group.fault, group.boundary
    if fault is Fault.TERMINATED:
        return None  # the repair, or the next load, has operations of its own
    if boundary is Boundary.B5:
        return False
    if fault in {Fault.WORKER_KILLED, Fault.WORKER_STOPPED}:
        return True
    if group.is_fast and fault in {Fault.CANCELLED, Fault.TEMPORAL_KILLED}:
        return None  # a workflow task whose answer was refused or lost is done again, with its steps
    answers = usual_answers(group)
    return None if len(answers) > 1 else answers != {RETURNED}


STEPS = tuple(step.value for step in Step)


class BatchOperation(StrEnum):
    RESERVE = "reserve_orders"
    CHARGE = "charge_orders"
    SHIP = "ship_orders"
    UNWIND = "unwind_orders"


class Fate(StrEnum):
    """What an order of the batch is made to meet, unless a cancel or a repair comes first."""

    DELEGATED = "handed_over"
    LABEL = "label"
    REFUSED_AT_RESERVE = "refused_at_reserve"
    REFUSED_AT_PAY = "refused_at_pay"
    REFUSED_AT_SHIP = "refused_at_ship"

    @property
    def steps(self) -> tuple[str, ...]:
        return STEPS[: _STEPS_DONE[self]]

    @property
    def is_refused(self) -> bool:
        return self.steps != STEPS

    @property
    def usual(self) -> str:
        """How its order ends without a cancel or a termination."""
        return "rejected" if self.is_refused else "completed"


_STEPS_DONE = {
    Fate.DELEGATED: 3,
    Fate.LABEL: 3,
    Fate.REFUSED_AT_RESERVE: 0,
    Fate.REFUSED_AT_PAY: 1,
    Fate.REFUSED_AT_SHIP: 2,
}


@dataclass(frozen=True)
class BatchCell:
    group: Group
    operation: BatchOperation

    def __str__(self) -> str:
        return f"{self.group}-{self.operation}"


def batch_operations(group: Group) -> tuple[BatchOperation, ...]:
    return tuple(each for each in BatchOperation if (each is BatchOperation.UNWIND) is not group.is_fast)


BATCH_CELLS = [BatchCell(group, operation) for group in GROUPS for operation in batch_operations(group)]

_NAME = re.compile(rb"cell-[a-z_]+-[0-9a-f]{12}(?=-)")


def recognise_batch(sql: str, values: Sequence[bytes | None]) -> tuple[str, str] | None:
    """Name the batch and operation of the statement that writes the fence rows of many orders."""
    if "INSERT INTO step_fence" not in sql or "text[]" not in sql:
        return None
    names = {found.group().decode() for value in values if value is not None for found in _NAME.finditer(value)}
    if not names:
        return None  # an attempt that has nothing left to do
    [name] = names
    steps = [number for number, step in enumerate(STEPS) if f"'{step}', 'done', true" in sql]
    return name, (list(BatchOperation)[steps[0]] if steps else BatchOperation.UNWIND).value


def is_heard_at_once(cell: BatchCell) -> bool:
    """Whether a cancel is heard while the attempt is under way, or once its workflow task has ended.

    Each step meets both.
    """
    return (list(BatchOperation).index(cell.operation) + list(Boundary).index(cell.group.boundary)) % 2 == 0


def fences_at(cell: BatchCell, fate: Fate) -> dict[str, str]:
    """Say what an order's fence rows are when the fault comes, as other sessions see them."""
    done = list(BatchOperation).index(cell.operation) + (not is_early(cell.group.boundary))
    fences = dict.fromkeys(STEPS[: min(done, len(fate.steps))], "done")
    if done > len(STEPS) and fate.is_refused:
        return dict.fromkeys(STEPS[: len(fate.steps) + 1], "undone")
    return fences


def ending_of_order(cell: BatchCell, fate: Fate) -> str:
    fault, operation, boundary = cell.group.fault, cell.operation, cell.group.boundary
    if (
        fault is Fault.CANCELLED
        and is_heard_at_once(cell)
        and operation in {BatchOperation.RESERVE, BatchOperation.CHARGE}
    ):
        is_refused = fate.is_refused and len(fate.steps) <= list(BatchOperation).index(operation)
        return fate.usual if is_refused else "cancelled"
    if fault is Fault.TERMINATED and sweeps_that_repair_order(cell, fate):
        # At B2 the repair waits for the transaction, and finds the ending that it has written.
        is_ended = boundary is Boundary.B2 and (operation is BatchOperation.UNWIND or _is_last(operation, fate))
        return fate.usual if is_ended else "cancelled"
    return fate.usual


def _is_last(operation: BatchOperation, fate: Fate) -> bool:
    return operation is BatchOperation.SHIP and not fate.is_refused


def goes_on_to_its_end(cell: BatchCell) -> bool:
    """Whether the steps of a terminated batch are all done by its workflow task, which does not hear of it.

    Where its orders were reserved already, the sweep is faster and the task finds nothing that is due.
    """
    is_begun = cell.operation is not BatchOperation.RESERVE or not is_early(cell.group.boundary)
    return cell.group.fault is Fault.TERMINATED and not is_begun


def sweeps_that_repair_order(cell: BatchCell, fate: Fate) -> list[int]:
    """Number the sweeps that repair an order of a terminated batch; see `cells.sweeps_that_repair`."""
    if goes_on_to_its_end(cell):
        return [2] if 0 < len(fate.steps) < len(STEPS) else []
    stood = fences_at(cell, fate)
    return [1] if 0 < len(stood) < len(STEPS) and "undone" not in stood.values() else []


def answers_of_batch(cell: BatchCell) -> set[str | None]:
    """Say what may become of the attempt. A batch's step is never refused as a whole."""
    return {RETURNED} if cell.group.fault is Fault.TERMINATED else usual_answers(cell.group)
