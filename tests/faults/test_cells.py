"""Every operation that meets every fault at every boundary ends as it must, having acted once or not at all.

Six operations, five boundaries, eight faults: 240 cells; 32 for the transaction of a batch. The operations of a fault
and a boundary are in one run with one saga for each; `tests/faults/lab/cells.py` and `batch_cells.py` say how each has
to end.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest

from devstack.stack import DevStack
from tests.faults.lab.batch_cells import (
    BATCH_CELLS,
    REFUSALS,
    BatchCell,
    Fate,
    answer_is_refused,
    answers_of_batch,
    ending_of_order,
    fences_at,
    is_delegated,
    is_done_by_batch,
)
from tests.faults.lab.cells import (
    CELLS,
    GROUPS,
    LOCAL_BOUNDARIES,
    STEP_OF,
    UNDOS,
    Boundary,
    Cell,
    Fault,
    Operation,
    answers_of,
    costs_the_attempt,
    ending_of,
    is_early,
)
from tests.faults.lab.runs import Laboratory, Run
from tests.faults.lab.scene import PRICE, QUANTITY
from tests.faults.lab.target import Aftermath, Before, Shelf, Traces

# The first cell of a group waits for the run of all six.
pytestmark = pytest.mark.timeout(300)

ALL_CELLS: list[Cell | BatchCell] = [*CELLS, *BATCH_CELLS]

# An answer to a workflow task that came after a cancel is refused and the task repeated; a termination ends the
# task that is under way. Both are how Temporal works, and no failure of the workflow's code.
TASKS_MAY_FAIL = {
    Fault.CANCELLED: {"WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND"},
    Fault.TERMINATED: {"WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND"},
}


@pytest.fixture(scope="module")
async def laboratory(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Laboratory]:
    """Servers of these cells alone, since they are killed; Temporal's state is in a file."""
    folder = tmp_path_factory.mktemp("cells")
    stack = DevStack(folder, keep=True)
    try:
        stack.start()
        made = Laboratory(stack, folder)
        yield made
        await made.close()
    finally:
        stack.temporal.kill()
        stack.postgres.remove()


def selected(cells: Sequence[Cell | BatchCell]) -> list[object]:
    marks = pytest.mark.exhaustive
    return [pytest.param(cell, id=str(cell), marks=() if cell.group.is_in_every_run else marks) for cell in cells]


@pytest.mark.parametrize("cell", selected(CELLS))
async def test_a_struck_operation_takes_effect_once_and_its_order_ends_properly(
    laboratory: Laboratory, cell: Cell
) -> None:
    run = await laboratory.run_of(cell)
    found = run.found[cell.operation]

    assert_it_was_there(found.before, cell, is_one_statement=cell.operation not in UNDOS)
    before, after = ("done", "undone") if cell.operation in UNDOS else (None, "done")
    phase = found.before.fence.get((found.name, STEP_OF[cell.operation]))
    assert phase == (before if is_early(cell.group.boundary) else after)
    assert found.proof, "the fault had no effect, or not the one it must have"
    assert_the_attempt_ended_as_it_must(found, cell, answers_of(cell))
    ending, [traces] = ending_of(cell), found.traces
    assert (traces.status, found.run_status) == (ending.status, ending.run_status)
    assert (STEP_OF[cell.operation] in traces.effects) is ending.had_effect
    assert_one_effect_and_one_reversal_at_most(cell, traces, found.shelf)
    assert_nothing_is_wrong(run, found)


@pytest.mark.parametrize("cell", selected(BATCH_CELLS))
async def test_a_struck_batch_takes_effect_once_and_each_of_its_orders_ends_properly(
    laboratory: Laboratory, cell: BatchCell
) -> None:
    run = await laboratory.run_of(cell)
    found = run.found[cell.operation]

    assert_it_was_there(found.before, cell, is_one_statement=False)
    orders = list(zip(cell.fates, found.order_ids, found.traces, strict=True))
    fence = {(order_id, step): phase for fate, order_id, _ in orders for step, phase in fences_at(cell, fate).items()}
    assert found.before.fence == fence
    assert found.proof, "the fault had no effect, or not the one it must have"
    assert_the_attempt_ended_as_it_must(found, cell, answers_of_batch(cell))
    assert found.run_status == "COMPLETED"
    if cell.group.fault is Fault.CANCELLED:
        assert bool(found.task_failures) is answer_is_refused(cell)
    if cell.group.fault is Fault.TERMINATED:
        assert found.attempts == 2, "the second load needs one, whatever the first has locked or done"
    assert [traces.status for traces in found.traces] == [ending_of_order(cell, fate) for fate in cell.fates]
    for fate, _, traces in orders:
        assert_an_order_has_all_that_its_transaction_writes(cell, fate, traces)
        assert_a_rejected_order_says_why(fate, traces)
    completed = [traces for traces in found.traces if traces.status == "completed"]
    assert found.shelf == Shelf(gone=QUANTITY * len(completed), reserved=0)
    assert found.reported == [traces.outcome for traces in found.traces]
    assert_nothing_is_wrong(run, found)


