"""The lab's workers, as processes of their own: they can be killed and stopped."""

import asyncio
import signal
import sys
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from devstack.process import ChildProcess
from devstack.stack import ROOT, DevStack
from tests.faults.lab.worker import ATTEMPT_SECONDS, DESK_PORT

_PATIENCE_SECONDS = 40.0


class Crew:
    """Workers of one task queue. None outlives the block."""

    def __init__(
        self, stack: DevStack, folder: Path, *, database_url: str, desk_port: int, attempt_seconds: float
    ) -> None:
        self.task_queue = f"cells-{uuid.uuid4().hex[:12]}"
        self._folder = folder
        self._workers: list[ChildProcess] = []
        self._environment = stack.environment(
            CHECKOUT_DATABASE_URL=database_url,
            CHECKOUT_TASK_QUEUE=self.task_queue,
            **{DESK_PORT: str(desk_port), ATTEMPT_SECONDS: str(attempt_seconds)},
        )

    def hire(self) -> ChildProcess:
        """Start another worker."""
        number = len(self._workers) + 1
        worker = ChildProcess(
            f"lab worker {number}",
            [sys.executable, "-m", "tests.faults.lab.worker"],
            log=self._folder / f"worker-{number}.log",
            env=self._environment,
            cwd=ROOT,
            death_signal=signal.SIGKILL,
        )
        worker.start()
        self._workers.append(worker)
        return worker

    async def dismiss(self) -> None:
        """Ask everybody who still works to drain, and insist on a good end: nobody may be wedged."""
        working = [worker for worker in self._workers if worker.running]
        for worker in working:
            worker.signal(signal.SIGTERM)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while any(worker.running for worker in working):
                await asyncio.sleep(0.02)
        for worker in working:
            assert worker.returncode == 0, worker.failed(f"it drained with status {worker.returncode}")

    def log(self) -> str:
        """Give the end of what the workers have logged."""
        return "\n".join(f"{worker.name}:\n{worker.tail(40)}" for worker in self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()


async def until_stopped(worker: ChildProcess) -> None:
    """Wait until the kernel has stopped a worker."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not is_stopped(worker):
            await asyncio.sleep(0.01)


def is_stopped(worker: ChildProcess) -> bool:
    return psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED
