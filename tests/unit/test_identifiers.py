"""Ids in everything that is made of them: workflow ids, links, command lines and lines of the log, and back."""

import argparse
import io
import json
import random
import re
import shlex
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import pytest

from adapters.terminal import Terminal
from client.checkouts import Checkouts
from client.listing import Listed
from client.order_list import Listing
from domain import policies
from domain.bulk import digest, pack, payload_bytes, unpack
from domain.identifiers import MAX_LENGTH, composed, in_line, is_identifier, typed
from domain.model import CheckoutInput, CheckoutStatus, OrderLine
from terminal import view
from terminal.options import order_line
from tests.identifiers import LEGAL, any_id, any_text
from workflows import wording

MADE_UP = [any_id(random.Random(seed)) for seed in range(3_000)]
LONGEST_WORKFLOW_ID = 1_000
"""In bytes: what Temporal takes by default (`limit.maxIDLength`)."""


def test_an_id_comes_back_from_a_workflow_id_and_a_link() -> None:
    checkouts = Checkouts(cast("Any", SimpleNamespace(namespace="default")), "queue", "http://ui:8233")

    for name in LEGAL + MADE_UP:
        workflow_id = policies.checkout_workflow_id(name)
        address = urlsplit(checkouts.ui_link(workflow_id))
        assert policies.order_id_of(workflow_id) == name
        assert len(workflow_id.encode()) <= LONGEST_WORKFLOW_ID
        assert (address.query, address.fragment) == ("", "")
        assert [unquote(part) for part in address.path.split("/")] == [
            "",
            "namespaces",
            "default",
            "workflows",
            workflow_id,
        ]


def test_no_orders_saga_has_the_workflow_id_of_another_kind_of_workflow() -> None:
    others = {policies.bulk_workflow_id(digest([])), "sweep-checkout", "audit-checkout", "sweep-checkout-by-hand-60"}

    assert not any(other.startswith(policies.checkout_workflow_id("")) for other in others)
    assert len({policies.checkout_workflow_id(name) for name in LEGAL + MADE_UP}) == len(set(LEGAL + MADE_UP))


def test_an_id_is_typed_as_one_argument() -> None:
    for name in LEGAL + MADE_UP:
        *options, output = shlex.split(typed(name))
        assert output == name
        assert options == (["--"] if name.startswith("-") else [])


def test_an_id_is_one_word_of_a_line_and_no_two_are_the_same() -> None:
    output = {name: in_line(name) for name in LEGAL + MADE_UP}

    assert len(set(output.values())) == len(output)
    for name, word in output.items():
        assert word.isprintable() or not name.isprintable()
        assert (json.loads(word) if word.startswith('"') else word) == name
        assert " " not in word or word.startswith('"')


@pytest.mark.parametrize("sku", LEGAL)
def test_a_sku_may_have_a_colon_or_anything_else_before_its_quantity(sku: str) -> None:
    assert order_line(f"{sku}:3") == OrderLine(sku, 3)


def test_an_order_of_any_ids_comes_back_from_a_batch() -> None:
    for first, second in zip(MADE_UP[:1_000:2], MADE_UP[1:1_000:2], strict=True):
        order = CheckoutInput(first, second, (OrderLine(first, 2), OrderLine(second, 1)))
        assert unpack(json.loads(json.dumps(pack(order)))) == order
        assert payload_bytes(order) == len(json.dumps(pack(order)).encode())


def test_batches_of_different_orders_are_reported_apart_wherever_their_ids_are_cut() -> None:
    def one(order_id: str, customer: str) -> CheckoutInput:
        return CheckoutInput(order_id, customer, (OrderLine("lamp", 1),))

    assert len({digest([one(*ids)]) for ids in (("a/b", "c"), ("a", "b/c"), ("a b", "c"), ("a", "b c"))}) == 4


@pytest.mark.parametrize("order_id", ["o-1", "-1001", "TSHIRT/RED M"])
def test_what_a_stuck_order_says_to_type_reaches_that_order(order_id: str) -> None:
    details = wording.details(CheckoutStatus(order_id, "stuck"), ["pay"])
    retry, resolve = (shlex.split(command) for command in re.findall("`(starter.py [^`]+)`", details))

    parser = argparse.ArgumentParser()  # reads options and what follows `--` as the starter does
    for name in ("verb", "order"):
        parser.add_argument(name)
    for name in ("--step", "--reason"):
        parser.add_argument(name)
    assert vars(parser.parse_args(retry[1:])) == {"verb": "retry", "order": order_id, "step": None, "reason": None}
    read = parser.parse_args(resolve[1:])
    assert (read.verb, read.order, read.step, read.reason) == ("resolve", order_id, "pay", "...")


def test_whatever_is_typed_composed_is_an_id_or_is_refused_in_printable_words() -> None:
    rng = random.Random(7)
    seen = {True: 0, False: 0}
    for _ in range(20_000):
        text = any_text(rng)
        seen[is_identifier(text)] += 1
        assert is_identifier(text) <= is_identifier(composed(text))
    assert min(seen.values()) > 2_000


def test_a_list_on_a_narrow_terminal_has_a_long_id_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    name, output = "".join(chr(0x4E00 + number) for number in range(MAX_LENGTH)), io.StringIO()
    monkeypatch.setattr(view, "console", Terminal(file=output, width=80))
    row = Listed(name, "completed", None, datetime.now(UTC), None)

    view.print_list(Listing([(row, None)]), lambda place: place, as_json=False)

    assert "".join(char for char in output.getvalue() if char in name) == name
