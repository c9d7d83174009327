"""A contender's one worker process, which says "ready" or listens when it can be asked."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from devstack.process import ChildProcess
from devstack.stack import ROOT

_START_SECONDS = 60.0


def start(module: str, *arguments: str, folder: Path, is_ready: Callable[[ChildProcess], bool]) -> ChildProcess:
    """Start a module of `benchmarks.workers` and wait until it is ready."""
    worker = ChildProcess(
        module,
        [sys.executable, "-m", f"benchmarks.workers.{module}", *arguments],
        log=folder / f"{module}.log",
        env={name: value for name, value in os.environ.items() if not name.startswith(("CHECKOUT_", "TEMPORAL_"))},
        cwd=ROOT,
    )
    worker.start()
    worker.until(lambda: is_ready(worker), timeout=_START_SECONDS)
    return worker


def says_ready(worker: ChildProcess) -> bool:
    """Whether it wrote a line that says so."""
    return "ready" in worker.tail()
