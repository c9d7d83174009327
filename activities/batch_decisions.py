"""What becomes of the new orders of a batch that is checked out together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Row

from activities.batch import describe
from activities.inventory import LineFacts, why_not_reserved
from activities.payments import why_not_paid
from activities.shipping import why_not_shipped
from domain.model import CheckoutInput, Ending, Step
from sagafence import SagaError


class Decision(NamedTuple):
    """An order completes, or ends without any effect: a step refuses it, or it was cancelled before the first."""

    order: CheckoutInput
    total_minor: int | None = None
    """With `currency` and `zone` for an order that completes; all three are None for another."""
    currency: str | None = None
    zone: str | None = None
    reason: str | None = None
    ending: Ending | None = None
    last_step: Step = Step.SHIP

    @property
    def steps(self) -> Sequence[Step]:
        """The steps that are done, or, of an order that does not complete, shut."""
        every = list(Step)
        return every[: every.index(self.last_step) + 1]


def decide(
    orders: Sequence[CheckoutInput], buyers: Mapping[str, Row[Any]], catalogue: Mapping[str, Row[Any]]
) -> list[Decision]:
    """Decide on orders in their sequence, as if each had come when the one before it had ended.

    Args:
        orders: those that nothing was done for yet.
        buyers: by customer, with `currency`, `balance_minor`, `delivery_zone` and `is_served`.
        catalogue: by SKU, with `unit_price_minor`, `currency` and `free`.
    """
    free = Counter({sku: row.free for sku, row in catalogue.items()})
    money = Counter({customer: row.balance_minor for customer, row in buyers.items()})
    decisions = []
    for order in orders:
        buyer = buyers.get(order.customer)
        lines = [
            LineFacts(line.sku, line.quantity, catalogue[line.sku].currency, free[line.sku])
            if line.sku in catalogue
            else LineFacts(line.sku, line.quantity, None, 0)
            for line in order.lines
        ]
        if refusal := why_not_reserved(order.customer, buyer.currency if buyer else None, lines):
            decisions.append(_refused(order, Step.RESERVE, refusal))
            continue
        assert buyer is not None  # an unknown customer was refused
        total = sum(line.quantity * catalogue[line.sku].unit_price_minor for line in order.lines)
        if refusal := why_not_paid(order.customer, money[order.customer], total, buyer.currency):
            decisions.append(_refused(order, Step.PAY, refusal))
        elif refusal := why_not_shipped(order.customer, buyer.delivery_zone, is_served=buyer.is_served):
            decisions.append(_refused(order, Step.SHIP, refusal))
        else:
            decisions.append(Decision(order, total, buyer.currency, buyer.delivery_zone))
            money[order.customer] -= total
            free.subtract({line.sku: line.quantity for line in order.lines})
    return decisions


def _refused(order: CheckoutInput, step: Step, refusal: SagaError) -> Decision:
    return Decision(order, reason=describe(refusal), ending=Ending.REJECTED, last_step=step)
