"""The log of a command on stderr: where its records come from, and one line of text or JSON for each of them."""

import logging
import sys
import threading
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any

from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter

from domain.policies import checkout_workflow_id, order_id_of
from domain.text import for_log_line, json_text

ORDERS_LOGGER = "checkout.orders"
"""Every order's state changes, one line each, made from `order_events`."""

_core_log = logging.getLogger("temporalio.core")
_log = logging.getLogger("checkout")


class LogFormat(StrEnum):
    """The formats that the log can have."""

    TEXT = "text"
    JSON = "json"


class TextFormatter(logging.Formatter):
    """`2026-11-28T13:07:04.123Z WARNING checkout.worker: message`: one line for each record, tracebacks in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        parts = [_message(record)]
        if fields := _core_fields(record):
            parts[0] += f" {fields}"
        for trace in filter(None, (_exception(self, record), record.stack_info)):
            parts += trace.splitlines()
        return for_log_line(f"{_time(record)} {record.levelname:<7} {record.name}: {' | '.join(parts)}")


class JsonFormatter(logging.Formatter):
    """One JSON object for each record; an unknown value has no key."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        workflow_id = _workflow_id(record)
        document = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "action": getattr(record, "action", None),
            "order_id": getattr(record, "order_id", None) or _order_id(workflow_id),
            "workflow_id": workflow_id,
            "fields": _core_fields(record),
            "exception": _exception(self, record),
            "stack": record.stack_info,
        }
        return json_text({key: value for key, value in document.items() if value})


_FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {LogFormat.TEXT: TextFormatter, LogFormat.JSON: JsonFormatter}


def configure_logging(level: str, log_format: LogFormat = LogFormat.TEXT) -> None:
    """Log our own records to stderr, and the warnings and errors of libraries, of the SDK's core and of Python.

    Call it before anything connects to Temporal: the SDK's core takes its settings once.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[log_format]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for ours in ("checkout", "sagafence"):
        logging.getLogger(ours).setLevel(level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda failed: _log_uncaught(
        failed.exc_type,
        failed.exc_value or failed.exc_type(),
        failed.exc_traceback,
        f"in {failed.thread and failed.thread.name}",
    )
    sys.unraisablehook = lambda raised: _log_uncaught(
        raised.exc_type, raised.exc_value or raised.exc_type(), raised.exc_traceback, f"in {raised.object!r}"
    )
    _forward_core_log()


def _forward_core_log() -> None:
    """Have the SDK's core write to our log instead of stdout.

    It calls into Python from its own threads, also while the process exits: `leave` does not wait for them.
    """
    forwarding = LogForwardingConfig(
        _core_log,
        append_target_to_name=False,
        prepend_target_on_message=True,
        append_log_fields_to_message=False,  # the formatters add them
    )
    levels = TelemetryFilter(core_level="WARN", other_level="ERROR")
    try:
        Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(levels, forwarding=forwarding))))
    except RuntimeError:
        return  # this process has one already: a test's, or that of an earlier call


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, where: str = "here"
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.critical("not caught %s: %s", where, str(error) or kind.__name__, exc_info=(kind, error, trace))


def _time(record: logging.LogRecord) -> str:
    return f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a record with the wrong arguments is logged all the same
        return f"{record.msg} {record.args!r}"


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""


def _core_fields(record: logging.LogRecord) -> dict[str, Any]:
    core = getattr(record, "temporal_log", None)
    return dict(core.fields) if core is not None else {}


def _workflow_id(record: logging.LogRecord) -> str | None:
    """Find the workflow of a record: of our own, of the SDK's workflows and activities, or of its core."""
    for about in (
        vars(record),
        getattr(record, "temporal_workflow", None),
        getattr(record, "temporal_activity", None),
        _core_fields(record),
    ):
        if isinstance(about, dict) and (found := about.get("workflow_id")):
            return str(found)
    order_id = getattr(record, "order_id", None)
    return checkout_workflow_id(order_id) if order_id else None


def _order_id(workflow_id: str | None) -> str | None:
    order_id = order_id_of(workflow_id) if workflow_id else workflow_id
    return order_id if order_id != workflow_id else None
