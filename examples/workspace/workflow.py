"""Open a workspace: a subdomain, a seat and a tenant elsewhere, then the bill and a welcome; or nothing of it."""

from temporalio import workflow

from sagafence import Saga, SagaWorkflow

with workflow.unsafe.imports_passed_through():
    from examples.workspace.model import Opened, Workspace
    from examples.workspace.steps import Steps


@workflow.defn
class OpenWorkspace(SagaWorkflow[Workspace, Opened]):
    async def story(self, saga: Saga, ws: Workspace, /) -> Opened:
        subdomain = await saga.do(Steps.reserve_subdomain, ws)
        _, tenant_id = await saga.together(saga.do(Steps.take_seat, ws), saga.do(Steps.create_tenant, ws))
        invoice_id = await saga.pivot(Steps.bill, ws)
        mail_id = await saga.then(Steps.send_welcome, ws)
        return Opened(subdomain, tenant_id, invoice_id, mail_id)
