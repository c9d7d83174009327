"""Every interleaving of {do, do', undo, undo'} with a statement and a commit each: 8!/2^4 = 2 520 for each step.

How events are performed, and what the commit of an operation is that wrote nothing: see `interleaving`.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.database import create_engine
from devstack.stack import DevStack
from domain.model import CheckoutInput, Step
from tests.conftest import Database
from tests.faults.interleaving import (
    BUYER,
    LINES,
    OPERATIONS,
    PAIRS,
    Interleaving,
    Schedule,
    Stepper,
    interleavings,
    open_ground,
    require_sound,
)
from tests.faults.share import share

SCHEDULES = tuple(interleavings())
IN_ALL = 2_520
BATCHES = 28
PER_BATCH = 90

# What must have been met, or the sessions have only run one after the other. Each is frequent: the rarest in one of
# thirteen interleavings.
MET = frozenset(
    {
        "do waited for nobody: done",
        "do waited for nobody: refused by a tombstone",
        "do waited for nobody: refused after a reversal",
        "do waited for do: done",
        # It saw that the step was done, and before it could read the result an undo was faster.
        "do waited for do: refused after a reversal",
        "do waited for undo: refused by a tombstone",
        "do waited for undo: refused after a reversal",
        "undo waited for nobody: reversed",
        "undo waited for nobody: nothing_to_undo",
        "undo waited for nobody: already_undone",
        "undo waited for do: reversed",
        "undo waited for do: already_undone",
        "undo waited for undo: already_undone",
    }
)


@dataclass(frozen=True)
class Batch:
    """Every 28th interleaving of a step, beginning at a place: each batch has some of every kind."""

    step: Step
    place: int

    def __str__(self) -> str:
        return f"{self.step}-{self.place:02d}"

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        return SCHEDULES[self.place :: BATCHES]


@dataclass
class Tally:
    as_asked: int = 0
    forbidden: int = 0
    """Blocking made the wanted sequence impossible, and a commit came later than asked."""
    met: Counter[str] = field(default_factory=Counter)

    def add(self, interleaving: Interleaving) -> None:
        self.as_asked += interleaving.is_as_asked
        self.forbidden += not interleaving.is_as_asked
        self.met += interleaving.happened()


TALLIES = {step: Tally() for step in Step}


@pytest.fixture(scope="module")
def ground(stack: DevStack) -> Iterator[Database]:
    with open_ground(stack) as database:
        yield database


@pytest.fixture
async def stepper(ground: Database) -> AsyncIterator[Stepper]:
    async with Stepper(ground.url, ground.admin_url, OPERATIONS) as opened:
        yield opened


@pytest.fixture
async def engine(ground: Database) -> AsyncIterator[AsyncEngine]:
    """For what comes before and after: nothing holds it up."""
    made = create_engine(ground.url, pool_size=1, has_long_statements=True)
    yield made
    await made.dispose()


def test_all_interleavings_are_generated() -> None:
    in_batches = Counter(schedule for place in range(BATCHES) for schedule in Batch(Step.PAY, place).schedules)

    assert len(SCHEDULES) == IN_ALL
    assert in_batches == dict.fromkeys(SCHEDULES, 1)
    assert {len(Batch(Step.PAY, place).schedules) for place in range(BATCHES)} == {PER_BATCH}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", share((Batch(step, place) for step in Step for place in range(BATCHES)), every=29))
async def test_every_interleaving_ends_without_an_effect(batch: Batch, stepper: Stepper, engine: AsyncEngine) -> None:
    problems: dict[str, list[str]] = {}
    for number, schedule in enumerate(batch.schedules):
        order = CheckoutInput(f"{batch}-{number}", BUYER, LINES)
        for step in PAIRS[batch.step].before:
            await PAIRS[step].do(engine, order)
        interleaving = Interleaving(stepper, batch.step, order, schedule)
        await interleaving.run()
        TALLIES[batch.step].add(interleaving)
        if interleaving.problems:
            problems[str(interleaving)] = interleaving.problems

    assert not problems, f"{len(problems)} of {PER_BATCH} interleavings went wrong: {dict(list(problems.items())[:3])}"
    await require_sound(stepper, engine)


def test_as_many_interleavings_ran_as_were_selected_and_they_met_everything(request: pytest.FixtureRequest) -> None:
    selected = Counter(batch.step for batch in _selected(request.session.items))

    for step, batches in selected.items():
        tally = TALLIES[step]
        executed = tally.as_asked + tally.forbidden
        assert executed == batches * PER_BATCH
        assert set(tally.met) == MET, step
        # Of all 2 520, about 920 are possible as asked; a fifth of them is a lower bound for any batch.
        assert tally.as_asked > executed / 5
        assert tally.forbidden > executed / 5


def _selected(items: list[pytest.Item]) -> list[Batch]:
    found = []
    for item in items:
        callspec: Any = getattr(item, "callspec", None)
        if callspec is not None and isinstance(callspec.params.get("batch"), Batch):
            found.append(callspec.params["batch"])
    return found
