"""The orders of a file: CSV with a row for each line of an order, or JSON with an order on each line.

    order_id,customer,sku,quantity          {"order_id": "n-1", "customer": "alice",
    n-1,alice,tea-mug,2                      "lines": [{"sku": "tea-mug", "quantity": 2}, ...]}
    n-1,alice,poster,1
    n-2,bob,lamp,1

The rows of a CSV order follow each other: a first pass finds those that do not, and the second one streams the orders.
"""

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from domain.model import MAX_LINES, CheckoutInput, OrderLine, quantity_of, too_many_lines
from domain.text import tidy
from sagafence import InvalidInput
from terminal.load.order_rows import Row, read_rows
from terminal.load.text_file import Line, TextFile

_CSV, _JSON = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson")
_SHOWN_ID = 128
_LONGEST_NUMBER = 1_000
"""In characters; int() itself refuses thousands of digits, with a message of its own."""


class Entry(NamedTuple):
    """One order of the file, or why there is none."""

    line: int
    """Its first line in the file, counted from 1."""
    order_id: str
    order: CheckoutInput | None
    problem: str = ""
    lines: int = 1
    """How many lines of the file it takes."""


def line_count(path: Path) -> int:
    """Count a file's lines, for a progress bar; 0 where it cannot be read."""
    try:
        with path.open("rb") as file:
            chunks = iter(lambda: file.read(1 << 20), b"")
            ends = [(chunk.count(b"\n"), chunk.count(b"\r")) for chunk in chunks]
    except OSError:
        return 0
    return sum(lf for lf, _ in ends) or sum(cr for _, cr in ends)


def read_orders(path: Path) -> Generator[Entry]:
    """Read a file's orders one after the other. A malformed one is reported, and the next is read.

    Raises:
        InvalidInput: the file cannot be read, is of no known kind, or changes while it is read.
    """
    with TextFile(path) as file:
        if path.suffix.lower() in _CSV:
            yield from _csv_entries(file)
        elif path.suffix.lower() in _JSON:
            for line in file.lines():
                if line.problem or line.text.strip():
                    yield _json_entry(line)
        else:
            raise InvalidInput(
                f"{path}: orders are read from .csv and .jsonl files; a workbook is saved as CSV UTF-8 first"
            )


# Rows ---------------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """Successive rows of one order; without an id, one row of an unknown order."""

    line: int
    order_id: str
    customers: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """The first of them: an order has no more than `MAX_LINES`."""
    problem: str = ""
    count: int = 0

    def add(self, row: Row) -> None:
        self.count += 1
        self.problem = self.problem or row.problem
        if row.customer and row.customer not in self.customers and len(self.customers) < 2:
            self.customers.append(row.customer)
        if len(self.rows) <= MAX_LINES:
            self.rows.append(row)

    def entry(self, apart: str) -> Entry:
        """Return the order of these rows."""
        problem = self.problem or apart
        if not problem and len(self.customers) > 1:
            problem = f"the order has 2 customers: {self.customers[0]!a} and {self.customers[1]!a}"
        if not problem and self.count > MAX_LINES:  # `rows` has not all of them
            problem = f"the order at line {self.line}: {too_many_lines(self.count)}"
        if not problem:
            try:
                lines = tuple(OrderLine(row.sku, _quantity(row)) for row in self.rows)
            except InvalidInput as malformed:
                problem = malformed.message
        if not problem:
            try:
                order = CheckoutInput(self.order_id, "".join(self.customers), lines)
                return Entry(self.line, self.order_id, order, lines=self.count)
            except InvalidInput as malformed:
                problem = f"the order at line {self.line}: {malformed.message}"
        return Entry(self.line, tidy(self.order_id, _SHOWN_ID), None, problem, self.count)


def _csv_entries(file: TextFile) -> Iterator[Entry]:
    apart = _apart(file)
    first: dict[int, int] = {}
    for group in _groups(read_rows(file.path, file.lines())):
        problem = ""
        if group.order_id and (again := apart.get(hash(group.order_id))):
            begin = first.setdefault(hash(group.order_id), group.line)
            other = group.line if group.line > begin else again
            problem = f"its rows lie apart: from line {begin} and again from line {other}; put them together"
        yield group.entry(problem)


