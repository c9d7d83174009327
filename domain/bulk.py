"""The batches of a bulk load: what the workflow of a batch, and each step in it, is asked and returns."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, ClassVar

from domain.model import CheckoutInput, Ending, OrderLine
from sagafence import InvalidInput

MAX_BATCH = 1_000
BATCH_BYTES = 400_000
"""How long the orders of a batch are together at most; well below what the server takes as one value (2 MB), and what
it warns of (512 KB)."""
BATCH_LINES = 5_000
"""How many lines they have together at most: what one statement writes in a tenth of its time limit."""
DELEGATED = "handed over"
"""The outcome of an order that was delegated to a saga of its own."""
OWNED = "it is owned by another saga"
"""Why an order is delegated that is under way already."""
ORDER_ID_CONFLICT = "other content"
"""The outcome of an order whose id belongs to an order with another customer or other lines. Nothing was changed."""
UNKNOWN = "unknown"
"""The outcome of an order whose batch was ended from outside: the sweep ends it, the next load reports how."""

Packed = dict[str, Any]
"""An order in a batch: `{"order_id": ..., "customer": ..., "lines": {sku: quantity}}`."""


def pack(order: CheckoutInput) -> Packed:
    """Return an order as its batch has it."""
    return {
        "order_id": order.order_id,
        "customer": order.customer,
        "lines": {line.sku: line.quantity for line in order.lines},
    }


def unpack(
    packed: Packed, *, repair: bool = False, review_reason: str = "", reason: str = "", ending: Ending | None = None
) -> CheckoutInput:
    """Undo `pack`; for the rest see `CheckoutInput`.

    Raises:
        InvalidInput: it is no order.
    """
    try:
        lines = tuple(OrderLine(sku, quantity) for sku, quantity in packed["lines"].items())
        order_id, customer = packed["order_id"], packed["customer"]
    except (AttributeError, KeyError, TypeError) as problem:
        raise InvalidInput(f"an order of the batch is malformed: {type(problem).__name__}: {problem}") from None
    return CheckoutInput(order_id, customer, lines, repair, review_reason, reason, ending)


def payload_bytes(order: CheckoutInput) -> int:
    """Return how long an order is as JSON, which writes a character in up to twelve bytes."""
    return len(json.dumps(pack(order)))


class Room:
    """How much more a batch takes: an order always, and others as long as all are few and short enough."""

    def __init__(self, orders: int) -> None:
        self._orders, self._bytes, self._lines = orders, BATCH_BYTES, BATCH_LINES
        self._is_empty = True

    def take(self, order: CheckoutInput) -> bool:
        """Return whether an order fits in, and count it if so."""
        left = self._orders - 1, self._bytes - payload_bytes(order), self._lines - len(order.lines)
        if min(left) < 0 and not self._is_empty:
            return False
        self._orders, self._bytes, self._lines = left
        self._is_empty = False
        return True


def digest(orders: Iterable[CheckoutInput]) -> str:
    """Identify a batch: equal exactly for the same orders with the same content."""
    content = hashlib.sha256()
    for order in orders:
        content.update(f"{order.order_id}\0{order.fingerprint}\0".encode())
    return content.hexdigest()[:24]


@dataclass(frozen=True)
class Batch:
    """Some orders of a bulk load, which one workflow processes together."""

    refuse_malformed: ClassVar[bool] = True
    # The server takes 2 MB; a thousand orders of a hundred lines are more, and the reader of the file splits them.
    max_payload_bytes: ClassVar[int] = 1_500_000

    orders: list[Any]
    """Each as `Packed`, no order id twice. Not decoded here: that would take longer than to reserve them."""


@dataclass(frozen=True)
class StepInput:
    """The orders of a batch for which a step is due."""

    earlier_names: ClassVar[Mapping[str, str]] = {"carrier": "batch_workflow_id"}

    batch_workflow_id: str
    """The id of the workflow of the batch."""
    orders: list[Any]


@dataclass(frozen=True)
class Outcome:
    """How one order of a batch has ended: with the order's status, or `DELEGATED`, `ORDER_ID_CONFLICT`, `UNKNOWN`."""

    order_id: str
    status: str
    reason: str | None = None
    total_minor: int | None = None
    currency: str | None = None
    tracking_number: str | None = None


@dataclass(frozen=True)
class StepReport:
    """What a step did for the orders of a batch. For those it does not name the step is done, and the next one due."""

    earlier_names: ClassVar[Mapping[str, str]] = {"left": "delegated", "forgotten": "missing_step"}

    refused: dict[str, str] = field(default_factory=dict)
    """Order ids, each with the refusal. The effects of their earlier steps last until they are unwound."""
    ended: list[Outcome] = field(default_factory=list)
    """Orders that need nothing more."""
    delegated: list[str] = field(default_factory=list)
    """Orders that another saga owns, or whose state a batch does not process: each needs a saga of its own."""
    missing_step: list[str] = field(default_factory=list)
    """Orders whose previous step was committed, and is missing in the database."""


@dataclass(frozen=True)
class UnwindInput:
    """Orders of a batch that are not to complete."""

    orders: list[Any]
    reasons: list[str]
    endings: list[str]


@dataclass(frozen=True)
class CancelOrder:
    """Which order of a batch is to be undone, why, and who asks for it."""

    order_id: str
    reason: str
    by: str = ""


@dataclass(frozen=True)
class BatchReport:
    """How every order of a batch has ended, in the batch's order."""

    outcomes: list[Any]
    """Each as `[order id, status, reason, total in minor units, currency, tracking number]`."""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "BatchReport":
        """Return outcomes as a report."""
        return cls([list(astuple(outcome)) for outcome in outcomes])

    def unpacked(self) -> list[Outcome]:
        """Return the outcomes of the report."""
        return [Outcome(*row) for row in self.outcomes]
