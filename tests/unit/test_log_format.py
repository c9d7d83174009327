"""The worker's log: one line for each record, as text or as JSON."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.log_setup import JsonFormatter, TextFormatter
from devstack.stack import ROOT

# A process of its own: the hooks and the SDK's runtime belong to the whole of it.
_TELLS_ALL = """
import asyncio, gc, logging, sys, threading, warnings
from adapters.log_setup import LogFormat
from adapters.streams import clean_streams
from adapters.log_setup import configure_logging
from adapters.process_exit import leave

clean_streams()
configure_logging("INFO", LogFormat(sys.argv[1]))
logging.getLogger("checkout.worker").info("ours\\n\\x1b[2J", extra={"action": "a", "order_id": "o-1"})
logging.getLogger("checkout.worker").error("wrong %d arguments", "no")
logging.getLogger("library").info("not logged")
warnings.warn("deprecated\\nthing")

def fail():
    raise KeyError("in a thread\\nof two lines")

thread = threading.Thread(target=fail, name="thread-1")
thread.start()
thread.join()

class Gone:
    def __del__(self):
        raise KeyError("in a destructor")

Gone()
gc.collect()

async def main():
    async def forgotten():
        raise KeyError("nobody awaits")
    task = asyncio.create_task(forgotten())
    await asyncio.sleep(0)
    del task
    gc.collect()

    from temporalio.client import Client
    try:
        await Client.connect("127.0.0.1:1")
    except RuntimeError:
        pass

asyncio.run(main())
logged = sys.excepthook

def tell_and_leave(*uncaught):  # Python 3.11 may abort behind all of it: see `leave`
    logged(*uncaught)
    leave(1)

sys.excepthook = tell_and_leave
raise ValueError("at the end\\x07")
"""


def logged(form: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", _TELLS_ALL, form], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == ""
    assert ran.returncode == 1
    return ran.stderr.splitlines()


@pytest.mark.parametrize(("level", "shown"), [("DEBUG", 2), ("WARNING", 1), ("ERROR", 0)])
def test_the_librarys_records_are_logged_at_the_level_of_ours(level: str, shown: int) -> None:
    code = (
        "import logging; from adapters.log_setup import configure_logging; from adapters.process_exit import leave;"
        f"configure_logging({level!r}); log = logging.getLogger('sagafence.database');"
        "log.debug('m'); log.warning('m'); leave(0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)

    assert len(ran.stderr.splitlines()) == shown


def record(message: str = "m", *arguments: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("checkout.x", logging.WARNING, "", 0, message, arguments, None)
    made.created, made.msecs = 1_764_335_224.0, 123.0
    vars(made).update(more)
    return made


def raised() -> Any:
    try:
        int("no\nnumber")
    except ValueError:
        return sys.exc_info()


def document(**more: Any) -> dict[str, Any]:
    line = JsonFormatter().format(record(**more))
    assert "\n" not in line
    return dict(json.loads(line))


def test_a_record_is_one_line_of_text() -> None:
    plain = TextFormatter().format(record("five %s", "a\nb"))
    failed = TextFormatter().format(record("five", exc_info=raised()))

    assert plain == "2025-11-28T13:07:04.123Z WARNING checkout.x: five a b"
    assert "\n" not in failed
    assert failed.startswith(
        "2025-11-28T13:07:04.123Z WARNING checkout.x: five | Traceback (most recent call last): | "
    )
    assert failed.endswith(r"ValueError: invalid literal for int() with base 10: 'no\nnumber'")


def test_a_record_is_one_line_of_json() -> None:
    found = document(message="five", action="worker_ready", exc_info=raised())

    assert found.pop("exception").endswith("ValueError: invalid literal for int() with base 10: 'no\\nnumber'")
    assert found == {
        "time": "2025-11-28T13:07:04.123Z",
        "level": "WARNING",
        "logger": "checkout.x",
        "message": "five",
        "action": "worker_ready",
    }


@pytest.mark.parametrize(
    "about",
    [
        {"order_id": "o-1"},
        {"workflow_id": "checkout-o-1"},
        {"temporal_workflow": {"workflow_id": "checkout-o-1", "attempt": 1}},
        {"temporal_activity": {"workflow_id": "checkout-o-1", "activity_id": "pay"}},
        {"temporal_log": SimpleNamespace(fields={"workflow_id": "checkout-o-1"})},
    ],
    ids=lambda about: next(iter(about)),
)
def test_a_record_says_whose_order_it_is_about(about: dict[str, Any]) -> None:
    found = document(**about)

    assert (found["order_id"], found["workflow_id"]) == ("o-1", "checkout-o-1")


def test_a_workflow_of_no_order_is_none_of_an_order() -> None:
    found = document(workflow_id="bulk-1234")

    assert found["workflow_id"] == "bulk-1234"
    assert "order_id" not in found


@pytest.mark.parametrize("form", ["text", "json"])
def test_every_record_has_the_same_format(form: str) -> None:
    lines = [line for line in logged(form) if line]

    if form == "json":
        found = [json.loads(line) for line in lines]
        assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in found)
        text = "\n".join(f"{entry['logger']}: {entry['message']} {entry.get('exception', '')}" for entry in found)
    else:
        assert all(line[:4] == "2026" or line[10] == "T" for line in lines)
        text = "\n".join(lines)
    for words in ("ours", "wrong %d arguments", "deprecated", "in a thread", "in a destructor", "nobody awaits", "end"):
        assert words in text
    assert "not logged" not in text
    assert not [char for line in lines for char in line if ord(char) < 0x20]
