"""Ids as strangers have them, and the comparison of Python's rule with a database's."""

import random
from collections.abc import Callable

from domain.identifiers import MAX_LENGTH, composed, is_identifier
from tests.conftest import Database

LEGAL = [
    "a", "A.b-c_9", "x" * MAX_LENGTH, "\U0001f6d2" * MAX_LENGTH, "#1001", "-1", "--help", "../o",
    "gid://shop/Order/450", "alice+test@example.org", "TSHIRT/RED M", "ÄÖ-7", "né", "\u0660\u0627\u0644", "日本", "☕",
    "❤\ufe0f", "100 %", "50%25", "a'b", 'a"b', "a\\b", "a\\", "'; DROP TABLE orders; --", "*", "?x=1&y=2",
    "[red]a[/red]", "**a** `b` [c](http://d) <e>", "$(id) `id` $HOME", "bulk-1", "checkout-1", "capture/1", "a:b:2",
    "=1+1", "a  b", "null", "%s {0} :order_id",
]  # fmt: skip
ILLEGAL = [
    "", " ", " a", "a ", "a\n", "a\nb", "a\tb", "a\x00b", "a\x1b[31mb", "a\x7f", "a\x85b", "a\u00a0b", "\u00a0",
    "a\u200bb", "a\u202eb", "a\u2028b", "a\u3000b", "\ufeffa", "\U0001f468\u200d\U0001f469", "\U000e0041", "\ue000",
    "\ufffe", "\ud800", "e\u0301", "\u212b", "\u1100\u1161", "x" * (MAX_LENGTH + 1), "x" * 100_000,
]  # fmt: skip
# Characters in which rules go astray come as often as all others together.
_ODD = (
    "a -.:/#%'\"\\*[]\n\x00\x1b\u00a0\u00ad\u0301\u0327\u200b\u200d\u202e\u2066\u3000\ufeff\ufe0f\uac00\u11a8\U0001f6d2"
)


def any_text(rng: random.Random) -> str:
    """Make up a text that may be an id or not; Postgres can hold it."""
    size = rng.choice((1, 1, 2, 3, 5, 8, 40, MAX_LENGTH, MAX_LENGTH + 1))
    made = "".join(rng.choice((rng.choice(_ODD), _any_character(rng))) for _ in range(size))
    return composed(made) if rng.random() < 0.5 else made


def any_id(rng: random.Random) -> str:
    """Make up an id."""
    while True:
        kept = (c for c in any_text(rng) if is_identifier(f"a{c}b"))
        if is_identifier(made := composed("".join(kept)).strip(" ")):
            return made


def _any_character(rng: random.Random) -> str:
    code = rng.choice((rng.randrange(0x20, 0x7F), rng.randrange(0x3000), rng.randrange(0x110000)))
    return "?" if 0xD800 <= code < 0xE000 else chr(code)


async def disagreements(database: Database, around: Callable[[str], str], in_sql: str) -> set[int]:
    """Name every code point of which Python and the database disagree, as a part of a text."""
    codes = [code for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    refused = await database.fetch(
        "SELECT c FROM generate_series(1, 1114111) AS c WHERE c NOT BETWEEN 55296 AND 57343"
        f" AND NOT is_identifier({in_sql})"
    )
    return {code for code in codes if not is_identifier(around(chr(code)))} ^ {row[0] for row in refused}
