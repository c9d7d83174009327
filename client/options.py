"""What the commands of starter.py share of their command lines."""

import sys
from typing import Annotated

import typer

from domain.identifiers import composed
from domain.model import OrderLine, quantity_of, reason_problem
from domain.version import RELEASE


def tell_release(is_asked: bool) -> None:
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
    """Refuse a reason that cannot be kept; none is fine."""
    if reason is not None and (problem := reason_problem(reason)):
        raise typer.BadParameter(problem)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
By = Annotated[
    str | None,
    typer.Option("--by", help="Who asks, where it is not you; kept in the order's log.", show_default="USER@HOST"),
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
    bool, typer.Option("--version", callback=tell_release, is_eager=True, help="Say which release this is.")
]
