"""What the shop must look like in the end, computed from how each order ended. No I/O, no database, no workflow.

The model is given which orders there were, how Temporal said that they ended, and what people did by hand. From
the price list alone it says how much of everything has to be left, and `differences` compares that with what
the database holds: equal, or wrong.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from domain.model import OrderLine
from tests.soak.catalogue import Catalogue

ENDINGS = ("completed", "rejected", "cancelled")
NEVER_BEGUN = "never begun"
"""Terminated before its first step: Temporal knows of it, the database does not, and nothing has happened."""


@dataclass(frozen=True, slots=True)
class Effect:
    status: str
    paid: int = 0
    gone: int = 0
    held: int = 0


@dataclass
class Picture:
    on_hand: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    balances: dict[str, int] = field(default_factory=dict)
    shop: int = 0
    effects: dict[str, Effect] = field(default_factory=dict)


class ShopModel:
    """A shop in which every order happens at once and never fails half way."""

    def __init__(self, shop: Catalogue) -> None:
        self._prices = shop.prices
        self._on_hand = Counter(shop.stock)
        self._reserved: Counter[str] = Counter()
        self._balances = Counter(shop.deposits)
        self._shop = 0
        self._effects: dict[str, Effect] = {}

    def total(self, lines: Iterable[OrderLine]) -> int:
        return sum(self._prices[line.sku] * line.quantity for line in lines)

    def restock(self, sku: str, units: int) -> None:
        self._on_hand[sku] += units

    def end(
        self,
        order_id: str,
        customer: str,
        lines: tuple[OrderLine, ...],
        status: str,
        vouched: frozenset[str] = frozenset(),
    ) -> None:
        """Let an order end. `vouched` are the steps whose effect a person has settled by hand: it stands."""
        if order_id in self._effects:
            raise ValueError(f"{order_id} has ended before")
        if status not in {*ENDINGS, NEVER_BEGUN}:
            raise ValueError(f"{order_id}: {status} is no ending")
        done = status == "completed"
        units = sum(line.quantity for line in lines)
        paid = self.total(lines) if done or "pay" in vouched else 0
        is_gone = done or "ship" in vouched
        is_held = "reserve" in vouched and not is_gone
        for line in lines:
            self._on_hand[line.sku] -= line.quantity if is_gone else 0
            self._reserved[line.sku] += line.quantity if is_held else 0
        self._balances[customer] -= paid
        self._shop += paid
        self._effects[order_id] = Effect(status, paid, units if is_gone else 0, units if is_held else 0)

    def picture(self) -> Picture:
        skus = [sku for sku in self._on_hand if sku in self._prices]
        return Picture(
            {sku: self._on_hand[sku] for sku in skus},
            {sku: self._reserved[sku] for sku in skus},
            dict(self._balances),
            self._shop,
            {name: effect for name, effect in self._effects.items() if effect.status != NEVER_BEGUN},
        )


def differences(expected: Picture, found: Picture) -> list[str]:
    pairs: dict[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
        "on hand": (expected.on_hand, found.on_hand),
        "reserved": (expected.reserved, found.reserved),
        "balance": (expected.balances, found.balances),
        "order": (expected.effects, found.effects),
    }
    problems = [
        f"{name} {key}: the model says {wanted.get(key)}, the database {had.get(key)}"
        for name, (wanted, had) in pairs.items()
        for key in sorted({*wanted, *had})
        if wanted.get(key) != had.get(key)
    ]
    if expected.shop != found.shop:
        problems.append(f"the shop's ledger: the model says {expected.shop}, the database {found.shop}")
    return problems
