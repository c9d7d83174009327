"""One command's connection to Temporal."""

import asyncio
from collections.abc import Awaitable, Callable

from temporalio.service import RPCError, RPCStatusCode

from adapters.config import ConfigurationError, StarterSettings, load
from adapters.temporal import connect, connection_options
from client.checkouts import Checkouts

Work = Callable[[Checkouts], Awaitable[int]]
_SILENT = frozenset({RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED})


def run(work: Work) -> int:
    """Connect, do a command's work, and give its exit status.

    Raises:
        ConfigurationError: the settings do not say where to connect.
        Unreachable: nobody answers there, or what answers refuses.
    """
    return asyncio.run(_with_checkouts(work))


async def _with_checkouts(work: Work) -> int:
    settings = load(StarterSettings)
    try:
        where = connection_options()["target_host"]
    except Exception as error:
        raise ConfigurationError(f"TEMPORAL_*: {error}") from error
    try:
        client = await connect()
    except (RuntimeError, RPCError) as error:
        raise Unreachable(where, error) from error
    try:
        return await work(Checkouts(client, settings.task_queue, settings.ui_url))
    except RPCError as error:
        raise Unreachable(where, error) from error


class Unreachable(Exception):
    """Temporal did not answer, or refused to."""

    def __init__(self, where: str, error: Exception) -> None:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        is_refusal = isinstance(error, RPCError) and error.status not in _SILENT
        advice = (
            "Check TEMPORAL_NAMESPACE, and your rights there."
            if is_refusal
            else "`make up` or `docker compose up` starts one; for another, set TEMPORAL_ADDRESS."
        )
        super().__init__(f"Temporal at {where} {'refuses' if is_refusal else 'does not answer'}: {reason}\n{advice}")
