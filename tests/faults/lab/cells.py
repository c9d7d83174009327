"""The cells of single sagas: six operations, five boundaries, eight faults, 240; and how each of them has to end.

Their groups, and what a fault does to an attempt, are those of the batches' cells, too: see `batch_cells.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


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


# The others are met within the workflow task.
_AS_ACTIVITIES_IN_EVERY_RUN = {Fault.WORKER_KILLED, Fault.CONNECTION_CUT, Fault.TEMPORAL_KILLED, Fault.CANCELLED}


@dataclass(frozen=True)
class Group:
    """The cells that share one run, because one fault can meet several sagas and batches at once."""

    fault: Fault
    boundary: Boundary
    is_local: bool = False
    """Whether the operations are tried within the workflow task, as a batch's are until its undo."""

    def __str__(self) -> str:
        return f"{self.fault}-{self.boundary}" + ("-local" if self.is_local else "")

    @property
    def is_in_every_run(self) -> bool:
        """One group of each fault is, as activities or local, and at boundaries that take turns."""
        # A killed worker or Temporal meets a result that is not reported, a cut connection an unread commit.
        if self.is_local == (self.fault in _AS_ACTIVITIES_IN_EVERY_RUN):
            return False
        boundaries = LOCAL_BOUNDARIES if self.is_local else tuple(Boundary)
        return boundaries.index(self.boundary) == (list(Fault).index(self.fault) + 3) % len(boundaries)


# What is done within a task has no result in the history before the next operation is done.
LOCAL_BOUNDARIES = tuple(boundary for boundary in Boundary if boundary is not Boundary.B5)
GROUPS = [Group(fault, boundary) for fault in Fault for boundary in Boundary] + [
    Group(fault, boundary, is_local=True) for fault in Fault for boundary in LOCAL_BOUNDARIES
]


@dataclass(frozen=True)
class Cell:
    group: Group
    operation: Operation

    def __str__(self) -> str:
        return f"{self.group}-{self.operation}"

    @property
    def zone(self) -> str:
        """Where the order is to be delivered, which decides whether it can be, and be called back."""
        return ZONE_OF[self.operation]


CELLS = [Cell(group, operation) for group in GROUPS if not group.is_local for operation in Operation]
STEP_OF = {
    Operation.RESERVE: "reserve",
    Operation.CHARGE: "pay",
    Operation.SHIP: "ship",
    Operation.CANCEL_SHIPMENT: "ship",
    Operation.REFUND: "pay",
    Operation.RELEASE: "reserve",
}
UNDOS = frozenset({Operation.CANCEL_SHIPMENT, Operation.REFUND, Operation.RELEASE})
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
        # It was being cancelled by an update. A cancel through Temporal that comes on top changes nothing.
        return Ending("cancelled", "FAILED")
    if operation in UNDOS:
        return Ending("rejected", "FAILED")
    if fault is Fault.CANCELLED and operation is not Operation.SHIP:
        return Ending("cancelled", "CANCELED" if is_cancelled_by_temporal(cell) else "FAILED")
    # Not cancelled, or the courier has the parcel.
    return Ending("completed", "COMPLETED")


def _ending_when_terminated(cell: Cell) -> Ending:
    boundary, operation = cell.group.boundary, cell.operation
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
    if cell.operation is Operation.SHIP and not is_early(cell.group.boundary):
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
    if group.is_local and fault in {Fault.CANCELLED, Fault.TEMPORAL_KILLED}:
        return None  # a workflow task whose answer was refused or lost is done again, with its steps
    answers = usual_answers(group)
    return None if len(answers) > 1 else answers != {RETURNED}
