"""An interceptor that tests put around every attempt of an activity."""

from collections.abc import Awaitable, Callable
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

Run = Callable[[], Awaitable[Any]]


class AroundAttempts(Interceptor):
    async def attempt(self, info: activity.Info, arguments: Any, run: Run) -> Any:
        """Called in place of each attempt; `run` makes it."""
        raise NotImplementedError

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Inbound(next, self)


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, around: AroundAttempts) -> None:  # noqa: A002
        super().__init__(next)
        self._around = around

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        run = super().execute_activity
        return await self._around.attempt(activity.info(), input.args, lambda: run(input))
