"""What somebody does to an order or to a batch in the middle of its life."""

from collections.abc import Awaitable, Callable
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from client.failures import NoSuchOrder, Refused
from tests.soak.desk import UNREACHABLE


async def interrupt(
    kind: str, handle: WorkflowHandle[Any, Any], update: Callable[[], Awaitable[None]] | None = None
) -> str:
    """Cancel, call off or terminate a workflow; tell whether that was accepted, refused or left unanswered."""
    try:
        if kind == "update":
            assert update is not None
            await update()
        elif kind == "cancel":
            await handle.cancel(reason="the customer has changed her mind")
        else:
            await handle.terminate(reason="somebody has pulled the plug")
    except (Refused, NoSuchOrder):
        return "refused"
    except UNREACHABLE as error:
        is_over = isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND
        return "refused" if is_over else "unanswered"
    return "accepted"
