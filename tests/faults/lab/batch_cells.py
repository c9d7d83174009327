"""The cells of the bulk lane: four operations of a batch, met by the same faults; how each order has to end.

A batch's steps are tried within its workflow task, and its undo is an ordinary activity. So eight faults meet the three
steps in the runs of the fast lane, at four boundaries, and the undo in those of the classic one, at five: 136 cells.
Each has a batch of five orders that meet every outcome.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from domain.model import Step
from tests.faults.lab.cells import GROUPS, RETURNED, Boundary, Fault, Group, is_early, usual_answers

STEPS = tuple(step.value for step in Step)


class BatchOperation(StrEnum):
    """What a batch does on the outside world, by the name of its activity."""

    RESERVE = "reserve_orders"
    CHARGE = "charge_orders"
    SHIP = "ship_orders"
    UNWIND = "unwind_orders"


class Fate(StrEnum):
    """What an order of the batch is made to meet, unless a cancel or a repair comes first."""

    HANDED_OVER = "handed_over"
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
        """How its order ends where nobody cancels and nothing is lost for good."""
        return "rejected" if self.is_refused else "completed"


_STEPS_DONE = {
    Fate.HANDED_OVER: 3,
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
    """Tell the proxy whose operation a transaction belongs to: by the statement that writes the fences of many."""
    if "INSERT INTO step_fence" not in sql or "text[]" not in sql:
        return None
    names = {found.group().decode() for value in values if value is not None for found in _NAME.finditer(value)}
    if not names:
        return None  # an attempt that has nothing left to do
    [name] = names
    steps = [number for number, step in enumerate(STEPS) if f"'{step}', 'done', true" in sql]
    return name, (list(BatchOperation)[steps[0]] if steps else BatchOperation.UNWIND).value


def is_heard_at_once(cell: BatchCell) -> bool:
    """Tell whether a cancel is heard while the attempt is under way, or once its workflow task has ended.

    Each step meets both.
    """
    return (list(BatchOperation).index(cell.operation) + list(Boundary).index(cell.group.boundary)) % 2 == 0


def fences_at(cell: BatchCell, fate: Fate) -> dict[str, str]:
    """Say what an order's fence rows are at the strike, as everybody but the operation itself sees them."""
    done = list(BatchOperation).index(cell.operation) + (not is_early(cell.group.boundary))
    fences = dict.fromkeys(STEPS[: min(done, len(fate.steps))], "done")
    if done > len(STEPS) and fate.is_refused:
        return dict.fromkeys(STEPS[: len(fate.steps) + 1], "undone")
    return fences


def ending_of_order(cell: BatchCell, fate: Fate) -> str:
    """Say how an order has to end, from what the fault, the boundary and the operation mean for it."""
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
    """Tell whether the steps of a terminated batch are all done by its workflow task, which does not hear of it.

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
