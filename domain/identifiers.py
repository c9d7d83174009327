"""What can be an order's id, a customer or a SKU: the ids of other systems, as they are.

1 to 128 printable characters, in Unicode's normal form C, without a blank at either end. setup.sql has the same rule as
function `is_identifier`; a test compares the two for every code point.
"""

import json
import re
import shlex
import unicodedata
from typing import Any

MAX_LENGTH = 128

# Control and format characters (bidi marks, zero width), every blank but the space, line separators, surrogates,
# private use, noncharacters, and what Unicode keeps for invisible ones to come. Listed, because categories are another
# answer with each version of Unicode, and Python and Postgres rarely have the same one.
_UNPRINTABLE = (
    r"\u0000-\u001F\u007F-\u00A0\u00AD\u0600-\u0605\u061C\u06DD\u070F\u0890-\u0891\u08E2\u1680\u180E\u2000-\u200F"
    r"\u2028-\u202F\u205F-\u206F\u3000\uD800-\uF8FF\uFDD0-\uFDEF\uFEFF\uFFF0-\uFFFB\uFFFE-\uFFFF\U000110BD\U000110CD"
    r"\U00013430-\U0001343F\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A"
    r"\U0001FFFE-\U0001FFFF\U0002FFFE-\U0002FFFF\U0003FFFE-\U0003FFFF\U0004FFFE-\U0004FFFF\U0005FFFE-\U0005FFFF"
    r"\U0006FFFE-\U0006FFFF\U0007FFFE-\U0007FFFF\U0008FFFE-\U0008FFFF\U0009FFFE-\U0009FFFF\U000AFFFE-\U000AFFFF"
    r"\U000BFFFE-\U000BFFFF\U000CFFFE-\U000CFFFF\U000DFFFE-\U000DFFFF"
    r"\U000E0000-\U000E00FF\U000E01F0-\U000E0FFF\U000EFFFE-\U0010FFFF"
)
# Unicode 14 (Python 3.11, PostgreSQL 15) does not know these, and later versions compose or sort them: what is in
# normal form C would depend on who is asked. Of all other characters that cannot change any more.
_COMPOSED_LATER = (
    r"\u05C8-\u05C9\u0897\u1ACF-\u1AF0\U000105C9\U000105D2\U000105DA\U000105E4\U00010D69-\U00010D6D"
    r"\U00010ECB-\U00010ECF\U00010EF0-\U00010EFB\U00010EFD-\U00010EFF\U00011382-\U00011385\U0001138B\U0001138E"
    r"\U00011390-\U00011391\U000113B8\U000113BB\U000113C2\U000113C5\U000113C7-\U000113C9\U000113CE-\U000113D0"
    r"\U00011F41-\U00011F42\U0001611E-\U00016129\U0001612F\U00016D63\U00016D67-\U00016D6A\U0001D127-\U0001D128"
    r"\U0001D250-\U0001D252\U0001D25B-\U0001D25C\U0001D25F\U0001D280-\U0001D281\U0001E08F\U0001E4EC-\U0001E4EF"
    r"\U0001E5EE-\U0001E5EF\U0001E6E3\U0001E6E6\U0001E6EE-\U0001E6EF\U0001E6F5"
)
REFUSED_CHARACTERS = _UNPRINTABLE + _COMPOSED_LATER
"""The inside of a bracket expression, which Python's and Postgres' regular expressions read alike."""
_REFUSED = re.compile(f"[{REFUSED_CHARACTERS}]")


def is_identifier(value: object) -> bool:
    """Return whether a value can be an order id, a customer or a SKU."""
    return identifier_problem(value) is None


def identifier_problem(value: object) -> str | None:
    """Return why a value cannot be one, as a phrase that follows its name; None where it can."""
    if (fault := _fault(value)) is None:
        return None
    return f"{shown(value)} is not 1 to {MAX_LENGTH} printable characters: {fault}"


def composed(text: str) -> str:
    """Return typed text in normal form C: some keyboards and file systems write accents apart from letters."""
    return unicodedata.normalize("NFC", text)


def not_composed(text: str) -> str:
    """Return that a text is not in normal form C, and what it is in that."""
    return f"is not in Unicode's normal form C, which is {shown(composed(text))}"


def typed(identifier: str) -> str:
    """Return an id as an argument of a command, quoted for a shell."""
    return ("-- " if identifier.startswith("-") else "") + shlex.quote(identifier)


def in_line(identifier: str) -> str:
    """Return an id as one word of a log line: one with a blank in it could be read as a whole event."""
    return json.dumps(identifier, ensure_ascii=False) if " " in identifier or '"' in identifier else identifier


def shown(value: Any) -> str:
    """Show any value in a message: printable, and not long."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:36]}... ({len(str(value))} characters)"


def _fault(value: object) -> str | None:
    if not isinstance(value, str):
        return "it is no text"
    if not 1 <= len(value) <= MAX_LENGTH:
        return f"it has {len(value)}"
    if found := _REFUSED.search(value):
        return f"U+{ord(found[0]):04X} in it is not printable"
    if value.strip(" ") != value:
        return "a blank at an end is not allowed"
    if not unicodedata.is_normalized("NFC", value):
        return f"it {not_composed(value)}"
    return None
