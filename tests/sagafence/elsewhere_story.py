"""The story of the tests of external steps."""

from temporalio import workflow

from sagafence import Saga, SagaWorkflow

with workflow.unsafe.imports_passed_through():
    from tests.sagafence.elsewhere_steps import Order, OrderSteps


@workflow.defn
class Fulfil(SagaWorkflow[Order, list[int]]):
    """A room here and a tenant there side by side, a bill as the pivot, and a mail after it."""

    async def story(self, saga: Saga, order: Order, /) -> list[int]:
        """Everything or nothing."""
        room, tenant = await saga.together(saga.do(OrderSteps.book, order), saga.do(OrderSteps.create, order))
        bill = await saga.pivot(OrderSteps.bill, order)
        return [room, tenant, bill, await saga.then(OrderSteps.write, order)]
