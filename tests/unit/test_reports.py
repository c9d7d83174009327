"""What a sweep and an audit report of very much: all is counted, and what they name is short enough."""

import json
import re
from dataclasses import asdict

import pytest

from activities.audit import ANCHOR_CHECK, audit_checks
from devstack.stack import ROOT
from domain.audit import CAN_WAIT, AuditReport, Violation
from domain.model import CheckoutInput, OrderLine
from domain.sweep import SweepReport
from terminal import view

TEMPORAL_TAKES = 2_000_000
MANY = 1_500


def reported(order_id: str) -> SweepReport:
    """Report on many orders of each kind, whose ids begin like this."""
    report, lines = SweepReport(), (OrderLine("tea-mug", 1),)
    for number in range(MANY):
        name = f"{order_id}{number:04d}"
        for review_reason, repair in (("", False), ("", True), ("a doubt", True)):
            report.add(CheckoutInput(name, "alice", lines, repair, review_reason))
        report.add_malformed([f"{name}: its lines were changed after a saga took it; restore them"])
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


@pytest.mark.parametrize(("count", "more"), [(1, ""), (3, ""), (4, "; and 1 more"), (7, "; and 4 more")])
def test_an_audit_names_three_violations_and_counts_the_rest(count: int, more: str) -> None:
    found = [Violation("A1", f"sku-{number}", "on hand 1, accounted for 2") for number in range(min(count, 5))]

    output = AuditReport({}, found, count, {}).summary

    named = [f"A1 {violation.subject}: {violation.detail}" for violation in found[:3]]
    assert output == "; ".join(named) + more


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (["A1", "Q4"], "it can wait until the morning"),
        (["A1", "R1", "A3", "A3"], "a person is needed at once: A3, R1"),
        (["A99"], "a person is needed at once: A99"),
    ],
)
def test_an_audit_says_whether_a_person_is_needed_at_once(
    found: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    view.print_audit(AuditReport({}, [Violation(check, "lamp", "broken") for check in found], len(found), {}))

    assert said in capsys.readouterr().out.splitlines()


def test_the_document_says_of_every_check_whether_it_can_wait() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    [paged] = re.findall(r"`audit \(([A-Z0-9|]+)\) violated`", text)

    rows = dict(re.findall(r"^\| ([AQR]\d+) \| (in the morning|\*\*at once\*\*) \|", text, re.MULTILINE))

    checks = {*audit_checks(), ANCHOR_CHECK}
    assert rows == {check: "in the morning" if check in CAN_WAIT else "**at once**" for check in checks}
    assert set(paged.split("|")) == checks - CAN_WAIT
    assert checks > CAN_WAIT
