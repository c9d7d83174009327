"""The sweep: a workflow that starts lost sagas again, of whatever kind.

A saga is lost when its row has not ended and its workflow is closed or gone: it was terminated, timed out, failed, was
forgotten by a Temporal that was set up anew, or ended in a database that has been restored since. Started again under
the same id, type and input it goes on from what the fences say: each step returns its stored result, and one that was
undone has the rest undone.

Safe at any time and beside any other sweep: a workflow id has one open run, so a saga that is alive is left alone, and
one that has ended refuses whatever comes late. Meant to be run by a Temporal schedule (docs of Temporal: Schedules).
"""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy

from sagafence.policy import ActivityPolicy

FIND_IDLE = "sagafence.find_idle"
FIND_LOST = "sagafence.find_lost"
START_LOST = "sagafence.start_lost"
PURGE = "sagafence.purge"

_BEGINNING = "0001-01-01T00:00:00+00:00"
_PAGES_PER_RUN = 20
# A report is one value to Temporal, which takes 2 MB.
_LISTED = 100
_LISTED_CHARACTERS = 500

# An outage of either side is waited for; the schedule's next sweep takes over where it lasts.
_LOOK = ActivityPolicy(
    timedelta(seconds=60),
    timedelta(minutes=5),
    RetryPolicy(initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=10)),
)
_PURGE = ActivityPolicy(timedelta(minutes=10), timedelta(minutes=30), _LOOK.retry, heartbeat=timedelta(seconds=60))

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class IdleInput:
    """Where a page of idle sagas begins, and its size."""

    limit: int
    idle_seconds: float
    after_at: str = _BEGINNING
    after_id: str = ""


@dataclass(frozen=True)
class IdleSaga:
    """A saga that has not ended and has been idle for a while; the times are PostgreSQL's."""

    saga_id: str
    workflow_id: str
    started_at: str
    updated_at: str


@dataclass(frozen=True)
class IdlePage:
    """Idle sagas, those that began first, and whether there may be more."""

    sagas: list[IdleSaga]
    is_last: bool


@dataclass(frozen=True)
class Started:
    """What came of the lost sagas of a page."""

    started: list[str]
    joined: int = 0
    """Another one has started them meanwhile."""
    moved: int = 0
    """They moved, or ended, while Temporal was asked: left to the next sweep."""
    failed: list[str] = field(default_factory=list)
    """Temporal refuses to start them, with the reason."""


@dataclass(frozen=True)
class PurgeInput:
    """How long ago a saga must have ended for its rows to be deleted, in seconds. What it means: `purge`."""

    older_than_seconds: float
    tombstones_older_than_seconds: float | None = None
    """And for its own row, the tombstone; None: it is kept for ever."""
    batch: int = 500
    """How many sagas one transaction takes."""


@dataclass(frozen=True)
class Purged:
    """What retention has deleted."""

    sagas: int = 0
    """Sagas that are only tombstones now."""
    rows: int = 0
    """Their rows in the fence and of external steps."""
    tombstones: int = 0
    """Sagas of which nothing is left."""


@dataclass
class SweepReport:
    """What the sweep did. The lists name the first hundred; the counts count all."""

    idle: int = 0
    """Sagas that have not ended and were idle."""
    alive: int = 0
    """Of those, the ones whose workflow runs; or began to, while the sweep looked."""
    moved: int = 0
    """Of those, the ones that moved or ended while the sweep looked."""
    started_count: int = 0
    started: list[str] = field(default_factory=list)
    failed_count: int = 0
    failed: list[str] = field(default_factory=list)
    """Lost sagas that Temporal refuses to start, with the reason."""
    purged: Purged | None = None

    def add(self, page: IdlePage, lost: int, came_of: Started) -> None:
        """Count a page."""
        self.idle += len(page.sagas)
        self.alive += len(page.sagas) - lost + came_of.joined
        self.moved += came_of.moved
        self.started_count += len(came_of.started)
        self.failed_count += len(came_of.failed)
        _list(self.started, came_of.started)
        _list(self.failed, came_of.failed)


@dataclass(frozen=True)
class SweepInput:
    """How long a saga must have been idle before Temporal is asked about it, and what retention deletes afterwards.

    The rest is what one run of a long sweep passes on to the next.
    """

    idle_seconds: float = 60.0
    purge: PurgeInput | None = None
    page: int = 100
    after_at: str = _BEGINNING
    after_id: str = ""
    so_far: SweepReport = field(default_factory=SweepReport)


@workflow.defn(name="sagafence.Sweep")
class Sweep:
    """Starts every saga again that should be running and is not. Needs `sweep_activities` on the same task queue."""

    @workflow.run
    async def run(self, sweep: SweepInput) -> SweepReport:
        """Sweep once through all sagas that have not ended, those that began first to begin with; purge, if asked."""
        report, place = sweep.so_far, (sweep.after_at, sweep.after_id)
        pages = 0
        while True:
            asked = IdleInput(sweep.page, sweep.idle_seconds, *place)
            page = await _look(FIND_IDLE, asked, IdlePage, "Find idle sagas")
            await self._start_lost(page, report)
            if page.is_last or not page.sagas:
                if sweep.purge is not None:
                    report.purged = await _look(PURGE, sweep.purge, Purged, "Delete what ended long ago", _PURGE)
                return report
            place, pages = (page.sagas[-1].started_at, page.sagas[-1].saga_id), pages + 1
            if pages == _PAGES_PER_RUN:
                # A run's history is bounded. The next goes on from here: no saga starves behind those that began first.
                workflow.continue_as_new(SweepInput(sweep.idle_seconds, sweep.purge, sweep.page, *place, report))

    async def _start_lost(self, page: IdlePage, report: SweepReport) -> None:
        if not page.sagas:
            return
        lost = await _look(FIND_LOST, page.sagas, list[IdleSaga], f"Ask about {len(page.sagas)} sagas")
        came_of = Started([])
        if lost:
            came_of = await _look(START_LOST, lost, Started, f"Start {len(lost)} lost sagas again")
        report.add(page, len(lost), came_of)


async def _look(name: str, given: object, answer: type[Answer], summary: str, policy: ActivityPolicy = _LOOK) -> Answer:
    # By name: the activities' module needs SQLAlchemy, which has no place in a workflow.
    result: Answer = await workflow.execute_activity(
        name,
        given,
        result_type=answer,
        summary=summary,
        **policy.limits(),
    )
    return result


def _list(names: list[str], more: list[str]) -> None:
    names += [name[:_LISTED_CHARACTERS] for name in more[: _LISTED - len(names)]]
