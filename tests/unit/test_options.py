"""Command lines: what a user types, what a message tells them to type, and what the exit status says of a failure."""

import asyncio
import importlib
import re
import shlex

import pytest
import typer

from client.failures import ClientError
from devstack.stack import ROOT
from domain.model import OrderLine
from sagafence import InvalidInput
from terminal.options import order_line
from terminal.waiting import StillRunning, deadline


@pytest.mark.parametrize("quantity", ["12345678901234", "-12345678901234", "10000"])
def test_a_quantity_is_refused_as_it_was_typed(quantity: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        order_line(f"tea-mug:{quantity}")

    assert refused.value.message == f"quantity {quantity} is not between 1 and 1000"


def test_a_quantity_of_thousands_of_digits_is_reported_by_how_many_it_has() -> None:
    with pytest.raises(InvalidInput, match=r"quantity 9+\.\.\. \(5000 digits\) is not between"):
        order_line("tea-mug:" + "9" * 5_000)


@pytest.mark.parametrize("text", ["tea-mug", "tea-mug:", "tea-mug:two", "tea-mug:--1", "tea-mug:-", "tea-mug:\u0663"])
def test_what_is_no_sku_with_a_quantity_is_reported_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="as in tea-mug:2"):
        order_line(text)


def test_a_sku_may_have_colons_and_a_quantity_zeros_before_it() -> None:
    assert order_line("gid://shop/7:" + "0" * 5_000 + "2") == OrderLine("gid://shop/7", 2)


@pytest.mark.parametrize("order_id", ["order-1", "-1", "a b", "it's", "$(rm x)"])
async def test_who_waits_no_longer_is_reported_a_command_that_can_be_typed(order_id: str) -> None:
    with pytest.raises(StillRunning) as output:
        async with deadline(0.001, order_id):
            await asyncio.Event().wait()

    words = shlex.split(str(output.value).partition("starter.py status ")[2].removesuffix(" shows its status"))
    assert words[-1] == order_id
    assert words[:-1] == (["--"] if order_id.startswith("-") else [])


def test_every_failure_of_the_client_has_one_root_its_exit_status_and_a_place_that_raises_it() -> None:
    importlib.import_module("starter")
    kinds = {*ClientError.__subclasses__()}
    while more := {sub for kind in kinds for sub in kind.__subclasses__()} - kinds:
        kinds |= more
    text = "\n".join(path.read_text() for room in ("client", "terminal") for path in (ROOT / room).rglob("*.py"))
    own = set(re.findall(r"^class (\w+)\((?:\w*Error|Exception|NoWorker|Refused)\)", text, re.MULTILINE))
    raised = {kind for kind in kinds if re.search(rf"(raise|return|=) {kind.__name__}\b", text)}

    assert own - {"ClientError"} == {kind.__name__ for kind in kinds}
    assert raised == kinds
    assert {kind.__name__: int(kind.exit_status) for kind in kinds} == {
        "Full": 1,
        "HasEnded": 1,
        "HasEndedSince": 1,
        "LoadFailed": 1,
        "NoAnswer": 1,
        "NoSuchOrder": 2,
        "NoWorker": 1,
        "NotKnownYet": 1,
        "OrderIdConflict": 2,
        "Refused": 3,
        "StillRunning": 1,
        "Unreachable": 1,
        "_Moved": 3,
        "_WrongArguments": 3,
    }
