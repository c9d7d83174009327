"""Broken undos, all of them: the order is stuck loudly, once, and every remedy brings it to its end.

Each undo, each pair and all three; for a while or for good; with every remedy, alone and at once with another; and
with a worker that is lost at every boundary of the unwind.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations, product
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from adapters.config import WorkerSettings
from adapters.database import create_engine
from devstack.stack import DevStack
from domain import policies
from domain.model import CheckoutInput, CheckoutStatus, Step
from domain.policies import checkout_workflow_id
from sagafence.testing.faults import Faults, Moment
from tests.conftest import Shop
from tests.faults.share import share, shared_database
from tests.workflow.sagas import (
    UNDO_OF,
    reason_of,
    resolve,
    retry,
    status_in,
    until,
    until_status,
    violations,
)
from tests.workflow.sagas import failure_of as failure_of_saga
from worker import build_worker
from workflows.checkout import CheckoutWorkflow

Handle = WorkflowHandle[CheckoutWorkflow, CheckoutStatus]

UNWIND = (Step.SHIP, Step.PAY, Step.RESERVE)
ENDINGS = ("rejected", "cancelled")

# Breaks the undos of single orders, and only the undos: they do all their work, and their commit is refused.
BREAKABLE = """
CREATE TABLE broken_undos (order_id text, step text, PRIMARY KEY (order_id, step));
GRANT SELECT ON broken_undos TO checkout;
CREATE FUNCTION break_undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM broken_undos b WHERE b.order_id = NEW.saga_id AND b.step = NEW.step) THEN
        RAISE EXCEPTION 'the undo of % is broken on purpose', NEW.step;
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER broken AFTER UPDATE ON step_fence DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.phase = 'undone') EXECUTE FUNCTION break_undo();
"""

# What is resolved by hand is not paid back: the customer needs more money than one order costs.
RICH = """
SELECT deposit('carol', 100000000, 'EUR', 'more than one order costs');
"""

_ORDER_STATE = """
SELECT (SELECT state FROM shipments WHERE order_id = $1) AS ship,
       (SELECT count(*) FILTER (WHERE kind = 'capture') || ' captured, '
            || count(*) FILTER (WHERE kind = 'refund') || ' refunded'
          FROM transfers WHERE order_id = $1) AS pay,
       (SELECT string_agg(DISTINCT state, ', ') FROM reservations WHERE order_id = $1) AS reserve
