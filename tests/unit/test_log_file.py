"""saga.log as a file: its bookmark is found at its end, however long it is, and only what is half written goes."""

from io import FileIO
from pathlib import Path

import pytest

from adapters.log_file import _TAIL_BYTES, BEGINNING, OTHER_DATABASE, Bookmark, last_bookmark, marked, opened

LINE = "2026-11-22T20:23:03.475Z order-{0} #1 pending by accept: {1} workflow=checkout-order-{0} pos={0}.{0}\n"


def written(path: Path, text: str) -> str:
    """Find the bookmark of a file with this text, and give what is left of the text."""
    path.write_text(text)
    with FileIO(str(path), "a+") as file:
        last_bookmark(file)
    return path.read_text()


def bookmark_of(path: Path, text: str) -> Bookmark:
    path.write_text(text)
    with FileIO(str(path), "a+") as file:
        return last_bookmark(file)


def lines(first: int, last: int, reason: str = "x") -> str:
    return "".join(LINE.format(number, reason) for number in range(first, last + 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "saga.log"


@pytest.mark.parametrize("count", [1, 3_000], ids=["short", "longer than what is read at first"])
@pytest.mark.parametrize("torn", ["", "2026-11-22T20:23:03.475Z order-9 #1 pen"], ids=["whole", "torn"])
def test_a_file_keeps_every_whole_line_and_its_last_one_is_the_bookmark(path: Path, count: int, torn: str) -> None:
    text = lines(1, count)
    assert count == 1 or len(text) > 4 * _TAIL_BYTES

    assert written(path, text + torn) == text

    found = bookmark_of(path, text + torn)
    assert (found.txid, found.event_id) == (str(count), count)
    assert found.line.startswith(f"2026-11-22T20:23:03.475Z order-{count} #1 ")


@pytest.mark.parametrize("length", [10, 2 * _TAIL_BYTES], ids=["short", "longer than what is read at first"])
@pytest.mark.parametrize("before", [lines(1, 5), ""], ids=["lines before it", "alone"])
def test_a_bookmark_says_how_its_own_line_begins_however_long_that_is(path: Path, length: int, before: str) -> None:
    found = bookmark_of(path, before + lines(6, 6, "y" * length))

    assert found == Bookmark("6", 6, "")
    assert found.line.startswith("2026-11-22T20:23:03.475Z order-6 #1 ")


@pytest.mark.parametrize("length", [10, 2 * _TAIL_BYTES], ids=["short", "longer than what is read at first"])
@pytest.mark.parametrize("before", [lines(1, 5), lines(1, 5) + OTHER_DATABASE, ""], ids=["lines", "a note", "nothing"])
def test_a_group_whose_last_line_is_missing_goes_as_a_whole(path: Path, length: int, before: str) -> None:
    mark = "5.5" if before.endswith("pos=5.5\n") else "0.0"
    group = "".join(f"2026-11-22T20:23:03.475Z o #{seq} {'z' * length} pos={mark}\n" for seq in range(1, 4))

    assert written(path, before + group) == before


def test_after_a_note_the_next_database_begins(path: Path) -> None:
    assert bookmark_of(path, lines(1, 3) + OTHER_DATABASE) == BEGINNING
    assert bookmark_of(path, "") == BEGINNING
    assert bookmark_of(path, lines(1, 3) + OTHER_DATABASE + lines(7, 7)) == Bookmark("7", 7, "")


def test_what_a_power_failure_leaves_is_no_bookmark_that_postgres_cannot_take(path: Path) -> None:
    text = lines(1, 2) + "\x00" * 50 + " pos=99999999999999999999999.1\n"

    assert bookmark_of(path, text) == Bookmark("2", 2, "")
    assert "\x00" not in bookmark_of(path, "\x00" * 50 + lines(3, 3)).line


def test_a_line_written_ahead_of_its_transaction_marks_what_is_complete_before_it() -> None:
    logged = [(("7", 3), "a #1"), (("9", 2), "b #1"), (("9", 2), "b #2"), (("9", 5), "c #1")]

    assert list(marked(logged, Bookmark("5", 1, ""))) == [
        "a #1 pos=7.3\n",
        "b #1 pos=7.3\n",
        "b #2 pos=9.2\n",
        "c #1 pos=9.5\n",
    ]


def test_a_new_file_is_its_owners_alone_and_one_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "shared.log"
    shared.write_text("a line\n", encoding="utf-8")
    shared.chmod(0o640)

    for name in ("new.log", "shared.log"):
        opened(tmp_path / name).close()

    assert {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {
        "new.log": "0o600",
        "shared.log": "0o640",
    }
