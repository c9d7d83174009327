"""Both lanes in one load."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import cycle

from domain.model import CheckoutInput, Lane


def in_both_lanes(orders: Iterable[CheckoutInput]) -> list[CheckoutInput]:
    """Have every other order take the fast lane."""
    return [replace(order, lane=lane) for order, lane in zip(orders, cycle(Lane), strict=False)]
