"""The yardsticks: workflows of the checkout's shape whose activities do nothing. Run as a worker process."""

import asyncio
import contextlib
import signal
import sys
from datetime import timedelta

import uvloop
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.worker import PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker

from adapters.temporal import DATA_CONVERTER
from domain import policies
from domain.model import CheckoutInput, OrderStatus

_TASK_QUEUE = "empty"


@activity.defn
async def nothing(order: CheckoutInput) -> str:
    """Return at once."""
    return order.order_id


@workflow.defn(name="Idle")
class IdleWorkflow:
    """No activity at all: the least that Temporal takes for a workflow."""

    @workflow.run
    async def run(self, order: CheckoutInput) -> str:
        """Return at once."""
        return order.order_id


@workflow.defn(name="Bare")
class BareWorkflow:
    """Three activities, one after the other, and nothing else."""

    @workflow.run
    async def run(self, order: CheckoutInput) -> str:
        """Do nothing three times."""
        for _ in range(3):
            await workflow.execute_activity(nothing, order, start_to_close_timeout=timedelta(seconds=5))
        return order.order_id


@workflow.defn(name="Empty")
class EmptyWorkflow:
    """The checkout's history, event for event, with activities that do nothing and no saga around them."""

    @workflow.run
    async def run(self, order: CheckoutInput) -> str:
        """Do nothing three times."""
        for step, policy in (("reserve", policies.RESERVE), ("pay", policies.PAY), ("ship", policies.SHIP)):
            await workflow.execute_activity(
                nothing,
                order,
                activity_id=step,
                summary=f"{step} {order.summary}",
                start_to_close_timeout=policy.start_to_close,
                schedule_to_close_timeout=policy.schedule_to_close,
                retry_policy=policy.retry,
            )
        workflow.upsert_search_attributes([policies.ORDER_STATUS.value_set(OrderStatus.COMPLETED)])
        return order.order_id


def build_empty_worker(client: Client) -> Worker:
    """Build a worker with worker.py's settings."""
    return Worker(
        client,
        task_queue=_TASK_QUEUE,
        workflows=[IdleWorkflow, BareWorkflow, EmptyWorkflow],
        activities=[nothing],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=1_000,
        max_concurrent_activities=100,
        workflow_task_poller_behavior=PollerBehaviorAutoscaling(minimum=2, maximum=20, initial=5),
        activity_task_poller_behavior=PollerBehaviorAutoscaling(minimum=2, maximum=20, initial=5),
    )


async def run_empty(client: Client, name: str, order: CheckoutInput) -> str:
    """Start one of the workflows as a checkout is started, and wait for its end."""
    handle = await client.start_workflow(
        name,
        order,
        id=order.order_id,
        task_queue=_TASK_QUEUE,
        id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
        static_summary=f"{order.summary} for {order.customer}",
    )
    await handle.result()
    return "completed"


async def main(address: str) -> None:
    """Run the worker until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await Client.connect(address, data_converter=DATA_CONVERTER)
    async with build_empty_worker(client):
        print("ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
