"""Restate: a server with a journal of its own, which calls the worker over HTTP/2."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.contenders import restate_server
from benchmarks.contenders.contender import Contender, Footprint, require_installed
from benchmarks.contenders.restate_server import RestateServer
from benchmarks.contenders.serving import Http, OverHttp, worker
from devstack.stack import DevStack
from domain.model import CheckoutInput
from sagafence.devservers.ports import free_port, port_answers


class Restate(OverHttp):
    """The workflow of benchmarks/workers/restate_app.py, whose key is the order's id."""

    def __init__(self, processes: dict[str, int], server: RestateServer) -> None:
        super().__init__("Restate", {**processes, "engine": server.pid}, server.ingress, "/Checkout/{order_id}/run")
        self._admin = Http(server.admin)

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
        await super().close()
        await self._admin.close()


@contextmanager
def running(stack: DevStack) -> Iterator[list[Contender]]:
    """Run server and worker inside the block, register the worker and yield the contender.

    Raises:
        Absent: a package is not installed and cannot be had.
    """
    require_installed("Restate", "restate", "hypercorn", "aiohttp")
    port = free_port()
    with (
        restate_server.running(stack.folder) as server,
        worker("restate_app", stack, port, stack.database_url, is_ready=lambda: port_answers(port)) as processes,
    ):
        asyncio.run(_register(server.admin, port))
        yield [Restate(processes, server)]


async def _register(admin_port: int, worker_port: int) -> None:
    admin = Http(admin_port)
    try:
        await admin.post("/deployments", {"uri": f"http://127.0.0.1:{worker_port}"})
    finally:
        await admin.close()
