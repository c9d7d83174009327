"""Texts in the cells of a CSV file that is opened in a spreadsheet: none runs as a formula, each can be read back.

A spreadsheet takes a cell for a formula by its first character, and it may see more cells than were written: where its
separator is another one, a cell begins after every `;` in a text too.
"""

import re

# Also as full-width and small forms, which a spreadsheet may read as the same; and behind what it passes over.
_RUNS = r"""['" ]*[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\t\r\n]"""
_BEGIN = r"(?:^|(?<=[,;|\t]))"
_TO_MARK = re.compile(f"{_BEGIN}(?={_RUNS})")
_MARKED = re.compile(f"{_BEGIN}'(?={_RUNS})")


def to_cell(text: str) -> str:
    """Put an apostrophe before whatever would run, as a person does who types it."""
    return _TO_MARK.sub("'", text)


def from_cell(cell: str) -> str:
    """Undo `to_cell`, exactly."""
    return _MARKED.sub("", cell)
