"""The interface of a contender: run an order to its end, name its processes, say what its engine stored."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from domain.model import CheckoutInput


class Absent(Exception):
    """A contender cannot run here. The text says what is missing."""


def require_installed(contender: str, *packages: str) -> None:
    """Check that the packages of the layer `bench` are there, without importing them.

    Raises:
        Absent: a package is missing.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Absent(f"{contender} is left out: {package} is not installed (`make bench` installs it)")


@dataclass(frozen=True)
class Footprint:
    """What the engine stores per order, on average. None where there is nothing to count."""

    events: float | None = None
    """Events of a history, entries of a journal, or rows."""
    bytes: float | None = None
    """Their size, as the engine itself counts it."""
    actions: float | None = None
    """What Temporal Cloud would bill; see `benchmarks.actions`."""


class Contender(ABC):
    """One way to run the checkout. Its servers already run; connections are opened at the first call.

    Args:
        name: in the tables.
        processes: process ids of its worker and its engine, by role. Postgres and the caller belong to all contenders.
        is_checkout: whether it runs the steps on Postgres, rather than nothing.
    """

    def __init__(self, name: str, processes: Mapping[str, int], *, is_checkout: bool = True) -> None:
        self.name = name
        self.processes = processes
        self.is_checkout = is_checkout

    @abstractmethod
    async def process(self, order: CheckoutInput) -> str:
        """Run one order to its end, as its caller does, and return its status."""

    async def footprint(self, _orders: Sequence[CheckoutInput]) -> Footprint:
        """Count what the engine stores of these orders, which have ended."""
        return Footprint()

    async def close(self) -> None:  # noqa: B027 - not every contender has connections to close
        """Close the connections."""
