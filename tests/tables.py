"""Writes the tables of the documents that follow from the code.

    python -m tests.tables

rewrites every region `<!-- table: NAME -->` ... `<!-- end -->` of docs/*.md. What a row means is the docstring of the
class, the constant or the setting that it describes; tests/unit/test_tables.py compares the files with the code.
"""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from annotated_types import Ge, Le
from pydantic import SecretStr

import sagafence
from adapters import connector, database
from adapters.config import PREFIX, ApiSettings, ServiceSettings, StarterSettings, WorkerSettings
from devstack.stack import ROOT
from domain import errors, policies
from sagafence import (
    UNDO_ATTEMPTS_WHEN_REFUSED,
    ActivityPolicy,
    DatabaseRefusedStatement,
    IdempotencyConflict,
    OutcomeUnknown,
    Refusal,
    SagaError,
)

_REGION = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
SETUP = (ROOT / "setup.sql").read_text(encoding="utf-8")
_UNITS = {"ms": 0.001, "s": 1, "min": 60}
_ENDINGS = (errors.AuditViolation, errors.OrderRejected, errors.OrderCancelled)
"""How a workflow ends: no activity raises them."""

Row = Sequence[str]


def documents() -> list[Path]:
    return sorted((ROOT / "docs").glob("*.md"))


def with_tables(text: str) -> str:
    """Put the tables of today's code into the regions of a document.

    Raises:
        KeyError: a region names no table.
    """
    return _REGION.sub(lambda region: f"{region[1]}{region[2]}{_markdown(TABLES[region[1]]())}\n", text)


def _markdown(rows: Iterator[Row]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def _docstrings(module: str, scope: str | None = None) -> dict[str, str]:
    """Give what follows each assignment of a module, or of one of its classes, as its docstring."""
    body: list[ast.stmt] = ast.parse((ROOT / module).read_text(encoding="utf-8")).body
    if scope:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == scope)
    found = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            name = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[ast.unparse(name)] = _linked(ast.literal_eval(after.value))
    return found


def _linked(text: str) -> str:
    """Put a docstring on one line, its mentions of documents as links from docs/."""
    return re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", " ".join(text.split()))


def _length(length: timedelta | float | None) -> str:
    if length is None:
        return "no limit"
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    for unit, name in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= unit and (seconds % unit == 0 or unit == 1):
            return f"{seconds / unit:g} {name}"
    return f"{seconds * 1000:g} ms"


def _policies() -> Iterator[Row]:
    means = _docstrings("domain/policies.py")
    yield "policy", "for", "one attempt", "all attempts", "first wait", "longest wait", "gives up on"
    for name, policy in vars(policies).items():
        if isinstance(policy, ActivityPolicy):
            heartbeat = f", heartbeat within {_length(policy.heartbeat)}" if policy.heartbeat else ""
            yield (
                f"`{name}`",
                means[name],
                _length(policy.start_to_close) + heartbeat,
                _length(policy.schedule_to_close),
                _length(policy.retry.initial_interval),
                _length(policy.retry.maximum_interval),
                ", ".join(f"`{failure}`" for failure in policy.retry.non_retryable_error_types or ()),
            )


def role_timeout(setting: str) -> float:
    """Give a timeout of the service's role in seconds, as setup.sql sets it."""
    [(number, unit)] = re.findall(rf"'{setting}=(\d+)(ms|s|min)'", SETUP)
    return int(number) * _UNITS[unit]


def _timeouts() -> Iterator[Row]:
    yield "limit", "value", "set in"
    for limit, setting in (
        ("waiting for a lock", "lock_timeout"),
        ("one statement", "statement_timeout"),
        ("idle inside a transaction", "idle_in_transaction_session_timeout"),
        ("one transaction; on servers below 17 the worker ends it", "transaction_timeout"),
    ):
        yield limit, _length(role_timeout(setting)), f"`{setting}` of role `checkout`, setup.sql"
    yield "connecting, and waiting for a free connection", _length(connector.CONNECT_SECONDS), "`adapters/`"
    yield "waiting for an answer of Postgres", _length(database._COMMAND_TIMEOUT_SECONDS), "`adapters/`"
    for limit, length in (
        ("one attempt of a step, which is one statement", policies.RESERVE.start_to_close),
        ("one attempt of a step as a local activity", policies.LOCAL_ATTEMPT),
        ("one attempt of an undo or a record, which is one transaction", policies.UNDO.start_to_close),
        ("one workflow task", policies.WORKFLOW_TASK),
        ("a stuck order's first wait, which doubles", policies.STUCK_RETRY_FIRST),
        ("a stuck order's longest wait", policies.STUCK_RETRY_LONGEST),
        ("one run of the scheduled sweep", policies.SWEEP_RUN_TIMEOUT),
        ("one scheduled audit", policies.AUDIT_RUN_TIMEOUT),
    ):
        yield limit, _length(length), "`domain/policies.py`"


