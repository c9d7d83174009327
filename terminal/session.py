"""One command's session with Temporal."""

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator

from temporalio.service import RPCError, RPCStatusCode

from client.checkouts import Checkouts
from client.connection import connected, first_line
from client.failures import NotKnownYet

Work = Callable[[Checkouts], Awaitable[int]]

# After these the call was certainly not carried out. After any other failure it may have been.
_NOT_DONE = frozenset(
    {
        RPCStatusCode.INVALID_ARGUMENT,
        RPCStatusCode.NOT_FOUND,
        RPCStatusCode.PERMISSION_DENIED,
        RPCStatusCode.UNAUTHENTICATED,
        RPCStatusCode.FAILED_PRECONDITION,
        RPCStatusCode.UNIMPLEMENTED,
    }
)


def run(work: Work) -> int:
    """Connect, do a command's work, and return its exit status; raises as `connected` does."""

    async def session() -> int:
        async with connected(_warn) as checkouts:
            return await work(checkouts)

    return asyncio.run(session())


def _warn(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def starting(order_id: str) -> Iterator[None]:
    """Explain a start that got no answer: a repeat under another id would be a second order.

    Raises:
        NotKnownYet: the order may have been started.
    """
    try:
        yield
    except RPCError as error:
        if error.status in _NOT_DONE:
            raise
        raise NotKnownYet(
            f"not known: Temporal has not answered whether order {order_id} was started ({first_line(error)}); repeat "
            f"with --order-id {shlex.quote(order_id)}, which joins it where it was"
        ) from error
