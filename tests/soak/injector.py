"""Injects the planned faults, and records what each of them was seen to do.

A fault that left no evidence was not observed, and does not count.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import psutil
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from domain.policies import CHECKOUT_TASK_QUEUE
from sagafence.devservers.process import ChildProcess
from tests.faults.lab.proxy import Counts, Proxy
from tests.soak.catalogue import PLENTY, POPULAR
from tests.soak.environment import Environment
from tests.soak.harness import AWAY, Harness, SoakFailed
from tests.soak.plan import Plan, PlannedFault

_EVIDENCE_SECONDS = 60.0
_READY_SECONDS = 60.0
_DRAIN_SECONDS = 90.0
_API_ENDS_SECONDS = 15.0
_TRIES = 3
"""How often the environment is changed until a worker notices."""
_AHEAD = 40
"""How many orders may be started while a fault that is due waits for its target."""


@dataclass
class Injected:
    fault: PlannedFault
    at: float
    evidence: str | None = None
    batches: int = 0
    """How many batches were under way at some time while it lasted."""


class FaultInjector:
    """Carries out a plan's faults, each when its order is reached. Faults overlap, but not on one target."""

    def __init__(self, harness: Harness, plan: Plan, client: Client) -> None:
        self._harness = harness
        self._faults = plan.faults()
        self._client = client
        self._begun_at = time.monotonic()
        self.injected: list[Injected] = []
        self._targets: dict[str, asyncio.Lock] = {}
        self._away: set[str] = set()
        self._reached = -1
        self._waiting = {fault.number: fault.at for fault in self._faults}
        self._moved = asyncio.Condition()
        self._batches_begun = self._batches_ended = 0
        # A worker does not start on a database that is not as it needs it: it starts before that, or after.
        self._is_as_needed = asyncio.Lock()
        self._environment = Environment(harness)
        self._acts: dict[str, Callable[[PlannedFault], Awaitable[str | None]]] = {
            "worker-kill": self._kill_worker,
            "worker-pause": self._pause_worker,
            "worker-term": self._drain_worker,
            "postgres-restart": self._restart_postgres,
            "sessions-kill": self._kill_sessions,
            "temporal-kill": self._kill_temporal,
            "row-lock": self._lock_row,
            "api-kill": self._kill_api,
            "api-term": self._stop_api,
            **dict.fromkeys(self._environment.acts, self._change_environment),
        }

    async def reach(self, number: int) -> None:
        """Note that this order is about to be started; wait where the faults lag too far behind."""
        async with self._moved:
            self._reached = max(self._reached, number)
            self._moved.notify_all()
            await self._moved.wait_for(lambda: not self._waiting or min(self._waiting.values()) > number - _AHEAD)

    def batch_begins(self) -> None:
        self._batches_begun += 1

    def batch_ends(self) -> None:
        self._batches_ended += 1

    async def run(self) -> None:
        async with asyncio.TaskGroup() as injecting:
            for fault in self._faults:
                async with self._moved:
                    await self._moved.wait_for(lambda fault=fault: self._reached >= fault.at)  # type: ignore[misc]
                injecting.create_task(self._inject(fault))

    async def until_ready(self) -> None:
        await asyncio.gather(*(self._until_polling(worker) for worker in self._harness.workers))

    async def watch_processes(self) -> None:
        while True:
            children = {f"worker {number}": worker for number, worker in enumerate(self._harness.workers)}
            for target, child in {**children, "api": self._harness.api}.items():
                if not self._target(target).locked() and not child.running:
                    raise SoakFailed(f"{child.name} ended by itself with {child.returncode}:\n{child.tail()}")
            await asyncio.sleep(1)

    @property
    def has_downtime(self) -> bool:
        """Whether no order can move: a server is away, or every worker is."""
        workers = {name for name in self._away if name.startswith("worker")}
        return bool(self._away - workers) or (bool(workers) and len(workers) == len(self._harness.workers))

    async def _inject(self, fault: PlannedFault) -> None:
        record = Injected(fault, 0.0)
        kind, _, way = fault.kind.partition("-link-")
        if way:
            async with self._begin(f"{kind} link", record):
                record.evidence = await self._strain(self._harness.links[kind], way, fault)
            return
        part, _, _ = fault.kind.partition("-")
        target = f"worker {fault.target % len(self._harness.workers)}" if part == "worker" else part
        async with self._begin(target, record):
            record.evidence = await self._acts[fault.kind](fault)

    @asynccontextmanager
    async def _begin(self, target: str, record: Injected) -> Any:
        async with self._target(target):
            record.at = time.monotonic() - self._begun_at
            self.injected.append(record)
            async with self._moved:
                del self._waiting[record.fault.number]
                self._moved.notify_all()
            before = self._batches_ended
            yield
            record.batches = self._batches_begun - before

    def _target(self, name: str) -> asyncio.Lock:
        return self._targets.setdefault(name, asyncio.Lock())

    async def _kill_worker(self, fault: PlannedFault) -> str | None:
        worker, name = await self._running_worker(fault)
        self._away.add(name)
        await self._harness.by_hand(worker.kill)
        status = worker.returncode
        await asyncio.sleep(fault.seconds)
        await self._start_again(worker)
        self._away.discard(name)
        return f"ended with {status}" if status == -SIGKILL else None

    async def _pause_worker(self, fault: PlannedFault) -> str | None:
        worker, name = await self._running_worker(fault)
        process = psutil.Process(worker.pid)
        self._away.add(name)
        worker.signal(SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
            was_stopped = process.status() == psutil.STATUS_STOPPED
        finally:
            worker.signal(SIGCONT)
            self._away.discard(name)
        return f"stopped for {fault.seconds} s" if was_stopped else None

    async def _drain_worker(self, fault: PlannedFault) -> str | None:
        worker, name = await self._running_worker(fault)
        status = await self._stop(worker, _DRAIN_SECONDS)
        self._away.add(name)
        await asyncio.sleep(fault.seconds)
        await self._start_again(worker)
        self._away.discard(name)
        return f"drained with {status}"

    async def _kill_api(self, fault: PlannedFault) -> str | None:
        api = self._harness.api
        await self._harness.by_hand(api.kill)
        status = api.returncode
        await asyncio.sleep(fault.seconds)
        await self._harness.by_hand(api.start)
        return f"ended with {status}" if status == -SIGKILL else None

    async def _stop_api(self, fault: PlannedFault) -> str | None:
        api = self._harness.api
        status = await self._stop(api, _API_ENDS_SECONDS)
        await asyncio.sleep(fault.seconds)
        await self._harness.by_hand(api.start)
        return f"ended with {status}"

    async def _stop(self, child: ChildProcess, within_seconds: float) -> int:
        """Have a process end by itself, and return its status."""
        child.signal(SIGTERM)
        try:
            status = await self._harness.by_hand(child.wait, within_seconds)
        except TimeoutError:
            raise SoakFailed(f"{child.name} did not end in {within_seconds:g} s:\n{child.tail()}") from None
        if status not in {0, -SIGTERM}:  # the signal, where it comes before the process listens to it
            raise SoakFailed(f"{child.name} ended with status {status}:\n{child.tail()}")
        return status

    async def _start_again(self, worker: ChildProcess) -> None:
        async with self._is_as_needed:
            await self._harness.by_hand(worker.start)
            await self._until_polling(worker)

    async def _running_worker(self, fault: PlannedFault) -> tuple[ChildProcess, str]:
        number = fault.target % len(self._harness.workers)
        worker = self._harness.workers[number]
        await self._until_polling(worker)
        return worker, f"worker {number}"

    async def _until_polling(self, worker: ChildProcess) -> None:
        """Wait until Temporal has heard of a worker; for so long, since Temporal may be away itself."""
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=CHECKOUT_TASK_QUEUE),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        )
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if not worker.running:
                raise SoakFailed(f"{worker.name} ended by itself with {worker.returncode}:\n{worker.tail()}")
            try:
                answer = await self._client.workflow_service.describe_task_queue(request)
            except RPCError:
                answer = None
            if answer and any(poller.identity.endswith(f"-{worker.pid}") for poller in answer.pollers):
                return
            await asyncio.sleep(0.2)

    async def _change_environment(self, fault: PlannedFault) -> str | None:
        for _ in range(_TRIES):
            async with self._is_as_needed:
                self._away.add("postgres")
                evidence = await self._environment.acts[fault.kind](fault)
                self._away.discard("postgres")
            if evidence:
                return evidence
            # No worker was there to notice it: those that are to start have waited for our end, and are first now.
        return None

    async def _restart_postgres(self, fault: PlannedFault) -> str | None:
        postgres = self._harness.postgres
        log_ended, pid = postgres.log.stat().st_size, postgres.pid
        self._away.add("postgres")
        await self._harness.by_hand(postgres.stop, immediate=True)
        await asyncio.sleep(fault.seconds)
        await self._harness.by_hand(postgres.start)
        self._away.discard("postgres")
        with postgres.log.open("rb") as log:
            log.seek(log_ended)
            has_recovered = b"not properly shut down" in log.read()
        return f"process {pid} became {postgres.pid}" if has_recovered and postgres.pid != pid else None

    async def _kill_temporal(self, fault: PlannedFault) -> str | None:
        temporal, pid = self._harness.temporal, self._harness.temporal.pid
        self._away.add("temporal")
        await self._harness.by_hand(temporal.kill)
        was_killed = not psutil.pid_exists(pid)
        await asyncio.sleep(fault.seconds)
        await self._harness.by_hand(temporal.start)
        self._away.discard("temporal")
        return f"process {pid} became {temporal.pid}" if was_killed and temporal.pid != pid else None

    async def _kill_sessions(self, fault: PlannedFault) -> str | None:
        wanted = 1 + fault.target % 4
        deadline = time.monotonic() + _EVIDENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                async with self._harness.asking() as connection:
                    ended = await connection.fetchval(
                        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 5000)) FROM ("
                        " SELECT pid FROM pg_stat_activity WHERE usename = 'checkout'"
                        " ORDER BY state = 'idle', md5(pid::text || $1::text) LIMIT $2) chosen",
                        str(fault.target),
                        wanted,
                    )
            except AWAY:
                ended = 0
            if ended:
                return f"{ended} sessions ended"
            await asyncio.sleep(0.5)
        return None

    async def _lock_row(self, fault: PlannedFault) -> str | None:
        """Hold rows that many orders want, as an operator with psql would; again if no session waited."""
        deadline = time.monotonic() + _EVIDENCE_SECONDS
        while time.monotonic() < deadline:
            if waiting := await self._hold_rows(fault):
                return f"{waiting} sessions waited"
            await asyncio.sleep(0.2)
        return None

    async def _hold_rows(self, fault: PlannedFault) -> int:
        skus = [POPULAR, *PLENTY[: 5 + fault.target % 20]]
        waiting = 0
        until = time.monotonic() + fault.seconds
        try:
            async with self._harness.asking() as connection, connection.transaction():
                await connection.fetch(
                    "SELECT FROM inventory WHERE sku = ANY ($1::text[]) ORDER BY sku FOR UPDATE", skus
                )
                while time.monotonic() < until:
                    found = await connection.fetchval(
                        "SELECT count(*) FROM pg_locks"
                        " WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
                    )
                    waiting = max(waiting, found)
                    await asyncio.sleep(0.1)
        except AWAY:
            pass  # a restart has taken the lock away; what was seen until then counts
        return waiting

    async def _strain(self, link: Proxy, way: str, fault: PlannedFault) -> str | None:
        """Make a link slow, deaf or cut, for as long as planned and until it shows."""
        before = link.counts
        deadline = time.monotonic() + _EVIDENCE_SECONDS
        if way == "slow":
            link.slow(0.05 + fault.target / 2_000, jitter=0.05)
        elif way == "hole":
            link.swallow()
        try:
            await asyncio.sleep(fault.seconds)
            while not (seen := _seen(way, before, link)) and time.monotonic() < deadline:
                await asyncio.sleep(0.2)
        finally:
            link.heal()
        return seen or None


def _seen(way: str, before: Counts, link: Proxy) -> str:
    """Say what a link has done to its traffic since; for a reset, do it."""
    if way == "reset":
        cut = link.reset()
        return f"{cut} connections cut" if cut else ""
    now = link.counts
    if way == "slow":
        chunks = now.chunks_delayed - before.chunks_delayed
        return f"{chunks} chunks delayed" if chunks else ""
    held = now.chunks_held - before.chunks_held + now.connections_held - before.connections_held
    return f"{held} chunks or connections held" if held else ""
