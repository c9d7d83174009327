"""Two kinds of sagas with one step, for the sweep: workflows alone, as a strict sandbox wants them."""

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy

from sagafence import SagaError

_SHORT = timedelta(seconds=20)
_ONCE = RetryPolicy(maximum_attempts=1)


@workflow.defn(name="Move")
class Move:
    """A saga whose first run stops before its end, in the way that its input says."""

    @workflow.run
    async def run(self, given: dict[str, Any]) -> str:
        await workflow.execute_activity("do", given, start_to_close_timeout=_SHORT, retry_policy=_ONCE)
        if not await workflow.execute_activity("was_here", start_to_close_timeout=_SHORT):
            match given["first"]:
                case "completes":
                    return "without its end"
                case "fails":
                    raise SagaError("a bug")
                case "runs":
                    await workflow.wait_condition(lambda: False)
        await workflow.execute_activity("end", "completed", start_to_close_timeout=_SHORT)
        return "moved"


@workflow.defn(name="Stay")
class Stay(Move):
    """The same, of another type."""

    @workflow.run
    async def run(self, given: dict[str, Any]) -> str:
        return await super().run(given)
