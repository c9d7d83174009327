"""What a person is told while a command waits, where it helps: when it takes long, and when they stop waiting."""

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from typing import TypeVar

from client import view

_TAKES_LONG_SECONDS = 2.0
T = TypeVar("T")


@contextlib.contextmanager
def told_if_interrupted(advice: str) -> Iterator[None]:
    """Give advice to who presses Ctrl-C within the block."""
    try:
        yield
    except asyncio.CancelledError:
        view.errors.print(advice)
        raise


async def told_if_long(work: Awaitable[T], advice: str, *, is_quiet: bool) -> T:
    """Wait for something, and give advice once it takes long: who sees the end at once has no use for it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=_TAKES_LONG_SECONDS)
        if not task.done() and not is_quiet:
            view.errors.print(advice)
        return await task
    finally:
        task.cancel()
