"""The eight faults. Each strikes all sagas and batches where they stand, sees that it has struck, and lets go.

What a strike returns is, for each operation, what proves that the fault had its effect.
"""

import asyncio
import signal
import uuid
from collections.abc import Awaitable, Callable, Iterable

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.service import RPCError, RPCStatusCode

from devstack.process import ChildProcess
from domain.maintenance import SweepInput, SweepReport
from tests.faults.lab.batch_cells import (
    BatchOperation,
    goes_on_to_its_end,
    is_heard_at_once,
    sweeps_that_repair_order,
)
from tests.faults.lab.cells import (
    UNDOS,
    Boundary,
    Fault,
    Operation,
    is_cancelled_by_temporal,
    is_finished_by_its_task,
    sweeps_that_repair,
)
from tests.faults.lab.crew import is_stopped, until_stopped
from tests.faults.lab.scene import Scene
from tests.faults.lab.struck import Load, Saga, Struck, history
from tests.faults.lab.wire import Session
from workflows.maintenance import SweepWorkflow

Proofs = dict[str, str]
Strike = Callable[[Scene, ChildProcess], Awaitable[Proofs]]

_PATIENCE_SECONDS = 60.0
_CHARGES = frozenset({Operation.CHARGE.value, BatchOperation.CHARGE.value})
_HELD_BY_PROXY = frozenset({Boundary.B2, Boundary.B3})


async def kill_worker(scene: Scene, victim: ChildProcess) -> Proofs:
    """SIGKILL; another worker is started."""
    victim.kill()
    assert victim.returncode == -signal.SIGKILL
    scene.let_go()
    scene.crew.hire()
    return _same(scene, f"worker {victim.pid} was killed")


async def stop_worker(scene: Scene, victim: ChildProcess) -> Proofs:
    """SIGSTOP until another worker has brought everything to its end, then SIGCONT: a zombie with old tasks."""
    victim.signal(signal.SIGSTOP)
    await until_stopped(victim)
    heir = scene.crew.hire()
    await scene.ended()
    assert is_stopped(victim), "somebody woke the worker up"
    takers = {
        struck.operation: [r for r in scene.desk.reports if r.subject == struck.subject and r.worker_pid == heir.pid]
        for struck in scene.struck
    }
    assert all(takers.values()), f"not taken over: {[o for o, reports in takers.items() if not reports]}"

    victim.signal(signal.SIGCONT)
    scene.let_go()
    await scene.answered()
    return _same(scene, f"worker {heir.pid} ended what worker {victim.pid} had begun, before that went on")


async def terminate_backends(scene: Scene, _victim: ChildProcess) -> Proofs:
    """End the server processes that work for the operations, or wait to."""
    sessions = _sessions(scene)
    pids = [session.backend_pid for session in sessions]
    ended = await scene.database.value(
        "SELECT count(*) FROM unnest($1::int[]) AS pid WHERE pg_terminate_backend(pid)", pids
    )
    assert ended == len(pids) > 0
    await _until_gone(scene, sessions)
    scene.let_go()
    return _own(scene, sessions, "backend {} was terminated")


async def restart_postgres(scene: Scene, _victim: ChildProcess) -> Proofs:
    """Stop Postgres as a crash does, and start it again."""
    sessions, before = scene.proxy.alive, scene.stack.postgres.pid
    scene.stack.postgres.stop(immediate=True)
    assert not scene.stack.postgres.running
    scene.stack.postgres.start()
    assert scene.stack.postgres.pid != before
    await _until_gone(scene, sessions)
    scene.let_go()
    return _own(scene, sessions, "backend {} went down with the server")


async def cut_connections(scene: Scene, _victim: ChildProcess) -> Proofs:
    """Reset the operations' connections on both sides."""
    sessions = _sessions(scene)
    cut = scene.proxy.cut(sessions)
    assert cut == sessions
    assert all(session.was_reset for session in sessions)
    await _until_gone(scene, sessions)
    scene.let_go()
    return _own(scene, sessions, "the connection to backend {} was reset")


async def kill_temporal(scene: Scene, _victim: ChildProcess) -> Proofs:
    """SIGKILL Temporal; the operations go on without it, and it comes back on what it had written."""
    before = scene.stack.temporal.pid
    scene.stack.temporal.kill()
    assert not scene.stack.temporal.running
    scene.let_go()
    await scene.answered()
    scene.stack.temporal.start()
    assert scene.stack.temporal.pid != before
    return _same(scene, f"Temporal, process {before}, was killed")