def _apart(file: TextFile) -> dict[int, int]:
    """Find the ids whose rows lie apart: the line where each comes again, by the id's hash.

    A million ids take 70 MB. Two ids with the same hash would be refused as one: safe, and once in 30 million files of
    that size.
    """
    seen: set[int] = set()
    apart: dict[int, int] = {}
    for group in _groups(read_rows(file.path, file.lines())):
        if group.order_id:
            name = hash(group.order_id)
            if name in seen:
                apart.setdefault(name, group.line)
            seen.add(name)
    return apart


def _groups(rows: Iterator[Row]) -> Iterator[_Group]:
    """Group the rows by order.

    A row that cannot be read makes its order malformed: the one of its id; without an id, the one above, or the one
    whose rows surround it. So no order ships with a part of its lines.
    """
    group: _Group | None = None
    strays: list[Row] = []
    for row in rows:
        order_id = row.order_id
        if not order_id and (row.is_below or not row.problem):
            row = _continued(row, group)  # noqa: PLW2901 - the same row, read as what it is
            order_id = row.order_id
        if not order_id:
            strays.append(row)
            if group is None or len(strays) > MAX_LINES:
                yield from _alone(strays[:1] if group else strays)
                del strays[: 1 if group else None]
            continue
        if group is not None and order_id == group.order_id:
            for one in (*strays, row):
                group.add(one)
        else:
            if group is not None:
                yield group
            yield from _alone(strays)
            group = _Group(row.line, order_id)
            group.add(row)
        strays = []
    if group is not None:
        yield group
    yield from _alone(strays)


def _continued(row: Row, above: _Group | None) -> Row:
    """Read a row without an order id, as a spreadsheet writes merged cells: it continues the order above."""
    problem = row.problem or f"line {row.line} has no order id; write it in every row"
    if above is None or (row.customer and row.customer not in above.customers):
        return row._replace(problem=problem)
    return row._replace(order_id=above.order_id, problem=problem if row.problem or row.customer else "")


def _alone(rows: list[Row]) -> Iterator[_Group]:
    for row in rows:
        group = _Group(row.line, "")
        group.add(row)
        yield group


def _quantity(row: Row) -> int:
    text = row.quantity
    if not text.isascii() or not text.isdigit():
        raise InvalidInput(
            f"line {row.line}: quantity {ascii(text)[:40]} is not a whole number in digits alone, such as 12"
        )
    try:
        return quantity_of(text)
    except InvalidInput as problem:
        raise InvalidInput(f"line {row.line}: {problem.message}") from None


# JSON ---------------------------------------------------------------------------------------------------


def _json_entry(line: Line) -> Entry:
    found: Any = None
    if line.problem:
        return Entry(line.number, "", None, f"line {line.number}: {line.problem}")
    try:
        found = json.loads(line.text, object_pairs_hook=_object, parse_constant=_no_number, parse_int=_whole_number)
        order = _order_of(found)
    except InvalidInput as problem:
        why = problem.message
    except (ValueError, RecursionError):
        why = "it is not JSON"
    else:
        return Entry(line.number, order.order_id, order)
    order_id = found.get("order_id", "") if isinstance(found, dict) else ""
    return Entry(line.number, tidy(str(order_id)[: 2 * _SHOWN_ID], _SHOWN_ID), None, tidy(f"line {line.number}: {why}"))


def _order_of(found: Any) -> CheckoutInput:
    order_id, customer, lines = _parts(found, "it", "order_id", "customer", "lines")
    if not isinstance(lines, list):
        raise InvalidInput("its lines are no list")
    places = enumerate(lines, start=1)
    each = (_parts(line, f"its line {place}", "sku", "quantity") for place, line in places)
    return CheckoutInput(order_id, customer, tuple(OrderLine(*parts) for parts in each))


def _parts(found: Any, what: str, *names: str) -> tuple[Any, ...]:
    if not isinstance(found, dict):
        raise InvalidInput(f"{what} is no object of {', '.join(names)}")
    if missing := [name for name in names if name not in found]:
        raise InvalidInput(f"{what} has no {' and no '.join(missing)}")
    return tuple(found[name] for name in names)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) != len(pairs):
        raise InvalidInput("a name comes twice in one object")
    return known


def _whole_number(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise InvalidInput(f"a number of {len(text)} characters is none of an order's")
    return int(text)


def _no_number(name: str) -> Any:
    raise InvalidInput(f"{name} is no number of JSON")