"""


@dataclass(frozen=True)
class Stuck:
    """One order with a label, and the undos of it that are broken."""

    shop: Shop
    order: CheckoutInput
    ending: str
    broken: tuple[Step, ...]
    faults: Faults

    @classmethod
    async def prepare(cls, shop: Shop, ending: str, broken: tuple[Step, ...], *, for_good: bool = True) -> "Stuck":
        order = shop.order("carol", ("tea-mug", 2), ("poster", 1))
        if for_good:
            values = ", ".join(f"('{order.order_id}', '{step}')" for step in broken)
            await shop.database.run(f"INSERT INTO broken_undos VALUES {values}")
        return cls(shop, order, ending, broken, Faults(checkout_workflow_id(order.order_id)))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run a worker inside the block; whatever is held up at the end of the block is lost with it."""
        settings = WorkerSettings(task_queue=self.shop.task_queue, shutdown_grace_seconds=5)
        worker = build_worker(self.shop.client, self.shop.engine, settings, interceptors=[self.faults])
        await worker.__aenter__()
        try:
            yield
        finally:
            await self.faults.stop(worker)

    async def begin(self) -> Handle:
        """Start the saga and have it unwind from its last step, whose label is made."""
        if self.ending == "rejected":
            self.faults.fail("ship_order", "after", times=1, is_final=True)
            return await self.shop.start(self.order)
        gate = self.faults.hold("ship_order", "after")
        handle = await self.shop.start(self.order)
        await asyncio.wait_for(gate.has_held.wait(), 60)
        await handle.execute_update(CheckoutWorkflow.cancel, "changed my mind")
        gate.open()
        return handle

    @property
    def first_cause(self) -> str:
        """What the order's reason says, whatever its undos say later."""
        return "Injected: injected" if self.ending == "rejected" else "cancelled: changed my mind"

    def stuck_steps(self, broken: tuple[Step, ...]) -> list[Step]:
        """Name the steps that wait: while the parcel stands, neither money nor stock is given back."""
        return list(UNWIND) if Step.SHIP in broken else [step for step in UNWIND if step in broken]

    async def until_stuck(self, broken: tuple[Step, ...]) -> None:
        """Wait until the open incident names exactly the steps that these broken undos hold up."""

        async def has_parked() -> bool:
            return await self.has_parked(broken)

        await until_status(self.shop, self.order, "stuck")
        await until(has_parked)

    async def has_parked(self, broken: tuple[Step, ...]) -> bool:
        """Whether the last round found exactly these broken, rather than waiting for the parcel."""
        rows = await self.shop.database.fetch(
            "SELECT steps, cause FROM incidents WHERE order_id = $1 AND closed_at IS NULL", self.order.order_id
        )
        return [(steps, "broken on purpose" in cause) for steps, cause in rows] == [(self.stuck_steps(broken), True)]

    async def mend(self, steps: tuple[Step, ...]) -> None:
        await self.shop.database.fetch(
            "DELETE FROM broken_undos WHERE order_id = $1 AND step = ANY ($2)", self.order.order_id, list(steps)
        )

    async def requires_stuck(self, handle: Handle, broken: tuple[Step, ...]) -> None:
        stuck = self.stuck_steps(broken)
        await self.until_stuck(broken)

        async def is_reported() -> bool:
            status = await handle.query(CheckoutWorkflow.status)
            return [
                (view.step, "broken on purpose" in view.detail, "its shipment is in effect" in view.detail)
                for view in reversed(status.steps)
                if view.state == "stuck"
            ] == [(step, not must_wait(step), must_wait(step)) for step in stuck]

        def must_wait(step: Step) -> bool:
            return Step.SHIP in broken and step is not Step.SHIP

        await until(is_reported)
        assert await reason_of(self.shop, self.order) == self.first_cause
        assert await self._incidents() == [(stuck, True)]
        phases = await self._phases()
        assert all(phase == "done" for step, phase in phases.items() if step in stuck), phases
        assert all(phase in {"undone", "resolved"} for step, phase in phases.items() if step not in stuck), phases
        assert await violations(self.shop) == []

    async def requires_ended(self, handle: Handle, *, is_for_good: bool = True) -> dict[str, str]:
        failure = await failure_of_saga(handle)
        status = status_in(failure)
        phases = await self._phases()
        [row] = await self.shop.database.fetch(_ORDER_STATE, self.order.order_id)

        assert failure.type == {"rejected": "OrderRejected", "cancelled": "OrderCancelled"}[self.ending]
        assert await self.shop.order_status(self.order) == status.status == self.ending
        assert status.reason == await reason_of(self.shop, self.order) == self.first_cause
        assert set(phases) == set(UNWIND)
        for view in status.steps:
            if is_for_good and view.step in self.broken:
                assert re.search("broken on purpose|its shipment is in effect|^resolved by hand", view.detail), view
        # On a person's word the rows stay as they are: nothing is given back twice. With a parcel that was settled
        # so, its goods are gone from the shelf, and there is nothing left to release.
        as_undone = {"ship": "cancelled", "pay": "1 captured, 1 refunded", "reserve": "released"}
        as_resolved = {"ship": "label", "pay": "1 captured, 0 refunded", "reserve": "held"}
        expected = {step: (as_resolved if phase == "resolved" else as_undone)[step] for step, phase in phases.items()}
        if phases["ship"] == "resolved":
            expected["reserve"] = "consumed"
        assert dict(row) == expected, phases
        seqs = await self.shop.database.fetch(
            "SELECT seq FROM order_events WHERE order_id = $1 ORDER BY event_id", self.order.order_id
        )
        assert [seq for (seq,) in seqs] == list(range(1, len(seqs) + 1))
        assert await violations(self.shop) == []
        return phases

    async def requires_one_closed_incident(self) -> None:
        incidents = await self._incidents()
        assert [is_open for _, is_open in incidents] == [False]

    async def requires_no_incident(self) -> None:
        assert await self._incidents() == []

    async def _incidents(self) -> list[tuple[list[str], bool]]:
        rows = await self.shop.database.fetch(
            "SELECT steps, closed_at IS NULL FROM incidents WHERE order_id = $1", self.order.order_id
        )
        return [(steps, is_open) for steps, is_open in rows]

    async def _phases(self) -> dict[str, str]:
        rows = await self.shop.database.fetch(
            "SELECT step, phase FROM step_fence WHERE saga_id = $1", self.order.order_id
        )
        return dict(map(tuple, rows))

    def attempts_of(self, step: Step) -> int:
        return self.faults.attempts[UNDO_OF[step]]

    async def until_tried_again(self, step: Step) -> None:
        """Wait for another attempt of a step's undo, for which nobody asked."""
        tried = self.attempts_of(step)

        async def is_tried_again() -> bool:
            return self.attempts_of(step) > tried

        await until(is_tried_again)


async def taken(ask: Awaitable[Any]) -> bool:
    """Ask for something, and tell whether the saga took it; one that is not stuck, or has ended, refuses."""
    try:
        await ask
    except WorkflowUpdateFailedError as refused:
        if not (isinstance(refused.cause, ApplicationError) and refused.cause.type == "InvalidInput"):
            raise
        return False
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


async def retry_until(handle: Handle, stuck: Stuck, broken: tuple[Step, ...]) -> None:
    """Ask for retries until the saga has ended, or is stuck with exactly these undos."""

    async def there() -> bool:
        if not broken:
            description = await handle.describe()
            if description.close_time is not None:
                return True
        elif await stuck.has_parked(broken):
            return True
        await taken(retry(handle))
        return False

    await until(there)


BROKEN = [(step,) for step in UNWIND] + list(combinations(UNWIND, 2)) + [UNWIND]
TIMES = 3


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


FOR_A_WHILE = [Cell(ending, broken, f"fails {TIMES} times") for broken, ending in product(BROKEN, ENDINGS)]


@pytest.mark.parametrize("cell", share(FOR_A_WHILE, every=11))
async def test_undos_that_fail_a_few_times_are_tried_until_they_work(shop: Shop, cell: Cell) -> None:
    stuck = await Stuck.prepare(shop, cell.ending, cell.broken, for_good=False)
    faults = [stuck.faults.fail(UNDO_OF[step], "before", times=TIMES) for step in cell.broken]

    async with stuck.working():
        phases = await stuck.requires_ended(await stuck.begin(), is_for_good=False)

    assert [fault.injections for fault in faults] == [TIMES] * len(faults)
    assert set(phases.values()) == {"undone"}
    await stuck.requires_no_incident()


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


def test_there_is_a_cell_for_every_set_of_undos_and_every_twist() -> None:
    cells = [str(cell) for cell in (*FOR_A_WHILE, *FOR_GOOD, *LOST)]

    assert len(set(cells)) == len(cells) == 7 * (len(ENDINGS) + len(REMEDIES) + len(BOUNDARIES))
