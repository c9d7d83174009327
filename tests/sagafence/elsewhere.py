"""The saga of the tests with effects elsewhere: its providers, its worker, and how to look at what it did."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from sagafence import PostgresFence, SagaStatus
from tests.conftest import Database
from tests.sagafence.elsewhere_steps import Order, OrderSteps
from tests.sagafence.elsewhere_story import Fulfil
from tests.sagafence.http_provider import HttpProvider


@dataclass
class Elsewhere:
    """Three providers over HTTP, and the saga that uses them."""

    client: Client
    engine: AsyncEngine
    database: Database
    crm: HttpProvider = field(default_factory=HttpProvider)
    billing: HttpProvider = field(default_factory=HttpProvider)
    mail: HttpProvider = field(default_factory=HttpProvider)
    task_queue: str = field(default_factory=lambda: f"elsewhere-{uuid.uuid4().hex[:12]}")

    @asynccontextmanager
    async def working(self, **options: Any) -> AsyncIterator[None]:
        """Run the providers and a worker inside the block."""
        async with (
            self.crm,
            self.billing,
            self.mail,
            Worker(
                self.client,
                task_queue=self.task_queue,
                workflows=[Fulfil],
                activities=self.activities(),
                **options,
            ),
        ):
            yield

    def activities(self) -> Sequence[Any]:
        """Return what the worker runs."""
        return PostgresFence(self.engine).activities_of(OrderSteps(self.crm, self.billing, self.mail))

    async def start(self, order_id: str = "", *, delay: timedelta | None = None) -> WorkflowHandle[Fulfil, list[int]]:
        """Start a saga, or another run of one."""
        order = Order(order_id or f"order-{uuid.uuid4().hex[:12]}", 3)
        return await self.client.start_workflow(
            Fulfil.run, order, id=order.order_id, task_queue=self.task_queue, start_delay=delay
        )

    async def until(self, handle: WorkflowHandle[Fulfil, Any], state: str) -> SagaStatus:
        """Wait for a state, and return the whole status."""
        async with asyncio.timeout(20):
            while (status := await handle.query(Fulfil.status)).state != state:
                await asyncio.sleep(0.02)
        return status

    async def held(self) -> tuple[int, int, int, int]:
        """Count the rooms, the tenants, the bills and the mails."""
        rooms: int = await self.database.value("SELECT count(*) FROM effects")
        return rooms, self.crm.live, self.billing.live, self.mail.live

    def requests(self) -> list[list[tuple[str, str]]]:
        """List what each provider was sent, by method and key."""
        return [list(one.requests) for one in (self.crm, self.billing, self.mail)]

    async def saga_state(self) -> str:
        """Read the saga's row."""
        state: str = await self.database.value("SELECT state FROM sagas")
        return state
