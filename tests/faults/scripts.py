"""The sagas that are interrupted: every way in which a checkout ends, and what each stop of its course means."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import takewhile
from typing import Protocol, TypeVar

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import RPCTimeoutOrCancelledError, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from domain import policies
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id
from domain.sweep import SweepReport
from sagafence import DatabaseRefusedStatement
from tests.conftest import Shop
from tests.faults.harness import DEADLINE_SECONDS, TASK, Harness, Stop
from tests.workflow.sagas import hasty, resolve, retry, until
from workflows.checkout import CheckoutWorkflow

REASON = "changed my mind"
OPERATOR = "operator"
_NO_COMMANDS = ("WORKFLOW_TASK_SCHEDULED", "ACTIVITY_TASK_STARTED", "TIMER_FIRED")
"""What can follow directly on what a workflow task's completion wrote."""
_ALWAYS = 1_000
_AT_ONCE = 6


class HasEvents(Protocol):
    events: list[HistoryEvent]


_Case = TypeVar("_Case", bound=HasEvents)


def refused() -> Exception:
    return DatabaseRefusedStatement("Postgres refused: injected", non_retryable=True)


def report_lost() -> Exception:
    return ApplicationError("the report was lost", type="ReportLost", non_retryable=True)


@dataclass(frozen=True)
class Script:
    name: str
    customer: str
    ends: str
    """The order's status without an interruption."""
    cancelled_last_step: str
    """The order's status when a cancel comes while the last forward step is at work."""
    line: tuple[str, int] = ("item-001", 1)
    refused_step: str | None = None
    faults: Sequence[tuple[str, str, Callable[[], Exception], int]] = ()
    """Activity, moment, failure, how often."""
    operator: Callable[[Harness], Awaitable[None]] | None = None
    first: Stop | None = None
    """What comes before it is the same in another script."""
    last: Stop | None = None
    is_cancelled_before: bool = False
    """The order was cancelled before the first instant."""
    stuck_wait: timedelta = timedelta(hours=1)

    def __str__(self) -> str:
        return self.name

    def order(self, shop: Shop) -> CheckoutInput:
        return shop.order(self.customer, self.line)

    def prepare(self, harness: Harness) -> None:
        for name, moment, error, times in self.faults:
            harness.fail(name, moment, error, times)

    async def operate(self, harness: Harness) -> None:
        """Do what a person does in this script; whatever ends the run under his hands ends that, too."""
        if self.operator:
            try:
                await self.operator(harness)
            except (RPCError, RPCTimeoutOrCancelledError, WorkflowUpdateFailedError, asyncio.CancelledError):
                return


async def history_of(harness: Harness) -> list[HistoryEvent]:
    return list((await harness.handle.fetch_history()).events)


def name_of(event: HistoryEvent) -> str:
    return EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")


def is_brought_by_an_update(names: Sequence[str], started: int) -> bool:
    """Whether nothing but an update has brought the workflow task that starts at this place.

    The server writes such a task into the history only when it is completed.
    """
    before, after = names[started - 2], names[started + 2 : started + 3]
    return after == ["WORKFLOW_EXECUTION_UPDATE_ACCEPTED"] and before in {"ACTIVITY_TASK_SCHEDULED", "TIMER_STARTED"}


async def wait_for_the_end(harness: Harness) -> None:
    await asyncio.wait_for(asyncio.gather(harness.handle.result(), return_exceptions=True), DEADLINE_SECONDS)


async def sweep(shop: Shop) -> SweepReport:
    """Sweep the whole database once, and wait until every repair has ended."""
    report = await shop.sweep()
    ends = [shop.client.get_workflow_handle(checkout_workflow_id(order_id)).result() for order_id in report.repaired]
    await asyncio.wait_for(asyncio.gather(*ends, return_exceptions=True), DEADLINE_SECONDS)
    return report


async def waits_for_somebody(harness: Harness) -> None:
    """Wait until the saga is parked and only its timer, or a person, can go on."""

    async def has_a_timer() -> bool:
        return any(name_of(event) == "TIMER_STARTED" for event in await history_of(harness))

    await until(has_a_timer)


async def _resolves(harness: Harness) -> None:
    await waits_for_somebody(harness)
    await harness.come_to(Stop(OPERATOR, 1, "waiting"))
    await resolve(harness.handle, "pay")


async def _retries(harness: Harness) -> None:
    await waits_for_somebody(harness)
    await harness.come_to(Stop(OPERATOR, 1, "waiting"))
    await retry(harness.handle)


async def _cancels(harness: Harness) -> None:
    shipped = harness.hold(Stop("ship_order", 1, "after"))
    await shipped.reached()
    await harness.handle.execute_update(CheckoutWorkflow.cancel, REASON)
    shipped.open()


