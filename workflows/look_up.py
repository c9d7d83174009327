"""A look at what a file names, as a workflow: whoever checks one needs no way into the database."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.lookups import Lookups
    from domain import policies
    from domain.lookup import LookUpInput, LookUpReport


@workflow.defn(name=policies.LOOK_UP_WORKFLOW)
class LookUpWorkflow:
    """Looks up as many names as fit into one message."""

    @workflow.run
    async def run(self, asked: LookUpInput) -> LookUpReport:
        """Look them up, once."""
        return await workflow.execute_activity_method(
            Lookups.look_up,
            asked,
            start_to_close_timeout=policies.MAINTENANCE.start_to_close,
            schedule_to_close_timeout=policies.MAINTENANCE.schedule_to_close,
            retry_policy=policies.MAINTENANCE.retry,
            summary=f"Look up {len(asked.skus)} SKUs, {len(asked.customers)} customers, {len(asked.order_ids)} orders",
        )
