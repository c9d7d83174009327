"""The cells of batches: the operation, its boundaries and faults; and how each order of a batch has to end.

All is done in one transaction, which is tried within the workflow task, at four boundaries: 32 cells. Each has a batch
with an order of every fate that it can meet.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from domain.model import Step
from tests.faults.lab.cells import GROUPS, RETURNED, Boundary, Fault, Group, is_early, usual_answers

STEPS = tuple(step.value for step in Step)


class BatchOperation(StrEnum):
    CHECK_OUT = "check_out_orders"
    """A refused order has no effect in it, so that nothing has to be undone."""


class Fate(StrEnum):
    """What an order of the batch is made to meet. A late attempt commits, too: nothing is left to cancel or repair."""

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
        """The steps that its own saga does."""
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
        """How its order ends."""
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
_FENCES_BEFORE = {Fate.BY_HAND: {}, Fate.UNDER_WAY: {STEPS[0]: "done"}}
"""The fence rows of the orders that a batch leaves to their own sagas."""


@dataclass(frozen=True)
class BatchCell:
    group: Group
    operation: BatchOperation = BatchOperation.CHECK_OUT

    def __str__(self) -> str:
        return f"{self.group}-{self.operation}"

    @property
    def fates(self) -> tuple[Fate, ...]:
        """One for each of its orders, in their sequence."""
        return tuple(fate for fate in Fate if fate not in self._absent)

    @property
    def _absent(self) -> Collection[Fate]:
        if answer_is_refused(self):
            return _FENCES_BEFORE
        # Each open poll of a stopped worker takes an attempt of that order's saga: together half a minute.
        return {Fate.UNDER_WAY} if self.group.fault is Fault.WORKER_STOPPED else ()


BATCH_CELLS = [BatchCell(group) for group in GROUPS if group.is_local]

_MARK = "THEN 'undone' ELSE 'done' END"
"""What only that statement has."""
_NAME = re.compile(rb"cell-[a-z_]+-[0-9a-f]{12}(?=-)")


def recognise_batch(sql: str, values: Sequence[bytes | None]) -> tuple[str, str] | None:
    """Name the batch and operation of the statement that writes the fence rows of many orders."""
    if _MARK not in sql:
        return None
    names = {found.group().decode() for value in values if value is not None for found in _NAME.finditer(value)}
    if not names:
        return None  # an attempt that has nothing left to do
    [name] = names
    return name, BatchOperation.CHECK_OUT.value


def is_heard_at_once(cell: BatchCell) -> bool:
    """Whether a cancel is heard while the attempt is under way, or once its workflow task has ended."""
    return list(Boundary).index(cell.group.boundary) % 2 == 0


def answer_is_refused(cell: BatchCell) -> bool:
    """Whether a batch closes its workflow in a task that has not heard of the cancel.

    The server refuses that, and what the repeated task undoes has ended. With orders to delegate, a task more follows.
    """
    return cell.group == Group(Fault.CANCELLED, Boundary.B4, is_local=True)


def fences_at(cell: BatchCell, fate: Fate) -> dict[str, str]:
    """Say what an order's fence rows are when the fault comes, as other sessions see them."""
    if fate in _FENCES_BEFORE or is_early(cell.group.boundary):
        return _FENCES_BEFORE.get(fate, {})
    return dict.fromkeys(fate.tombstones, "undone") or dict.fromkeys(STEPS, "done")


def ending_of_order(cell: BatchCell, fate: Fate) -> str:
    """Say how an order ends. Once a batch has heard of its cancel, it has nothing bought that nobody has begun."""
    is_called_off = cell.group.fault is Fault.CANCELLED and is_heard_at_once(cell)
    return "cancelled" if is_called_off and fate is Fate.BY_HAND else fate.usual


def is_delegated(cell: BatchCell, fate: Fate) -> bool | None:
    """Whether a batch leaves an order to a saga of its own; None where it may or may not.

    It does so with orders whose goods another transaction keeps locked: that of the first load, until the fault is
    over, or that of a stopped worker, until the role's timeout, which may come before the next attempt.
    """
    is_locked = cell.group.boundary is Boundary.B2
    if fate in _FENCES_BEFORE or (is_locked and cell.group.fault is Fault.TERMINATED):
        return True
    return None if is_locked and cell.group.fault is Fault.WORKER_STOPPED else False


def is_done_by_batch(cell: BatchCell, fate: Fate) -> bool | None:
    """Whether a batch has done an order; None where it or the order's own saga has.

    At B2 the sagas of a second load wait for the transaction of the first, and find what that has done.
    """
    if fate in _FENCES_BEFORE:
        return False
    return None if is_delegated(cell, fate) is None else True


def sweeps_that_find_order(fate: Fate) -> list[int]:
    """Number the sweeps that start an order of a terminated batch; one that is not by hand has no row, or has ended."""
    return [1] if fate is Fate.BY_HAND else []


def answers_of_batch(cell: BatchCell) -> set[str | None]:
    """Say what may become of the attempt. It is never refused as a whole."""
    return {RETURNED} if cell.group.fault is Fault.TERMINATED else usual_answers(cell.group)
