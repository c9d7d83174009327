"""worker.py and starter.py as processes, on a database and a task queue of one test."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedded.process import ChildProcess
from embedded.stack import ROOT

DEADLINE_SECONDS = 60


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    def assert_readable(self) -> None:
        assert "Traceback" not in self.out + self.err
        assert (self.out + self.err).strip()


@dataclass
class Commands:
    """Both commands on a database and a task queue of this test."""

    environment: dict[str, str]
    folder: Path
    workers: list[ChildProcess] = field(default_factory=list)

    def starter(self, *arguments: str, **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, str(ROOT / "starter.py"), *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def worker(self, **environment: str) -> ChildProcess:
        started = ChildProcess(
            "worker",
            [sys.executable, str(ROOT / "worker.py")],
            log=self.folder / f"worker-{len(self.workers)}.log",
            env=self.environment | environment,
            cwd=self.folder,
        )
        started.start()
        self.workers.append(started)
        return started

    def ready_worker(self, **environment: str) -> ChildProcess:
        started = self.worker(**environment)
        started.until(lambda: "ready: task queue" in started.tail(100), timeout=DEADLINE_SECONDS)
        return started
