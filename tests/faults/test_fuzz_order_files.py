"""Files of orders that were ill-treated at random: every line is accounted for, and none becomes what it is not.

The seed of a failing case is in its message.
"""

import random
from pathlib import Path

import pytest

from sagafence import InvalidInput
from terminal.load.orders_file import Entry, read_orders

CASES = 20_000
SHARES = 8
SEPARATORS = (",", ";", "\t")
ENDS = ("\n", "\r\n", "\r")
COLUMNS = ("order_id", "customer", "sku", "quantity")
SCRAPS = [
    *(b'"', b'""', b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xe9", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b" ", b"'", b"=", b"sep=;", b"{", b"[", b"NaN", b"\\", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x1b[2J", b"1", b"0"),
]


def cell(text: str, draw: random.Random, separator: str) -> str:
    if separator in text or '"' in text or draw.random() < 0.2:
        return '"' + text.replace('"', '""') + '"'
    return text


def written(draw: random.Random) -> bytes:
    separator, end = draw.choice(SEPARATORS), draw.choice(ENDS)
    places = draw.sample(range(4), 4) if draw.random() < 0.3 else list(range(4))
    rows = [list(COLUMNS)]
    for number in range(draw.randint(1, 6)):
        customer = draw.choice(["alice", "bob", "carol"])
        rows += [
            [f"n-{number}", customer if not line or draw.random() < 0.8 else "", f"sku-{line}", "1"]
            for line in range(draw.randint(1, 3))
        ]
    if draw.random() < 0.2:
        rows.insert(draw.randint(1, len(rows)), [""] * 4)
    text = "".join(separator.join(cell(row[place], draw, separator) for place in places) + end for row in rows)
    return text.encode(draw.choice(["utf-8", "utf-8-sig", "utf-16"]))


def spoilt(content: bytes, draw: random.Random) -> bytes:
    spoiling = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randint(0, len(spoiling))
        other = draw.randint(0, len(spoiling))
        kind = draw.random()
        if kind < 0.5:
            spoiling[place:place] = draw.choice(SCRAPS)
        elif kind < 0.7:
            del spoiling[place : place + draw.randint(1, 8)]
        elif kind < 0.8:
            spoiling[place:place] = spoiling[other : other + draw.randint(1, 40)]
        elif kind < 0.9 and spoiling:
            spoiling[place % len(spoiling)] = draw.randrange(256)
        else:
            del spoiling[place:]
    return bytes(spoiling)


def rows_of(content: bytes) -> list[str]:
    """Give a file's lines, in the simplest way that there is."""
    encoding = "utf-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8"
    text = content.decode(encoding, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def found_wrong(content: bytes, entries: list[Entry]) -> str:
    """Say what is wrong with what came of a file, or nothing."""
    lines = rows_of(content)
    whole = {number for number, line in enumerate(lines, start=1) if line.strip(' ,;\t|"')}
    # Quotes and separators alone are a row of nothing, the end of a field, or a row with too few columns.
    others = {number for number, line in enumerate(lines, start=1) if line.strip(" ")} - whole
    told: dict[str, list[Entry]] = {}
    rows = 0
    for entry in entries:
        told.setdefault(entry.order_id, []).append(entry)
        rows += entry.lines
        taken = [number for number in sorted(whole) if number >= entry.line][: entry.lines]
        text = "\n".join(lines[number - 1] for number in taken).replace('""', '"')
        if entry.line not in whole | others or (entry.order is None) != bool(entry.problem):
            return f"{entry} is nothing that stands there"
        if entry.order is None:
            continue
        names = [entry.order_id, entry.order.customer, *(line.sku for line in entry.order.lines)]
        if [name for name in names if name not in text] or "\ufffd" in text or "\0" in text:
            return f"{entry} does not stand in {text!r}"
        if len(taken) != entry.lines:
            return f"{entry} has rows that are not there"
    if [order_id for order_id, same in told.items() if order_id and len(same) > 1 and any(one.order for one in same)]:
        return "an order has rows in two places"
    heads = len(whole) - rows
    return "" if heads <= 2 and heads + len(others) >= 1 else f"{heads} lines are not accounted for, with the header"


@pytest.mark.parametrize("share", range(SHARES))
def test_no_file_of_orders_is_read_as_what_it_is_not(tmp_path: Path, share: int) -> None:
    path = tmp_path / "o.csv"
    refused = malformed = orders = 0
    for number in range(share, CASES, SHARES):
        draw = random.Random(number)
        content = written(draw)
        path.write_bytes(content)
        whole = {entry.order_id: entry.order for entry in read_orders(path)}
        assert None not in whole.values(), number
        content = spoilt(content, draw)
        path.write_bytes(content)
        try:
            entries = list(read_orders(path))
        except InvalidInput as refusal:
            is_told = str(path) in refusal.message
            refused += is_told
            continue
        except BaseException as error:
            raise AssertionError(f"case {number}: {content!r}") from error
        problem = found_wrong(content, entries)
        assert not problem, f"case {number}: {problem}: {content!r}"
        malformed += sum(entry.order is None for entry in entries)
        orders += sum(entry.order is not None for entry in entries)
    assert min(refused, malformed, orders) > 100
