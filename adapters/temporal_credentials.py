"""A running process' API key and certificates for Temporal, read again when their files change.

The client takes a new key. A connection keeps the certificates that it was made with, so new ones need a new client,
which the workers use from their next call on.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from temporalio.client import Client
from temporalio.service import RPCError

from adapters.polled_state import PolledState
from adapters.temporal import ADVICE, connection_options, describe_task_queue, is_refused

POLL_SECONDS = 5.0
_ASK_EVERY_POLLS = 3

_log = logging.getLogger("checkout.temporal")


class Connected(Protocol):
    """A worker, or whatever else has a client that can be exchanged."""

    @property
    def client(self) -> Client:
        """The client in use."""

    @property
    def task_queue(self) -> str:
        """The task queue that it may ask about."""


C = TypeVar("C", bound=Connected)
Use = Callable[[C, Client], None]


async def follow(
    worker: C, use: Use[C], api_key_file: Path | None = None, *, poll_seconds: float = POLL_SECONDS
) -> NoReturn:
    """Give a worker, or another process, changed credentials, until cancelled. `use` gives it another client.

    Unusable ones, such as half of a pair or a key that is being written, are logged and tried again; the old ones stay
    in use meanwhile. It is logged too where Temporal refuses those in use: the worker waits for better ones.
    """
    problem = PolledState("")
    access = PolledState[bool | None](None)
    polls = 0
    while True:
        await asyncio.sleep(poll_seconds)
        found = await _take(worker, use, api_key_file)
        if problem.update(found) and found:
            _log.warning("new credentials for Temporal cannot be used yet: %s", found, extra={"action": "credentials"})
        if polls % _ASK_EVERY_POLLS == 0 and (refusal := await _refusal(worker)) is not None:
            _log_access(access, refusal)
        polls += 1


async def _take(worker: C, use: Use[C], api_key_file: Path | None) -> str:
    """Take new credentials where there are some; return what is wrong with them, or an empty text."""
    client = worker.client
    used = client.service_client.config
    try:
        options = await asyncio.to_thread(connection_options, api_key_file)
        if options.get("tls") != used.tls:
            use(worker, await _connected_anew(client, options))
            _log.info("connected to Temporal with new certificates", extra={"action": "credentials"})
        elif options.get("api_key") != used.api_key:
            client.api_key = options.get("api_key")
            _log.info("Temporal gets a new API key", extra={"action": "credentials"})
    except Exception as error:  # noqa: BLE001 - the SDK and the file system raise many types for a half-written file
        return _first_line(error)
    return ""


async def _connected_anew(client: Client, options: dict[str, Any]) -> Client:
    """Connect as a client is connected, with other credentials."""
    used = client.service_client.config
    return await Client.connect(
        used.target_host,
        namespace=client.namespace,
        identity=used.identity,
        runtime=used.runtime,
        data_converter=client.data_converter,
        api_key=options.get("api_key"),
        tls=options.get("tls"),
        rpc_metadata=used.rpc_metadata,
    )


async def _refusal(worker: Connected) -> str | None:
    """Describe the worker's task queue; return Temporal's refusal, an empty text, or None where it does not answer."""
    try:
        await describe_task_queue(worker.client, worker.task_queue)
    except (RPCError, RuntimeError) as error:
        return _first_line(error) if is_refused(error) else None
    return ""


def _log_access(access: PolledState[bool | None], refusal: str) -> None:
    """Log that Temporal has begun to refuse the worker, or refuses it no longer."""
    before = access.known
    if refusal and before is None:
        return  # it may lack the right to ask; polls tell more
    if not access.update(not refusal) or before is None:
        return
    if refusal:
        _log.error(
            "Temporal refuses this process, which waits for better credentials: %s. %s",
            refusal,
            ADVICE,
            extra={"action": "credentials"},
        )
    else:
        _log.info("Temporal lets this process in again", extra={"action": "credentials"})


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
