"""One run of pytest on a tree, and what it says about the fault that was in it."""

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

TEST_SECONDS = 60
PATIENCE_SECONDS = 20
"""What a test waits for a thing that must come, and with a mutant may never do. Below `TEST_SECONDS`."""
HANG_SECONDS = 20
"""What a test gets when it is expected to hang."""
HARD_LIMIT_SECONDS = 180
"""What pytest gets where even its own time limit does not end it."""
_OK, _TESTS_FAILED = 0, 1
# The example has a configuration of its own, and its fixtures from the library's plugin, as a user of it has.
_EXAMPLE = ("-p", "sagafence_pytest", "-c", "examples/workspace/pytest.ini")

# A mutant must be wrong, not broken. Python says so at the start of a line, Postgres by its code; but a plan that a
# migration has made stale is no mistake in a statement.
_BROKEN = re.compile(
    r"^(?:E +)?(?:\w+\.)*(?:SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError|UnboundLocalError"
    r"|AttributeError|TypeError)\b.*$"
    r"|^(?!.*when preparing the plan).*\((?:42601|42702|42703|42804|42883|42P0[12]|42P10|42P18)\).*$"
    r"|^.*asyncpg\.exceptions\.(?:PostgresSyntaxError|Undefined\w+|Ambiguous\w+|DatatypeMismatchError).*$",
    re.MULTILINE,
)
_TIMED_OUT = "Failed: Timeout (>"


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    ERROR = "ERROR"
    """Nothing was learned: the killer is red without the fault, or failed for another reason than the fault."""


@dataclass(frozen=True)
class Run:
    """What pytest did. `code` is None where it had to be killed."""

    code: int | None
    passed: int
    failures: Sequence[str]
    """The messages of tests that failed in their own body."""
    errors: Sequence[str]
    """The messages of fixtures that failed around a test."""
    skipped: int
    output: str
    seconds: float

    @property
    def is_green(self) -> bool:
        """Tell whether every test ran and passed."""
        return self.code == _OK and self.passed > 0 and not (self.failures or self.errors or self.skipped)

    @property
    def has_hung(self) -> bool:
        """Tell whether a test, or all of pytest, had to be ended."""
        return self.code is None or any(message.startswith(_TIMED_OUT) for message in self.failures)


def run_tests(
    root: Path, tests: Sequence[str], report: Path, *, seconds: int = TEST_SECONDS, limit: int = HARD_LIMIT_SECONDS
) -> Run:
    """Run these tests of the tree at `root` by themselves, with this interpreter; stop at the first failure."""
    report.unlink(missing_ok=True)
    log = report.with_suffix(".log")
    of_an_example = _EXAMPLE if tests[0].startswith("examples/") else ()
    command = [
        *(sys.executable, "-m", "pytest", *of_an_example, "-n", "0", "-x", "-q", "--timeout", str(seconds)),
        *("-m", "exhaustive or not exhaustive", "-p", "no:cacheprovider", f"--junitxml={report}", *tests),
    ]
    began = time.monotonic()
    with log.open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=root, env=_environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()  # its servers die with it
            process.wait()
        output.seek(0)
        said = output.read()
    return _read(code, report, said, time.monotonic() - began)


def judge(run: Run, *, hangs: bool = False) -> tuple[Verdict, str]:
    """Say what a run tells about the fault that was in its tree, and why."""
    if run.has_hung:
        return (Verdict.KILLED, "it hung") if hangs else (Verdict.ERROR, "it hung; say hangs=True if that is the fault")
    if run.code == _OK:
        return (Verdict.SURVIVED, "") if run.is_green else (Verdict.ERROR, "the killer did not run, or was skipped")
    if run.code != _TESTS_FAILED:
        return Verdict.ERROR, f"pytest ended with {run.code}: {_last_line(run.output)}"
    if not run.failures:
        return Verdict.ERROR, f"no test failed, a fixture did: {_first_line(run.errors)}"
    if broken := _BROKEN.search(run.output):
        return Verdict.ERROR, f"the mutant is broken, not wrong: {broken.group().strip()[:200]}"
    return Verdict.KILLED, _first_line(run.failures)


def _environment() -> dict[str, str]:
    """Leave out what would make a run differ from one by hand; write no bytecode, which a restored file outlives."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "TEST_PATIENCE_SECONDS": str(PATIENCE_SECONDS)}


def _read(code: int | None, report: Path, output: str, seconds: float) -> Run:
    passed, skipped = 0, 0
    failures: list[str] = []
    errors: list[str] = []
    for case in ET.parse(report).iter("testcase") if report.exists() else ():
        outcomes = {child.tag: child.get("message", "") for child in case}
        failures += [outcomes["failure"]] if "failure" in outcomes else []
        errors += [outcomes["error"]] if "error" in outcomes else []
        skipped += "skipped" in outcomes
        passed += not outcomes.keys() & {"failure", "error", "skipped"}
    return Run(code, passed, failures, errors, skipped, output, seconds)


def _first_line(messages: Sequence[str]) -> str:
    return messages[0].splitlines()[0][:100] if messages and messages[0] else "without a message"


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"
