"""The tables of the documents that are made from the code: `python -m tests.tables` writes them."""

import re
from pathlib import Path

import pytest

from tests.tables import TABLES, documents, with_tables

MADE = [path for path in documents() if "<!-- table: " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_the_tables_of_a_document_are_what_the_code_gives(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert text == with_tables(text), "run: python -m tests.tables"


def test_every_table_is_in_one_document() -> None:
    named = [name for path in MADE for name in re.findall(r"<!-- table: (\w+) -->", path.read_text(encoding="utf-8"))]

    assert sorted(named) == sorted(TABLES)
