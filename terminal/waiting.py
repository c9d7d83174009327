"""How a command waits: with advice where it takes long, until a deadline, and what Ctrl-C does meanwhile."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from client.failures import ClientError
from domain.identifiers import typed
from terminal import view

_TAKES_LONG_SECONDS = 2.0
T = TypeVar("T")


class StillRunning(ClientError):
    """The order has not ended within the time that the command waits. It goes on."""


@contextlib.contextmanager
def advise_if_interrupted(advice: str) -> Iterator[None]:
    """Print advice on Ctrl-C inside the block."""
    try:
        yield
    except asyncio.CancelledError:
        view.errors.print(advice)
        raise


async def advise_if_long(work: Awaitable[T], advice: str, *, is_quiet: bool) -> T:
    """Wait for something, and print advice once it takes long."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=_TAKES_LONG_SECONDS)
        if not task.done() and not is_quiet:
            view.errors.print(advice)
        return await task
    finally:
        task.cancel()


@contextlib.asynccontextmanager
async def deadline(seconds: float | None, order_id: str) -> AsyncIterator[None]:
    """Wait inside the block for so long at most, None without limit. Nothing is cancelled when the time is over.

    Raises:
        StillRunning: the order has not ended by then.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise StillRunning(
            f"order {order_id} has not ended within {seconds:g} s; it goes on, and starter.py status "
            f"{typed(order_id)} shows its status"
        ) from None


@contextlib.contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGINT and SIGTERM inside the block, in place of what they do otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
