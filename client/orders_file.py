"""Orders in a file, for a bulk load: CSV with a row for each line of an order, or JSON with an order on each line.

    order_id,customer,sku,quantity          {"order_id": "n-1", "customer": "alice",
    n-1,alice,tea-mug,2                      "lines": [{"sku": "tea-mug", "quantity": 2}, ...]}
    n-1,alice,poster,1
    n-2,bob,lamp,1

The rows of a CSV order follow each other. The file is read as it is needed, never as a whole.
"""

import csv
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from domain.errors import InvalidInput
from domain.model import CheckoutInput, OrderLine, tidy

COLUMNS = ("order_id", "customer", "sku", "quantity")
_LONGEST_LINE = 100_000


class Entry(NamedTuple):
    """One order of the file, or what is wrong with it."""

    line: int
    """Where it begins in the file, counted from 1."""
    order_id: str
    order: CheckoutInput | None
    problem: str = ""
    lines: int = 1
    """How many lines of the file it takes."""


def line_count(path: Path) -> int:
    """Count a file's lines, for a progress bar; 0 where it cannot be read."""
    try:
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return 0


def read_orders(path: Path) -> Iterator[Entry]:
    """Read a file's orders one after the other. A malformed one is told, and the next is read.

    Raises:
        InvalidInput: the file cannot be read, or is of no known kind.
    """
    kinds = {".csv": _csv_entries, ".jsonl": _json_entries}
    if path.suffix not in kinds:
        raise InvalidInput(f"{path}: orders are read from .csv and .jsonl files")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from kinds[path.suffix](path, lines)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not in UTF-8") from None


def _csv_entries(path: Path, lines: TextIO) -> Iterator[Entry]:
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if tuple(name.strip() for name in header) != COLUMNS:
            raise InvalidInput(f"{path}: the first line must be {','.join(COLUMNS)}")
        numbered = ((reader.line_num, row) for row in reader if row)
        for order_id, rows in groupby(numbered, key=lambda numbered_row: numbered_row[1][0]):
            yield _csv_entry(order_id, list(rows))
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {reader.line_num}: {error}") from None


def _csv_entry(order_id: str, rows: list[tuple[int, list[str]]]) -> Entry:
    first, count = rows[0][0], len(rows)
    wrong = [f"line {number} does not have {len(COLUMNS)} columns" for number, row in rows if len(row) != len(COLUMNS)]
    if not wrong and len(customers := {row[1] for _, row in rows}) > 1:
        wrong = [f"the order has {len(customers)} customers"]
    if wrong:
        return Entry(first, tidy(order_id, 64), None, wrong[0], count)
    try:
        lines = tuple(OrderLine(sku, _quantity(number, quantity)) for number, (_, _, sku, quantity) in rows)
        return Entry(first, order_id, CheckoutInput(order_id, customers.pop(), lines), lines=count)
    except InvalidInput as problem:
        return Entry(first, tidy(order_id, 64), None, problem.message, count)


def _quantity(number: int, text: str) -> int:
    if not text.strip().isascii() or not text.strip().isdigit():
        raise InvalidInput(f"line {number}: quantity {ascii(text)[:40]} is not a whole number")
    return int(text.strip()[:12])


def _json_entries(_path: Path, lines: TextIO) -> Iterator[Entry]:
    number = 0
    while text := lines.readline(_LONGEST_LINE):
        number += 1
        if not text.endswith("\n") and len(text) == _LONGEST_LINE:
            while (rest := lines.readline(_LONGEST_LINE)) and not rest.endswith("\n"):
                pass
            yield Entry(number, "", None, f"the line has more than {_LONGEST_LINE} characters")
        elif text.strip():
            yield _json_entry(number, text)


def _json_entry(number: int, text: str) -> Entry:
    found: Any = None
    try:
        found = json.loads(text)
        lines = tuple(OrderLine(line["sku"], line["quantity"]) for line in found["lines"])
        order = CheckoutInput(found["order_id"], found["customer"], lines)
    except InvalidInput as problem:
        why = problem.message
    except (ValueError, RecursionError):
        why = "the line is not JSON"
    except (KeyError, TypeError) as problem:
        why = f"it is no order: {type(problem).__name__}: {problem}"
    else:
        return Entry(number, order.order_id, order)
    order_id = found.get("order_id", "") if isinstance(found, dict) else ""
    return Entry(number, tidy(str(order_id), 64), None, tidy(why))
