"""A worker's heartbeat file, and the probe that reads it, such as a container's health check.

    python -m adapters.heartbeat [SECONDS]

Exit status of the probe: 0 the worker of CHECKOUT_HEARTBEAT_FILE wrote the file within the last SECONDS (30); 1 it did
not: it is still starting, has ended, or is stuck; or the variable is not set, or SECONDS is no number.

The probe runs every few seconds, so this module imports nothing that takes long.
"""

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from adapters.polled_state import PolledState

FILE = "CHECKOUT_HEARTBEAT_FILE"
EVERY_SECONDS = 2.0
STALE_SECONDS = 30.0

_log = logging.getLogger("checkout.worker")


def write(file: Path, text: str = "") -> None:
    """Replace the file: a probe never reads half of one.

    Raises:
        OSError: the file cannot be written.
    """
    new = file.with_name(f"{file.name}.new")
    new.write_text(text or f"{time.monotonic():.3f}\n", encoding="ascii")
    new.replace(file)


async def beat(file: Path | None, is_at_work: Callable[[], bool], *, every_seconds: float = EVERY_SECONDS) -> NoReturn:
    """Write the file while the worker is at work, until cancelled.

    On the event loop and not in a thread: where a step blocks the loop, no order gets on.
    """
    is_failing = PolledState(known=False)
    while True:
        if file is not None and is_at_work():
            try:
                write(file)
            except OSError as error:
                if is_failing.update(found=True):
                    _log.error("%s cannot be written: %s", FILE, error, extra={"action": "heartbeat"})
            else:
                is_failing.update(found=False)
        await asyncio.sleep(every_seconds)


def problem(file: Path, stale_seconds: float = STALE_SECONDS) -> str:
    """Return why the worker of this file does not count as alive; an empty text if it does."""
    try:
        age = time.monotonic() - float(file.read_text(encoding="ascii"))
    except FileNotFoundError:
        return "no worker is at work yet, or it has ended"
    except (OSError, ValueError) as error:
        return f"the heartbeat cannot be read: {error}"
    if not math.isfinite(age):
        return "the heartbeat cannot be read: it is no number"
    if age < 0:
        return "the heartbeat is of an earlier start of this machine"  # whose clock began again
    return f"the last heartbeat was {age:.0f} s ago" if age > stale_seconds else ""


def main(arguments: list[str]) -> int:
    """Probe, and return the exit status."""
    file = os.environ.get(FILE)
    if not file:
        sys.stderr.write(f"{FILE} is not set: the worker writes no heartbeat\n")
        return 1
    try:
        stale_seconds = float(arguments[0]) if arguments else STALE_SECONDS
        if not math.isfinite(stale_seconds):
            raise ValueError("no beat is older than that")  # noqa: TRY301 - as what is no number at all
    except ValueError:
        sys.stderr.write(__doc__ or "")
        return 1
    if found := problem(Path(file), stale_seconds):
        sys.stderr.write(f"{found}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
