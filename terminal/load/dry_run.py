"""A check of a file of orders before it is loaded: what is malformed, unknown, or there already."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from client.failures import ExitStatus
from domain.lookup import NamesInput, NamesReport
from domain.model import CheckoutInput, order_id_conflict
from terminal import view
from terminal.load.orders_file import Entry
from terminal.load.outcomes import Settled

LookUp = Callable[[NamesInput], Awaitable[NamesReport]]

_ORDERS_AT_ONCE = 500
_BYTES_AT_ONCE = 200_000
_REMEMBERED = 100_000
_LISTED = 1_000
_SHOWN = 20


@dataclass
class DryRun:
    """The result of a dry run. Problems and names are the first thousand of each; the counts count all."""

    orders: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """How many are `malformed`, `unknown`, `other content`, `settled` in the outcomes, `new`, or there already."""
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    """An order's first line, its id, and why it cannot be loaded."""
    unknown_skus: Counter[str] = field(default_factory=Counter)
    """By the number of orders that name them."""
    unknown_customers: Counter[str] = field(default_factory=Counter)

    @property
    def is_fine(self) -> bool:
        """Whether nothing has to be changed in the file."""
        return not any(self.outcomes[what] for what in ("malformed", "unknown", "other content"))

    def add(self, what: str, entry: Entry, problem: str = "") -> None:
        """Count an order, and list it where there is a problem."""
        self.outcomes[what] += 1
        if problem and len(self.problems) < _LISTED:
            self.problems.append((entry.line, entry.order_id, problem))


async def dry_run(entries: Iterable[Entry], look_up: LookUp, settled: Settled) -> DryRun:
    """Check every order of a file, in bounded memory and with bounded lookups."""
    found = DryRun()
    unknown = _Unknown(look_up)
    asked: list[tuple[Entry, CheckoutInput]] = []
    size = 0
    # By the hash of each id, the hash of its first content: 70 MB for a million orders.
    first: dict[int, int] = {}
    for entry in entries:
        found.orders += 1
        if entry.order is None:
            found.add("malformed", entry, entry.problem)
            continue
        content = hash(entry.order.fingerprint)
        if first.setdefault(hash(entry.order_id), content) != content:
            found.add("other content", entry, order_id_conflict(entry.order_id))
            continue
        if entry.order in settled:
            found.add("settled", entry)
            continue
        asked.append((entry, entry.order))
        size += sum(len(name.encode()) for name in _names(entry.order))
        if len(asked) == _ORDERS_AT_ONCE or size > _BYTES_AT_ONCE:
            await _judge(found, unknown, asked)
            asked, size = [], 0
    if asked:
        await _judge(found, unknown, asked)
    return found


class _Unknown:
    """Which SKUs and customers the database does not know, cached."""

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._skus: dict[str, bool] = {}
        self._customers: dict[str, bool] = {}

    async def ask(self, orders: Iterable[CheckoutInput]) -> NamesReport:
        """Look up what some orders name; the report covers all of it, cached or not."""
        orders = list(orders)
        skus = {line.sku for order in orders for line in order.lines}
        customers = {order.customer for order in orders}
        for known in (self._skus, self._customers):
            if len(known) > _REMEMBERED:
                known.clear()
        asked = NamesInput(
            sorted(skus - self._skus.keys()),
            sorted(customers - self._customers.keys()),
            sorted({order.order_id for order in orders}),
        )
        answer = await self._look_up(asked)
        self._skus.update((sku, sku in answer.unknown_skus) for sku in asked.skus)
        self._customers.update((name, name in answer.unknown_customers) for name in asked.customers)
        return NamesReport(
            [sku for sku in skus if self._skus[sku]],
            [name for name in customers if self._customers[name]],
            answer.known_orders,
        )


async def _judge(found: DryRun, unknown: _Unknown, asked: list[tuple[Entry, CheckoutInput]]) -> None:
    report = await unknown.ask(order for _, order in asked)
    skus, customers = {*report.unknown_skus}, {*report.unknown_customers}
    known = {order.order_id: order for order in report.known_orders}
    for entry, order in asked:
        there = known.get(order.order_id)
        if there is not None and there.fingerprint not in {None, order.fingerprint}:
            found.add("other content", entry, order_id_conflict(order.order_id))
            continue
        if there is not None:
            found.add(there.status, entry)
            continue
        problems = []
        if order.customer in customers:
            _count(found.unknown_customers, order.customer)
            problems.append(f"customer {order.customer!a} is not known")
        for sku in (line.sku for line in order.lines if line.sku in skus):
            _count(found.unknown_skus, sku)
            problems.append(f"SKU {sku!a} is not known")
        found.add("unknown" if problems else "new", entry, "; ".join(problems[:5]))


def _count(names: Counter[str], name: str) -> None:
    if name in names or len(names) < _LISTED:
        names[name] += 1


def _names(order: CheckoutInput) -> Iterable[str]:
    return (order.order_id, order.customer, *(line.sku for line in order.lines))


def print_dry_run(found: DryRun, file: Path, *, as_json: bool) -> int:
    """Print the result of a dry run, and return the exit status: 2 where the file has to be changed."""
    if as_json:
        document: dict[str, Any] = {
            "orders": found.orders,
            "outcomes": found.outcomes,
            "problems": [
                {"line": line, "order_id": order_id, "problem": problem} for line, order_id, problem in found.problems
            ],
            "unknown_skus": found.unknown_skus,
            "unknown_customers": found.unknown_customers,
        }
        view.print_json(document)
    else:
        for line, order_id, problem in found.problems[:_SHOWN]:
            view.console.print(Text(f"line {line}, order {order_id!a}: {problem}"), soft_wrap=True)
        if (more := sum(map(found.outcomes.__getitem__, ("malformed", "unknown", "other content"))) - _SHOWN) > 0:
            view.console.print(f"and {more} more; --json lists them")
        for what, names in (("SKUs", found.unknown_skus), ("customers", found.unknown_customers)):
            if names:
                listed = ", ".join(f"{name!a} ({count} orders)" for name, count in names.most_common(_SHOWN))
                view.console.print(Text(f"unknown {what}: {listed}"), soft_wrap=True)
        counted = ", ".join(f"{count} {what}" for what, count in found.outcomes.most_common()) or "none"
        view.console.print(Text(f"{found.orders} orders in {file}: {counted}. Nothing was started."), soft_wrap=True)
    return ExitStatus.COMPLETED if found.is_fine else ExitStatus.USAGE
