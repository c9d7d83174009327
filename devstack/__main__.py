"""Real Postgres and real Temporal from the package index, on loopback, a worker and the HTTP API.

python -m devstack up      keep everything running on the default ports, data in .data/, until Ctrl-C
python -m devstack demo    run every ending of a checkout on throw-away servers and show what happened

Exit status: 0 `up` was stopped, or in `demo` all was as it should be; 1 a server, the worker or the API could not
start or has stopped by itself, or in `demo` an order or the audit was not as it should be; 2 wrong usage.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

from adapters.process_exit import leave
from adapters.streams import clean_streams
from devstack.demo import run_demo
from devstack.stack import ROOT
from devstack.up import up
from domain.version import RELEASE
from sagafence.devservers.process import ServerFailed


def demo() -> int:
    """Run the demo in a folder of the system's temporary folder, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="checkout-demo-") as folder:
        return run_demo(Path(folder))


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
