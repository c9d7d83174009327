"""The checkout's own steps, as a peer's worker calls them: the same SQL behind the same fence."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from activities.inventory import Inventory
from activities.orders import Orders
from activities.payments import Payments
from activities.shipping import Shipping
from domain.bulk import Packed, unpack
from domain.errors import CheckoutError
from domain.model import CheckoutInput, Ending, UndoInput

STEPS = ("reserve", "pay", "ship")
Wire = Packed
"""An order as JSON."""


class Refused(Exception):
    """A step said no, for good. Its text is the reason."""


class ShopSteps:
    """What each step of an order does and undoes on one engine.

    The do is one statement in autocommit, the undo one transaction, as in the product's activities: it is them.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        inventory, payments, shipping = Inventory(engine), Payments(engine), Shipping(engine)
        self._orders = Orders(engine)
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
        """Take the step and give its result as JSON.

        Raises:
            Refused: the step's refusal. Any other failure may pass and is worth another try.
        """
        try:
            result = await self._dos[step](unpack(wire))
        except CheckoutError as error:
            if error.non_retryable:
                raise Refused(f"{error.type}: {error.message}") from None
            raise
        return dict(vars(result))

    async def undo(self, step: str, wire: Wire, reason: str) -> str:
        """Undo the step, done or not, and say how that went."""
        result = await self._undos[step](UndoInput(unpack(wire), Ending.REJECTED, reason))
        return str(result.outcome)

    async def close(self, wire: Wire, reason: str) -> str:
        """Write the order's ending once all is undone, and give its status."""
        state = await self._orders.close_order(UndoInput(unpack(wire), Ending.REJECTED, reason))
        return state.status
