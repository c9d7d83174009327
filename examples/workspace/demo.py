"""The example on throw-away servers, `python -m examples.workspace.demo`: three workspaces, one on a bad day."""

import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path

from httpx import AsyncClient
from sqlalchemy.ext.asyncio import create_async_engine
from temporalio.client import Client, WorkflowFailureError

import sagafence
from examples.workspace.model import Workspace
from examples.workspace.provider.process import ProviderProcess
from examples.workspace.provider.proxy import Fault, FaultProxy
from examples.workspace.worker import TASK_QUEUE, build_worker
from examples.workspace.workflow import OpenWorkspace
from sagafence.devservers.ports import free_port
from sagafence.devservers.postgres import PostgresServer
from sagafence.devservers.temporal import TemporalServer

SCHEMA = Path(__file__).with_name("schema.sql")


async def demo(folder: Path) -> None:
    postgres = PostgresServer(folder / "postgres", port=free_port(), log=folder / "postgres.log", fsync=False)
    temporal = TemporalServer(port=free_port(), ui_port=free_port(), log=folder / "temporal.log")
    try:
        postgres.start()
        temporal.start()
        with ProviderProcess(folder / "provider") as provider, FaultProxy(provider.url) as proxy:
            engine = create_async_engine(postgres.url())
            await sagafence.install(engine)
            postgres.psql("postgres", "-f", str(SCHEMA))
            client = await Client.connect(temporal.address)
            async with AsyncClient(base_url=proxy.url, timeout=3) as http, build_worker(client, engine, http):
                await open_workspace(client, "acme", "team")
                await open_workspace(client, "frugal", "pilot")
                proxy.strike(Fault.CUT_AFTER, "POST", "/tenants")
                proxy.strike(Fault.SAYS_500, "POST", "/invoices", times=2)
                proxy.strike(Fault.TWICE, "POST", "/mails")
                await open_workspace(client, "unlucky", "company")
            print("The provider's books:")
            for what, effects in provider.books().items():
                print(f"  {what}: {effects}")
            await engine.dispose()
    finally:
        temporal.stop()
        postgres.remove()


async def open_workspace(client: Client, subdomain: str, plan: str) -> None:
    ws = Workspace(f"workspace-{subdomain}", subdomain, plan)
    handle = await client.start_workflow(OpenWorkspace.run, ws, id=ws.workspace_id, task_queue=TASK_QUEUE)
    try:
        print(f"{subdomain} ({plan}): {await handle.result()}")
    except WorkflowFailureError as error:
        print(f"{subdomain} ({plan}) was not opened: {error.cause}")
    for step in (await handle.query(OpenWorkspace.status)).steps:
        print(f"  {step.step}: {step.state}")


if __name__ == "__main__":
    logging.getLogger("temporalio").setLevel(logging.ERROR)  # an attempt that failed is retried, and no news here
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(demo(Path(temporary)))
    sys.stdout.flush()
    os._exit(0)  # see start.py
