"""The yardstick: a workflow of the checkout's shape whose activities do nothing. Run as a worker process."""

import asyncio
import contextlib
import signal
import sys
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import PollerBehaviorAutoscaling, Worker

TASK_QUEUE = "empty"


@activity.defn
async def nothing(order_id: str) -> str:
    """Answer at once."""
    return order_id


@workflow.defn(name="Empty")
class EmptyWorkflow:
    """Three activities, one after the other, with the checkout's ids and summaries, and no saga around them."""

    @workflow.run
    async def run(self, order_id: str) -> str:
        """Do nothing three times."""
        for step in ("reserve", "pay", "ship"):
            await workflow.execute_activity(
                nothing,
                order_id,
                activity_id=step,
                summary=step,
                start_to_close_timeout=timedelta(seconds=5),
                schedule_to_close_timeout=timedelta(seconds=60),
            )
        return order_id


async def main(address: str) -> None:
    """Work with worker.py's settings until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = Worker(
        await Client.connect(address),
        task_queue=TASK_QUEUE,
        workflows=[EmptyWorkflow],
        activities=[nothing],
        max_cached_workflows=1_000,
        max_concurrent_activities=100,
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(minimum=2, maximum=20, initial=5),
        activity_task_poller_behavior=PollerBehaviorAutoscaling(minimum=2, maximum=20, initial=5),
    )
    async with worker:
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