async def cancel(scene: Scene, _victim: ChildProcess) -> Proofs:
    """Cancel everything, through Temporal or by a saga's update."""
    by_update = [saga for saga in scene.sagas if not is_cancelled_by_temporal(saga.cell)]
    by_temporal: list[Struck] = [saga for saga in scene.sagas if saga not in by_update]
    by_temporal += scene.loads
    for struck in by_temporal:
        await struck.handle.cancel(reason="struck")
    updates = {saga.operation: asyncio.create_task(_cancel_by_update(saga)) for saga in by_update}
    if scene.group.boundary is not Boundary.B5:
        await asyncio.gather(*updates.values())
    for load in scene.loads:
        if load.cell.operation is not BatchOperation.UNWIND and is_heard_at_once(load.cell):
            await _heard_of_cancel(load)
    scene.let_go()
    proofs = {operation: await update for operation, update in updates.items()}
    await asyncio.gather(*(load.newest.result() for load in scene.loads))
    for struck in by_temporal:
        await _require_event(struck, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
        proofs[struck.operation] = "the cancel is in the history"
    return proofs


async def terminate(scene: Scene, _victim: ChildProcess) -> Proofs:
    """Terminate everything, and sweep: before the last attempts go on, and after."""
    for struck in scene.struck:
        await struck.handle.terminate(reason="struck")
        assert (await struck.handle.describe()).status is WorkflowExecutionStatus.TERMINATED
        await _require_event(struck, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED)

    first = await _sweep(scene)
    if scene.group.boundary is not Boundary.B2:
        await scene.ended()  # at B2 the repairs wait for what the held transactions have locked
    next_steps = [
        scene.desk.stop(struck.subject, _ship(struck), Boundary.B1)
        for struck in scene.struck
        if scene.group.is_fast and scene.group.boundary is Boundary.B2 and struck.operation in _CHARGES
    ]
    scene.let_go()
    await scene.answered()
    await asyncio.gather(*(_finished(scene, struck) for struck in scene.struck if _is_finished_by_its_task(struck)))
    await scene.ended()
    for stop in next_steps:  # it would race with the repair
        await stop.reached()
        stop.open()
    second = await _sweep(scene)
    await scene.ended()
    last = await _sweep(scene)

    proofs: Proofs = {}
    for struck in scene.struck:
        repaired_by = {
            order_id: [n for n, report in enumerate((first, second, last), start=1) if order_id in report.repaired]
            for order_id in struck.order_ids
        }
        if repaired_by == _sweeps_that_repair(struck):
            proofs[struck.operation] = f"the history ends with a termination; repaired by sweeps {repaired_by}"
    return proofs


STRIKES: dict[Fault, Strike] = {
    Fault.WORKER_KILLED: kill_worker,
    Fault.WORKER_STOPPED: stop_worker,
    Fault.BACKEND_TERMINATED: terminate_backends,
    Fault.POSTGRES_RESTARTED: restart_postgres,
    Fault.CONNECTION_CUT: cut_connections,
    Fault.TEMPORAL_KILLED: kill_temporal,
    Fault.CANCELLED: cancel,
    Fault.TERMINATED: terminate,
}


def _same(scene: Scene, proof: str) -> Proofs:
    return {struck.operation: proof for struck in scene.struck}


def _own(scene: Scene, sessions: Iterable[Session], proof: str) -> Proofs:
    """Name each operation's own backend, where it had one; before its SQL is sent it might get any of them."""
    struck = {session.backend_pid for session in sessions}
    proofs: Proofs = {}
    for each in scene.struck:
        own = each.stood.backend_pid
        if scene.group.boundary is Boundary.B1:
            proofs[each.operation] = proof.format(", ".join(map(str, struck)))
        elif own in struck:
            proofs[each.operation] = proof.format(own)
    return proofs


def _sessions(scene: Scene) -> list[Session]:
    """Give the connections of the transactions that are held up, or else all that the worker has."""
    if scene.group.boundary not in _HELD_BY_PROXY:
        return scene.proxy.alive
    own = {struck.stood.backend_pid for struck in scene.struck}
    return [session for session in scene.proxy.alive if session.backend_pid in own]


async def _until_gone(scene: Scene, sessions: Iterable[Session]) -> None:
    """Wait until both ends of the connections and the server processes behind them are gone."""
    sessions = list(sessions)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        for session in sessions:
            await session.closed()
        pids = [session.backend_pid for session in sessions]
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'checkout' AND pid = ANY ($1::int[])"
        while await scene.database.value(query, pids):
            await asyncio.sleep(0.02)


async def _cancel_by_update(saga: Saga) -> str:
    """Ask for the order's cancel. Once it is being undone the answer is a refusal with a reason."""
    refusal = None
    try:
        await saga.handle.execute_update("cancel", "struck")
    except WorkflowUpdateFailedError as refused:
        refusal = str(refused.cause)
    except RPCError as closed:
        refusal = "already closed" if closed.status is RPCStatusCode.NOT_FOUND else str(closed)
    if saga.cell.operation in UNDOS:
        assert refusal is not None, "an order that is being undone took a cancel"
        assert "already" in refusal
        return f"refused: {refusal}"
    assert refusal is None, refusal
    await _require_event(saga, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED)
    return "the update is in the history"


async def _heard_of_cancel(load: Load) -> None:
    """Wait until the server has given the cancel to the workflow task that runs the attempt."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            events = [event.event_type for event in await history(load.handle)]
            if EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED in events:
                return
            await asyncio.sleep(0.05)


async def _require_event(struck: Struck, kind: "EventType.ValueType") -> None:
    found = [event for event in await history(struck.handle) if event.event_type == kind]
    assert found, f"no {EventType.Name(kind)} in the history of {struck.name}"


def _ship(struck: Struck) -> str:
    return BatchOperation.SHIP if isinstance(struck, Load) else Operation.SHIP


def _is_finished_by_its_task(struck: Saga | Load) -> bool:
    return goes_on_to_its_end(struck.cell) if isinstance(struck, Load) else is_finished_by_its_task(struck.cell)


def _sweeps_that_repair(struck: Saga | Load) -> dict[str, list[int]]:
    if isinstance(struck, Load):
        return {order.order_id: sweeps_that_repair_order(struck.cell, fate) for fate, order in struck.orders.items()}
    return {struck.order_id: sweeps_that_repair(struck.cell)}


async def _finished(scene: Scene, struck: Struck) -> None:
    """Wait until the last step has ended, in whichever run."""
    await scene.desk.heard(
        lambda reports: any(
            (report.subject, report.operation, report.boundary) == (struck.subject, _ship(struck), None)
            for report in reports
        )
    )


async def _sweep(scene: Scene) -> SweepReport:
    report: SweepReport = await scene.client.execute_workflow(
        SweepWorkflow.run, SweepInput(0), id=f"sweep-{uuid.uuid4()}", task_queue=scene.crew.task_queue
    )
    return report
