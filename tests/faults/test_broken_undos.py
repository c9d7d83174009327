"""Broken undos, all of them: the order is stuck loudly, once, and every remedy brings it to its end.

Each undo, each pair and all three; for a while or for good; with every remedy, alone and at once with another; and
with a worker that is lost at every boundary of the unwind.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations, product

import pytest
from temporalio.client import Client

from adapters.database import create_engine
from devstack.stack import DevStack
from domain import policies
from domain.model import Step
from saga_testing.faults import Moment
from tests.conftest import Shop
from tests.faults.share import share
from tests.faults.shared import shared_database
from tests.faults.stuck import BREAKABLE, ENDINGS, RICH, UNWIND, Handle, Stuck, retry_until, taken
from tests.workflow.sagas import UNDO_OF, resolve, retry, until

BROKEN = [(step,) for step in UNWIND] + list(combinations(UNWIND, 2)) + [UNWIND]
TIMES = 3

_played: Counter[str] = Counter()


@dataclass(frozen=True)
class Cell:
    ending: str
    broken: tuple[Step, ...]
    twist: str

    def __str__(self) -> str:
        return f"{self.ending}-{'+'.join(self.broken)}-{self.twist}"


def alternating(twists: Iterable[str]) -> list[Cell]:
    """Play every twist on every choice of broken undos, with the endings in turn.

    An ending names the order's last status and its cause, and changes nothing about the undos.
    """
    return [
        Cell(ENDINGS[(place + number) % len(ENDINGS)], broken, twist)
        for place, broken in enumerate(BROKEN)
        for number, twist in enumerate(twists)
    ]


@pytest.fixture(scope="module")
async def breakable(client: Client, stack: DevStack) -> AsyncIterator[Shop]:
    async with shared_database(stack) as database:
        await database.run(BREAKABLE + RICH)
        engine = create_engine(database.url, pool_size=5)
        yield Shop(client, engine, database)
        await engine.dispose()


@pytest.fixture
def shop(breakable: Shop) -> Shop:
    """A task queue of its own for each cell, on the one database."""
    return Shop(breakable.client, breakable.engine, breakable.database)


# For a while --------------------------------------------------------------------------------------------

FOR_A_WHILE = [Cell(ending, broken, f"fails {TIMES} times") for broken, ending in product(BROKEN, ENDINGS)]


@pytest.mark.parametrize("cell", share(FOR_A_WHILE, every=11))
async def test_undos_that_fail_a_few_times_are_tried_until_they_work(shop: Shop, cell: Cell) -> None:
    stuck = await Stuck.prepare(shop, cell.ending, cell.broken, for_good=False)
    faults = [stuck.faults.fail(UNDO_OF[step], "before", times=TIMES) for step in cell.broken]

    async with stuck.working():
        phases = await stuck.requires_ended(await stuck.begin(), is_for_good=False)

    assert [fault.strikes for fault in faults] == [TIMES] * len(faults)
    assert set(phases.values()) == {"undone"}
    await stuck.requires_no_incident()
    _played[str(cell)] += 1


# For good -----------------------------------------------------------------------------------------------

Remedy = Callable[[Stuck, Handle, tuple[Step, ...]], Awaitable[None]]


async def _retry(stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    await stuck.mend(steps)
    assert await taken(retry(handle))


async def _retry_in_vain_first(stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    tried = stuck.attempts_of(steps[0])
    assert await taken(retry(handle))
    assert stuck.attempts_of(steps[0]) > tried
    await stuck.requires_stuck(handle, steps)
    await _retry(stuck, handle, steps)


async def _retry_twice(stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    await _retry(stuck, handle, steps)
    await taken(retry(handle))


async def _two_retries_at_once(stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    await stuck.mend(steps)
    answers = await asyncio.gather(taken(retry(handle)), taken(retry(handle)))
    assert True in answers


async def _resolve(_stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    for step in steps:
        assert await taken(resolve(handle, step))


async def _resolve_twice(_stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    for step in steps:
        assert await taken(resolve(handle, step))
        assert not await taken(resolve(handle, step, "once more"))


async def _two_resolves_at_once(_stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    for step in steps:
        answers = await asyncio.gather(taken(resolve(handle, step)), taken(resolve(handle, step)))
        assert True in answers


async def _retry_and_resolve_at_once(stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    await stuck.mend(steps)
    answers = await asyncio.gather(taken(retry(handle)), *(taken(resolve(handle, step)) for step in steps))
    assert True in answers


async def _time(stuck: Stuck, _handle: Handle, steps: tuple[Step, ...]) -> None:
    await stuck.until_tried_again(steps[0])
    await stuck.mend(steps)


async def _time_and_retry_at_once(stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    await _time(stuck, handle, steps)
    await taken(retry(handle))


async def _time_and_resolve_at_once(stuck: Stuck, handle: Handle, steps: tuple[Step, ...]) -> None:
    await stuck.until_tried_again(steps[0])

    async def resolved(step: Step) -> None:
        await until(lambda: taken(resolve(handle, step)))  # refused while its undo is being tried

    await asyncio.gather(*(resolved(step) for step in steps))


REMEDIES: dict[str, Remedy] = {
    "retry": _retry,
    "retry in vain, then retry": _retry_in_vain_first,
    "retry twice": _retry_twice,
    "two retries at once": _two_retries_at_once,
    "resolve": _resolve,
    "resolve twice": _resolve_twice,
    "two resolves at once": _two_resolves_at_once,
    "retry and resolve at once": _retry_and_resolve_at_once,
    "time": _time,
    "time and retry at once": _time_and_retry_at_once,
    "time and resolve at once": _time_and_resolve_at_once,
}
SETTLED_BY_HAND = {"resolve", "resolve twice", "two resolves at once"}
FOR_GOOD = alternating(REMEDIES)


@pytest.mark.parametrize("cell", share(FOR_GOOD, every=19))
async def test_undos_that_fail_for_good_park_the_order_once_and_every_remedy_ends_it(
    shop: Shop, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cell.twist.startswith("time"):
        # Read by each run as it begins.
        monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", timedelta(milliseconds=200))
        monkeypatch.setattr(policies, "STUCK_RETRY_LONGEST", timedelta(milliseconds=200))
    stuck, left = await Stuck.prepare(shop, cell.ending, cell.broken), cell.broken

    async with stuck.working():
        handle = await stuck.begin()
        while left:
            await stuck.requires_stuck(handle, left)
            remedied = (Step.SHIP,) if Step.SHIP in left else left  # the others wait for the parcel
            await REMEDIES[cell.twist](stuck, handle, remedied)
            left = tuple(step for step in left if step not in remedied)
            if "resolve" in cell.twist:  # a person's word settles a step, and has nothing else tried again
                await retry_until(handle, stuck, left)
        phases = await stuck.requires_ended(handle)

    await stuck.requires_one_closed_incident()
    if cell.twist in SETTLED_BY_HAND:
        assert {step for step, phase in phases.items() if phase == "resolved"} == set(cell.broken)
    elif "resolve" not in cell.twist:
        assert set(phases.values()) == {"undone"}
    _played[str(cell)] += 1


# Lost workers -------------------------------------------------------------------------------------------

MOMENTS: tuple[Moment, ...] = ("before", "after")
BOUNDARIES: dict[str, tuple[str, Moment]] = {
    f"worker lost {moment} {name}": (name, moment)
    for name in (*(UNDO_OF[step] for step in UNWIND), "park_order", "close_order")
    for moment in MOMENTS
}
LOST = alternating(BOUNDARIES)


@pytest.mark.parametrize("cell", share(LOST, every=17))
async def test_a_worker_that_is_lost_at_a_boundary_of_the_unwind_changes_nothing(shop: Shop, cell: Cell) -> None:
    stuck = await Stuck.prepare(shop, cell.ending, cell.broken)
    name, moment = BOUNDARIES[cell.twist]
    gate = stuck.faults.hold(name, moment)

    async def mended(handle: Handle) -> None:
        await stuck.requires_stuck(handle, cell.broken)
        await _retry(stuck, handle, cell.broken)

    async with stuck.working():
        handle = await stuck.begin()
        if name == "close_order":
            await mended(handle)
        await asyncio.wait_for(gate.has_held.wait(), 60)
    async with stuck.working():
        if name != "close_order":
            await mended(handle)
        phases = await stuck.requires_ended(handle)

    assert set(phases.values()) == {"undone"}
    await stuck.requires_one_closed_incident()
    _played[str(cell)] += 1


def test_every_selected_cell_was_played_once(request: pytest.FixtureRequest) -> None:
    cells = [str(cell) for cell in (*FOR_A_WHILE, *FOR_GOOD, *LOST)]
    selected = [
        item.callspec.id for item in request.session.items if item.path == request.path and hasattr(item, "callspec")
    ]

    assert len(set(cells)) == len(cells) == 7 * (len(ENDINGS) + len(REMEDIES) + len(BOUNDARIES))
    assert set(selected) <= set(cells)
    assert _played == Counter(selected)
