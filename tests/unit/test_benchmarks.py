"""What the benchmark does with its results. Nothing is measured, and the peers need not be installed."""

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import STARTS
from benchmarks.contenders.contender import Absent, Footprint, require_installed
from benchmarks.counts import Counts
from benchmarks.measure import Results, Round, batch, ratios
from benchmarks.publish import BEGIN, DOCUMENT, END, between_marks


def one_round(per_second: float) -> Round:
    return Round(per_second, [float(n) for n in range(1, 101)], {"caller": 1.0, "worker": 2.0, "Postgres": 3.0})


def test_every_contender_gets_the_same_orders_under_ids_of_its_own() -> None:
    first, second = batch(20, seed=7), batch(20, seed=7)

    assert [(one.customer, one.lines) for one in first] == [(one.customer, one.lines) for one in second]
    assert len({one.order_id for one in [*first, *second]}) == 40


def test_latencies_are_reported_by_nearest_rank() -> None:
    assert one_round(1.0).p50_ms == 50.5
    assert one_round(1.0).p99_ms == 99.0


def test_ratios_are_those_of_the_rounds_and_not_of_the_medians() -> None:
    slow = [one_round(value) for value in (10.0, 20.0, 40.0)]
    fast = [one_round(value) for value in (30.0, 20.0, 80.0)]

    assert ratios(fast, slow) == [3.0, 1.0, 2.0]


def test_the_tables_have_median_least_and_greatest_and_leave_out_what_was_not_counted() -> None:
    results = {
        "local-first": Results([one_round(value) for value in (10.0, 30.0, 20.0)], [one_round(1.0)]),
        "bare SQL": Results([one_round(value) for value in (20.0, 30.0, 60.0)], [one_round(1.0)]),
    }
    counts = {
        "local-first": Counts(3.0, 3.04, 6_000.0, Footprint(8.0, 2_350.0)),
        "bare SQL": Counts(3, 3, 6e3, Footprint()),
    }

    text = report.tables(results, counts)

    assert "| bare SQL | 30.0 (20.0 to 60.0) | 2.00 (1.00 to 3.00) | 50.5 (50.5 to 50.5) | 50 | 99 |" in text
    assert "| local-first | 1.0 | 2.0 |  | 3.0 | 6.0 |" in text
    assert "| local-first | 3.0 | 3.0 | 6.0 | 8.0 | 2.4 |" in text
    assert "| bare SQL | 3.0 | 3.0 | 6.0 |  |  |" in text


def test_publishing_replaces_the_text_between_the_marks_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")

    between_marks(document, "new")

    assert document.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


def test_publishing_refuses_a_document_without_marks(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold\n", encoding="utf-8")

    with pytest.raises(ValueError, match="has no"):
        between_marks(document, "new")

    assert BEGIN in DOCUMENT.read_text(encoding="utf-8")


def test_a_peer_that_is_not_installed_is_left_out_with_the_command_that_installs_it() -> None:
    with pytest.raises(Absent, match="peer is left out: no_such_package is not installed"):
        require_installed("peer", "no_such_package")

    assert len(STARTS) == 5
