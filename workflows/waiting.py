"""Waiting for a condition in a workflow. Knows no shop words."""

import asyncio
from collections.abc import Callable

from temporalio import workflow


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, whatever cancels arrive meanwhile. For update handlers and the end of a workflow as well.

    `workflow.wait_condition` raises a cancel in the workflow's main task. In later SDKs it raises one of the server's
    in every task, once the condition is met: an unwind or an update handler would end of it.
    """
    while True:
        try:
            await workflow.wait_condition(condition)
        except asyncio.CancelledError:
            # Eviction from the worker's cache also arrives as a cancellation, and swallowing that one would hold the
            # worker for ever. Only a request of the server's comes with a reason. Where an eviction follows a
            # request, the next wait_condition raises again, unswallowably.
            if workflow.cancellation_reason() is None:
                raise
        else:
            return
