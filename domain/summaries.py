"""What Temporal's UI says beside each workflow and activity, in a line: the one place where a value gets into one.

Summaries are Markdown to Temporal, and name what a buyer has written.
"""

from collections.abc import Sequence

from domain.model import CheckoutInput, lines_summary
from domain.text import for_summary


def goods(order: CheckoutInput) -> str:
    """Name the lines of an order, shortened."""
    return lines_summary(order.lines, shown=for_summary)


def of_order(order: CheckoutInput) -> str:
    """Say who wants what."""
    return f"{goods(order)} for {for_summary(order.customer)}"


def of_batch(orders: Sequence[CheckoutInput]) -> str:
    """Say how many orders there are, from which to which."""
    return f"{len(orders)} orders: {for_summary(orders[0].order_id)} to {for_summary(orders[-1].order_id)}"
