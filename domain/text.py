r"""Text from outside, escaped for where it is shown: a terminal, a log line, Markdown of the Temporal UI.

What a buyer, a file, a provider or a server has written may hold control characters, marks that turn the reading
direction, line ends, or Markdown. Each place has one function here. What may not be shown as it is becomes an escape
such as `\x1b` or `\u202e`: nothing is hidden, and nothing is interpreted.
"""

import json
import re
import unicodedata

# Printable to Python, and invisible. Variation selectors are left: many emojis have one.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0]")
_MOVES_OR_HIDES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""The categories of controls, of marks that turn or join what is around them, of halves of characters, of line ends."""

# What Markdown would not show as it is: a link, a picture, an HTML tag, an address that a renderer makes a link of,
# emphasis, mathematics, a character reference, or a typographic replacement within what may be an id.
_ACTIVE = re.compile(
    r"""[`*<\[\]$\\] | ~~
    | \b_ | _\b | __                                      # emphasis; not within a word
    | &\#?\w                                             # a character reference
    | (?:https?|ftps?|file):// | (?:mailto|xmpp): | www\.  # an address
    | -- | \d/\d | \((?:c|r|tm)\)                         # a dash, a fraction, a sign
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SUMMARY_CHARACTERS = 40
"""What a summary shows of one value: it is one line, and servers may limit it to a few hundred bytes."""


def tidy(text: str, limit: int = 500) -> str:
    """Make text from outside fit for a log line and a database column: printable, one line, bounded."""
    printable = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return printable if len(printable) <= limit else f"{printable[: limit - 3]}..."


def for_terminal(text: str) -> str:
    """Keep the lines, and escape what a terminal would interpret or not show."""
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(char if char == "\n" else " " if char == "\t" else _shown(char) for char in text)


def on_one_line(text: str) -> str:
    """As `for_terminal`, with line ends escaped too."""
    return for_terminal(text).replace("\n", "\\n")


def for_log_line(text: str) -> str:
    """Return one line for a log, with a blank for each line end. What may be in an order's id stays as it is."""
    if text.isprintable():
        return text
    return "".join(map(_in_a_log, text))


def for_markdown(text: str) -> str:
    """Return a value within a line of Markdown: as it is, or as code where Markdown would change it."""
    shown = on_one_line(text)
    return code(shown) if _ACTIVE.search(shown) else shown


def code(text: str) -> str:
    """Return a value as code within a line of Markdown."""
    shown = on_one_line(text)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def for_summary(text: str) -> str:
    """Return a value within a summary, a short line of Markdown which Temporal's UI shows as text in places."""
    shown = on_one_line(text)
    return for_markdown(shown if len(shown) <= _SUMMARY_CHARACTERS else f"{shown[: _SUMMARY_CHARACTERS - 1]}…")


def json_text(document: object, *, indent: int | None = None) -> str:
    """Write a JSON document of printable ASCII alone."""
    return json.dumps(document, indent=indent, default=str)


def _in_a_log(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) not in _MOVES_OR_HIDES:
        return char
    return " " if char.isspace() else _escape(char)


def _shown(char: str) -> str:
    return char if char.isprintable() and not _INVISIBLE.match(char) else _escape(char)


def _escape(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
