"""The checkout as a Restate workflow, served by Hypercorn as in its documentation. Run as a process.

python -m benchmarks.workers.restate_app PORT SHOP_DATABASE_URL
"""

import asyncio
import sys
from datetime import timedelta
from typing import Any

import hypercorn
import hypercorn.asyncio
import restate

from adapters.database import create_engine
from benchmarks.workers.steps import Refused, ShopSteps, Wire, saga

# The product's backoff of a step: 100 ms doubling to 5 s.
_RETRY = {
    "initial_retry_interval": timedelta(milliseconds=100),
    "max_retry_interval": timedelta(seconds=5),
    "retry_interval_factor": 2.0,
}
_UNBOUNDED = 2_147_483_647


def workflow(shop: ShopSteps) -> restate.Workflow:
    """Create the workflow `Checkout`: `run` is executed once per key, which is the order's id."""
    forward: Any = restate.RunOptions(max_duration=timedelta(seconds=60), **_RETRY)
    backward: Any = restate.RunOptions(**_RETRY)

    async def attempt(step: str, wire: Wire) -> Wire:
        try:
            return await shop.do(step, wire)
        except Refused as refused:
            raise restate.TerminalError(str(refused), 409) from None

    async def run(ctx: restate.WorkflowContext, wire: Wire) -> str:
        async def do(step: str, wire: Wire) -> None:
            try:
                await ctx.run_typed(step, attempt, forward, step=step, wire=wire)
            except restate.TerminalError as refused:
                raise Refused(refused.message) from None

        async def undo(step: str, wire: Wire, reason: str) -> None:
            await ctx.run_typed(f"undo {step}", shop.undo, backward, step=step, wire=wire, reason=reason)

        async def close(wire: Wire, reason: str) -> str:
            return str(await ctx.run_typed("close", shop.close, backward, wire=wire, reason=reason))

        return await saga(wire, do, undo, close)

    checkout = restate.Workflow("Checkout")
    checkout.main()(run)
    return checkout


async def main(port: int, shop_url: str) -> None:
    """Serve until SIGTERM."""
    engine = create_engine(shop_url)
    config = hypercorn.Config()
    config.bind = [f"127.0.0.1:{port}"]
    # The settings of Restate's documentation for Hypercorn.
    config.h2_max_concurrent_streams = _UNBOUNDED
    config.keep_alive_max_requests = _UNBOUNDED
    config.keep_alive_timeout = _UNBOUNDED
    application: Any = restate.app(services=[workflow(ShopSteps(engine))])
    await hypercorn.asyncio.serve(application, config)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
