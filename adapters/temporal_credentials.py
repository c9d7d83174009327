"""What Temporal knows a running worker by: its API key and certificates, read again when their files change.

A key is given to the client that is there. A connection keeps the certificates it was made with, so new ones need a new
client, which the workers take without a pause: what they ask next they ask through it.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any, NoReturn

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import Worker

from adapters.companion import use_client
from adapters.temporal import ADVICE, connection_options, is_refused

LOOK_EVERY_SECONDS = 5.0
_ASK_EVERY_LOOKS = 3

_log = logging.getLogger("checkout.temporal")


async def follow(
    worker: Worker, api_key_file: Path | None = None, *, look_every_seconds: float = LOOK_EVERY_SECONDS
) -> NoReturn:
    """Give a worker and its companions what changes in the credentials' files, until cancelled.

    What cannot be used, such as half of a pair or a key that is being written, is told and looked at again; the old
    ones go on meanwhile. That Temporal refuses those in use is told too, and the worker waits for better ones.
    """
    problem, standing, looks = "", _Standing(), 0
    while True:
        await asyncio.sleep(look_every_seconds)
        found = await _take(worker, api_key_file)
        if found and found != problem:
            _log.warning("new credentials for Temporal cannot be used yet: %s", found, extra={"action": "credentials"})
        problem = found
        if looks % _ASK_EVERY_LOOKS == 0:
            standing.tell(await _refusal(worker))
        looks += 1


async def _take(worker: Worker, api_key_file: Path | None) -> str:
    """Take new credentials where there are some; give what is wrong with them, or an empty text."""
    client = worker.client
    used = client.service_client.config
    try:
        options = await asyncio.to_thread(connection_options, api_key_file)
        if options.get("tls") != used.tls:
            use_client(worker, await _connected_anew(client, options))
            _log.info("connected to Temporal with new certificates", extra={"action": "credentials"})
        elif options.get("api_key") != used.api_key:
            client.api_key = options.get("api_key")
            _log.info("Temporal gets a new API key", extra={"action": "credentials"})
    except Exception as error:  # noqa: BLE001 - the SDK and the file system have many words for what is half written
        return _first_line(error)
    return ""


async def _connected_anew(client: Client, options: dict[str, Any]) -> Client:
    """Connect to where a client is connected, under its name, with other credentials."""
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


async def _refusal(worker: Worker) -> str | None:
    """Ask about the worker's own task queue; give Temporal's refusal, or None where it cannot be asked just now."""
    client = worker.client
    asked = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=worker.task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    try:
        await client.workflow_service.describe_task_queue(asked)
    except (RPCError, RuntimeError) as error:
        return _first_line(error) if is_refused(error) else None
    return ""


class _Standing:
    """Whether Temporal lets the worker in, told as it changes."""

    def __init__(self) -> None:
        self._has_been_let_in = False
        self._is_refused = False

    def tell(self, refusal: str | None) -> None:
        """Take the newest answer: a refusal, an empty one, or None for nothing new."""
        if refusal is None:
            return
        # Who was never let in may lack the right to ask; polls tell more.
        if refusal and not self._is_refused and self._has_been_let_in:
            self._is_refused = True
            _log.error(
                "Temporal refuses this worker, which waits for better credentials: %s. %s",
                refusal,
                ADVICE,
                extra={"action": "credentials"},
            )
        elif not refusal:
            if self._is_refused:
                _log.info("Temporal lets this worker in again", extra={"action": "credentials"})
            self._has_been_let_in, self._is_refused = True, False


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
