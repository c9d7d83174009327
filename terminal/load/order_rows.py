"""The rows of a CSV file of orders, as programs and spreadsheets write it; what cannot be read is reported and skipped.

A row is one line. A quoted field over several lines is followed for a while, so that its content is not taken for rows;
where it has no end, the quote is a stray one, and only its line is lost.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from domain.identifiers import composed, not_composed
from domain.text import tidy
from sagafence import InvalidInput
from terminal.load.text_file import LONGEST_LINE, Line

COLUMNS = ("order_id", "customer", "sku", "quantity")
LONGEST_FIELD = 100
"""How many lines a quoted field is followed over."""
_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=([^ "])"?[,;\t|]*', re.IGNORECASE)
# As long as a line can be: of one with a longer field not even the order's id could be read.
csv.field_size_limit(LONGEST_LINE)


class Row(NamedTuple):
    """One row, or why there is none."""

    line: int
    order_id: str
    customer: str = ""
    sku: str = ""
    quantity: str = ""
    problem: str = ""
    """Why the row is no line of an order. Its order id is then what could be read, or empty."""
    is_below: bool = False
    """It has content and no id: whatever is wrong with it, it continues the order above."""


@dataclass(frozen=True)
class _Layout:
    separator: str
    width: int
    places: tuple[int, ...]
    """The index of each of COLUMNS."""
    unnamed: tuple[int, ...]

    def cells(self, lines: Iterator[str], *, is_strict: bool = True) -> list[str]:
        reader = csv.reader(lines, delimiter=self.separator, skipinitialspace=True, strict=is_strict)
        return [cell.strip(" ") for cell in next(reader, [])]

    def quoted_cells(self, texts: Iterator[str], taken: Sequence[Line]) -> list[str]:
        """Read a row with quotes; `taken` grows with the lines it needs.

        Raises:
            csv.Error: a quote is not where one may be. csv itself accepts one within an unquoted field.
        """
        cells = self.cells(texts)
        others = f'[^"{re.escape(self.separator)}]*'
        field = f'(?: *"(?:[^"]|"")*" *|{others})'
        if len(taken) == 1 and not re.fullmatch(f"{field}(?:{re.escape(self.separator)}{field})*", taken[0].text):
            raise csv.Error("a quote within a field without quotes")
        return cells

    def bad(self, line: Line, problem: str) -> Row:
        """Return a line that is no row, with the order that it seems to belong to."""
        try:
            cells = self.cells(iter([line.text]), is_strict=False)
        except csv.Error:
            cells = []
        order_id = "".join(cells[self.places[0] :][:1])
        is_below = len(cells) > self.places[0] and not order_id and any(cells)
        # In the form of the order's other rows, so that it is grouped with them.
        return Row(line.number, composed(tidy(order_id)), problem=problem, is_below=is_below)


def read_rows(path: Path, lines: Iterator[Line]) -> Iterator[Row]:
    """Read the rows below the header, except those with nothing but separators.

    Raises:
        InvalidInput: there is no header, or not that of orders.
    """
    layout = _layout(path, lines)
    ahead: deque[Line] = deque()
    while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
        if line.problem:
            yield layout.bad(line, f"line {line.number}: {line.problem}")
        elif '"' in line.text:
            yield from _quoted(line, layout, lines, ahead)
        else:
            cells = [cell.strip(" ") for cell in line.text.split(layout.separator)]
            if any(cells):
                yield _row(line, cells, layout)


def _quoted(line: Line, layout: _Layout, lines: Iterator[Line], ahead: deque[Line]) -> Iterator[Row]:
    """Read a row with quotes. Lines read ahead stay in `ahead`, except those of its last field."""
    taken = [line]

    def texts() -> Iterator[str]:
        yield line.text + "\n"
        for number in range(LONGEST_FIELD - 1):
            if number == len(ahead):
                if (more := next(lines, None)) is None:
                    return
                ahead.append(more)
            if ahead[number].problem:
                return
            taken.append(ahead[number])
            yield ahead[number].text + "\n"

    try:
        cells = layout.quoted_cells(texts(), taken)
    except csv.Error:
        yield layout.bad(line, f"line {line.number}: its quotes do not match; a quote in a field is written twice")
        return
    if len(taken) > 1:
        where = f"it is in a quoted field that goes from line {line.number} to line {taken[-1].number}"
        yield from (layout.bad(one, f"line {one.number}: {where}") for one in taken)
        for _ in taken[1:]:
            ahead.popleft()
    elif any(cells):
        yield _row(line, cells, layout)


def _row(line: Line, cells: Sequence[str], layout: _Layout) -> Row:
    if len(cells) != layout.width:
        return layout.bad(line, f"line {line.number} does not have {layout.width} columns")
    if layout.width > len(COLUMNS) and any(cells[place] for place in layout.unnamed):
        return layout.bad(line, f"line {line.number} has something in a column without a name")
    one, two, three, four = layout.places
    if not cells[one].isprintable():
        return layout.bad(line, f"line {line.number}: its order id has characters that cannot be printed")
    if composed(cells[one]) != cells[one]:
        return layout.bad(line, f"line {line.number}: its order id {not_composed(cells[one])}")
    return Row(line.number, cells[one], cells[two], cells[three], cells[four])


def _layout(path: Path, lines: Iterator[Line]) -> _Layout:
    separators: Sequence[str] = _SEPARATORS
    wanted = f"{path}: the first line must be {','.join(COLUMNS)}, in any sequence, with , or ; or tabs between them"
    for line in lines:
        if line.problem:
            raise InvalidInput(f"{path}, line {line.number}: {line.problem}")
        if line.number == 1 and (named := _SEPARATOR_LINE.fullmatch(line.text.strip(" "))):
            separators = named[1]
        elif line.text.strip(" ,;\t|"):
            break
    else:
        raise InvalidInput(wanted)
    found = max((_header(line, separator) for separator in separators), key=lambda names: _known(names[1]))
    separator, names = found
    if missing := [name for name in COLUMNS if name not in names]:
        lacking = f"; it has no {' and no '.join(missing)}" if len(missing) < len(COLUMNS) else ""
        raise InvalidInput(f"{wanted}{lacking}")
    strange = [name for place, name in enumerate(names) if name and (name not in COLUMNS or name in names[:place])]
    if strange:
        what = f"{'second ' if strange[0] in COLUMNS else ''}column {tidy(strange[0], 60)!a}"
        raise InvalidInput(f"{path}: an order has no {what}; take it out of the file")
    unnamed = tuple(place for place, name in enumerate(names) if not name)
    return _Layout(separator, len(names), tuple(names.index(name) for name in COLUMNS), unnamed)


def _header(line: Line, separator: str) -> tuple[str, list[str]]:
    try:
        [names] = csv.reader([line.text], delimiter=separator, skipinitialspace=True, strict=True)
    except csv.Error:
        names = []
    return separator, [re.sub(r"[\s-]+", "_", name.strip()).casefold() for name in names]


def _known(names: Sequence[str]) -> int:
    return len({*names} & {*COLUMNS})
