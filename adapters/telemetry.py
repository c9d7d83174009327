"""What the commands write down: log set-up, and leaving with the exit status that was meant."""

import logging
import os
import sys
from typing import NoReturn

ORDERS_LOGGER = "checkout.orders"
"""Every order's state changes, one line each, made from `order_events`."""


def configure_logging(level: str) -> None:
    """Send our own log to stderr, and of libraries what needs attention."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("checkout").setLevel(level)


def leave(status: int) -> NoReturn:
    """End the process with this status, for certain.

    On Python 3.11 a process that used a Temporal client aborts in about a quarter of its exits: a thread of
    the SDK's core asks for the interpreter while it is being torn down (temporalio/sdk-python#300). All that
    the teardown would still do for us is to flush, so we flush and skip it.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            # Whoever read our output is gone, as in `starter.py list | head`.
            continue
    os._exit(status)
