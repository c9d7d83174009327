"""Faults in docker-compose.yml that nobody had to think of: each value another, each entry gone, each line of a script.

The faults that somebody thought of are in tests/mutants/compose.py.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit import compose_file, test_compose, test_compose_wiring

TEXT = compose_file.COMPOSE_FILE.read_text(encoding="utf-8")
HARMLESS = {
    **dict.fromkeys(
        (f"{of}.mem_limit gone" for of in ("x-job", "services.temporal-ui", "services.api")), "all have one"
    ),
    "services.temporal-namespace.command.0 line 14: # One --type for each --name: a name wit": "a comment",
    "services.temporal-namespace.command.0 line 9: temporal operator namespace describe --c": (
        "test_the_namespace_job_may_run_again sees it, on a server"
    ),
}
READ_IT = {"services", "document", "variables", "required", "run_script", "_check_schema"}
"""What a test calls that reads the file."""


def faults() -> Iterator[tuple[str, str]]:
    """Give each fault's name, and the file's text with it."""
    root, as_it_is = yaml.compose(TEXT), _means(TEXT)
    for name, start, end, instead in _of_entries(root, ""):
        text = TEXT[:start] + instead + TEXT[end:]
        if _means(text) not in (None, as_it_is):
            yield name, text


def _means(text: str) -> object:
    try:
        return yaml.load(text, Loader=yaml.CSafeLoader)  # safe_load, eight times as fast
    except yaml.YAMLError:  # Compose refuses it
        return None


Fault = tuple[str, int, int, str]


def _of_entries(node: Any, path: str) -> Iterator[Fault]:
    if isinstance(node, yaml.ScalarNode):
        yield from _of_value(node, path)
        return
    is_mapping = isinstance(node, yaml.MappingNode)
    entries = node.value if is_mapping else [(item, item) for item in node.value]
    for position, (key, value) in enumerate(entries):
        name = f"{path}.{key.value if is_mapping else position}".lstrip(".")
        after = entries[position + 1][0].start_mark.index if position + 1 < len(entries) else node.end_mark.index
        if node.flow_style:
            last = position + 1 == len(entries)
            start = entries[position - 1][1].end_mark.index if last and position else key.start_mark.index
            yield f"{name} gone", start, after - last, ""
        else:
            yield f"{name} gone", _line_start(key.start_mark.index), _line_start(after), ""
        if not (is_mapping and key.value == "<<"):  # what is merged has its place elsewhere
            yield from _of_entries(value, name)


def _of_value(node: yaml.ScalarNode, path: str) -> Iterator[Fault]:
    start, end = node.start_mark.index, node.end_mark.index
    if node.style == "|":
        for number, line in enumerate(re.finditer(r"^ +\S.*\n", TEXT[start:end], re.MULTILINE)):
            yield f"{path} line {number}: {line[0].strip():.40}", start + line.start(), start + line.end(), ""
        return
    quote = '"' if node.style == '"' else ""
    for number, other in enumerate(_others(node.value)):
        yield f"{path} other {number}", start, end, f"{quote}{other}{quote}"


def _others(value: str) -> list[str]:
    if found := re.fullmatch(r"(\d+)(\.\d+)?([a-z]*)", value):
        return [f"{int(found[1]) * 10}{found[3]}", f"{int(found[1]) / 10:g}{found[3]}"]
    if value in {"true", "false", "no"}:
        return ["false" if value == "true" else "true"]
    return [f"{value}x"]


def _line_start(index: int) -> int:
    return TEXT.rfind("\n", 0, index) + 1


FAULTS = dict(faults())


def checks(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give the tests that read the file and need no server, each with each of its parameters."""
    tests = [*vars(test_compose_wiring).values(), *vars(test_compose).values()]
    named = [test for test in tests if getattr(test, "__name__", "").startswith("test_")]
    cases = [(test, given) for test in named for given in _parameters(test)]
    for number, (test, given) in enumerate(cases):
        wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
        own = {"tmp_path": folder / f"{number}"} if "tmp_path" in wanted else {}
        if READ_IT & set(test.__code__.co_names) and {*given, *own} == {*wanted}:
            yield test.__name__, partial(_in_a_folder, partial(test, **given, **own), folder / f"{number}")


def _parameters(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    for names, cases in marks or [((), [()])]:
        for case in cases:
            yield {names: case} if isinstance(names, str) else dict(zip(names, case, strict=True))


def _in_a_folder(test: Callable[[], None], folder: Path) -> None:
    folder.mkdir()
    test()


def first_to_see(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name the first test that fails of this text; none: empty."""
    file = folder / "docker-compose.yml"
    file.write_text(text, encoding="utf-8")
    for module in (compose_file, test_compose):
        monkeypatch.setattr(module, "COMPOSE_FILE", file)
    for name, check in checks(folder):
        try:
            check()
        except Exception:  # noqa: BLE001 - a test may fail of a fault in any way
            return name
    return ""


def test_a_compose_file_without_a_fault_is_seen_by_no_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_to_see(TEXT, tmp_path, monkeypatch) == ""
    assert HARMLESS.keys() <= FAULTS.keys()


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - HARMLESS.keys()))
def test_a_fault_anywhere_in_the_compose_file_is_seen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_to_see(FAULTS[name], tmp_path, monkeypatch)
