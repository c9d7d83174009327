"""A child process that ends with its owner."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import IO

import psutil

_TIED = Path(__file__).with_name("tied.py")
_POLL_SECONDS = 0.01


class ServerFailed(RuntimeError):
    """A server did not start, stop or answer; the text says what happened and what to do."""

    @classmethod
    def of(cls, server: str, what: str, *, advice: str, tail: str = "") -> "ServerFailed":
        """Put the text together; `tail` is the end of the server's log."""
        text = f"{server}: {what}. {advice}."
        if tail:
            text += "\nThe end of its log:\n" + "\n".join(f"  {line}" for line in tail.splitlines())
        return cls(text)


class ChildProcess:
    """One program, started as a child that dies when this process dies, SIGKILL included.

    On Linux the kernel sends `death_signal` to the child when the *thread* that called `start`
    ends: call it from the main thread or from one that lives as long as the child should.
    Elsewhere, and for a child still busy dying, `pid_file` lets the next start find and end it.
    The child has a session of its own, so Ctrl-C in the terminal reaches only the owner, which
    then stops its children one after the other. It holds no pipe and no descriptor but `log`.
    """

    def __init__(  # noqa: PLR0913 - each is an aspect of starting one program
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: int | None = None,
        group: int | None = None,
        death_signal: Signals = SIGTERM,
        pid_file: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._env = env
        self._cwd = cwd
        self._user = user
        self._group = group
        self._death_signal = death_signal
        self._pid_file = pid_file
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process id; an error before `start`."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs and before `start`."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the program; returns when it was executed, not when it is ready.

        Raises:
            ServerFailed: it cannot be executed, or another owner runs it.
        """
        if self.running:
            raise RuntimeError(f"{self.name} is already running")
        self.end_orphan()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = self._execute(log)
        if self._pid_file is not None:
            record = {"pid": self.pid, "owner": os.getpid(), "argv": self._argv}
            self._pid_file.write_text(json.dumps(record))

    def end_orphan(self) -> None:
        """End what an owner that died left behind in `pid_file`; `start` begins with it.

        Only a process with the recorded id *and* command line is touched. ServerFailed is raised
        if its owner is alive.
        """
        if self._pid_file is None:
            return
        try:
            record = json.loads(self._pid_file.read_text())
            process = psutil.Process(record["pid"])
            if process.cmdline() == record["argv"]:
                if process.ppid() == record["owner"]:
                    what = f"process {process.pid} runs it already, for process {record['owner']}"
                    advice = f"Stop process {record['owner']} first, or use another folder"
                    raise ServerFailed.of(self.name, what, advice=advice)
                process.send_signal(self._death_signal)
                end_stubborn([process])
        except (OSError, ValueError, KeyError, psutil.Error):
            pass  # no record, a torn one, or no such process any more
        self._pid_file.unlink(missing_ok=True)

    def until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait until `ready()`; the child is killed when this fails or is interrupted.

        Raises:
            ServerFailed: the child ended, or `timeout` seconds passed.
        """
        deadline = time.monotonic() + timeout
        try:
            while not ready():
                self._require_progress(deadline)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.kill()
            raise

    def failed(self, what: str) -> ServerFailed:
        """Build the error that says `what` went wrong, with the log's last lines."""
        return ServerFailed.of(self.name, what, advice=f"Read {self.log}", tail=self.tail())

    def stop(self, sig: Signals = SIGTERM, timeout: float = 10.0) -> int:
        """Ask it to end with `sig`, SIGKILL it after `timeout` seconds; its exit status."""
        self.signal(sig)
        try:
            return self.wait(timeout)
        except TimeoutError:
            self.kill()
            return self.wait(0)

    def kill(self) -> None:
        """SIGKILL it and wait until it is gone; nothing if it is not running."""
        self.signal(SIGKILL)
        if self._process is not None:
            self.wait(timeout=30)

    def wait(self, timeout: float) -> int:
        """Wait for its end and return its exit status, negative for a signal.

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
        """
        try:
            status = self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} still runs after {timeout:.0f} s") from None
        if self._pid_file is not None:
            self._pid_file.unlink(missing_ok=True)
        return status

    def tail(self, lines: int = 20) -> str:
        """Return the last `lines` lines that it logged since its latest start."""
        try:
            with self.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - 65_536))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def signal(self, sig: Signals) -> None:
        """Send it `sig`; nothing if it is not running."""
        if self._process is not None:
            self._process.send_signal(sig)  # polls first, so never hits a reused process id

    def _execute(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        reading, report = os.pipe()
        with os.fdopen(reading, "rb") as reports:
            try:
                process = subprocess.Popen(  # noqa: S603 - no shell, our own argv
                    self._tied(report),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    cwd=self._cwd,
                    pass_fds=(report,),
                    start_new_session=True,
                )
            except OSError as error:
                raise self.failed(f"{error.filename} cannot be used ({error.strerror})") from error
            finally:
                os.close(report)
            if problem := reports.read().decode():  # ends when the program is executed
                process.wait()
                raise self.failed(problem)
        return process

    def _tied(self, report: int) -> list[str]:
        """Return the command line that becomes the program, as its user, and dies with its owner."""
        death_signal = int(self._death_signal) if sys.platform == "linux" else 0
        ids = [-1 if each is None else each for each in (self._user, self._group)]
        arguments = [str(value) for value in (report, death_signal, os.getpid(), *ids)]
        return [sys.executable, "-I", "-S", str(_TIED), *arguments, *self._argv]

    def _require_progress(self, deadline: float) -> None:
        if not self.running:
            raise self.failed(f"it ended with status {self.returncode} while starting")
        if time.monotonic() > deadline:
            raise self.failed("it did not become ready in time")

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process


class Server:
    """A server that is one child process."""

    _child: ChildProcess | None = None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """The process id; an error before `start`."""
        if self._child is None:
            raise RuntimeError(f"{type(self).__name__} was not started")
        return self._child.pid


def wait_gone(processes: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait until `processes`, not our children, have ended; those that have not are returned."""
    deadline = time.monotonic() + timeout
    while alive := [process for process in processes if not _gone(process)]:
        if time.monotonic() > deadline:
            return alive
        time.sleep(_POLL_SECONDS)
    return []


def end_stubborn(processes: Sequence[psutil.Process]) -> None:
    """Wait for `processes`, which got a signal to end; after 10 s SIGKILL those that have not."""
    for process in wait_gone(processes, timeout=10):
        process.kill()
        wait_gone([process], timeout=10)


def _gone(process: psutil.Process) -> bool:
    try:
        # A zombie holds nothing any more; in containers init is often slow to reap it.
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
