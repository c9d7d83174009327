"""What the commands write down: log set-up, and leaving with the exit status that was meant."""

import logging
import os
import sys
import threading
from types import TracebackType
from typing import NoReturn

from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from adapters.log_format import FORMATTERS, LogFormat

ORDERS_LOGGER = "checkout.orders"
"""Every order's state changes, one line each, made from `order_events`."""

_core_log = logging.getLogger("temporalio.core")
_log = logging.getLogger("checkout")


def configure_logging(level: str, form: LogFormat = LogFormat.TEXT) -> None:
    """Send our own log to stderr, and of libraries, of the SDK's core and of Python itself what needs attention.

    All of it has one form. Call it before anything connects to Temporal: the SDK's core takes its settings once.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[form]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("checkout").setLevel(level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _tell_uncaught
    threading.excepthook = lambda gone: _tell_uncaught(
        gone.exc_type, gone.exc_value or gone.exc_type(), gone.exc_traceback, f"in {gone.thread and gone.thread.name}"
    )
    sys.unraisablehook = lambda seen: _tell_uncaught(
        seen.exc_type, seen.exc_value or seen.exc_type(), seen.exc_traceback, f"in {seen.object!r}"
    )
    _forward_the_cores_log()


def _forward_the_cores_log() -> None:
    """Have the SDK's core write to our log, and not to stdout in a form of its own.

    It calls into Python from threads of its own, also while a process ends: `leave` does not wait for them.
    """
    forwarding = LogForwardingConfig(
        _core_log,
        append_target_to_name=False,
        prepend_target_on_message=True,
        append_log_fields_to_message=False,  # the formatters know them
    )
    levels = TelemetryFilter(core_level="WARN", other_level="ERROR")
    try:
        Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(levels, forwarding=forwarding))))
    except RuntimeError:
        return  # this process has one already: a test's, or that of an earlier call


def _tell_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, where: str = "here"
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.critical("not caught %s: %s", where, str(error) or kind.__name__, exc_info=(kind, error, trace))


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