def assert_it_was_there(before: Before, cell: Cell | BatchCell, *, is_one_statement: bool) -> None:
    """Check the operation's place at the moment of the fault, as the database and Temporal saw it."""
    boundary = cell.group.boundary
    assert before.report.attempt == 1
    is_pending = boundary is not Boundary.B5 and not cell.group.is_local  # Temporal knows of no local attempt
    assert before.pending == (("STARTED", 1) if is_pending else None)
    assert before.is_reported is (boundary is Boundary.B5)
    match boundary:
        case Boundary.B1:
            assert before.backend_pid is None
        case Boundary.B2:
            # A single statement is not over for the server until its Sync comes.
            assert before.backend_state == ("active" if is_one_statement else "idle in transaction")
            assert before.has_written
        case Boundary.B3:
            assert before.backend_state == "idle"
            assert not before.has_written
        case _:
            assert before.backend_pid is not None  # it may be busy with other work by now


def assert_the_attempt_ended_as_it_must(found: Aftermath, cell: Cell | BatchCell, answers: set[str | None]) -> None:
    fault, boundary = cell.group.fault, cell.group.boundary
    assert found.answer in answers
    match costs_the_attempt(cell.group):
        case True:
            assert found.attempts >= 2
        case False:
            assert found.attempts == 1
    if fault is Fault.WORKER_KILLED or (fault is Fault.WORKER_STOPPED and boundary is not Boundary.B5):
        assert len(found.worker_pids) == 2, "no other worker took over"
    assert set(found.task_failures) <= TASKS_MAY_FAIL.get(fault, set())


def assert_one_effect_and_one_reversal_at_most(cell: Cell, traces: Traces, shelf: Shelf) -> None:
    """Check the tables: one effect of each step where the order is completed, and otherwise nothing left."""
    step = STEP_OF[cell.operation]
    assert_what_an_order_left(traces, "label" if cell.zone == "country" else "handed_over")
    if traces.status == "completed":
        assert shelf == Shelf(gone=QUANTITY, reserved=0)
        return
    assert shelf == Shelf(gone=0, reserved=0)
    assert traces.fence[step] == "undone"
    assert traces.reservations == ["released"]
    if ending_of(cell).had_effect:
        assert traces.transfers or step != "pay"
        assert traces.shipments or step != "ship"


def assert_an_order_has_all_that_its_transaction_writes(cell: BatchCell, fate: Fate, traces: Traces) -> None:
    """Check the tables: a batch has done all of an order, or has left it to its own saga."""
    assert_what_an_order_left(traces, "label" if fate is Fate.LABEL else "handed_over")
    assert is_delegated(cell, fate) in {traces.has_saga, None}
    assert is_done_by_batch(cell, fate) in {traces.is_of_batch, None}
    assert traces.is_of_batch or traces.has_saga
    if traces.status == "completed":
        by_hand = ["pending"] if fate is Fate.BY_HAND else []
        assert traces.moves == [*by_hand, "reserved", "paid", "completed"]
        assert traces.effects == set(fate.steps)
    elif traces.is_of_batch:
        assert traces.moves == ["rejected"]
        assert traces.fence == dict.fromkeys(fate.tombstones, "undone")
        assert traces.transfers == traces.reservations == traces.shipments == []
        assert traces.effects == set()
    elif traces.status == "cancelled":
        assert traces.effects == set()
    else:
        assert traces.effects == set(fate.steps)


def assert_a_rejected_order_says_why(fate: Fate, traces: Traces) -> None:
    assert traces.outcome is not None
    if traces.status == "rejected":
        assert (traces.outcome.reason or "").startswith(f"{REFUSALS[fate]}: ")


def assert_what_an_order_left(traces: Traces, parcel: str) -> None:
    """Check one order's rows: all three effects, or nothing but what was taken back."""
    assert len(traces.moves) == len(set(traces.moves)), f"an order goes through a status once: {traces.moves}"
    if traces.status == "completed":
        assert traces.fence == {"reserve": "done", "pay": "done", "ship": "done"}
        assert traces.transfers == ["capture"]
        assert (traces.reservations, traces.shipments) == (["consumed"], [parcel])
        assert traces.spent == QUANTITY * PRICE
        return
    assert set(traces.fence.values()) == {"undone"}
    assert traces.transfers in ([], ["capture", "refund"])
    assert traces.reservations in ([], ["released"])
    assert traces.shipments in ([], ["cancelled"])
    assert traces.spent == 0


def assert_nothing_is_wrong(run: Run, found: Aftermath) -> None:
    """Check what the audit found in the whole database, as far as it concerns these orders."""
    assert run.violations_for(found.name) == []
    assert not set(found.order_ids) & set(run.inspection.unfinished)
    assert run.inspection.open_transactions == 0


def test_the_cells_are_the_whole_product_and_every_run_meets_each_value_of_each_axis() -> None:
    every = [group for group in GROUPS if group.is_in_every_run]

    assert len(set(CELLS)) == len(Operation) * len(Boundary) * len(Fault) == 240
    assert len(set(BATCH_CELLS)) == len(LOCAL_BOUNDARIES) * len(Fault) == 32
    assert Counter(group.fault for group in every) == Counter(Fault)
    assert {group.boundary for group in every} == set(Boundary)
    assert Counter(group.is_local for group in every) == dict.fromkeys([False, True], len(Fault) // 2)


def test_a_run_has_the_cells_that_it_must_have(request: pytest.FixtureRequest) -> None:
    selected_now = {
        item.callspec.params["cell"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }

    option, paths = request.config.option, request.config.args
    if not option.keyword and not any("::" in path for path in paths):  # no cells were chosen by name
        share = [cell for cell in ALL_CELLS if cell.group.is_in_every_run]
        assert selected_now == set(share if "not " in option.markexpr else ALL_CELLS)
