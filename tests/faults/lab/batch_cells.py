"""The cells of batches: their operations, boundaries and faults; and how each order of a batch has to end.

A batch that goes together has one operation, and one of an earlier build a step after the other; all four are tried
within the workflow task, at four boundaries: 128 cells. The undo is an ordinary activity, at five: 40 cells. Each has a
batch with an order of every fate that it can meet.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from domain.model import Step
from tests.faults.lab.cells import GROUPS, RETURNED, Boundary, Fault, Group, is_early, usual_answers

STEPS = tuple(step.value for step in Step)


class BatchOperation(StrEnum):
    RESERVE = "reserve_orders"
    CHARGE = "charge_orders"
    SHIP = "ship_orders"
    UNWIND = "unwind_orders"
    CHECK_OUT = "check_out_orders"
    """All three steps in one transaction. A refused order has no effect in it, so that nothing has to be undone."""


_PLACES = tuple(BatchOperation)


class Fate(StrEnum):
    """What an order of the batch is made to meet, unless a cancel or a repair comes first."""

    HANDED_OVER = "handed_over"
    LABEL = "label"
    REFUSED_AT_RESERVE = "refused_at_reserve"
    REFUSED_AT_PAY = "refused_at_pay"
    REFUSED_AT_SHIP = "refused_at_ship"
    BY_HAND = "by_hand"
    """Its row is there and no saga has begun it: the batch delegates it to a saga of its own."""
    UNDER_WAY = "under_way"
    """Its own saga has reserved, and is about to pay."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that its own saga does, or a batch that goes step by step."""
        return STEPS[: _STEPS_DONE[self]]

    @property
    def is_refused(self) -> bool:
        return self in REFUSALS

    @property
    def tombstones(self) -> tuple[str, ...]:
        """The steps that are shut once it is refused."""
        return STEPS[: len(self.steps) + 1] if self.is_refused else ()

    @property
    def usual(self) -> str:
        """How its order ends without a cancel or a termination."""
        return "rejected" if self.is_refused else "completed"


REFUSALS = {
    Fate.REFUSED_AT_RESERVE: "OutOfStock",
    Fate.REFUSED_AT_PAY: "InsufficientFunds",
    Fate.REFUSED_AT_SHIP: "UndeliverableAddress",
}
_STEPS_DONE = {
    Fate.HANDED_OVER: 3,
    Fate.LABEL: 3,
    Fate.REFUSED_AT_RESERVE: 0,
    Fate.REFUSED_AT_PAY: 1,
    Fate.REFUSED_AT_SHIP: 2,
    Fate.BY_HAND: 3,
    Fate.UNDER_WAY: 3,
}
_STOOD_BEFORE = {Fate.BY_HAND: {}, Fate.UNDER_WAY: {STEPS[0]: "done"}}
"""The fence rows of the orders that a batch which goes together leaves to their own sagas."""


@dataclass(frozen=True)
class BatchCell:
    group: Group
    operation: BatchOperation

    def __str__(self) -> str:
        return f"{self.group}-{self.operation}"

    @property
    def is_together(self) -> bool:
        return self.operation is BatchOperation.CHECK_OUT

    @property
    def fates(self) -> tuple[Fate, ...]:
        """One for each of its orders, in their sequence."""
        return tuple(fate for fate in Fate if fate not in self._absent)

    @property
    def _absent(self) -> Collection[Fate]:
        if not self.is_together or answer_is_refused(self):
            return _STOOD_BEFORE
        # Each open poll of a stopped worker takes an attempt of that order's saga: together half a minute.
        return {Fate.UNDER_WAY} if self.group.fault is Fault.WORKER_STOPPED else ()


def batch_operations(group: Group) -> tuple[BatchOperation, ...]:
    return tuple(each for each in BatchOperation if (each is BatchOperation.UNWIND) is not group.is_local)


BATCH_CELLS = [BatchCell(group, operation) for group in GROUPS for operation in batch_operations(group)]

_NAME = re.compile(rb"cell-[a-z_]+-[0-9a-f]{12}(?=-)")
# What only the statement of one operation has, among those that write the fence rows of many orders.
_MARKS = {
    BatchOperation.RESERVE: "'reserve', 'done', true",
    BatchOperation.CHARGE: "'pay', 'done', true",
    BatchOperation.SHIP: "'ship', 'done', true",
    BatchOperation.CHECK_OUT: "THEN 'undone' ELSE 'done' END",
}


def recognise_batch(sql: str, values: Sequence[bytes | None]) -> tuple[str, str] | None:
    """Name the batch and operation of the statement that writes the fence rows of many orders."""
    if "INSERT INTO step_fence" not in sql or "text[]" not in sql:
        return None
    names = {found.group().decode() for value in values if value is not None for found in _NAME.finditer(value)}
    if not names:
        return None  # an attempt that has nothing left to do
    [name] = names
    marked = [operation for operation, mark in _MARKS.items() if mark in sql]
    return name, (marked[0] if marked else BatchOperation.UNWIND).value