NOT_REFUNDED = ("refund_payment", "before", refused)
SCRIPTS = (
    Script("completed", "alice", "completed", "completed"),
    Script("completed-with-a-label", "carol", "completed", "cancelled"),
    Script("rejected-at-reserve", "alice", "rejected", "rejected", ("no-such", 1), "reserve_inventory"),
    Script("rejected-at-pay", "bob", "rejected", "rejected", ("item-001", 50), "charge_payment"),
    Script("rejected-at-ship", "nemo", "rejected", "rejected", refused_step="ship_order"),
    Script(
        "irrevocable", "alice", "completed", "completed",
        faults=[("ship_order", "after", report_lost, _ALWAYS)], first=Stop("ship_order", 1, "after"),
    ),
    Script(
        "stuck-and-resolved", "nemo", "rejected", "rejected", refused_step="ship_order",
        faults=[(*NOT_REFUNDED, _ALWAYS)], operator=_resolves, first=Stop(TASK, 6, "scheduled"),
    ),
    Script(
        "stuck-and-retried", "nemo", "rejected", "rejected", refused_step="ship_order",
        faults=[(*NOT_REFUNDED, 1)], operator=_retries, first=Stop(OPERATOR, 1, "waiting"),
    ),
    Script(
        "stuck-and-mended-by-time", "nemo", "rejected", "rejected", refused_step="ship_order",
        faults=[(*NOT_REFUNDED, 1)], stuck_wait=timedelta(seconds=1),
        first=Stop(TASK, 9, "scheduled"), last=Stop(TASK, 9, "started"),
    ),
    Script(
        "cancelled", "carol", "cancelled", "cancelled", operator=_cancels, is_cancelled_before=True,
        first=Stop("cancel_shipment", 1, "scheduled"),
    ),
)  # fmt: skip


def be_patient(monkeypatch: pytest.MonkeyPatch, *, stuck_wait: timedelta = timedelta(hours=1)) -> None:
    """Give attempts that are held all the time a slow machine needs."""
    monkeypatch.setattr(policies, "STUCK_RETRY_FIRST", stuck_wait)
    for name in ("RESERVE", "PAY", "SHIP", "UNDO", "RECORD"):
        monkeypatch.setattr(policies, name, hasty(getattr(policies, name), attempt_ms=120_000, give_up_ms=600_000))


@dataclass(frozen=True)
class Course:
    """What an undisturbed run of a script did: its stops, and the events of its history."""

    script: Script
    trace: Sequence[Stop]
    events: Sequence[HistoryEvent]

    def instants(self) -> list[Stop]:
        """List every instant between two events of the history that an outsider can tell apart."""
        found: list[Stop] = []
        for stop in self.trace:
            if stop.what == TASK or stop.moment == "before":
                found += [stop._replace(moment="scheduled"), stop]
            else:
                found.append(stop)
        first = found.index(self.script.first) if self.script.first else 0
        last = found.index(self.script.last) + 1 if self.script.last else len(found)
        return found[first:last]

    def before(self, instant: Stop) -> list[Stop]:
        if instant.moment == "scheduled":
            later = next(stop for stop in self.trace if (stop.what, stop.number) == instant[:2])
            return list(self.trace[: self.trace.index(later)])
        return list(self.trace[: self.trace.index(instant)])

    def last_task(self, instant: Stop) -> int:
        begun = [stop.number for stop in self.before(instant) if stop.what == TASK]
        return instant.number if instant.what == TASK else max(begun)

    @property
    def tasks(self) -> int:
        return sum(1 for stop in self.trace if stop.what == TASK)

    def prefix(self, instant: Stop) -> list[str]:
        """Name the events that are in the history at an instant, with nothing buffered."""
        names = [name_of(event) for event in self.events]
        number = self.last_task(instant)
        if instant.what == TASK:
            return names[: self.index_of_task(instant.moment.upper(), number) + 1]
        completed = self.index_of_task("COMPLETED", number)
        return names[: completed + 1] + self.commands(completed)

    def index_of_task(self, state: str, number: int) -> int:
        wanted = f"WORKFLOW_TASK_{state}"
        return [n for n, event in enumerate(self.events) if name_of(event) == wanted][number - 1]

    def commands(self, completed: int) -> list[str]:
        later = (name_of(event) for event in self.events[completed + 1 :])
        return list(takewhile(lambda name: name not in _NO_COMMANDS, later))


async def run_all(cases: Sequence[_Case], run: Callable[[_Case], Awaitable[None]]) -> None:
    """Run every case, a few at once, and name each that fails; no two may be the same."""
    turn = asyncio.Semaphore(_AT_ONCE)
    assert len({str(case) for case in cases}) == len(cases) > 0

    async def problem_of(case: _Case) -> str:
        async with turn:
            try:
                await run(case)
            except Exception as problem:  # noqa: BLE001 - collected, so that every failing case is named
                return f"{case}: {type(problem).__name__}: {problem}\n    {[*map(name_of, case.events)]}"
        return ""

    problems = await asyncio.gather(*(problem_of(case) for case in cases))
    assert not any(problems), "\n".join(filter(None, problems))


@asynccontextmanager
async def playing(harness: Harness, script: Script) -> AsyncIterator[None]:
    """Start the saga and its operator; after the block, wait until both have come to their end."""
    script.prepare(harness)
    await harness.shop.start(harness.order)
    operator = asyncio.create_task(script.operate(harness))
    yield
    await wait_for_the_end(harness)
    await asyncio.wait_for(operator, DEADLINE_SECONDS)


async def perform(shop: Shop, script: Script) -> tuple[Harness, Course]:
    async with Harness(shop, script.order(shop)) as harness:
        await harness.employ()
        async with playing(harness, script):
            pass
        return harness, Course(script, tuple(harness.trace), await history_of(harness))
