"""How a record of the log is written: as one line of text, or as one line of JSON, whatever it holds.

The records of the SDK's core come the same way, and tell what they are about in fields of their own.
"""

import logging
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from domain.policies import checkout_workflow_id, order_id_of
from domain.text import for_log_line, json_text


class LogFormat(StrEnum):
    """The forms that a log can have."""

    TEXT = "text"
    JSON = "json"


class TextFormatter(logging.Formatter):
    """`2026-11-28T13:07:04.123Z WARNING checkout.worker: message`: one line for each record, tracebacks in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        parts = [_message(record)]
        if fields := _core_fields(record):
            parts[0] += f" {fields}"
        for trace in filter(None, (_exception(self, record), record.stack_info)):
            parts += trace.splitlines()
        return for_log_line(f"{_time(record)} {record.levelname:<7} {record.name}: {' | '.join(parts)}")


class JsonFormatter(logging.Formatter):
    """One JSON object for each record; what is not known of one has no key."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
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


FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {LogFormat.TEXT: TextFormatter, LogFormat.JSON: JsonFormatter}


def _time(record: logging.LogRecord) -> str:
    return f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a record with the wrong arguments is told as far as it goes
        return f"{record.msg} {record.args!r}"


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""


def _core_fields(record: logging.LogRecord) -> dict[str, Any]:
    core = getattr(record, "temporal_log", None)
    return dict(core.fields) if core is not None else {}


def _workflow_id(record: logging.LogRecord) -> str | None:
    """Find the workflow that a record is about: said by us, by the SDK's workflows and activities, or by its core."""
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
