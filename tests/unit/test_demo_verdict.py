"""The demo says that an order ended as it should only where status, exit status, reason, stock and money are right."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devstack import demo, scenarios
from devstack.demo import ScenarioResult
from devstack.demo_harness import Answer, Holdings
from devstack.scenarios import ONE_BY_ONE, TOGETHER, Scenario

BEFORE = Holdings(on_hand=10, free=8, balance_minor=5_000)


async def _nothing(*_: Any) -> Answer:
    raise AssertionError("not performed here")


SOLD = Scenario("n-1", "is tried", _nothing, "completed", 0, "tea-mug", "alice", sold=2, spent_minor=900, says="fine")
REFUSED = replace(SOLD, ends="refused", code=2, sold=0, spent_minor=0, says="other lines")


def told(scenario: Scenario = SOLD, answer: Answer | None = None, after: Holdings | None = None) -> ScenarioResult:
    right = Holdings(
        BEFORE.on_hand - scenario.sold, BEFORE.free - scenario.sold, BEFORE.balance_minor - scenario.spent_minor
    )
    fine = Answer(0, {"status": "completed", "reason": "all fine"}, "")
    return ScenarioResult(scenario, answer or fine, BEFORE, after or right, 1.0)


def test_an_order_that_ended_as_its_scenario_says_is_as_it_should_be() -> None:
    assert told().is_expected
    assert told(REFUSED, Answer(2, {}, "another customer or other lines")).is_expected


@pytest.mark.parametrize(
    ("code", "document", "error"),
    [
        (1, {"status": "completed", "reason": "all fine"}, ""),
        (0, {"status": "rejected", "reason": "all fine"}, ""),
        (0, {"status": "completed", "reason": "something else"}, ""),
        (0, {}, "all fine"),
    ],
)
def test_an_order_of_which_the_starter_says_something_else_is_not(
    code: int, document: dict[str, Any], error: str
) -> None:
    assert not told(answer=Answer(code, document, error)).is_expected


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("what", ["on_hand", "free", "balance_minor"])
def test_an_order_that_left_other_stock_or_money_is_not(what: str, off: int) -> None:
    right = told().after

    assert not told(after=replace(right, **{what: getattr(right, what) + off})).is_expected


@pytest.mark.parametrize(
    ("exit_status", "is_right", "audit"),
    [
        (0, True, Answer(0, {"violation_count": 0, "checks": {}}, "")),
        (1, False, Answer(0, {"violation_count": 0, "checks": {}}, "")),
        (1, True, Answer(5, {"violation_count": 1, "checks": {}}, "")),
        (1, True, Answer(5, {"violation_count": 0, "checks": {}}, "")),
        (1, True, Answer(0, {}, "")),
    ],
)
def test_the_demo_ends_well_only_where_all_orders_and_the_audit_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exit_status: int, is_right: bool, audit: Answer
) -> None:
    @contextlib.contextmanager
    def stack(_: Path) -> Iterator[Any]:
        yield SimpleNamespace(temporal=SimpleNamespace(ui_url="http://ui"))

    async def perform(_: Any) -> tuple[list[ScenarioResult], Answer]:
        return [told(), told(after=None if is_right else BEFORE)], audit

    monkeypatch.setattr(demo, "DevStack", stack)
    monkeypatch.setattr(demo, "DemoHarness", lambda _: SimpleNamespace(add_worker=lambda: None))
    monkeypatch.setattr(demo, "_perform", perform)

    assert demo.run_demo(tmp_path) == exit_status


async def test_two_starts_of_one_order_that_are_told_different_things_are_no_success() -> None:
    answers = [Answer(0, {"status": "completed"}, ""), Answer(3, {"status": "rejected"}, "")]

    class TwoMinds:
        async def starter(self, *_: str) -> Answer:
            return answers.pop()

    [twice] = [scenario for scenario in (*TOGETHER, *ONE_BY_ONE) if scenario.perform is scenarios._twice_at_once]
    answer = await twice.perform(TwoMinds(), twice.order_id)  # type: ignore[arg-type] # all that it asks of its harness

    assert answer.code != 0


async def test_the_demo_audits_what_is_at_rest_too() -> None:
    asked: list[tuple[str, ...]] = []

    class Listener:
        async def starter(self, *arguments: str) -> Answer:
            asked.append(arguments)
            return Answer(0, {}, "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TOGETHER", ())
        patch.setattr(demo, "ONE_BY_ONE", ())
        await demo._perform(Listener())  # type: ignore[arg-type] # all that it asks of its harness

    assert asked == [("audit", "--at-rest")]
