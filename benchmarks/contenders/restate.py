"""Restate: a server with a journal of its own, which calls the worker over HTTP/2."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.contenders import worker_process
from benchmarks.contenders.contender import Contender, Footprint, require_installed
from benchmarks.contenders.http import Asker
from benchmarks.contenders.restate_server import RestateServer
from devstack.ports import free_port, port_answers
from devstack.process import ChildProcess
from devstack.stack import DevStack
from domain.bulk import pack
from domain.model import CheckoutInput


class Restate:
    """The workflow of benchmarks/workers/restate_app.py."""

    name = "Restate"
    sells = True

    def __init__(self, worker: ChildProcess, server: RestateServer) -> None:
        self._worker = worker
        self._server = server
        self._ingress = Asker(server.ingress_url)
        self._admin = Asker(server.admin_url)

    @property
    def processes(self) -> dict[str, int]:
        """Its worker and its server."""
        return {"worker": self._worker.pid, "engine": self._server.pid}

    async def carry(self, order: CheckoutInput) -> str:
        """Call the workflow that has the order's id and wait for its end."""
        return str(await self._ingress.post(f"/Checkout/{order.order_id}/run", pack(order)))

    async def footprint(self, orders: Sequence[CheckoutInput]) -> Footprint:
        """Count the entries of their journals."""
        keys = ", ".join(f"'{order.order_id}'" for order in orders)
        query = (
            "SELECT count(*) AS entries, sum(j.raw_length) AS bytes FROM sys_journal j "
            f"JOIN sys_invocation i ON i.id = j.id WHERE i.target_service_key IN ({keys})"
        )
        answer = await self._admin.post("/query", {"query": query}, Accept="application/json")
        [row] = answer["rows"]
        return Footprint(row["entries"] / len(orders), (row["bytes"] or 0) / len(orders))

    async def close(self) -> None:
        """Close the connections."""
        await self._ingress.close()
        await self._admin.close()


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Start server and worker, make them known to each other, give the contender, stop both.

    Raises:
        Absent: a package is not installed and cannot be had.
    """
    require_installed("Restate", "restate", "hypercorn", "aiohttp")
    server = RestateServer(stack.folder)
    server.start()
    try:
        port = free_port()
        worker = worker_process.start(
            "restate_app",
            str(port),
            stack.database_url,
            folder=stack.folder,
            is_ready=lambda _: port_answers(port),
        )
        try:
            asyncio.run(_register(server, f"http://127.0.0.1:{port}"))
            yield [Restate(worker, server)]
        finally:
            worker.stop()
    finally:
        server.stop()


async def _register(server: RestateServer, url: str) -> None:
    admin = Asker(server.admin_url)
    try:
        await admin.post("/deployments", {"uri": url})
    finally:
        await admin.close()
