"""What a look at a file of orders finds, and how much of it is asked for at once."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.bulk import Outcome
from domain.lookup import KnownOrder, NamesInput, NamesReport
from domain.model import CheckoutInput, OrderLine
from sagafence import InvalidInput
from terminal.load import dry_run as checked
from terminal.load.dry_run import DryRun, dry_run, print_dry_run
from terminal.load.orders_file import Entry
from terminal.load.outcomes import OutcomeFile, Settled


def order(name: str, customer: str = "alice", sku: str = "tea-mug") -> CheckoutInput:
    return CheckoutInput(name, customer, (OrderLine(sku, 1),))


def entries(*orders: CheckoutInput) -> Iterator[Entry]:
    return (Entry(line, one.order_id, one) for line, one in enumerate(orders, start=2))


class Shop:
    """Knows nothing that is called `no-...`, and such orders as it is given."""

    def __init__(self, *known: KnownOrder) -> None:
        self.known = {one.order_id: one for one in known}
        self.asked: list[NamesInput] = []

    async def look_up(self, asked: NamesInput) -> NamesReport:
        self.asked.append(asked)
        return NamesReport(
            [sku for sku in asked.skus if sku.startswith("no-")],
            [name for name in asked.customers if name.startswith("no-")],
            [self.known[name] for name in asked.order_ids if name in self.known],
        )


async def test_every_order_of_a_long_file_is_asked_for_once_and_each_name_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checked, "_ORDERS_AT_ONCE", 3)
    shop, names = Shop(), ["tea-mug", "no-such", "lamp", "no-such", "tea-mug", "no-such", "no-such"]

    found = await dry_run(entries(*(order(f"n-{n}", sku=sku) for n, sku in enumerate(names))), shop.look_up, Settled())

    assert [len(asked.order_ids) for asked in shop.asked] == [3, 3, 1]
    assert [asked.skus for asked in shop.asked] == [["lamp", "no-such", "tea-mug"], [], []]
    assert [asked.customers for asked in shop.asked] == [["alice"], [], []]
    assert (found.orders, found.outcomes, found.unknown_skus) == (7, {"new": 3, "unknown": 4}, {"no-such": 4})
    assert [line for line, _, _ in found.problems] == [3, 5, 7, 8]


async def test_what_is_asked_for_at_once_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "_BYTES_AT_ONCE", 300)
    shop = Shop()

    await dry_run(entries(*(order(f"{n}-{'é' * 100}") for n in range(4))), shop.look_up, Settled())

    assert [len(asked.order_ids) for asked in shop.asked] == [2, 2]


async def test_names_that_were_forgotten_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "_ORDERS_AT_ONCE", 2)
    monkeypatch.setattr(checked, "_REMEMBERED", 1)
    shop, skus = Shop(), ["no-such", "lamp", "no-such", "lamp"]

    found = await dry_run(entries(*(order(f"n-{n}", sku=sku) for n, sku in enumerate(skus))), shop.look_up, Settled())

    assert [asked.skus for asked in shop.asked] == [["lamp", "no-such"]] * 2
    assert found.outcomes == {"new": 2, "unknown": 2}


async def test_an_id_that_comes_again_in_the_file_with_other_content_is_reported_as_the_load_will() -> None:
    first, again, other = order("n-1"), order("n-1"), order("n-1", sku="lamp")

    found = await dry_run(entries(first, again, other), Shop().look_up, Settled())

    assert found.outcomes == {"new": 2, "other content": 1}
    assert [line for line, _, _ in found.problems] == [4]
    assert not found.is_fine


async def test_an_order_that_is_there_is_reported_as_it_stands_and_by_its_content() -> None:
    mine, other, by_hand = order("mine"), order("other"), order("by-hand", "no-body")
    shop = Shop(
        KnownOrder("mine", "completed", mine.fingerprint),
        KnownOrder("other", "completed", order("other", "bob").fingerprint),
        KnownOrder("by-hand", "pending", None),
    )

    found = await dry_run(entries(mine, other, by_hand), shop.look_up, Settled())

    assert found.outcomes == {"completed": 1, "other content": 1, "pending": 1}
    assert [(line, name) for line, name, _ in found.problems] == [(3, "other")]


async def test_what_an_outcome_file_has_settled_is_not_asked_for_however_the_file_ends(tmp_path: Path) -> None:
    """A load that was killed may have left NULs behind its last line, or half a line; a look heals nothing."""
    path, shop = tmp_path / "outcomes.csv", Shop()
    done, stuck, torn = order("done"), order("stuck"), order("torn")
    with OutcomeFile(path) as outcomes:
        outcomes.add(2, Outcome("done", "completed"), done)
        outcomes.add(3, Outcome("stuck", "stuck"), stuck)
    content = path.read_bytes() + b"4,torn,completed,," + b"\0" * 300_000
    path.write_bytes(content)

    found = await dry_run(entries(done, stuck, torn), shop.look_up, Settled.peek(path))

    assert [asked.order_ids for asked in shop.asked] == [["stuck", "torn"]]
    assert found.outcomes == {"settled": 1, "new": 2}
    assert path.read_bytes() == content


def test_a_look_refuses_a_file_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("order_id,customer,sku,quantity\nn-1,alice,lamp,1\n", encoding="utf-8")

    with pytest.raises(InvalidInput, match="is no outcome file"):
        Settled.peek(tmp_path / "o.csv")
    assert order("n-1") not in Settled.peek(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("what", "code"),
    [("new", 0), ("settled", 0), ("completed", 0), ("malformed", 2), ("unknown", 2), ("other content", 2)],
)
def test_a_look_ends_with_2_where_something_has_to_be_changed(
    what: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = DryRun(orders=1)
    found.add(what, Entry(2, "n-1", None), "a problem" if code else "")

    assert print_dry_run(found, Path("o.csv"), as_json=True) == code
    assert json.loads(capsys.readouterr().out)["outcomes"] == {what: 1}


def test_the_list_of_problems_ends_and_the_count_does_not() -> None:
    found = DryRun()
    for line in range(1_500):
        found.add("malformed", Entry(line, "", None), "it is not JSON")

    assert (len(found.problems), found.outcomes["malformed"]) == (1_000, 1_500)
