"""How long somebody waits for an outcome. Nothing is cancelled when the time is over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from client.failures import StillRunning
from domain.identifiers import typed


@contextlib.asynccontextmanager
async def deadline(seconds: float | None, order_id: str) -> AsyncIterator[None]:
    """Wait inside the block for so long at most; None is for ever.

    Raises:
        StillRunning: the order has not ended by then.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise StillRunning(
            f"order {order_id} has not ended within {seconds:g} s; it goes on, and starter.py status "
            f"{typed(order_id)} shows where it stands"
        ) from None
