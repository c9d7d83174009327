"""The sweep: it starts every lost saga again, of whatever kind, and touches no other."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleSpec,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from devstack.stack import ROOT, DevStack
from sagafence import Purged, PurgeInput, Sweep, SweepInput, SweepReport, sweep_activities
from sagafence.database import transaction
from sagafence.lost import LostSagas, Runs, SagaRows
from sagafence.registry import Opening, end, enter
from sagafence.sweep import IdleInput, IdleSaga
from tests.faults.lab.proxy import Proxy
from tests.sagafence.bare import Bare
from tests.sagafence.moves import Move, Stay


class Work:
    """The activities of a saga with one step."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @activity.defn(name="do")
    async def do(self, given: dict[str, Any]) -> None:
        info = activity.info()
        assert info.workflow_id
        assert info.workflow_type
        namespace = activity.client().namespace
        opening = Opening(info.workflow_id, info.workflow_type, info.task_queue, given, namespace=namespace)
        async with transaction(self._engine) as connection:
            await enter(connection, opening)

    @activity.defn(name="end")
    async def end(self, outcome: str) -> None:
        workflow_id = activity.info().workflow_id
        assert workflow_id
        async with transaction(self._engine) as connection:
            await end(connection, workflow_id, outcome)


@dataclass
class Ground:
    """A database, a Temporal, a worker with two kinds of sagas and the sweep."""

    bare: Bare
    client: Client
    queue: str
    seen: set[str]
    address: str

    def opening(self, first: str = "runs", kind: str = "Move", **more: Any) -> Opening:
        name = f"{first}-{uuid.uuid4().hex[:8]}"
        return replace(Opening(name, kind, self.queue, {"first": first}), **more)

    async def started(self, first: str = "runs", kind: str = "Move") -> WorkflowHandle[Any, Any]:
        """Start a saga, and return when its step has written the row."""
        saga = self.opening(first, kind)
        handle = await self.client.start_workflow(kind, saga.input, id=saga.saga_id, task_queue=self.queue)
        async with asyncio.timeout(30):
            while saga.saga_id not in self.seen:
                await asyncio.sleep(0.01)
        return handle

    async def timing_out(self, kind: str) -> WorkflowHandle[Any, Any]:
        """Start a saga whose row is there, and whose run nobody works on until its time is over."""
        await self.bare.open(saga := self.opening("runs", kind))
        self.seen.add(saga.saga_id)
        nowhere, soon = "nobody-works-here", timedelta(seconds=1)
        return await self.client.start_workflow(
            kind, saga.input, id=saga.saga_id, task_queue=nowhere, execution_timeout=soon
        )

    async def sweep(self, **more: Any) -> SweepReport:
        return await self.client.execute_workflow(
            Sweep.run, SweepInput(idle_seconds=0, **more), id=f"sweep-{uuid.uuid4()}", task_queue=self.queue
        )

    async def is_known(self, workflow_id: str) -> bool:
        """Whether Temporal knows of any run."""
        try:
            await self.client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return False
        return True

    def newest(self, workflow_id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(workflow_id)

    def lost(self, **parts: Any) -> LostSagas:
        return LostSagas(parts.get("rows") or SagaRows(self.bare.engine), parts.get("runs") or Runs(self.client))

    async def idle(self) -> list[IdleSaga]:
        return (await self.lost().find_idle(IdleInput(100, 0))).sagas


@pytest.fixture
async def ground(stack: DevStack, bare: Bare) -> AsyncIterator[Ground]:
    async with working(stack, bare) as made:
        yield made


@asynccontextmanager
async def working(stack: DevStack, bare: Bare) -> AsyncIterator[Ground]:
    client, seen = await Client.connect(stack.temporal.address), set[str]()

    @activity.defn(name="was_here")
    async def was_here() -> bool:
        workflow_id = activity.info().workflow_id
        assert workflow_id
        if workflow_id in seen:
            return True
        seen.add(workflow_id)
        return False

    made = Ground(bare, client, f"sweep-{uuid.uuid4().hex[:8]}", seen, stack.temporal.address)
    work = Work(bare.engine)
    async with Worker(
        client,
        task_queue=made.queue,
        workflows=[Move, Stay, Sweep],  # in the sandbox as it is by default
        activities=[work.do, work.end, was_here, *sweep_activities(bare.engine, client)],
    ):
        yield made


async def stop(handle: WorkflowHandle[Any, Any], how: str) -> None:
    """Have a run end before its saga has."""
    if how == "terminated":
        await handle.terminate()
    elif how == "cancelled":
        await handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await handle.result()


@pytest.mark.parametrize("how", ["terminated", "cancelled", "timed out", "failed"])
async def test_a_saga_whose_run_closed_before_its_end_is_started_again_and_ends(ground: Ground, how: str) -> None:
    if how == "timed out":
        lost = await ground.timing_out("Stay")
    else:
        lost = await ground.started("fails" if how == "failed" else "runs", "Stay")
    await stop(lost, how)

    report = await ground.sweep()

    assert (report.idle, report.alive, report.started) == (1, 0, [lost.id])
    again = ground.newest(lost.id)
    assert await again.result() == "moved"
    described = await again.describe()
    assert (described.workflow_type, described.task_queue) == ("Stay", ground.queue)
    assert described.run_id != lost.first_execution_run_id
    assert await ground.bare.states() == {lost.id: "ended"}


async def test_a_saga_that_completed_without_its_end_is_started_again(ground: Ground) -> None:
    lost = await ground.started("completes")
    assert await lost.result() == "without its end"

    assert (await ground.sweep()).started == [lost.id]
    assert await ground.newest(lost.id).result() == "moved"


async def test_a_saga_that_temporal_has_never_heard_of_is_started_with_its_input(ground: Ground) -> None:
    gone = replace(ground.opening("nothing"), input={"first": "nothing", "more": ["é", None, 1.5, {"x": []}]})
    await ground.bare.open(gone)

    assert (await ground.sweep()).started == [gone.saga_id]

    again = ground.newest(gone.saga_id)
    assert await again.result() == "moved"
    async for event in again.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            given = event.workflow_execution_started_event_attributes.input.payloads
            assert await ground.client.data_converter.decode(given) == [gone.input]


async def test_an_unwinding_saga_is_started_again_too_and_one_under_another_workflow_id(ground: Ground) -> None:
    gone = ground.opening("nothing", workflow_id="under-another-" + uuid.uuid4().hex)
    await ground.bare.open(gone)
    await ground.bare.run("UPDATE sagas SET state = 'unwinding'")

    assert (await ground.sweep()).started == [gone.saga_id]
    assert (await ground.newest(gone.workflow_id).describe()).workflow_type == "Move"


async def test_what_runs_what_has_ended_and_what_moved_a_moment_ago_is_left_alone(ground: Ground) -> None:
    runs, moves = await ground.started("runs"), ground.opening("nothing")
    ends = await ground.started("nothing")
    assert await ends.result() == "moved"

    report = await ground.sweep()
    await ground.bare.open(moves)
    later = await ground.client.execute_workflow(
        Sweep.run, SweepInput(idle_seconds=3600), id=f"sweep-{uuid.uuid4()}", task_queue=ground.queue
    )

    assert (report.idle, report.alive, report.started_count) == (1, 1, 0)
    assert (await runs.describe()).run_id == runs.first_execution_run_id
    assert (await ends.describe()).run_id == ends.first_execution_run_id
    assert later == SweepReport()
    await runs.terminate()


async def test_a_saga_of_another_namespace_is_left_alone(ground: Ground) -> None:
    """It runs there, and here it would be started beside itself."""
    for namespace in ("elsewhere", "default", ""):
        await ground.bare.open(ground.opening(namespace or "any", namespace=namespace))

    report = await ground.sweep()

    assert report.idle == report.started_count == 2
    assert [name for name in report.started if name.startswith("elsewhere")] == []


async def test_sweeps_beside_each_other_start_each_saga_once(ground: Ground) -> None:
    sagas = [ground.opening("runs") for _ in range(10)]
    for saga in sagas:
        await ground.bare.open(saga)

    reports = await asyncio.gather(*(ground.sweep() for _ in range(4)))

    started = [name for report in reports for name in report.started]
    assert sorted(started) == sorted(saga.saga_id for saga in sagas)
    for saga in sagas:
        await ground.newest(saga.saga_id).terminate()


async def test_a_start_that_another_was_faster_with_is_joined(ground: Ground) -> None:
    await ground.bare.open(gone := ground.opening("runs", task_queue="nobody-works-here"))
    idle = await ground.idle()

    first = await ground.lost().start_lost(idle)
    second = await ground.lost().start_lost(idle)

    assert (first.started, second.started, second.joined, second.failed) == ([gone.saga_id], [], 1, [])
    await ground.newest(gone.saga_id).terminate()


async def ends_meanwhile(bare: Bare, saga: Opening) -> None:
    async with transaction(bare.engine) as connection:
        await end(connection, saga, "completed")


async def ends_by_hand(bare: Bare, _saga: Opening) -> None:
    await bare.run("UPDATE sagas SET state = 'ended', outcome = 'by hand', ended_at = now()")


async def moves_meanwhile(bare: Bare, saga: Opening) -> None:
    await bare.open(saga)


@pytest.mark.parametrize("what", [ends_meanwhile, ends_by_hand, moves_meanwhile])
async def test_a_saga_that_ends_or_moves_while_temporal_is_asked_is_not_started(
    ground: Ground, what: Callable[[Bare, Opening], Awaitable[None]]
) -> None:
    await ground.bare.open(saga := ground.opening("nothing"))
    lost = await ground.lost().find_lost(await ground.idle())

    await what(ground.bare, saga)
    came_of = await ground.lost().start_lost(lost)

    assert (len(lost), came_of.started, came_of.moved) == (1, [], 1)
    assert not await ground.is_known(saga.saga_id)


async def test_a_run_that_comes_after_the_end_of_its_saga_changes_nothing(ground: Ground) -> None:
    done = await ground.started("nothing")
    await done.result()
    before = await ground.bare.rows("SELECT * FROM sagas")

    late = await ground.client.start_workflow("Move", {"first": "nothing"}, id=done.id, task_queue=ground.queue)
    await late.result()

    assert await ground.bare.rows("SELECT * FROM sagas") == before
    assert await ground.sweep() == SweepReport()


async def test_nothing_is_concluded_from_a_temporal_that_is_away(ground: Ground) -> None:
    await ground.bare.open(gone := ground.opening("nothing"))
    idle = await ground.idle()

    with Proxy(int(ground.address.rpartition(":")[2])) as link:
        beyond = Runs(await Client.connect(f"127.0.0.1:{link.port}"))
        link.refuse()
        link.reset()
        for ask in (ground.lost(runs=beyond).find_lost, ground.lost(runs=beyond).start_lost):
            with pytest.raises(RPCError) as away:
                await ask(idle)
            # What the client says of a link that is cut depends on how far the call had come.
            assert away.value.status in {RPCStatusCode.UNAVAILABLE, RPCStatusCode.UNKNOWN, RPCStatusCode.CANCELLED}

    assert not await ground.is_known(gone.saga_id)


async def test_nothing_is_started_in_a_namespace_that_is_not_there(ground: Ground) -> None:
    await ground.bare.open(ground.opening("nothing"))
    nowhere = Runs(await Client.connect(ground.address, namespace="nowhere"))

    with pytest.raises(RPCError, match="nowhere"):
        await ground.lost(runs=nowhere).start_lost(await ground.idle())


async def test_a_row_that_temporal_refuses_is_named_and_does_not_stop_the_others(ground: Ground) -> None:
    poison = ground.opening("poison", task_queue="x" * 2000)
    others = [ground.opening("nothing") for _ in range(3)]
    await ground.bare.open(others[0])
    await ground.bare.open(poison)
    for saga in others[1:]:
        await ground.bare.open(saga)

    report = await ground.sweep(page=2)

    assert sorted(report.started) == sorted(saga.saga_id for saga in others)
    assert report.failed_count == 1
    assert report.failed[0].startswith(f"{poison.saga_id}: INVALID_ARGUMENT: ")


async def test_more_sagas_than_one_run_of_the_sweep_takes_are_all_started(ground: Ground) -> None:
    sagas = [ground.opening("nothing") for _ in range(23)]
    for saga in sagas:
        await ground.bare.open(saga)

    report = await ground.sweep(page=1, purge=PurgeInput(0))

    assert (report.idle, report.started_count) == (23, 23)
    assert sorted(report.started) == sorted(saga.saga_id for saga in sagas)
    assert report.purged is not None


async def test_a_schedule_sweeps_and_purges(ground: Ground) -> None:
    await ground.bare.open(gone := ground.opening("nothing"))
    name = f"schedule-{uuid.uuid4().hex[:8]}"
    action = ScheduleActionStartWorkflow(
        "sagafence.Sweep", SweepInput(idle_seconds=0, purge=PurgeInput(0)), id=name, task_queue=ground.queue
    )
    schedule = await ground.client.create_schedule(name, Schedule(action, ScheduleSpec()))
    purged = []  # by the first sweep already, where the saga ends before it purges
    try:
        for count in (1, 2):
            await schedule.trigger()
            async with asyncio.timeout(60):
                while len((await schedule.describe()).info.recent_actions) < count:
                    await asyncio.sleep(0.05)
            ran = (await schedule.describe()).info.recent_actions[-1].action
            handle = ground.client.get_workflow_handle(ran.workflow_id, result_type=SweepReport)  # type: ignore[attr-defined]
            report = await handle.result()
            purged.append(report.purged)
            if count == 1:
                assert report.started == [gone.saga_id]
                assert await ground.newest(gone.saga_id).result() == "moved"
    finally:
        await schedule.delete()

    assert sorted(purged, key=lambda by: by.sagas) == [Purged(), Purged(sagas=1)]
    assert await ground.bare.rows("SELECT state, input FROM sagas") == [("ended", None)]


def test_the_workflow_needs_no_database_driver() -> None:
    loaded = "import sagafence.sweep, sys; print({'sqlalchemy', 'asyncpg'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
