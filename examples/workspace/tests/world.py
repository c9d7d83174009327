"""What a test has: a database, a task queue, and the provider behind a proxy that can strike."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from httpx import AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Interceptor, Worker

from examples.workspace.model import Opened, Workspace
from examples.workspace.provider.process import ProviderProcess
from examples.workspace.steps import Steps
from examples.workspace.workflow import OpenWorkspace
from sagafence import PostgresFence
from sagafence.testing import ProviderProxy

Handle = WorkflowHandle[OpenWorkspace, Opened]
NOTHING = {"subdomains": 0, "seats": 0, "tenants": 0, "invoices": 0, "mails": 0}
EVERYTHING = dict.fromkeys(NOTHING, 1)


@dataclass
class World:
    client: Client
    engine: AsyncEngine
    task_queue: str
    provider: ProviderProcess
    proxy: ProviderProxy
    http: AsyncClient

    def worker(self, interceptors: Sequence[Interceptor] = ()) -> Worker:
        return Worker(
            self.client,
            task_queue=self.task_queue,
            workflows=[OpenWorkspace],
            activities=PostgresFence(self.engine).activities_of(Steps(self.http)),
            interceptors=interceptors,
        )

    async def start(self, plan: str = "team", subdomain: str | None = None) -> Handle:
        name = uuid.uuid4().hex
        ws = Workspace(f"workspace-{name}", subdomain or name, plan)
        return await self.client.start_workflow(OpenWorkspace.run, ws, id=ws.workspace_id, task_queue=self.task_queue)

    async def counts(self, workspace_id: str) -> dict[str, int]:
        """Return what there is of this workspace, here and at the provider. No other one takes seats meanwhile."""
        ours = text(
            "SELECT (SELECT count(*) FROM subdomains WHERE workspace_id = :id) AS subdomains,"
            " (SELECT 1000 - free FROM seat_pools WHERE plan = 'team')"
            " + (SELECT 1000 - free FROM seat_pools WHERE plan = 'pilot') AS seats"
        )
        async with self.engine.connect() as connection:
            row = (await connection.execute(ours, {"id": workspace_id})).one()
        books = await asyncio.to_thread(self.provider.books)
        theirs = {
            what: sum(one["reference"] == workspace_id and not one.get("deleted") for one in books[what])
            for what in ("tenants", "invoices", "mails")
        }
        return {"subdomains": row.subdomains, "seats": row.seats, **theirs}

    async def key(self, workspace_id: str, step: str) -> str:
        """Return the key under which a step's request is sent."""
        asked = text("SELECT key FROM external_steps WHERE saga_id = :id AND step = :step")
        async with self.engine.connect() as connection:
            key: str = (await connection.execute(asked, {"id": workspace_id, "step": step})).scalar_one()
            return key

    async def until(self, handle: Handle, state: str) -> None:
        async with asyncio.timeout(20):
            while (await handle.query(OpenWorkspace.status)).state != state:
                await asyncio.sleep(0.05)