def _failures() -> Iterator[Row]:
    forward = policies.RESERVE.retry.non_retryable_error_types or ()
    yield "failure", "kind", "means", "in a step", "in an undo"
    library = {name: getattr(sagafence, name) for name in sagafence.__all__}
    for name, failure in {**vars(errors), **library}.items():
        if not isinstance(failure, type) or not issubclass(failure, SagaError):
            continue
        if failure in {SagaError, Refusal, IdempotencyConflict, *_ENDINGS}:
            continue
        is_retried = not failure("").non_retryable
        is_outage = is_retried and name not in forward
        kind = "refusal" if issubclass(failure, Refusal) else "outage" if is_outage else "broken"
        undo = "retried" if is_retried else "not retried"
        if failure is DatabaseRefusedStatement:
            undo = f"{UNDO_ATTEMPTS_WHEN_REFUSED} refusals"
        if failure is OutcomeUnknown:
            undo = "retried while a repeat may tell"
        meaning = _linked(failure.__doc__ or "").split(". ")[0].rstrip(".")
        yield f"`{name}`", kind, meaning, "retried" if is_outage else "not retried", undo


def _settings() -> Iterator[Row]:
    readers: dict[str, type[StarterSettings]] = {
        "worker": WorkerSettings,
        "API": ApiSettings,
        "starter": StarterSettings,
    }
    kinds: tuple[type[StarterSettings], ...] = (StarterSettings, ServiceSettings, WorkerSettings, ApiSettings)
    yield "variable", "default", "read by", "means"
    for kind in kinds:
        for name, meaning in _docstrings("adapters/config.py", kind.__name__).items():
            field = kind.model_fields[name]
            least = [bound.ge for bound in field.metadata if isinstance(bound, Ge)]
            most = [bound.le for bound in field.metadata if isinstance(bound, Le)]
            bounds = f" ({least[0] if least else 'above 0'} to {most[0]})" if most else ""
            read_by = [
                reader
                for reader, settings in readers.items()
                if name in settings.model_fields and settings.model_fields[name].default == field.default
            ]
            yield (
                f"`{PREFIX}{name.upper()}`",
                _default(field.default),
                ", ".join(read_by),
                meaning.removesuffix(".") + bounds,
            )


def _default(value: object) -> str:
    if value is None:
        return "none"
    shown = value.get_secret_value().replace("+asyncpg", "") if isinstance(value, SecretStr) else value
    return f"`{shown:g}`" if isinstance(shown, float) else f"`{shown}`"


def _exits() -> Iterator[Row]:
    yield "command", "status", "means"
    for command, module in (
        ("`starter.py`", "starter.py"),
        ("`worker.py`", "worker.py"),
        ("`api.py`", "api.py"),
        ("`python -m http_api.keys`", "http_api/keys.py"),
        ("`python -m adapters.heartbeat`", "adapters/heartbeat.py"),
        ("`python -m devstack`", "devstack/__main__.py"),
        ("`python -m tests.soak`", "tests/soak/__main__.py"),
        ("`python -m tests.mutants`", "tests/mutants/__main__.py"),
        ("`python -m sagafence`", "sagafence/__main__.py"),
    ):
        docstring = ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8"))) or ""
        [listed] = re.findall(r"^Exit status[^:]*: (.*?)(?:\.\n\n|\.?\Z)", docstring, re.MULTILINE | re.DOTALL)
        for status, meaning in re.findall(r"(\d+) (.+?)(?:; (?=\d)|\Z)", " ".join(listed.split())):
            yield command, status, meaning


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "policies": _policies,
    "timeouts": _timeouts,
    "failures": _failures,
    "settings": _settings,
    "exits": _exits,
}


def main() -> None:
    for path in documents():
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
