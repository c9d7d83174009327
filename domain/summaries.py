"""The summaries of workflows and activities in Temporal's UI: Markdown, with what a buyer has written escaped."""

from collections.abc import Sequence

from domain.model import CheckoutInput, lines_summary
from domain.text import for_summary


def goods(order: CheckoutInput) -> str:
    """Name the lines of an order, shortened."""
    return lines_summary(order.lines, shown=for_summary)


def of_order(order: CheckoutInput) -> str:
    """Return who orders what."""
    return f"{goods(order)} for {for_summary(order.customer)}"


def of_batch(orders: Sequence[CheckoutInput]) -> str:
    """Return how many orders there are, and the first and the last of them."""
    return f"{len(orders)} orders: {for_summary(orders[0].order_id)} to {for_summary(orders[-1].order_id)}"
