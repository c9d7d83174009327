"""The door of a worker that has no server of its own in front of it: one HTTP request per order.

aiohttp, because it costs less of a request than the frameworks that people usually take.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from benchmarks.workers.steps import Wire

Carry = Callable[[Wire], Awaitable[str]]
"""Carries one order to its end and gives its status."""


async def serve(port: int, doors: Mapping[str, Carry]) -> None:
    """Answer `POST /NAME` with an order as JSON until SIGTERM; says "ready" when it listens."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    application = web.Application()
    for name, carry in doors.items():
        application.router.add_post(f"/{name}", _handler(carry))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print("ready", flush=True)
    await stop.wait()
    await runner.cleanup()


def _handler(carry: Carry) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response(await carry(await request.json()))

    return handle
