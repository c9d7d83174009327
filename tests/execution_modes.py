"""Both execution modes in one load."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import cycle

from domain.model import CheckoutInput, ExecutionMode


def in_both_modes(orders: Iterable[CheckoutInput]) -> list[CheckoutInput]:
    """Have every other order take the local-first mode."""
    return [
        replace(order, execution_mode=execution_mode)
        for order, execution_mode in zip(orders, cycle(ExecutionMode), strict=False)
    ]
