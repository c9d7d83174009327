"""docker-compose.yml as Compose reads it, once with no variable set and once with a value of its own for each."""

import re
from typing import Any

import yaml

from devstack.stack import ROOT

COMPOSE_FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$\{(\w+):([-?])([^{}]*)\}")
"""`${NAME:-default}`, or `${NAME:?what is said where it is not set}`."""


def document(**variables: str) -> dict[str, Any]:
    """Give the file with these variables set and all others at their defaults."""
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    resolved = VARIABLE.sub(lambda found: variables.get(found[1]) or _unset(found), text).replace("$$", "$")
    read: dict[str, Any] = yaml.load(resolved, Loader=yaml.CSafeLoader)  # safe_load, eight times as fast
    return read


def _unset(found: "re.Match[str]") -> str:
    return found[3] if found[2] == "-" else f"the.required.{found[1].lower()}"


def services(**variables: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = document(**variables)["services"]
    return found


def variables() -> dict[str, str]:
    """Name every variable of the file with its default; one that has to be set has none."""
    found = VARIABLE.findall(COMPOSE_FILE.read_text(encoding="utf-8"))
    return {name: default if kind == "-" else "" for name, kind, default in found}


def required() -> frozenset[str]:
    """Name the variables without which Compose does nothing."""
    return frozenset(
        name for name, kind, _ in VARIABLE.findall(COMPOSE_FILE.read_text(encoding="utf-8")) if kind == "?"
    )


def distinct() -> dict[str, str]:
    """Give each variable a value that no other has, so that one in another's place shows."""
    numbered = enumerate(sorted(variables()), start=10_001)
    return {name: str(number) if name.endswith("_PORT") else f"the.{name.lower()}" for number, name in numbered}
