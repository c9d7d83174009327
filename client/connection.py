"""The connection to Temporal, as the settings say."""

import contextlib
from collections.abc import AsyncIterator, Callable

from temporalio.service import RPCError, RPCStatusCode

from adapters.config import StarterSettings, load
from adapters.temporal import ADVICE, connect, connection_options, is_refused, place
from client.checkouts import Checkouts
from client.failures import ClientError

_SILENT = frozenset({RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED})


@contextlib.asynccontextmanager
async def connected(warn: Callable[[str], None] | None = None) -> AsyncIterator[Checkouts]:
    """Connect to Temporal; `warn` is called when something waits and no worker polls.

    Raises:
        ConfigurationError: the settings do not say where to connect.
        Unreachable: Temporal does not answer, or refuses, now or inside the block.
    """
    settings = load(StarterSettings)
    where = place(connection_options(settings.temporal_api_key_file))
    try:
        client = await connect(api_key_file=settings.temporal_api_key_file)
    except (RuntimeError, RPCError) as error:
        raise Unreachable(where, error) from error
    try:
        yield Checkouts(client, settings.task_queue, settings.ui_url, warn)
    except RPCError as error:
        raise Unreachable(where, error) from error


class Unreachable(ClientError):
    """Temporal did not answer, or refused to."""

    def __init__(self, where: str, error: Exception) -> None:
        is_refusal = is_refused(error) or (isinstance(error, RPCError) and error.status not in _SILENT)
        advice = (
            ADVICE if is_refusal else "`make up` or `docker compose up` starts one; for another, set TEMPORAL_ADDRESS."
        )
        super().__init__(
            f"Temporal at {where} {'refuses' if is_refusal else 'does not answer'}: {first_line(error)}\n{advice}"
        )


def first_line(error: Exception) -> str:
    """Give an error's message, cut to one line."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]
