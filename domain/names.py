"""What a check of a file asks a worker, and what it answers: nothing is begun, and nothing is written."""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class NamesInput:
    """Names to be looked up, each once."""

    refuse_malformed: ClassVar[bool] = True

    skus: list[str] = field(default_factory=list)
    customers: list[str] = field(default_factory=list)
    order_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KnownOrder:
    """An order that is there already."""

    order_id: str
    status: str
    fingerprint: str | None
    """None where nobody has worked on it yet."""


@dataclass(frozen=True)
class NamesReport:
    """What of it is not known, and what is there already."""

    unknown_skus: list[str] = field(default_factory=list)
    unknown_customers: list[str] = field(default_factory=list)
    known_orders: list[KnownOrder] = field(default_factory=list)
