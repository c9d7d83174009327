"""`starter.py load --from`: a file of orders, and what it leaves beside it."""

import csv
import json
import signal
from pathlib import Path

import pytest

from devstack.stack import ROOT
from terminal.load.outcomes import OutcomeFile
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
    output = {(row["line"], row["status"], row["reason"].split(":")[0]) for row in rows}
    assert output == {
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

    loaded = commands.here("load", "--from", str(ROOT / "devstack" / "orders.csv"), "--outcomes", "told.csv")

    assert loaded.code == 0, loaded.err
    output = {row["order_id"]: row["status"] for row in rows_of(commands.folder / "told.csv")}
    refused = {"import-3", "import-4", "import-6"}
    assert output == {f"import-{n}": "rejected" if f"import-{n}" in refused else "completed" for n in range(1, 8)}


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
    output = {row["line"]: row["status"] for row in rows_of(commands.folder / "told.csv")}
    assert output == {**dict.fromkeys("123456", "completed"), "7": "other content"}


def test_a_dry_run_reports_what_a_load_would_meet_and_begins_nothing(commands: Commands) -> None:
    commands.ready_worker()
    file, name = commands.folder / "orders.csv", f"dry-{commands.folder.name}"
    rows = [f"{name}-1,alice,tea-mug,1", f"{name}-2,alice,no-such,1", f"{name}-3,nobody,no-such,1", f"{name}-4,alice"]
    file.write_text("\n".join(["order_id,customer,sku,quantity", *rows]), encoding="utf-8")

    output = commands.here("load", "--from", str(file), "--dry-run")
    document = commands.here("load", "--from", str(file), "--dry-run", "--json").document
    begun = commands.here("list", "--json").document
    beside = list(commands.folder.glob("*.outcomes.csv"))
    commands.here("load", "--from", str(file))
    file.write_text("\n".join(["order_id,customer,sku,quantity", *rows[:1]]), encoding="utf-8")
    settled = commands.here("load", "--from", str(file), "--dry-run", "--json")
    there = commands.here("load", "--from", str(file), "--dry-run", "--json", "--outcomes", "none.csv")
    file.write_text(f"order_id,customer,sku,quantity\n{name}-1,carol,tea-mug,1\n", encoding="utf-8")
    other = commands.here("load", "--from", str(file), "--dry-run", "--json")

    assert output.code == 2, output.err
    assert "unknown SKUs: 'no-such' (2 orders)" in output.out
    assert "unknown customers: 'nobody' (1 orders)" in output.out
    assert "Nothing was started." in output.out
    assert document["outcomes"] == {"new": 1, "unknown": 2, "malformed": 1}
    assert (document["unknown_skus"], document["unknown_customers"]) == ({"no-such": 2}, {"nobody": 1})
    assert [problem["line"] for problem in document["problems"]] == [5, 3, 4]
    assert [order for order in begun if order["order_id"].startswith(name)] == []
    assert beside == []
    assert (settled.code, settled.document["outcomes"]) == (0, {"settled": 1})
    assert (there.code, there.document["outcomes"]) == (0, {"completed": 1})
    assert (other.code, other.document["outcomes"]) == (2, {"other content": 1})


def test_a_load_without_a_worker_says_so_and_goes_on_once_there_is_one(commands: Commands) -> None:
    file = commands.folder / "orders.csv"
    file.write_text(f"order_id,customer,sku,quantity\nlate-{commands.folder.name},alice,tea-mug,1\n", encoding="utf-8")

    late = commands.here("load", "--from", str(file), "--timeout", "8", "--json")
    commands.ready_worker()
    then = commands.here("load", "--from", str(file), "--timeout", "60", "--json")

    queue = commands.environment["CHECKOUT_TASK_QUEUE"]
    assert late.code == 1
    assert late.err.count(f"no worker polls task queue {queue}: nothing happens until one does") == 1
    assert "out of time, at line 2: 0 orders have their outcome" in late.err
    assert "1 are under way and go on; the same command goes on from there" in late.err
    assert (late.document["stopped"], late.document["under_way"]) == ("out of time", 1)
    assert (then.code, then.document["outcomes"], then.err) == (0, {"completed": 1}, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_a_load_is_reported_how_far_it_came(commands: Commands, number: signal.Signals) -> None:
    file = commands.folder / "orders.csv"
    file.write_text(f"order_id,customer,sku,quantity\nleft-{commands.folder.name},alice,tea-mug,1\n", encoding="utf-8")

    left = commands.interrupted("load", "--from", str(file), when="no worker polls", number=number)
    commands.ready_worker()
    then = commands.here("load", "--from", str(file))

    assert left.code == 130
    assert "interrupted, at line 2: 0 orders have their outcome" in left.err
    left.assert_readable()
    assert (then.code, "1 completed" in then.out) == (0, True)


def test_two_loads_do_not_write_one_file(commands: Commands) -> None:
    file = commands.folder / "orders.csv"
    file.write_text(f"order_id,customer,sku,quantity\ntwo-{commands.folder.name},alice,tea-mug,1\n", encoding="utf-8")

    with OutcomeFile(commands.folder / "orders.csv.outcomes.csv"):
        refused = commands.here("load", "--from", str(file))

    assert refused.code == 2
    assert "orders.csv.outcomes.csv is in use: process" in refused.err


def test_an_outcome_file_that_cannot_be_written_ends_the_load_in_words(commands: Commands) -> None:
    commands.ready_worker()
    file = commands.folder / "orders.csv"
    rows = "".join(f"full-{commands.folder.name}-{number},alice,tea-mug,1\n" for number in range(3))
    file.write_text(f"order_id,customer,sku,quantity\n{rows}", encoding="utf-8")
    limited = "import resource, sys, starter; from adapters.process_exit import leave\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); leave(starter.main())"

    ran = commands.python("-c", limited, "load", "--from", str(file), "--batch", "1", PYTHONPATH=str(ROOT))
    then = commands.here("load", "--from", str(file))

    assert ran.code == 1
    assert "orders.csv.outcomes.csv cannot be written: File too large" in ran.err
    assert "Traceback" not in ran.err
    assert (then.code, "3 completed" in then.out) == (0, True)


def test_a_start_that_is_out_of_time_goes_on(commands: Commands) -> None:
    name = f"slow-{commands.folder.name}"[-60:]
    order = ("start", "--customer", "alice", "--line", "tea-mug:1", "--order-id", name)

    late = commands.here(*order, "--timeout", "7")
    commands.ready_worker()
    then = commands.here(*order, "--timeout", "60")

    assert late.code == 1
    assert "no worker polls task queue" in late.err
    assert f"order {name} has not ended within 7 s; it goes on, and starter.py status {name} shows" in late.err
    assert then.code == 0
    assert "no worker polls" not in then.err


def test_a_file_that_cannot_be_loaded_is_reported_before_anything_is_done(commands: Commands) -> None:
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
