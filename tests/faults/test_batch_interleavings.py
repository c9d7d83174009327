"""Every interleaving of two batches with one order, its own saga's first step, and a cancelled batch's undo: 2 520."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import text

from activities import batch_together
from adapters.database import create_engine
from devstack.stack import DevStack
from tests.conftest import Database
from tests.faults.batch_interleaving import OPERATIONS, BatchInterleaving
from tests.faults.interleaving import Stepper, interleavings, open_ground, require_sound
from tests.faults.share import share

SCHEDULES = tuple(interleavings(OPERATIONS))
PLACES = 28
"""Each has every 28th interleaving, so some of every kind."""
# What must have been met, or the sessions have only run one after the other: each place meets all of it.
MET = frozenset(
    {
        "batch waited for nobody: completed",
        "batch waited for nobody: cancelled",
        "batch waited for nobody: handed over",
        "batch waited for batch: completed",
        "batch waited for batch: cancelled",
        "batch waited for batch: handed over",
        "batch waited for reserve: handed over",
        "batch waited for unwind: cancelled",
        "reserve waited for nobody: done",
        "reserve waited for nobody: refused",
        "reserve waited for batch: done",
        "reserve waited for unwind: refused",
        "unwind waited for nobody: completed",
        "unwind waited for nobody: cancelled",
        "unwind waited for batch: completed",
        "unwind waited for nobody: handed over",
        "unwind waited for reserve: handed over",
    }
)


@pytest.fixture(scope="module")
def ground(stack: DevStack) -> Iterator[Database]:
    with open_ground(stack) as database:
        yield database


@pytest.fixture
async def stepper(ground: Database) -> AsyncIterator[Stepper]:
    async with Stepper(ground.url, ground.admin_url, OPERATIONS) as opened:
        yield opened


@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", share(range(PLACES), every=29))
async def test_batches_that_share_an_order_do_it_once_beside_its_saga_and_its_undo(
    place: int, stepper: Stepper, ground: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is held up here waits for its turn, and not for as long as a batch waits for a row.
    patient = text("SELECT set_config('lock_timeout', '90s', true)")
    monkeypatch.setattr(batch_together, "_LIMIT_WAITING", patient)
    problems: dict[str, list[str]] = {}
    met: Counter[str] = Counter()
    as_asked = 0
    schedules = SCHEDULES[place::PLACES]
    for number, schedule in enumerate(schedules):
        interleaving = BatchInterleaving(stepper, f"b{place}-{number}", schedule)
        await interleaving.run()
        met += interleaving.happened()
        as_asked += interleaving.is_as_asked
        if interleaving.problems:
            problems[str(interleaving)] = interleaving.problems
    assert not problems, f"{len(problems)} of {len(schedules)} went wrong: {dict(list(problems.items())[:3])}"
    engine = create_engine(ground.url, pool_size=1, has_long_statements=True)
    try:
        await require_sound(stepper, engine)
    finally:
        await engine.dispose()

    assert set(met) >= MET
    # Of all 2 520, 1 125 are possible as asked; a fifth of them is a lower bound for any place.
    assert len(schedules) / 5 < as_asked < 4 * len(schedules) / 5
