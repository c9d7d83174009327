"""The embedded stack: real Postgres and real Temporal from the package index, on loopback, and a worker.

python dev.py up      keep everything running on the default ports, data in .data/, until Ctrl-C
python dev.py demo    run every ending of a checkout on throw-away servers and show what happened
"""

import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from adapters.streams import clean_streams
from adapters.telemetry import leave
from demo.story import tell
from domain.version import RELEASE
from embedded.process import ChildProcess, ServerFailed
from embedded.stack import DEFAULT_PORTS, ROOT, DevStack

_DATA = ROOT / ".data"


def up(data: Path = _DATA) -> int:
    """Run the stack on the default ports until it is stopped, or until a part of it dies."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    say("Starting Postgres and Temporal ...")
    close_to_others(data)
    with DevStack(data, ports=DEFAULT_PORTS, keep=True, guarded=True) as stack:
        worker = stack.start_worker(CHECKOUT_LOG_FILE=str(ROOT / "saga.log"))
        worker.until(lambda: "ready: task queue" in worker.tail(50), timeout=30)
        say(_welcome(stack))
        while not stop.wait(0.5):
            if dead := _dead(stack, worker):
                say(f"{dead} has stopped by itself. Its log is in {data}; `make up` starts again from the same data.")
                return 1
        say("\nStopping the worker, Temporal and Postgres ...")
    say("Stopped. The data is kept in .data/; `make clean` forgets it.")
    return 0


def close_to_others(data: Path) -> None:
    """Keep what we write from other users of this machine, and what an earlier version has left open.

    Root's Postgres runs as another user, who has to get through the folder and sees nothing of it.
    """
    os.umask(0o077)
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o711 if os.geteuid() == 0 else 0o700)
    for file in data.iterdir():
        if file.is_file():
            file.chmod(0o600)


def demo() -> int:
    """Run the demo in a folder of the system's temporary folder, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="checkout-demo-") as folder:
        return tell(Path(folder))


def say(text: str) -> None:
    """Tell the person at the terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _dead(stack: DevStack, worker: ChildProcess) -> str | None:
    if not worker.running:
        return "The worker"
    if not stack.temporal.running:
        return "Temporal"
    return None if stack.postgres.running else "Postgres"


def _welcome(stack: DevStack) -> str:
    return f"""
Everything is up. Histories: {stack.temporal.ui_url}  Log: saga.log

Now try, in another terminal:

    .venv/bin/python starter.py start --customer alice --line tea-mug:2 --line poster:1
    .venv/bin/python starter.py start --customer bob --line tea-mug:2
    .venv/bin/python starter.py list
    .venv/bin/python starter.py audit

The database: {stack.psql_command("postgres")}
Ctrl-C stops all of it."""


def main(arguments: list[str]) -> int:
    """Run one of the two commands."""
    logging.basicConfig(level=logging.INFO if arguments == ["up"] else logging.WARNING, format="%(message)s")
    commands = {"up": up, "demo": demo}
    if arguments == ["--version"]:
        sys.stdout.write(f"{RELEASE}\n")
        return 0
    if len(arguments) != 1 or arguments[0] not in commands:
        sys.stderr.write(__doc__ or "")
        return 2
    try:
        return commands[arguments[0]]()
    except ServerFailed as failure:
        sys.stderr.write(f"{failure}\n")
        return 1


if __name__ == "__main__":
    os.chdir(ROOT)
    clean_streams()
    leave(main(sys.argv[1:]))
