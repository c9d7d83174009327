"""What a sweep reports of very many orders: all are counted, and the names fit into one value of Temporal's."""

import json
from dataclasses import asdict

import pytest

from domain.maintenance import SweepReport
from domain.model import CheckoutInput, OrderLine

TEMPORAL_TAKES = 2_000_000
MANY = 1_500


def reported(order_id: str) -> SweepReport:
    """Report on many orders of each kind, whose ids begin like this."""
    report, lines = SweepReport(), (OrderLine("tea-mug", 1),)
    for number in range(MANY):
        name = f"{order_id}{number:04d}"
        for doubt, repair in (("", False), ("", True), ("a doubt", True)):
            report.add(CheckoutInput(name, "alice", lines, repair, doubt))
        report.add_malformed([f"{name}: its lines were changed after a saga took it; put them back"])
    return report


@pytest.mark.parametrize("order_id", ["o-", "x" * 124, "\N{GRINNING FACE}" * 124], ids=["short", "long", "longest"])
def test_every_order_is_counted_and_a_report_fits_into_what_temporal_takes(order_id: str) -> None:
    report = reported(order_id)

    counts = (report.started_count, report.repaired_count, report.parked_count, report.malformed_count)
    assert counts == (MANY,) * 4
    assert len(json.dumps(asdict(report))) < TEMPORAL_TAKES
    for names in (report.started, report.repaired, report.parked, report.malformed):
        assert 100 < len(names) < MANY
        assert names[0].startswith(f"{order_id}0000"), "the first are named"


def test_a_thousand_orders_of_ordinary_ids_are_named() -> None:
    report = reported("gid://shop/Order/")

    assert [len(names) for names in (report.started, report.repaired, report.parked, report.malformed)] == [1000] * 4
