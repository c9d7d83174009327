"""The provider as a process: `python -m examples.workspace.provider --port 0 --state FILE`.

Prints one line of JSON, {"url": ..., "pid": ...}, when it is ready. SIGTERM or Ctrl-C ends it, with status 0.
Status 1: it could not start, and standard error says why. Status 2: the command line is wrong.
"""

import argparse
import json
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path
from types import FrameType

from examples.workspace.provider.api import Api, Request
from examples.workspace.provider.http import Handler, HttpServer
from examples.workspace.provider.state import State


def main() -> int:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.workspace.provider", description="A CRM and a billing service."
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--state", type=Path, required=True, metavar="FILE", help="an SQLite file, made when missing")
    parser.add_argument(
        "--takes", type=float, default=0.0, metavar="SECONDS", help="how long it works at a request with a key"
    )
    parser.add_argument("--until-stdin-closes", action="store_true", help="end also when whoever started it has ended")
    given = parser.parse_args()
    try:
        server = HttpServer(given.port, _handler(Api(State(given.state), given.takes)))
    except (OSError, OverflowError, sqlite3.Error) as error:
        print(f"The provider cannot start: {error}", file=sys.stderr)
        return 1

    def end(_signal: int, _frame: FrameType | None) -> None:
        # shutdown() waits for serve_forever(), which this thread is in.
        threading.Thread(target=server.shutdown).start()

    def end_with_stdin() -> None:
        while os.read(0, 1024):
            pass
        server.shutdown()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
    if given.until_stdin_closes:
        threading.Thread(target=end_with_stdin, daemon=True).start()
    print(json.dumps({"url": server.url, "pid": os.getpid()}), flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    return 0


def _handler(api: Api) -> type[Handler]:
    class Answering(Handler):
        def respond(self, content: bytes) -> None:
            answer = api.answer(Request(self.command, self.path, self.headers.get("Idempotency-Key"), content))
            replayed = {"Idempotent-Replayed": "true"} if answer.replayed else {}
            body = b"" if answer.body is None else json.dumps(answer.body).encode()
            self.write(answer.status, body, {"Content-Type": "application/json", **replayed})

    return Answering


if __name__ == "__main__":
    sys.exit(main())
