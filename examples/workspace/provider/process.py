"""The provider as a process that is started, killed and started again, for tests and for the demo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM
from typing import Any, Self
from urllib.request import urlopen

_ROOT = Path(__file__).parents[3]


class ProviderProcess:
    """One provider. It has the same address and the same state whenever it runs, and ends with its owner.

    Args:
        state: the file of its state.
        takes: how many seconds it works before a request with a key has its effect.
    """

    def __init__(self, state: Path, *, takes: float = 0.0) -> None:
        self.url = ""
        self._state = state
        self._takes = takes
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it; returns when it answers."""
        port = self.url.rpartition(":")[2] or "0"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "examples.workspace.provider", "--port", port, "--until-stdin-closes"),
                *("--state", str(self._state.resolve()), "--takes", str(self._takes)),
            ],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if not ready:
            raise RuntimeError(f"the provider ended with status {self._process.wait()}; standard error says why")
        self.url = json.loads(ready)["url"]

    def kill(self) -> None:
        """End it with SIGKILL; nothing when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._gone(self._process)

    def stop(self) -> int:
        """End it with SIGTERM and return its exit status."""
        assert self._process is not None, "it was not started"
        self._process.send_signal(SIGTERM)
        return self._gone(self._process)

    def pause(self) -> None:
        """Stop it where it is: connections are accepted by the kernel, and not answered."""
        assert self._process is not None, "it was not started"
        self._process.send_signal(SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None, "it was not started"
        self._process.send_signal(SIGCONT)

    def books(self) -> dict[str, Any]:
        """Every effect that it had."""
        with urlopen(f"{self.url}/books", timeout=60) as answer:
            books: dict[str, Any] = json.load(answer)
            return books

    def forget_keys(self, **which: str) -> None:
        """Make it forget the answers that it gave: all of them, or those of one `path`, of one `key`."""
        content = json.dumps(which).encode()
        urlopen(f"{self.url}/admin/forget-keys", content, timeout=60).close()

    def _gone(self, process: "subprocess.Popen[str]") -> int:
        status = process.wait(30)
        self._process = None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        return status
