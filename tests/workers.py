"""What all suites share that run the product in processes of its own: workers, and their way to the servers."""

import asyncio
import signal
import sys
from pathlib import Path

import psutil

from devstack.stack import ROOT, DevStack
from sagafence.devservers.process import ChildProcess
from tests.faults.lab.proxy import Proxy

_DRAINS_WITHIN_SECONDS = 40.0


def behind(
    stack: DevStack, database_url: str, *, postgres: Proxy | None = None, temporal: Proxy | None = None
) -> dict[str, str]:
    if postgres:
        database_url = database_url.replace(f":{stack.ports.postgres}/", f":{postgres.port}/")
    return {
        "CHECKOUT_DATABASE_URL": database_url,
        "TEMPORAL_ADDRESS": f"127.0.0.1:{temporal.port}" if temporal else stack.temporal.address,
    }


class Workers(list[ChildProcess]):
    """Worker processes, the oldest first."""

    def __init__(self, stack: DevStack, folder: Path) -> None:
        super().__init__()
        self._stack = stack
        self._folder = folder

    def start(self, *program: str, **settings: str) -> ChildProcess:
        number = len(self) + 1
        worker = ChildProcess(
            f"worker {number}",
            [sys.executable, *(program or (str(ROOT / "worker.py"),))],
            log=self._folder / f"worker-{number}.log",
            env=self._stack.environment(**settings),
            cwd=ROOT,
            death_signal=signal.SIGKILL,
        )
        worker.start()
        self.append(worker)
        return worker

    def kill(self) -> None:
        for worker in self:
            worker.kill()

    async def drain(self) -> None:
        """Have every worker that runs drain, and require that it ends well: none may be wedged."""
        running = [worker for worker in self if worker.running]
        for worker in running:
            worker.signal(signal.SIGTERM)
        async with asyncio.timeout(_DRAINS_WITHIN_SECONDS):
            while any(worker.running for worker in running):
                await asyncio.sleep(0.02)
        for worker in running:
            assert worker.returncode == 0, worker.failed(f"it drained with status {worker.returncode}")

    def tails(self, lines: int = 40) -> str:
        return "\n".join(
            f"{worker.name}, status {worker.returncode} (None: it runs)\n{worker.tail(lines)}" for worker in self
        )


async def until_stopped(worker: ChildProcess) -> None:
    async with asyncio.timeout(_DRAINS_WITHIN_SECONDS):
        while not is_stopped(worker):
            await asyncio.sleep(0.01)


def is_stopped(worker: ChildProcess) -> bool:
    return psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED
