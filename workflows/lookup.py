"""The lookup, as a workflow: whoever asks where an order stands needs no way into the database."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.lookups import Lookups
    from domain import policies
    from domain.lookup import LookupAnswer, LookupInput
    from workflows.operation import perform


@workflow.defn(name=policies.LOOKUP_WORKFLOW)
class LookupWorkflow:
    """Answers from the database about orders that have no history of their own in Temporal. Changes nothing."""

    @workflow.run
    async def run(self, asked: LookupInput) -> LookupAnswer:
        """Look up once."""
        summary = f"Look up {asked.order_id}" if asked.order_id else "List the newest orders"
        return await perform(Lookups.look_up_orders, asked, policies.LOOKUP, None, summary)
