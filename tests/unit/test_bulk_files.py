"""The files of a bulk load: orders that are read one by one, and outcomes that a load goes on from."""

from pathlib import Path

import pytest

from client.orders_file import Entry, line_count, read_orders
from client.outcomes import OutcomeFile
from domain.bulk import OTHER_CONTENT, UNKNOWN, Outcome, digest, pack, unpack
from domain.errors import InvalidInput
from domain.model import CheckoutInput, OrderLine

HEADER = "order_id,customer,sku,quantity\n"


def read(folder: Path, name: str, text: str) -> list[Entry]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return list(read_orders(path))


def order(order_id: str, customer: str = "alice", *lines: tuple[str, int]) -> CheckoutInput:
    return CheckoutInput(order_id, customer, tuple(OrderLine(*line) for line in lines or (("tea-mug", 1),)))


# Reading orders -----------------------------------------------------------------------------------------


def test_csv_rows_of_one_order_are_one_order(tmp_path: Path) -> None:
    found = read(tmp_path, "o.csv", HEADER + "n-1,alice,tea-mug,2\nn-1,alice,poster,1\nn-2,bob,lamp,1\n")

    assert found == [
        Entry(2, "n-1", order("n-1", "alice", ("tea-mug", 2), ("poster", 1)), lines=2),
        Entry(4, "n-2", order("n-2", "bob", ("lamp", 1))),
    ]


