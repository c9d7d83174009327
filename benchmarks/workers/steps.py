"""The checkout as a peer's worker runs it: the product's own SQL behind the same fence, and a saga around it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from activities.inventory import Inventory
from activities.orders import Orders
from activities.payments import Payments
from activities.shipping import Shipping
from domain.bulk import Packed, unpack
from domain.model import CheckoutInput, Ending, UndoInput
from sagafence import SagaError

Wire = Packed
"""An order as JSON."""
Operation = Callable[..., Awaitable[Any]]


class Refused(Exception):
    """A step refused the order for good. The text is the reason."""


CONNECTIONS = 20
"""As many as the product's worker has."""


class ShopSteps:
    """The product's activities on one engine: a do is one statement in autocommit, an undo one transaction.

    They take turns, one for each connection. The product's orders wait in Temporal; without turns those of a peer would
    wait for the engine's connections, which gives up after two seconds, and with hundreds at once be tried in vain.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        inventory, payments, shipping = Inventory(engine), Payments(engine), Shipping(engine)
        self._orders = Orders(engine)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._dos: dict[str, Callable[[CheckoutInput], Awaitable[Any]]] = {
            "reserve": inventory.reserve_inventory,
            "pay": payments.charge_payment,
            "ship": shipping.ship_order,
        }
        self._undos: dict[str, Callable[[UndoInput], Awaitable[Any]]] = {
            "reserve": inventory.release_inventory,
            "pay": payments.refund_payment,
            "ship": shipping.cancel_shipment,
        }

    async def do(self, step: str, wire: Wire) -> Wire:
        """Run the step and return its result as JSON.

        Raises:
            Refused: the step refused. Any other failure may pass and is retried.
        """
        try:
            async with self._turns:
                result = await self._dos[step](unpack(wire))
        except SagaError as error:
            if error.non_retryable:
                raise Refused(f"{error.type}: {error.message}") from None
            raise
        return dict(vars(result))

    async def undo(self, step: str, wire: Wire, reason: str) -> str:
        """Undo the step, done or not, and return the outcome."""
        async with self._turns:
            result = await self._undos[step](UndoInput(unpack(wire), Ending.REJECTED, reason))
        return str(result.outcome)

    async def close(self, wire: Wire, reason: str) -> str:
        """Write the order's ending once everything is undone, and return its status."""
        async with self._turns:
            state = await self._orders.close_order(UndoInput(unpack(wire), Ending.REJECTED, reason))
        return state.status


async def saga(wire: Wire, do: Operation, undo: Operation, close: Operation) -> str:
    """Run the steps; after a refusal undo in reverse. Operations are those of `ShopSteps`, or made durable."""
    begun: list[str] = []
    try:
        for step in ("reserve", "pay", "ship"):
            begun.append(step)  # before the step: it may take effect and still be reported as failed
            await do(step, wire)
    except Refused as refused:
        for step in reversed(begun):
            await undo(step, wire, str(refused))
        return str(await close(wire, str(refused)))
    return "completed"
