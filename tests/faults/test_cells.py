"""Every operation, struck at every boundary by every fault, ends as it must, having acted once or not at all.

Six operations, five boundaries, eight faults: 240 cells, and 96 more for what differs in the fast lane. The operations
of a fault and a boundary are struck together, in one run with one saga for each; `tests/faults/lab/cells.py` says how
each has to end.
"""

from collections.abc import AsyncIterator

import pytest

from domain.model import Lane
from embedded.stack import DevStack
from tests.faults.lab.aftermath import Aftermath
from tests.faults.lab.cells import (
    CELLS,
    FAST_BOUNDARIES,
    GROUPS,
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
from tests.faults.lab.runs import Laboratory

# The first cell of a group waits for the run of all six.
pytestmark = pytest.mark.timeout(300)

EXECUTED: set[Cell] = set()
FIRED: set[Cell] = set()

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


def selected(cells: list[Cell]) -> list[object]:
    """Make test parameters; only the groups that are in every run stay in `make test`."""
    marks = pytest.mark.exhaustive
    return [pytest.param(cell, id=str(cell), marks=() if cell.group.is_in_every_run else marks) for cell in cells]


@pytest.mark.parametrize("cell", selected(CELLS))
async def test_a_struck_operation_takes_effect_once_and_its_order_ends_properly(
    laboratory: Laboratory, cell: Cell
) -> None:
    EXECUTED.add(cell)

    run = await laboratory.run_of(cell)
    found = run.cells[cell.operation]

    assert_it_stood_there(found)
    assert found.proof, "the fault had no effect, or not the one it must have"
    FIRED.add(cell)
    assert_the_attempt_ended_as_it_must(found)
    assert_the_saga_ended_as_it_must(found)
    assert_one_effect_and_one_reversal_at_most(found)
    others = {other.order_id for other in run.cells.values()}
    assert run.inspection.violations_for(found.order_id, others) == []
    assert found.order_id not in run.inspection.unfinished
    assert run.inspection.open_transactions == 0


def assert_it_stood_there(found: Aftermath) -> None:
    """Check the operation's place at the moment of the strike, as the database and Temporal saw it."""
    standing, operation = found.standing, found.cell.operation
    before, after = ("done", "undone") if operation in UNDOS else (None, "done")
    boundary = found.cell.group.boundary
    assert standing.report.attempt == 1
    assert standing.phase == (before if is_early(boundary) else after)
    is_pending = boundary is not Boundary.B5 and not found.cell.group.is_fast  # Temporal knows of no local attempt
    assert standing.pending == (("STARTED", 1) if is_pending else None)
    assert standing.is_reported is (boundary is Boundary.B5)
    match boundary:
        case Boundary.B1:
            assert standing.backend_pid is None
        case Boundary.B2:
            # A do is one statement, which is not over for the server until its Sync comes.
            assert standing.backend_state == ("idle in transaction" if operation in UNDOS else "active")
            assert standing.has_written
        case Boundary.B3:
            assert standing.backend_state == "idle"
            assert not standing.has_written
        case _:
            assert standing.backend_pid is not None  # it may be busy with somebody else's work by now


def assert_the_attempt_ended_as_it_must(found: Aftermath) -> None:
    """Check what became of the struck attempt, and whether somebody had to try again."""
    fault, boundary = found.cell.group.fault, found.cell.group.boundary
    assert found.answer in answers_of(found.cell)
    match costs_the_attempt(found.cell):
        case True:
            assert found.attempts >= 2
        case False:
            assert found.attempts == 1
    if fault is Fault.WORKER_KILLED or (fault is Fault.WORKER_STOPPED and boundary is not Boundary.B5):
        assert len(found.worker_pids) == 2, "nobody took over"


def assert_the_saga_ended_as_it_must(found: Aftermath) -> None:
    ending = ending_of(found.cell)
    assert (found.status, found.run_status) == (ending.status, ending.run_status)
    assert found.had_effect is ending.had_effect
    assert set(found.task_failures) <= TASKS_MAY_FAIL.get(found.cell.group.fault, set())


def assert_one_effect_and_one_reversal_at_most(found: Aftermath) -> None:
    """Check the tables: one effect of each step where the order is completed, and otherwise nothing left."""
    assert len(found.moves) == len(set(found.moves)), f"an order goes through a status once: {found.moves}"
    if found.status == "completed":
        assert found.fence == {"reserve": "done", "pay": "done", "ship": "done"}
        assert found.transfers == ["capture"]
        assert (found.reservations, found.shipments) == (
            ["consumed"],
            ["label" if found.cell.zone == "country" else "handed_over"],
        )
        assert (found.spent, found.gone, found.reserved) == (2 * 1_000, 2, 0)
        return
    assert set(found.fence.values()) == {"undone"}
    assert found.fence[STEP_OF[found.cell.operation]] == "undone"
    assert found.transfers in ([], ["capture", "refund"])
    assert found.reservations == ["released"]
    assert found.shipments in ([], ["cancelled"])
    assert (found.spent, found.gone, found.reserved) == (0, 0, 0)
    if ending_of(found.cell).had_effect:
        assert found.transfers or STEP_OF[found.cell.operation] != "pay"
        assert found.shipments or STEP_OF[found.cell.operation] != "ship"


def test_the_cells_are_the_whole_product_and_every_run_meets_each_value_of_each_axis() -> None:
    every = [group for group in GROUPS if group.is_in_every_run]

    classic = {cell for cell in CELLS if not cell.group.is_fast}
    assert len(classic) == len(Operation) * len(Boundary) * len(Fault) == 240
    assert len(set(CELLS) - classic) == len(Operation) // 2 * len(FAST_BOUNDARIES) * len(Fault) == 96
    for lane, boundaries in ((Lane.CLASSIC, set(Boundary)), (Lane.FAST, set(FAST_BOUNDARIES))):
        assert {group.fault for group in every if group.lane is lane} == set(Fault)
        assert {group.boundary for group in every if group.lane is lane} == boundaries


def test_every_generated_cell_was_executed_and_every_fault_has_fired(request: pytest.FixtureRequest) -> None:
    generated = {
        item.callspec.params["cell"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }

    assert generated == EXECUTED == FIRED
    option, paths = request.config.option, request.config.args
    if not option.keyword and not any("::" in path for path in paths):  # nobody asked for some cells by name
        share = [cell for cell in CELLS if cell.group.is_in_every_run]
        assert generated == set(share if option.markexpr == "not exhaustive" else CELLS)
