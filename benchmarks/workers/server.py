"""The HTTP server of a worker that takes requests itself: one request per order.

aiohttp, because it costs less per request than the usual frameworks.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from benchmarks.workers.steps import Wire

Run = Callable[[Wire], Awaitable[str]]
"""Runs one order to its end and returns its status."""


async def serve(port: int, paths: Mapping[str, Run]) -> None:
    """Answer `POST /PATH` with an order as JSON until SIGTERM; prints "ready" when it listens."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    application = web.Application()
    for path, run in paths.items():
        application.router.add_post(f"/{path}", _handler(run))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print("ready", flush=True)
    await stop.wait()
    await runner.cleanup()


def _handler(run: Run) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response(await run(await request.json()))

    return handle
