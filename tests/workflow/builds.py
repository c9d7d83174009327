"""Other builds of the checkout, as somebody might deploy them: each says what it changes."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from domain.model import CheckoutInput, CheckoutStatus
    from workflows.checkout import CheckoutWorkflow


@workflow.defn(name="Checkout")
class TellsMore(CheckoutWorkflow):
    """Compatible both ways: it can be asked more, and does the same."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = 0

    @workflow.run
    async def run(self, order: CheckoutInput) -> CheckoutStatus:
        return await super().run(order)

    def _show(self) -> None:
        self._shown += 1
        super()._show()

    @workflow.query
    def shown(self) -> int:
        return self._shown


@workflow.defn(name="Checkout")
class WaitsFirst(CheckoutWorkflow):
    """Incompatible: one command more, before all others, and nothing that tells old runs from new ones."""

    @workflow.run
    async def run(self, order: CheckoutInput) -> CheckoutStatus:
        await workflow.sleep(timedelta(milliseconds=1))
        return await super().run(order)


@workflow.defn(name="Checkout")
class WaitsFirstPatched(CheckoutWorkflow):
    """The same command more, for new runs alone."""

    @workflow.run
    async def run(self, order: CheckoutInput) -> CheckoutStatus:
        if workflow.patched("wait-first"):
            await workflow.sleep(timedelta(milliseconds=1))
        return await super().run(order)
