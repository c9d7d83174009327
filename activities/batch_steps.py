"""What a batch asks for that an earlier build began, step by step: each of its orders goes on in a saga of its own."""

from temporalio import activity

from domain.bulk import StepInput, StepReport


class BatchSteps:
    """The steps of such a batch. Needed until the last one that was open at the upgrade has ended."""

    @activity.defn
    async def reserve_orders(self, asked: StepInput) -> StepReport:
        """Delegate the orders that were to be reserved."""
        return _delegate(asked)

    @activity.defn
    async def charge_orders(self, asked: StepInput) -> StepReport:
        """Delegate the orders that were to be charged."""
        return _delegate(asked)

    @activity.defn
    async def ship_orders(self, asked: StepInput) -> StepReport:
        """Delegate the orders that were to be shipped."""
        return _delegate(asked)


def _delegate(asked: StepInput) -> StepReport:
    return StepReport(delegated=[packed["order_id"] for packed in asked.orders])
