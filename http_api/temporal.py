"""The connection to Temporal of a process that works with Temporal away, too."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from temporalio.client import Client

from client.checkouts import Checkouts
from client.orders import Orders
from client.requests import Waits
from http_api.problems import temporal_is_away

ANSWER_SECONDS = 5.0
"""The SDK would wait for half a minute."""
T = TypeVar("T")

# A retry's round may last a quarter of an hour: a request is answered when it is accepted.
_WAITS = Waits(accept_seconds=ANSWER_SECONDS - 1, answer_seconds=1.0)


class Temporal:
    """A client, which may be exchanged for one with other credentials, and what is asked through it."""

    def __init__(self, client: Client, task_queue: str, ui_url: str) -> None:
        self.task_queue = task_queue
        self._ui_url = ui_url
        self.use(client)

    def use(self, client: Client) -> None:
        """Use this client from now on."""
        self.client = client
        self.checkouts = Checkouts(client, self.task_queue, self._ui_url, waits=_WAITS)
        self.orders = Orders(self.checkouts)


async def answered(request: Awaitable[T], seconds: float = ANSWER_SECONDS) -> T:
    """Wait for Temporal's answer, but not for long.

    Raises:
        Problem: Temporal does not answer: what was asked for may have been done.
    """
    try:
        async with asyncio.timeout(seconds):
            return await request
    except (TimeoutError, RuntimeError):  # the SDK's error for a server that cannot be reached is a RuntimeError
        raise temporal_is_away() from None
