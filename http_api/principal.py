"""Who makes a request, and what they may do."""

from dataclasses import dataclass

from domain.model import MAX_NAME_LENGTH
from domain.text import tidy
from http_api.keys import Key, Scope


@dataclass(frozen=True)
class Principal:
    """A caller."""

    caller: str
    """Who it is, over all of their keys: an order's id follows from it."""
    name: str
    scopes: frozenset[Scope]
    customers: frozenset[str] | None
    """For whom they may buy, and whose orders they may see; None for all."""

    @property
    def actor(self) -> str:
        """The name for an order's log."""
        return tidy(self.name, MAX_NAME_LENGTH)

    def may_act_for(self, customer: str) -> bool:
        """Return whether they may buy for a customer, and see the customer's orders."""
        return self.customers is None or customer in self.customers


def of_key(key: Key) -> Principal:
    """Return the holder of an API key."""
    customers = None if key.customers is None else frozenset(key.customers)
    return Principal(f"key:{key.name}", key.name, frozenset(key.scopes), customers)