def test_json_lines_are_orders(tmp_path: Path) -> None:
    text = '{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "tea-mug", "quantity": 2}]}\n\n'

    assert read(tmp_path, "o.jsonl", text) == [Entry(1, "n-1", order("n-1", "alice", ("tea-mug", 2)))]


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_no_trouble(tmp_path: Path) -> None:
    [found] = read(tmp_path, "o.csv", "\ufeff" + (HEADER + "n-1,alice,tea-mug, 2\n").replace("\n", "\r\n"))

    assert found.order == order("n-1", "alice", ("tea-mug", 2))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("n-1,alice,tea-mug\n", "line 2 does not have 4 columns"),
        ("n-1,alice,tea-mug,two\n", "quantity 'two' is not a whole number"),
        ("n-1,alice,tea-mug,-1\n", "quantity '-1' is not a whole number"),
        ("n-1,alice,tea-mug,0\n", "quantity 0 is not between"),
        (f"n-1,alice,tea-mug,{'9' * 5000}\n", "is not between"),
        ("n-1,alice,tea-mug,1\nn-1,bob,poster,1\n", "2 customers"),
        ("a\u200bb,alice,tea-mug,1\n", "order id 'a\\u200bb' is not"),
    ],
)
def test_a_malformed_csv_order_is_told_and_the_next_is_read(tmp_path: Path, row: str, problem: str) -> None:
    malformed, good = read(tmp_path, "o.csv", HEADER + row + "n-9,alice,tea-mug,1\n")

    assert malformed.order is None
    assert problem in malformed.problem
    assert malformed.line == 2
    assert good.order == order("n-9", "alice", ("tea-mug", 1))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[" * 50_000, "not JSON"),
        ("17", "it is no order"),
        ('{"order_id": "n-1"}', "it is no order: KeyError"),
        ('{"order_id": "n-1", "customer": "alice", "lines": []}', "no lines"),
        ('{"order_id": "n-1", "customer": "alice", "lines": [{"sku": "x", "quantity": 1.5}]}', "not a whole number"),
        ('{"order_id": "n-1", "customer": "' + "x" * 100_000 + '"}', "more than 100000 characters"),
    ],
)
def test_a_malformed_json_order_is_told_and_the_next_is_read(tmp_path: Path, line: str, problem: str) -> None:
    good = '{"order_id": "n-9", "customer": "alice", "lines": [{"sku": "tea-mug", "quantity": 1}]}'
    first, second = read(tmp_path, "o.jsonl", f"{line}\n{good}\n")

    assert first.order is None
    assert problem in first.problem
    assert (second.line, second.order) == (2, order("n-9", "alice", ("tea-mug", 1)))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("o.xlsx", b"", "are read from .csv and .jsonl"),
        ("o.csv", b"id,who\n", "the first line must be order_id,customer,sku,quantity"),
        ("o.csv", b"", "the first line must be"),
        ("o.csv", b"\xff\xfe", "not in UTF-8"),
        ("o.csv", HEADER.encode() + b'n-1,"alice\n', "unexpected end of data"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(InvalidInput, match=problem):
        list(read_orders(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        list(read_orders(tmp_path / "o.csv"))
    assert line_count(tmp_path / "o.csv") == 0


def test_the_lines_of_a_file_are_counted(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text(HEADER * 3, encoding="utf-8")

    assert line_count(tmp_path / "o.csv") == 3


# Writing outcomes ---------------------------------------------------------------------------------------


def settled_in(file: OutcomeFile) -> set[str]:
    return {f"n-{number}" for number in range(10) if file.is_settled(order(f"n-{number}"))}


def test_a_load_goes_on_behind_the_outcomes_that_are_settled(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    with OutcomeFile(path) as file:
        for number, status in enumerate(("completed", "rejected", "cancelled", OTHER_CONTENT, UNKNOWN, "stuck")):
            asked = order(f"n-{number}")
            file.add(number, Outcome(asked.order_id, status, 'a reason, with "quotes"', 100, "EUR", "PX1"), asked)

    with OutcomeFile(path) as again:
        assert settled_in(again) == {"n-0", "n-1", "n-2", "n-3"}

    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "line,order_id,status,reason,total_minor,currency,tracking_number,content"
    assert lines[1] == f'0,n-0,completed,"a reason, with ""quotes""",100,EUR,PX1,{order("n-0").fingerprint[:16]}'
    assert len(lines) == 7


def test_an_id_that_was_settled_with_other_content_is_asked_for_again(tmp_path: Path) -> None:
    path, first, other = tmp_path / "outcomes.csv", order("n-1"), order("n-1", "bob")
    with OutcomeFile(path) as file:
        file.add(2, Outcome("n-1", "completed"), first)

    with OutcomeFile(path) as again:
        assert (again.is_settled(first), again.is_settled(other)) == (True, False)
        again.add(2, Outcome("n-1", OTHER_CONTENT, "taken"), other)

    with OutcomeFile(path) as at_last:
        assert (at_last.is_settled(first), at_last.is_settled(other)) == (True, True)
        assert not at_last.is_settled(order("n-1", "carol"))


def test_a_file_of_an_earlier_version_is_gone_on_with_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    old = "line,order_id,status,reason,total_minor,currency,tracking_number\n2,n-1,completed,,100,EUR,PX1\n"
    path.write_text(old + "3,n-2,comp", encoding="utf-8")

    with OutcomeFile(path) as file:
        assert settled_in(file) == {"n-1"}
        file.add(3, Outcome("n-2", "completed"), order("n-2"))

    assert path.read_text(encoding="utf-8") == old + "3,n-2,completed,,,,\n"
    with OutcomeFile(path) as again:
        assert settled_in(again) == {"n-1", "n-2"}


def test_a_line_that_a_killed_load_has_begun_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    with OutcomeFile(path) as file:
        file.add(2, Outcome("n-1", "completed"), order("n-1"))
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + "3,n-2,comp", encoding="utf-8")

    with OutcomeFile(path) as again:
        assert settled_in(again) == {"n-1"}
        again.add(3, Outcome("n-2", "completed"), order("n-2"))

    assert path.read_text(encoding="utf-8") == whole + f"3,n-2,completed,,,,,{order('n-2').fingerprint[:16]}\n"


@pytest.mark.parametrize("content", ["line,order\n", "a letter to somebody", HEADER + "n-1,alice,tea-mug,1\n"])
def test_a_file_of_another_kind_is_not_written_to(tmp_path: Path, content: str) -> None:
    path = tmp_path / "orders.csv"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(InvalidInput, match="no outcome file"):
        OutcomeFile(path)

    assert path.read_text(encoding="utf-8") == content


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be used for outcomes"):
        OutcomeFile(tmp_path / "nowhere" / "outcomes.csv")


# Batches ------------------------------------------------------------------------------------------------


def test_an_order_is_the_same_when_it_comes_out_of_a_batch() -> None:
    whole = order("n-1", "alice", ("tea-mug", 2), ("poster", 1))

    assert unpack(pack(whole)) == whole


def test_batches_of_the_same_orders_have_the_same_digest_and_others_have_others() -> None:
    one, other = order("n-1", "alice", ("tea-mug", 2)), order("n-1", "alice", ("tea-mug", 3))

    assert digest([one]) == digest([one])
    assert digest([one]) != digest([other])


@pytest.mark.parametrize("packed", [None, {}, {"lines": []}, {"order_id": "n", "customer": "c", "lines": {"x": "1"}}])
def test_what_is_no_order_does_not_come_out_of_a_batch(packed: object) -> None:
    with pytest.raises(InvalidInput):
        unpack(packed)  # type: ignore[arg-type]
