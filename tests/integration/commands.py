"""worker.py and starter.py on a database and a task queue of one test: as processes, or starter.py inside the test's.

A process of its own takes a second of CPU for starting Python alone. Ask for one where the process itself is tested:
how it ends, what a signal does, what it has imported.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import make_url

import starter
from devstack.stack import READER, ROOT
from sagafence.devservers.ports import free_port
from sagafence.devservers.process import ChildProcess
from tests.conftest import Shop

DEADLINE_SECONDS = 60

# sys.argv, the environment, the working folder and the standard streams belong to the whole process.
_ONE_AT_A_TIME = threading.Lock()

# Each command line in a process of its own, forked from one that has imported starter.py: starting Python and
# importing are nearly all of what a command takes that only has to refuse its arguments.
_FORK_EACH = """
import json, os, signal, sys
import starter
from adapters.process_exit import leave
for number, arguments in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        for descriptor, name in (1, "out"), (2, "err"):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = ["starter.py", *arguments]
        leave(starter.main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


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


def run_each(lines: Sequence[Sequence[str]], environment: Mapping[str, str], folder: Path) -> list[Ran]:
    """Run starter.py with each of these command lines, for commands that end at once."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK_EACH],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        input=json.dumps([list(line) for line in lines]),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS + DEADLINE_SECONDS,
        check=True,
    )
    codes = [int(code) for code in done.stdout.split()]
    return [
        Ran(code, (folder / f"{number}.out").read_text(), (folder / f"{number}.err").read_text())
        for number, code in enumerate(codes)
    ]


def run_here(arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Ran:
    """Run `starter.main` in this process, one call at a time; in a thread where an event loop is running."""
    with _ONE_AT_A_TIME, _place(["starter.py", *arguments], environment, folder):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = starter.main()
    return Ran(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _place(argv: list[str], environment: Mapping[str, str], folder: Path) -> Iterator[None]:
    """Put on a command's arguments, environment and working folder, and take them off again."""
    before_argv = sys.argv
    try:
        sys.argv = argv
        # Of Python alone: a thread of the SDK's core that reads the process's own, while it changes, ends the process.
        with mock.patch.object(os, "environ", dict(environment)), contextlib.chdir(folder):
            yield
    finally:
        sys.argv = before_argv


@dataclass
class Commands:
    """Both commands on a database and a task queue of this test."""

    environment: dict[str, str]
    folder: Path
    workers: list[ChildProcess] = field(default_factory=list)

    def here(self, *arguments: str, **environment: str) -> Ran:
        """Run starter.py inside this process: what it says and the status that it would end with."""
        return run_here(arguments, self.environment | environment, self.folder)

    def starter(self, *arguments: str, **environment: str) -> Ran:
        """Run starter.py as a process of its own."""
        return self.python(str(ROOT / "starter.py"), *arguments, **environment)

    def check(self, **environment: str) -> Ran:
        """Run `worker.py --check`, which does not wait long."""
        return self.python(
            str(ROOT / "worker.py"), "--check", **{"CHECKOUT_STARTUP_TIMEOUT_SECONDS": "5", **environment}
        )

    def python(self, *arguments: str, **environment: str) -> Ran:
        return self.python_in(self.folder, *arguments, **environment)

    def python_in(self, folder: Path, /, *arguments: str, **environment: str) -> Ran:
        """Run Python in a process of its own, to its end."""
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**self.environment, **environment},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def interrupted(self, *arguments: str, when: str, number: signal.Signals = signal.SIGINT) -> Ran:
        """Run starter.py as a process of its own, and send it a signal once it has said this on stderr."""
        command = [sys.executable, str(ROOT / "starter.py"), *arguments]
        with subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background ignore Ctrl-C, and a child inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        ) as running:
            try:
                assert running.stderr is not None
                said = ""
                while when not in said:
                    line = running.stderr.readline()
                    assert line, f"it ended before it said {when!r}: {said}"
                    said += line
                running.send_signal(number)
                out, err = running.communicate(timeout=DEADLINE_SECONDS)
            finally:
                running.kill()
        return Ran(running.returncode, out, said + err)

    def worker(self, *, script: str = "", arguments: Sequence[str] = (), **environment: str) -> ChildProcess:
        """Start worker.py, or a script that changes something of it first."""
        started = ChildProcess(
            "worker",
            [sys.executable, *(("-c", script) if script else (str(ROOT / "worker.py"), *arguments))],
            log=self.folder / f"worker-{len(self.workers)}.log",
            env=self.environment | ({"PYTHONPATH": str(ROOT)} if script else {}) | environment,
            cwd=self.folder,
        )
        started.start()
        self.workers.append(started)
        return started

    def ready_worker(self, *, script: str = "", **environment: str) -> ChildProcess:
        started = self.worker(script=script, **environment)
        started.until(lambda: "ready: task queue" in started.tail(100), timeout=DEADLINE_SECONDS)
        return started

    def ready_api(self, folder: Path = ROOT, /, **environment: str) -> tuple[ChildProcess, str]:
        """Start the api.py of a folder as the role that reads, on a free port; return it and its address."""
        port = free_port()
        url = make_url(self.environment["CHECKOUT_DATABASE_URL"]).set(username=READER, password=None)
        started = ChildProcess(
            "API",
            [sys.executable, "api.py"],
            log=self.folder / "api.log",
            env=self.environment
            | {
                "CHECKOUT_API_PORT": str(port),
                "CHECKOUT_DATABASE_URL": url.render_as_string(hide_password=False),
            }
            | environment,
            cwd=folder,
        )
        started.start()
        self.workers.append(started)
        started.until(lambda: "ready: http" in started.tail(100), timeout=DEADLINE_SECONDS)
        return started, f"http://127.0.0.1:{port}"


@dataclass
class Desk:
    """starter.py inside this process, beside the in-process workers of a shop."""

    shop: Shop
    environment: Mapping[str, str]
    folder: Path

    async def __call__(self, *arguments: str, **environment: str) -> Ran:
        """Run one command to its end; the workers go on meanwhile."""
        return await asyncio.to_thread(run_here, arguments, {**self.environment, **environment}, self.folder)

    async def json(self, *arguments: str, **environment: str) -> Any:
        """Run one command with `--json`, which must say nothing beside its document."""
        ran = await self(*arguments, "--json", **environment)
        assert ran.err == ""
        return ran.document
