"""One command's connection to Temporal."""

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator

from temporalio.service import RPCError, RPCStatusCode

from adapters.config import StarterSettings, load
from adapters.temporal import ADVICE, connect, connection_options, is_refused, place
from client.checkouts import Checkouts
from client.failures import NotKnownYet

Work = Callable[[Checkouts], Awaitable[int]]
_SILENT = frozenset({RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED})

# What tells for certain that a call was not carried out. After any other failure it may have been.
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
    """Connect, do a command's work, and give its exit status.

    Raises:
        ConfigurationError: the settings do not say where to connect.
        Unreachable: nobody answers there, or what answers refuses.
    """
    return asyncio.run(_with_checkouts(work))


async def _with_checkouts(work: Work) -> int:
    settings = load(StarterSettings)
    where = place(connection_options(settings.temporal_api_key_file))
    try:
        client = await connect(api_key_file=settings.temporal_api_key_file)
    except (RuntimeError, RPCError) as error:
        raise Unreachable(where, error) from error
    try:
        return await work(Checkouts(client, settings.task_queue, settings.ui_url, _tell))
    except RPCError as error:
        raise Unreachable(where, error) from error


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@contextlib.contextmanager
def starting(order_id: str) -> Iterator[None]:
    """Say of a start that got no answer how to learn what came of it: under another id it would be a second order.

    Raises:
        NotKnownYet: the order may have been started.
    """
    try:
        yield
    except RPCError as error:
        if error.status in _NOT_DONE:
            raise
        raise NotKnownYet(
            f"not known: Temporal has not answered whether order {order_id} was started ({_reason(error)}); repeat "
            f"with --order-id {shlex.quote(order_id)}, which joins it where it was"
        ) from error


class Unreachable(Exception):
    """Temporal did not answer, or refused to."""

    def __init__(self, where: str, error: Exception) -> None:
        is_refusal = is_refused(error) or (isinstance(error, RPCError) and error.status not in _SILENT)
        advice = (
            ADVICE if is_refusal else "`make up` or `docker compose up` starts one; for another, set TEMPORAL_ADDRESS."
        )
        super().__init__(
            f"Temporal at {where} {'refuses' if is_refusal else 'does not answer'}: {_reason(error)}\n{advice}"
        )


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
