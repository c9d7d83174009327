"""Options and arguments that several commands of starter.py have."""

import getpass
import socket
import sys
from typing import Annotated

import typer

from domain.identifiers import composed
from domain.model import MAX_NAME_LENGTH, OrderLine, quantity_of, reason_problem
from domain.text import tidy
from domain.version import RELEASE
from sagafence import InvalidInput


def print_release(is_asked: bool) -> None:
    """Answer `--version`, whatever else was typed."""
    if is_asked:
        sys.stdout.write(f"{RELEASE}\n")
        raise typer.Exit


def order_line(text: str) -> OrderLine:
    """Read `SKU:QUANTITY`."""
    sku, separator, quantity = text.rpartition(":")
    digits = quantity.removeprefix("-")
    if not separator or not digits.isascii() or not digits.isdigit():
        raise typer.BadParameter(f"{text!a} is not SKU:QUANTITY, as in tea-mug:2")
    return OrderLine(sku, quantity_of(quantity))


def require_reason(reason: str | None) -> None:
    """Refuse a reason that the order's log cannot keep; None is fine."""
    if reason is not None and (problem := reason_problem(reason)):
        raise typer.BadParameter(problem)


def actor(by: str | None) -> str:
    """Name who acts, for the order's log: `--by`, or the user of this process.

    Raises:
        InvalidInput: `--by` is no name that the log can keep.
    """
    if by is None:
        return operator()
    if not by.strip() or not by.isprintable() or len(by) > MAX_NAME_LENGTH:
        raise InvalidInput(f"--by: a name has 1 to {MAX_NAME_LENGTH} printable characters")
    return by.strip()


def operator() -> str:
    """Name the user of this process and the machine, as `anna@desk`, printable and short."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in many containers; Python 3.13 raises OSError
        user = "unknown"
    return tidy(f"{user}@{socket.gethostname()}", MAX_NAME_LENGTH)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
By = Annotated[
    str | None,
    typer.Option("--by", help="Who asks, if not you; kept in the order's log.", show_default="USER@HOST"),
]
OrderId = Annotated[
    str,
    typer.Argument(
        metavar="ORDER",
        help="The order's id; after -- where it begins with a dash.",
        show_default=False,
        callback=composed,
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", min=1, max=3600, help="Seconds to wait for the worker.")]
Version = Annotated[
    bool, typer.Option("--version", callback=print_release, is_eager=True, help="Print the release and exit.")
]
