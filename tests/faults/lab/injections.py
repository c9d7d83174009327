"""The eight faults. Each meets all sagas and batches at their boundary, sees that it had its effect, and lets go.

What an injection returns is, for each operation, what proves that the fault had its effect.
"""

import asyncio
import signal
import uuid
from collections.abc import Awaitable, Callable, Iterable

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.service import RPCError, RPCStatusCode

from domain.sweep import SweepInput, SweepReport
from sagafence.devservers.process import ChildProcess
from tests.faults.lab.batch_cells import BatchCell, is_heard_at_once, sweeps_that_find_order
from tests.faults.lab.cells import UNDOS, Boundary, Cell, Fault, is_cancelled_by_temporal, sweeps_that_repair
from tests.faults.lab.proxy import Session
from tests.faults.lab.scene import Scene
from tests.faults.lab.target import AnyTarget, Target, history
from tests.workers import is_stopped, until_stopped
from workflows.maintenance import SweepWorkflow

Proofs = dict[str, str]
Injection = Callable[[Scene, ChildProcess], Awaitable[Proofs]]

_PATIENCE_SECONDS = 60.0
_HELD_BY_PROXY = frozenset({Boundary.B2, Boundary.B3})


async def kill_worker(scene: Scene, victim: ChildProcess) -> Proofs:
    victim.kill()
    assert victim.returncode == -signal.SIGKILL
    scene.let_go()
    scene.start_worker()
    return _same(scene, f"worker {victim.pid} was killed")


async def stop_worker(scene: Scene, victim: ChildProcess) -> Proofs:
    """SIGSTOP until another worker has brought everything to its end, then SIGCONT: a zombie with old tasks."""
    victim.signal(signal.SIGSTOP)
    await until_stopped(victim)
    heir = scene.start_worker()
    await scene.ended()
    assert is_stopped(victim), "the worker was resumed"
    takers = {
        target.operation: [r for r in scene.control.reports if r.subject == target.subject and r.worker_pid == heir.pid]
        for target in scene.targets
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
    sessions, before = scene.proxy.alive, scene.stack.postgres.pid
    scene.stack.postgres.stop(immediate=True)
    assert not scene.stack.postgres.running
    scene.stack.postgres.start()
    assert scene.stack.postgres.pid != before
    await _until_gone(scene, sessions)
    scene.let_go()
    return _own(scene, sessions, "backend {} went down with the server")


async def cut_connections(scene: Scene, _victim: ChildProcess) -> Proofs:
    sessions = _sessions(scene)
    assert scene.proxy.reset(sessions) == len(sessions)
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
    by_update = [saga for saga in scene.sagas if not is_cancelled_by_temporal(saga.cell)]
    by_temporal: list[AnyTarget] = [*(saga for saga in scene.sagas if saga not in by_update), *scene.batches]
    for target in by_temporal:
        await target.handle.cancel(reason="a test")
    updates = {saga.operation: asyncio.create_task(_cancel_by_update(saga)) for saga in by_update}
    if scene.group.boundary is not Boundary.B5:
        await asyncio.gather(*updates.values())
    for batch in scene.batches:
        if is_heard_at_once(batch.cell):
            await _heard_of_cancel(batch)
    scene.let_go()
    proofs = {operation: await update for operation, update in updates.items()}
    await asyncio.gather(*(batch.newest.result() for batch in scene.batches))
    for target in by_temporal:
        await _require_event(target, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
        proofs[target.operation] = "the cancel is in the history"
    return proofs


async def terminate(scene: Scene, _victim: ChildProcess) -> Proofs:
    """Terminate everything, and sweep: before the last attempts go on, and after.

    Batches are loaded again before they go on: the late attempt finds what that has done, or the other way
    round.
    """
    for target in scene.targets:
        await target.handle.terminate(reason="a test")
        assert (await target.handle.describe()).status is WorkflowExecutionStatus.TERMINATED
        await _require_event(target, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED)

    first = await _sweep(scene)
    if scene.group.boundary is not Boundary.B2:
        await scene.ended()  # at B2 the repairs wait for what the held transactions have locked
    await scene.load_meanwhile()
    scene.let_go()
    await scene.answered()
    await scene.ended()
    second = await _sweep(scene)
    await scene.ended()
    last = await _sweep(scene)

    proofs: Proofs = {}
    for target in scene.targets:
        found_by = {
            order_id: [
                number
                for number, report in enumerate((first, second, last), start=1)
                if order_id in {*report.repaired, *report.started}
            ]
            for order_id in target.order_ids
        }
        if found_by == _sweeps_that_find(target):
            proofs[target.operation] = f"the history ends with a termination; found by sweeps {found_by}"
    return proofs


INJECT: dict[Fault, Injection] = {
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
    return {target.operation: proof for target in scene.targets}


def _own(scene: Scene, sessions: Iterable[Session], proof: str) -> Proofs:
    """Name each operation's own backend, where it had one; before its SQL is sent it might get any of them."""
    ended = {session.backend_pid for session in sessions}
    proofs: Proofs = {}
    for each in scene.targets:
        own = each.before.backend_pid
        if scene.group.boundary is Boundary.B1:
            proofs[each.operation] = proof.format(", ".join(map(str, ended)))
        elif own in ended:
            proofs[each.operation] = proof.format(own)
    return proofs


def _sessions(scene: Scene) -> list[Session]:
    """Give the connections of the transactions that are held up, or else all that the worker has."""
    if scene.group.boundary not in _HELD_BY_PROXY:
        return scene.proxy.alive
    own = {target.before.backend_pid for target in scene.targets}
    return [session for session in scene.proxy.alive if session.backend_pid in own]


async def _until_gone(scene: Scene, sessions: list[Session]) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        pids = [session.backend_pid for session in sessions]
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'checkout' AND pid = ANY ($1::int[])"
        while not all(session.is_closed for session in sessions) or await scene.database.value(query, pids):
            await asyncio.sleep(0.02)


async def _cancel_by_update(saga: Target[Cell]) -> str:
    """Ask for the order's cancel. Once it is being undone the answer is a refusal with a reason."""
    refusal = None
    try:
        await saga.handle.execute_update("cancel", "a test")
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


async def _heard_of_cancel(batch: Target[BatchCell]) -> None:
    """Wait until the server has given the cancel to the workflow task that runs the attempt."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            events = [event.event_type for event in await history(batch.handle)]
            if EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED in events:
                return
            await asyncio.sleep(0.05)


async def _require_event(target: AnyTarget, kind: "EventType.ValueType") -> None:
    found = [event for event in await history(target.handle) if event.event_type == kind]
    assert found, f"no {EventType.Name(kind)} in the history of {target.name}"


def _sweeps_that_find(target: AnyTarget) -> dict[str, list[int]]:
    cell = target.cell
    if isinstance(cell, BatchCell):
        sweeps = [sweeps_that_find_order(fate) for fate in cell.fates]
    else:
        sweeps = [sweeps_that_repair(cell)]
    return dict(zip(target.order_ids, sweeps, strict=True))


async def _sweep(scene: Scene) -> SweepReport:
    report: SweepReport = await scene.client.execute_workflow(
        SweepWorkflow.run, SweepInput(0), id=f"sweep-{uuid.uuid4()}", task_queue=scene.task_queue
    )
    return report
