"""What every contender can be asked: to carry an order to its end, who works for it, and what it left behind."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from domain.model import CheckoutInput


class Absent(Exception):
    """A contender that cannot take part here. Its text says what is missing."""


def require_installed(who: str, *packages: str) -> None:
    """Look whether the peers' layer is there, without importing anything of it.

    Raises:
        Absent: a package is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Absent(f"{who} takes no part: {package} is not installed (`make bench` installs it)")


@dataclass(frozen=True)
class Footprint:
    """What the engine keeps of one order, on average. None where there is nothing to count."""

    events: float | None = None
    """Events of a history, entries of a journal, or rows."""
    bytes: float | None = None
    """Of those, as the engine itself counts them."""


class Contender(Protocol):
    """One way to run the checkout. Its servers run already; what needs an event loop is made at the first call."""

    @property
    def name(self) -> str:
        """What the tables call it."""

    @property
    def sells(self) -> bool:
        """Whether it does the checkout on Postgres, rather than nothing."""

    @property
    def processes(self) -> dict[str, int]:
        """Give the process ids of its worker and of its engine, by role; Postgres and the caller are everybody's."""

    async def carry(self, order: CheckoutInput) -> str:
        """Carry one order to its end, as its caller sees it, and give its status."""

    async def footprint(self, orders: Sequence[CheckoutInput]) -> Footprint:
        """Tell what the engine keeps of these orders, which have ended."""

    async def close(self) -> None:
        """Let go of connections."""