def is_heard_at_once(cell: BatchCell) -> bool:
    """Whether a cancel is heard while the attempt is under way, or once its workflow task has ended.

    Each operation meets both.
    """
    return (_PLACES.index(cell.operation) + list(Boundary).index(cell.group.boundary)) % 2 == 0


def answer_is_refused(cell: BatchCell) -> bool:
    """Whether a batch that goes together closes its workflow in a task that has not heard of the cancel.

    The server refuses that, and what the repeated task undoes has ended. With orders to delegate, a task more follows.
    """
    return cell.is_together and cell.group == Group(Fault.CANCELLED, Boundary.B4, is_local=True)


def fences_at(cell: BatchCell, fate: Fate) -> dict[str, str]:
    """Say what an order's fence rows are when the fault comes, as other sessions see them."""
    is_committed = not is_early(cell.group.boundary)
    if cell.is_together:
        if fate in _STOOD_BEFORE or not is_committed:
            return _STOOD_BEFORE.get(fate, {})
        return dict.fromkeys(fate.tombstones, "undone") or dict.fromkeys(STEPS, "done")
    done = _PLACES.index(cell.operation) + is_committed
    if done > len(STEPS) and fate.is_refused:
        return dict.fromkeys(fate.tombstones, "undone")
    return dict.fromkeys(STEPS[: min(done, len(fate.steps))], "done")


def ending_of_order(cell: BatchCell, fate: Fate) -> str:
    fault, operation, boundary = cell.group.fault, cell.operation, cell.group.boundary
    if cell.is_together:
        # All is decided in one transaction, which a late attempt commits as well: nothing is left to cancel or repair.
        return fate.usual
    if (
        fault is Fault.CANCELLED
        and is_heard_at_once(cell)
        and operation in {BatchOperation.RESERVE, BatchOperation.CHARGE}
    ):
        is_refused = fate.is_refused and len(fate.steps) <= _PLACES.index(operation)
        return fate.usual if is_refused else "cancelled"
    if fault is Fault.TERMINATED and sweeps_that_find_order(cell, fate):
        # At B2 the repair waits for the transaction, and finds the ending that it has written.
        is_ended = boundary is Boundary.B2 and (operation is BatchOperation.UNWIND or _is_last(operation, fate))
        return fate.usual if is_ended else "cancelled"
    return fate.usual


def _is_last(operation: BatchOperation, fate: Fate) -> bool:
    return operation is BatchOperation.SHIP and not fate.is_refused


def is_delegated(cell: BatchCell, fate: Fate) -> bool | None:
    """Whether a batch that goes together leaves an order to a saga of its own; None where it may or may not.

    It does so with orders whose goods another transaction keeps locked: that of the first load, until the fault is
    over, or that of a stopped worker, until the role's timeout, which may come before the next attempt.
    """
    is_locked = cell.group.boundary is Boundary.B2
    if fate in _STOOD_BEFORE or (is_locked and cell.group.fault is Fault.TERMINATED):
        return True
    return None if is_locked and cell.group.fault is Fault.WORKER_STOPPED else False


def is_done_by_batch(cell: BatchCell, fate: Fate) -> bool | None:
    """Whether a batch that goes together has done an order; None where it or the order's own saga has.

    At B2 the sagas of a second load wait for the transaction of the first, and find what that has done.
    """
    if fate in _STOOD_BEFORE:
        return False
    return None if is_delegated(cell, fate) is None else True


def goes_on_to_its_end(cell: BatchCell) -> bool:
    """Whether the steps of a terminated batch are all done by its workflow task, which does not hear of it.

    Where its orders were reserved already, the sweep is faster and the task finds nothing that is due.
    """
    is_begun = cell.operation is not BatchOperation.RESERVE or not is_early(cell.group.boundary)
    return cell.group.fault is Fault.TERMINATED and not is_begun


def sweeps_that_find_order(cell: BatchCell, fate: Fate) -> list[int]:
    """Number the sweeps that repair an order of a terminated batch, or start it; see `cells.sweeps_that_repair`.

    Of a batch that goes together an order has no row, or has ended: there is nothing to repair.
    """
    if cell.is_together:
        return [1] if fate is Fate.BY_HAND else []
    if goes_on_to_its_end(cell):
        return [2] if 0 < len(fate.steps) < len(STEPS) else []
    stood = fences_at(cell, fate)
    return [1] if 0 < len(stood) < len(STEPS) and "undone" not in stood.values() else []


def answers_of_batch(cell: BatchCell) -> set[str | None]:
    """Say what may become of the attempt. A batch's step is never refused as a whole."""
    return {RETURNED} if cell.group.fault is Fault.TERMINATED else usual_answers(cell.group)
