"""The tables of the documents that are made from the code: `python -m tests.tables` writes them."""

import re
from pathlib import Path

import pytest

from devstack.stack import ROOT
from tests.tables import TABLES, documents, with_tables

MADE = [path for path in documents() if "<!-- table: " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_the_tables_of_a_document_are_what_the_code_gives(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert text == with_tables(text), "run: python -m tests.tables"


def test_every_table_is_in_one_document() -> None:
    named = [name for path in MADE for name in re.findall(r"<!-- table: (\w+) -->", path.read_text(encoding="utf-8"))]

    assert sorted(named) == sorted(TABLES)


def test_every_command_of_an_operator_and_every_long_test_has_its_exit_statuses() -> None:
    files = [
        path for room in ("", "adapters/", "devstack/", "http_api/", "sagafence/") for path in ROOT.glob(f"{room}*.py")
    ]
    commands = {
        path.name if path.parent == ROOT else f"python -m {path.parent.name}" + f".{path.stem}" * (path.stem[0] != "_")
        for path in files
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    }

    _head, *rows = TABLES["exits"]()
    statuses: dict[str, list[str]] = {}
    for command, status, _meaning in rows:
        statuses.setdefault(command.strip("`"), []).append(status)

    assert set(statuses) == commands | {"python -m tests.soak", "python -m tests.mutants"}
    assert {statuses[command][0] for command in commands} == {"0"}
    assert all(found == sorted(set(found), key=int) for found in statuses.values())
