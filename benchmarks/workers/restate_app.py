"""The checkout as a Restate workflow, served by Hypercorn as its documents do. Run as a process.

python -m benchmarks.workers.restate_app PORT SHOP_DATABASE_URL
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import hypercorn
import hypercorn.asyncio
import restate

from adapters.database import create_engine
from benchmarks.workers.steps import STEPS, Refused, ShopSteps, Wire

# The product's backoff of a step: 100 ms doubling to 5 s.
_RETRY = {
    "initial_retry_interval": timedelta(milliseconds=100),
    "max_retry_interval": timedelta(seconds=5),
    "retry_interval_factor": 2.0,
}
_UNBOUNDED = 2_147_483_647


def workflow(shop: ShopSteps) -> restate.Workflow:
    """Make the workflow `Checkout`: `run` is carried out once for each key, and the key is the order's id."""
    forward: Any = restate.RunOptions(max_duration=timedelta(seconds=60), **_RETRY)
    backward: Any = restate.RunOptions(**_RETRY)

    async def do(step: str, wire: Wire) -> Wire:
        try:
            return await shop.do(step, wire)
        except Refused as refused:
            raise restate.TerminalError(str(refused), 409) from None

    async def run(ctx: restate.WorkflowContext, wire: Wire) -> str:
        compensations: list[Callable[[str], Awaitable[Any]]] = []

        def compensate_with(step: str) -> None:
            compensations.append(
                lambda reason: ctx.run_typed(f"undo {step}", shop.undo, backward, step=step, wire=wire, reason=reason)
            )

        try:
            for step in STEPS:
                compensate_with(step)  # before the step: it may take effect and still be reported as failed
                await ctx.run_typed(step, do, forward, step=step, wire=wire)
        except restate.TerminalError as refused:
            for compensation in reversed(compensations):
                await compensation(refused.message)
            return str(await ctx.run_typed("close", shop.close, backward, wire=wire, reason=refused.message))
        return "completed"

    checkout = restate.Workflow("Checkout")
    checkout.main()(run)
    return checkout


async def main(port: int, shop_url: str) -> None:
    """Answer until SIGTERM."""
    engine = create_engine(shop_url)
    config = hypercorn.Config()
    config.bind = [f"127.0.0.1:{port}"]
    # What Restate's documents set for Hypercorn.
    config.h2_max_concurrent_streams = _UNBOUNDED
    config.keep_alive_max_requests = _UNBOUNDED
    config.keep_alive_timeout = _UNBOUNDED
    application: Any = restate.app(services=[workflow(ShopSteps(engine))])
    await hypercorn.asyncio.serve(application, config)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
