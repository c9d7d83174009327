"""The demo: every scenario on throw-away servers, a table of what happened, and the audit at the end."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from adapters.terminal import Terminal
from devstack.demo_harness import Answer, DemoError, DemoHarness, Holdings
from devstack.scenarios import ONE_BY_ONE, TOGETHER, Scenario, holdings_match
from devstack.stack import DevStack
from domain.model import format_money

_console = Terminal(soft_wrap=True)
# The table needs this many columns; a narrower terminal folds its lines, which is better than folding its cells.
_console.width = max(_console.width, 100)


@dataclass(frozen=True)
class ScenarioResult:
    """A scenario and what came of it."""

    scenario: Scenario
    answer: Answer
    before: Holdings
    after: Holdings
    seconds: float

    @property
    def is_expected(self) -> bool:
        """Tell whether the order ended as its scenario says, with the right stock and money."""
        ended = self.answer.document.get("status", "refused") == self.scenario.ends
        text = f"{self.answer.reason} {self.answer.error}"
        return (
            ended
            and self.answer.code == self.scenario.code
            and self.scenario.says in text
            and holdings_match(self.before, self.after, self.scenario)
        )


def run_demo(folder: Path) -> int:
    """Run every scenario and the audit; 0 only if each ended as it should."""
    begun = time.monotonic()
    _console.print("Starting a real Postgres and a real Temporal on free ports ...")
    with DevStack(folder) as stack:
        harness = DemoHarness(stack)
        harness.add_worker()
        _console.print(
            f"Up after {time.monotonic() - begun:.1f} s. Histories, while this runs: {stack.temporal.ui_url}\n"
        )
        try:
            results, audit = asyncio.run(_perform(harness))
        except DemoError as error:
            _console.print(Text.assemble(("The demo could not go on:", "red"), f" {error}"))
            return 1
    _console.print(_table(results), soft_wrap=False)
    wrong = [one.scenario.order_id for one in results if not one.is_expected]
    violations = audit.document.get("violation_count", "no answer")
    is_clean = audit.code == 0 and violations == 0
    if wrong:
        _console.print(f"Not as it should be: {', '.join(wrong)}", style="bold red")
    _console.print(
        f"{len(results) - len(wrong)} of {len(results)} orders ended as they should. "
        f"Audit of {len(audit.document.get('checks', {}))} invariants: {violations} violations. "
        f"{time.monotonic() - begun:.0f} s, everything is stopped again."
    )
    return 0 if is_clean and not wrong else 1


async def _perform(harness: DemoHarness) -> tuple[list[ScenarioResult], Answer]:
    results = list(await asyncio.gather(*(_one(harness, scenario) for scenario in TOGETHER)))
    for scenario in ONE_BY_ONE:
        results.append(await _one(harness, scenario))  # noqa: PERF401 - one after the other is the point
    return results, await harness.starter("audit", "--at-rest")


async def _one(harness: DemoHarness, scenario: Scenario) -> ScenarioResult:
    before = await harness.holdings(scenario.sku, scenario.customer)
    begun = time.monotonic()
    answer = await scenario.perform(harness, scenario.order_id)
    seconds = time.monotonic() - begun
    result = ScenarioResult(scenario, answer, before, await harness.holdings(scenario.sku, scenario.customer), seconds)
    mark = ("ok", "green") if result.is_expected else ("NOT AS IT SHOULD", "bold red")
    order = (scenario.order_id, "bold")
    _console.print(Text.assemble("  ", mark, "  ", order, f": an order that {scenario.tried}"))
    if not result.is_expected:
        _console.print(Text(f"      exit {answer.code}, {answer.document} {answer.error}", style="red"))
    return result


def _table(results: Sequence[ScenarioResult]) -> Table:
    table = Table(title="\nWhat happened", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("order", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    table.add_column("because", no_wrap=True)
    table.add_column("stock", no_wrap=True)
    table.add_column("balance, EUR", no_wrap=True)
    table.add_column("took", no_wrap=True, justify="right")
    for one in results:
        style = {"completed": "green", "refused": "magenta"}.get(one.scenario.ends, "yellow")
        table.add_row(
            one.scenario.order_id,
            Text(one.scenario.ends if one.is_expected else one.answer.status[:30], style=style),
            Text(one.answer.reason.partition(":")[0] or ("id taken" if one.answer.code == 2 else "")),
            _change(str(one.before.on_hand), str(one.after.on_hand)),
            _change(_euros(one.before.balance_minor), _euros(one.after.balance_minor)),
            f"{one.seconds:.1f} s",
        )
    return table


def _euros(amount_minor: int) -> str:
    return format_money(amount_minor, "EUR").removesuffix(" EUR")


def _change(before: str, after: str) -> str:
    return f"{before} → {after}" if before != after else f"{before}, same"
