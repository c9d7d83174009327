"""`make up`: Postgres, Temporal, a worker and the API on the default ports until a signal stops them."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from devstack.api_key import keep_api_key
from devstack.stack import DEFAULT_PORTS, ROOT, DevStack
from sagafence.devservers.process import ChildProcess

_DATA = ROOT / ".data"


def up(data: Path = _DATA) -> int:
    """Run the stack on the default ports until it is stopped, or until a part of it dies."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    say("Starting Postgres and Temporal ...")
    restrict_access(data)
    with DevStack(data, ports=DEFAULT_PORTS, keep=True, guarded=True) as stack:
        worker = stack.start_worker(CHECKOUT_LOG_FILE=str(ROOT / "saga.log"))
        worker.until(lambda: "ready: task queue" in worker.tail(50), timeout=30)
        keep_api_key(stack)
        api = stack.start_api()
        api.until(lambda: "ready: http" in api.tail(50), timeout=30)
        say(_welcome(stack))
        while not stop.wait(0.5):
            if dead := _dead(stack, worker, api):
                say(f"{dead} has stopped by itself. Its log is in {data}; `make up` starts again from the same data.")
                return 1
        say("\nStopping the API, the worker, Temporal and Postgres ...")
    say("Stopped. The data is kept in .data/; `make clean` deletes it.")
    return 0


def restrict_access(data: Path) -> None:
    """Make our files, and those of earlier versions, unreadable for other users of this machine.

    Root's Postgres runs as another user, who has to pass through the folder but cannot list it.
    """
    os.umask(0o077)
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o711 if os.geteuid() == 0 else 0o700)
    for file in data.iterdir():
        if file.is_file():
            file.chmod(0o600)


def say(text: str) -> None:
    """Print and flush."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _dead(stack: DevStack, worker: ChildProcess, api: ChildProcess) -> str | None:
    if not worker.running:
        return "The worker"
    if not api.running:
        return "The API"
    if not stack.temporal.running:
        return "Temporal"
    return None if stack.postgres.running else "Postgres"


def _welcome(stack: DevStack) -> str:
    ask = '-H "Authorization: Bearer $(cat .data/api.key)" -H "Idempotency-Key: 1" -H "Content-Type: application/json"'
    api = f"http://127.0.0.1:{stack.ports.api}"
    order = '{"customer":"alice","lines":[{"sku":"tea-mug","quantity":2}]}'
    return f"""
Everything is up. Histories: {stack.temporal.ui_url}  Log: saga.log

Now try, in another terminal:

    .venv/bin/python starter.py start --customer alice --line tea-mug:2 --line poster:1
    .venv/bin/python starter.py start --customer bob --line tea-mug:2
    .venv/bin/python starter.py list
    .venv/bin/python starter.py audit

The same by HTTP; what else there is: {api}/docs, and the page for operators: {api}/ui

    curl {ask} -d '{order}' '{api}/v1/orders?wait=5'

The database: {stack.psql_command("postgres")}
Ctrl-C stops all of it."""
