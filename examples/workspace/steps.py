"""The steps of opening a workspace, each with its way back beside it."""

from httpx import AsyncClient
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from examples.workspace.model import NoSeatLeft, SeatPool, Subdomain, SubdomainTaken, Workspace
from examples.workspace.providers import BILLING, CRM, meaning, post, said_in
from sagafence import Key, Known, SagaSteps, Seen, Stands, external, local


class Steps(SagaSteps):
    def __init__(self, http: AsyncClient) -> None:
        self._http = http

    @local("subdomain")
    async def reserve_subdomain(self, tx: AsyncSession, ws: Workspace) -> str:
        tx.add(Subdomain(name=ws.subdomain, workspace_id=ws.workspace_id))
        try:
            await tx.flush()
        except IntegrityError:
            raise SubdomainTaken(f"{ws.subdomain} is taken") from None
        return ws.subdomain

    @reserve_subdomain.undo
    async def release_subdomain(self, tx: AsyncSession, ws: Workspace, name: str) -> None:
        await tx.delete(await tx.get_one(Subdomain, name))

    @local("seat")
    async def take_seat(self, tx: AsyncSession, ws: Workspace) -> str:
        pool = await tx.get(SeatPool, ws.plan, with_for_update=True)
        if pool is None or pool.free == 0:
            raise NoSeatLeft(f"no seat is left in {ws.plan}")
        pool.free -= 1
        return pool.plan

    @take_seat.undo
    async def free_seat(self, tx: AsyncSession, ws: Workspace, plan: str) -> None:
        pool = await tx.get_one(SeatPool, plan, with_for_update=True)
        pool.free += 1

    @external("tenant", CRM)
    async def create_tenant(self, key: Key, ws: Workspace) -> int:
        tenant = await post(self._http, "/tenants", key, reference=ws.workspace_id, subdomain=ws.subdomain)
        return int(tenant["id"])

    @create_tenant.undo
    async def delete_tenant(self, key: Key, ws: Workspace, seen: Seen[int]) -> None:
        if isinstance(seen, Known):
            meaning(await self._http.delete(f"/tenants/{seen.result}"))

    @external.pivot("billing", BILLING)
    async def bill(self, key: Key, ws: Workspace) -> int:
        invoice = await post(self._http, "/invoices", key, reference=ws.workspace_id, plan=ws.plan)
        return int(invoice["id"])

    @bill.undo
    async def void_bill(self, key: Key, ws: Workspace, seen: Seen[int]) -> Stands[int] | None:
        answer = await self._http.post(f"/invoices/{key}/void")
        if "invoice" in (said := said_in(answer)):
            return Stands(int(said["invoice"]["id"]))
        meaning(answer)
        return None

    @external.forward("welcome", CRM)
    async def send_welcome(self, key: Key, ws: Workspace) -> int:
        mail = await post(self._http, "/mails", key, reference=ws.workspace_id, template="welcome")
        return int(mail["id"])
