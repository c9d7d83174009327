"""Stories that are told in another way than they should be."""

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from sagafence import RetryBackoff, Saga, SagaWorkflow

with workflow.unsafe.imports_passed_through():
    from tests.sagafence.odd_steps import Odd, OddSteps


@workflow.defn
class OddSaga(SagaWorkflow[Odd, list[str]]):
    """Two steps, and what `kind` says."""

    backoff = RetryBackoff(timedelta(hours=1), timedelta(hours=1))

    async def story(self, saga: Saga, odd: Odd, /) -> list[str]:
        """Tell the story of a kind."""
        if odd.kind == "optional":
            try:
                return [await saga.do(OddSteps.one, odd)]
            except ActivityError:
                return []
        first = odd
        if odd.kind == "by the clock":
            first = Odd(odd.saga_id, note=str(workflow.now()))
        if odd.kind == "changes its input":
            odd.notes.append("before the first step")
        if odd.kind == "large":
            for number in range(5):
                await saga.do(OddSteps.one, Odd(odd.saga_id, note="x" * 450_000), instance=str(number))
        await saga.do(OddSteps.one, first)
        odd.notes.append("after the first step")
        await saga.do(OddSteps.two, odd)
        return [odd.kind]
