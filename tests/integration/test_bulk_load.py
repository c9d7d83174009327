"""`starter.py load --from`: a file of orders, and what it leaves beside it."""

import csv
import json
from pathlib import Path

from embedded.stack import ROOT
from tests.integration.commands import Commands

ORDERS = """order_id,customer,sku,quantity
{id}-1,alice,tea-mug,2
{id}-1,alice,poster,1
{id}-2,bob,tea-mug,1
{id}-3,carol,poster,many
{id}-6,alice,poster,1
{id}-4,erin,last-one,1
{id}-6,alice,lamp,1
{id}-5,frank,last-one,1
"""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_order_of_a_file_has_its_outcome_in_another_and_the_load_goes_on_from_it(commands: Commands) -> None:
    commands.ready_worker()
    file, name = commands.folder / "orders.csv", f"bulk-{commands.folder.name}"
    file.write_text(ORDERS.format(id=name), encoding="utf-8")

    loaded = commands.starter("load", "--from", str(file), "--batch", "2", "--json")
    rows = rows_of(commands.folder / "orders.csv.outcomes.csv")
    again = commands.here("load", "--from", str(file))
    audited = commands.here("audit", "--at-rest")

    assert loaded.code == 2, loaded.err  # some of the orders are none
    assert loaded.document["outcomes"] == {"completed": 2, "rejected": 2, "malformed": 3}
    told = {(row["line"], row["status"], row["reason"].split(":")[0]) for row in rows}
    assert told == {
        ("2", "completed", ""),
        ("4", "rejected", "InsufficientFunds"),
        ("5", "malformed", "line 5"),
        ("6", "malformed", "its rows lie apart"),
        ("7", "completed", ""),
        ("8", "malformed", "its rows lie apart"),
        ("9", "rejected", "OutOfStock"),
    }
    first = next(row for row in rows if row["line"] == "2")
    assert (first["order_id"], first["total_minor"], first["currency"]) == (f"{name}-1", "4100", "EUR")
    assert first["tracking_number"].startswith("PX")
    assert again.code == 2, again.err
    assert "3 malformed" in again.out
    assert "skipped  4 that had an outcome already" in again.out
    assert audited.code == 0, audited.out


def test_the_example_of_the_documents_loads(commands: Commands) -> None:
    commands.ready_worker()

    loaded = commands.here("load", "--from", str(ROOT / "demo" / "orders.csv"), "--outcomes", "told.csv")

    assert loaded.code == 0, loaded.err
    told = {row["order_id"]: row["status"] for row in rows_of(commands.folder / "told.csv")}
    refused = {"import-3", "import-4", "import-6"}
    assert told == {f"import-{n}": "rejected" if f"import-{n}" in refused else "completed" for n in range(1, 8)}


def test_json_lines_are_loaded_too(commands: Commands) -> None:
    commands.ready_worker()
    file = commands.folder / "orders.jsonl"
    orders = [
        {"order_id": f"j-{commands.folder.name}-{n}", "customer": "alice", "lines": [{"sku": "poster", "quantity": n}]}
        for n in range(1, 6)
    ]
    orders += [orders[0], {**orders[1], "customer": "erin"}]  # each is asked for again once the first has ended
    file.write_text("".join(f"{json.dumps(order)}\n" for order in orders), encoding="utf-8")

    loaded = commands.here("load", "--from", str(file), "--outcomes", "told.csv")

    assert loaded.code == 2, loaded.err
    told = {row["line"]: row["status"] for row in rows_of(commands.folder / "told.csv")}
    assert told == {**dict.fromkeys("123456", "completed"), "7": "other content"}


def test_a_file_that_cannot_be_loaded_is_told_before_anything_is_done(commands: Commands) -> None:
    (commands.folder / "orders.csv").write_text("who,what\n", encoding="utf-8")

    for arguments, problem in (
        (("--from", "orders.csv"), "the first line must be"),
        (("--from", "missing.csv"), "No such file"),
        (("--from", "orders.csv", "--orders", "3"), "give either --orders"),
        ((), "give either --orders"),
    ):
        refused = commands.here("load", *arguments)
        assert refused.code == 2
        assert problem in refused.err
        refused.assert_readable()
    assert not list(commands.folder.glob("*.outcomes.csv"))
