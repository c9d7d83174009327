"""A look at what a file names, as a workflow: whoever checks one needs no way into the database."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.lookups import Names
    from domain import policies
    from domain.lookup import NamesInput, NamesReport


@workflow.defn(name=policies.NAMES_WORKFLOW)
class NamesWorkflow:
    """Looks up as many names as fit into one message."""

    @workflow.run
    async def run(self, asked: NamesInput) -> NamesReport:
        """Look them up, once."""
        return await workflow.execute_activity_method(
            Names.look_up_names,
            asked,
            start_to_close_timeout=policies.MAINTENANCE.start_to_close,
            schedule_to_close_timeout=policies.MAINTENANCE.schedule_to_close,
            retry_policy=policies.MAINTENANCE.retry,
            summary=f"Look up {len(asked.skus)} SKUs, {len(asked.customers)} customers, {len(asked.order_ids)} orders",
        )
