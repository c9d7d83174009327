"""What the benchmark does with its results. Nothing is measured, and the peers need not be installed."""

from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from benchmarks import report
from benchmarks.__main__ import STARTS, wanted
from benchmarks.actions import actions, usd_per_million_orders
from benchmarks.contenders.contender import Absent, Contender, Footprint, require_installed
from benchmarks.counts import Counts, enough
from benchmarks.measure import Results, Round, batch, ratios
from benchmarks.publish import BEGIN, DOCUMENT, END, between_marks
from domain.model import CheckoutInput


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
        "group": Results([one_round(value) for value in (10.0, 30.0, 20.0)], [one_round(1.0)]),
        "bare SQL": Results([one_round(value) for value in (20.0, 30.0, 60.0)], [one_round(1.0)]),
    }
    counts = {
        "group": Counts(3.0, 3.04, 6_000.0, Footprint(8.0, 2_350.0, 2.0)),
        "bare SQL": Counts(3, 3, 6e3, Footprint()),
    }

    text = report.tables(results, counts)

    assert "| bare SQL | 30.0 (20.0 to 60.0) | 2.00 (1.00 to 3.00) | 50.5 (50.5 to 50.5) | 50 | 99 |" in text
    assert "| group | 1.0 |  | 2.0 |  | 3.0 | 6.0 | 1.0 |" in text
    assert "| group | 3.0 | 3.0 | 6.0 | 8.0 | 2.4 | 2.0 | 100.0 |" in text
    assert "| bare SQL | 3.0 | 3.0 | 6.0 |  |  |  |  |" in text


def test_the_others_are_compared_with_the_product_and_with_restate_where_they_take_part() -> None:
    results = {
        "group": Results([one_round(50.0), one_round(30.0)], [one_round(1.0)]),
        "Restate": Results([one_round(10.0), one_round(20.0)], [one_round(1.0)]),
    }
    counts = {"group": Counts(0.034, -0.0004, 612.0, Footprint(actions=0.0082))}

    text = report.tables(results, counts)

    assert "| contender | orders per second | against group | against Restate | alone, ms |" in text
    assert "| group | 40.0 (30.0 to 50.0) | 1.00 (1.00 to 1.00) | 3.25 (1.50 to 5.00) |" in text
    assert "| group | 0.034 | 0 | 0.61 |  |  | 0.0082 | 0.41 |" in text


def event(kind: str, **attributes: Any) -> HistoryEvent:
    """Return an event with the attributes of its kind."""
    given: dict[str, Any] = {f"{kind.lower()}_event_attributes": attributes} if attributes else {}
    return HistoryEvent(event_type=EventType.Value(f"EVENT_TYPE_{kind}"), **given)


def test_the_local_activities_of_one_workflow_task_are_one_action() -> None:
    markers = [event("MARKER_RECORDED", workflow_task_completed_event_id=task) for task in (4, 4, 4, 9)]

    assert actions([event("WORKFLOW_EXECUTION_STARTED"), *markers, event("WORKFLOW_EXECUTION_COMPLETED")]) == 3
    assert usd_per_million_orders(3.0) == 150.0


def test_each_try_of_an_activity_is_an_action() -> None:
    locally = {"nonfirst_local_activity_execution_attempts": 2}

    assert actions([event("ACTIVITY_TASK_SCHEDULED"), event("ACTIVITY_TASK_STARTED", attempt=3)]) == 3
    assert actions([event("WORKFLOW_TASK_COMPLETED", metering_metadata=locally)]) == 2


def test_search_attributes_are_an_action_unless_a_patch_has_set_them() -> None:
    def upsert(*names: str) -> HistoryEvent:
        fields = {name: Payload() for name in names}
        return event("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES", search_attributes={"indexed_fields": fields})

    assert actions([upsert("OrderStatus"), upsert("OrderStatus", "FailedStep"), upsert("TemporalChangeVersion")]) == 2


def test_a_contender_is_named_by_its_name_or_by_what_its_forms_have_in_common() -> None:
    class Named(Contender):
        async def process(self, order: CheckoutInput) -> str:
            return order.order_id

    names = ("group", "DBOS, steps", "DBOS, transactions")
    contenders = [Named(name, {}) for name in names]

    def named(*only: str) -> list[str]:
        return [contender.name for contender in wanted(contenders, only)]

    assert named() == list(names)
    assert named("group", "DBOS") == ["group", "DBOS, steps", "DBOS, transactions"]
    assert named("DBOS, steps") == ["DBOS, steps"]
    assert named("dbos") == []


def test_a_count_has_enough_orders_to_share_what_they_cost() -> None:
    assert (enough(100, at_once=3), enough(100, at_once=50)) == (100, 300)


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
