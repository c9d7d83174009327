"""Several builds of the checkout on one task queue, and the operator who moves orders between them."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from temporalio.api.enums.v1 import EventType, TaskQueueType, WorkflowTaskFailedCause
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

import worker as worker_module
from adapters.config import WorkerSettings
from adapters.temporal import DATA_CONVERTER
from sagafence.devservers import temporal
from tests.conftest import Shop
from tests.workflow.gates import Gates
from workflows.checkout import CheckoutWorkflow

UNVERSIONED = ""

_EVERYWHERE_WITHIN_SECONDS = 60
_ANSWER_WITHIN = timedelta(seconds=5)
# Not known yet; changed at the same time by the arrival of another worker; asked too often; no answer.
_ASK_AGAIN = frozenset(
    {
        RPCStatusCode.NOT_FOUND,
        RPCStatusCode.FAILED_PRECONDITION,
        RPCStatusCode.RESOURCE_EXHAUSTED,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
    }
)


@dataclass
class Build:
    """A worker of one build: the code of its checkout, and its gates."""

    shop: Shop
    kind: type = CheckoutWorkflow
    build_id: str = UNVERSIONED
    gates: Gates = field(default_factory=Gates)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Worker]:
        """Run the worker inside the block. It leaves at once: an attempt that is held up then is cut off."""
        settings = WorkerSettings(
            task_queue=self.shop.task_queue,
            build_id=self.build_id,
            deployment_name=self.shop.task_queue,
            shutdown_grace_seconds=0,
        )
        # As another process has: a client has one worker for each task queue and version, and audits have no version.
        address = self.shop.client.service_client.config.target_host
        client = await Client.connect(address, data_converter=DATA_CONVERTER)
        with patch.object(worker_module, "CheckoutWorkflow", self.kind):
            made = worker_module.build_worker(
                client,
                self.shop.engine,
                settings,
                interceptors=(self.gates,),
                is_strict=self.shop.is_strict,
            )
        async with made:
            yield made


async def temporal_cli(shop: Shop, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command that the documents tell an operator to run, on the test's server."""
    address = shop.client.service_client.config.target_host
    command = [str(temporal._binary()), *arguments, "--address", address, "--disable-config-file"]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL
    )


async def make_current(shop: Shop, build_id: str) -> None:
    """Make a version current, as soon as the server has heard of it, and wait until every new order begins there."""
    service = shop.client.workflow_service

    async def set_current() -> str:
        await service.set_worker_deployment_current_version(
            SetWorkerDeploymentCurrentVersionRequest(
                namespace=shop.client.namespace, deployment_name=shop.task_queue, build_id=build_id
            ),
            timeout=_ANSWER_WITHIN,
        )
        return ""

    async def missing() -> str:
        # The queues themselves are asked, which have one partition here. The deployment's own word for it, that the
        # update is complete, once did not come within a minute.
        for kind in (TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY):
            queue = await service.describe_task_queue(
                DescribeTaskQueueRequest(
                    namespace=shop.client.namespace,
                    task_queue=TaskQueue(name=shop.task_queue),
                    task_queue_type=kind,
                ),
                timeout=_ANSWER_WITHIN,
            )
            current = queue.versioning_info.current_deployment_version.build_id
            if current != build_id:
                return f"{TaskQueueType.Name(kind)} goes to {current!r}"
        return ""

    await _slowly_until_nothing_is_missing(set_current)
    await _slowly_until_nothing_is_missing(missing)


async def _slowly_until_nothing_is_missing(ask: Callable[[], Awaitable[str]]) -> None:
    # A deployment is a workflow of the server's own: who asks it fifty times a second holds it up.
    answers: dict[str, int] = {}
    until = time.monotonic() + _EVERYWHERE_WITHIN_SECONDS
    while True:
        try:
            answer = await ask()
        except RPCError as error:
            if error.status not in _ASK_AGAIN:
                raise
            answer = f"{error.status.name}: {error.message}"
        if not answer:
            return
        answers[answer] = answers.get(answer, 0) + 1
        if time.monotonic() > until:
            raise AssertionError(f"the version is not current; answers and how often: {answers}")
        await asyncio.sleep(0.25)


async def is_known(shop: Shop, build_id: str) -> bool:
    """Tell whether the server has seen a worker of this build."""
    described = await temporal_cli(
        shop,
        *("worker", "deployment", "describe-version"),
        *("--deployment-name", shop.task_queue, "--build-id", build_id),
    )
    return described.returncode == 0


async def builds_of(handle: WorkflowHandle[Any, Any]) -> set[str]:
    """Name the builds that completed this run's workflow tasks."""
    return {
        event.workflow_task_completed_event_attributes.deployment_version.build_id
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    }


async def is_refused_by_its_worker(handle: WorkflowHandle[Any, Any]) -> bool:
    """Tell whether a workflow task failed because the worker's code does not fit the history."""
    return any(
        [
            event.workflow_task_failed_event_attributes.cause
            == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
            async for event in handle.fetch_history_events()
            if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
        ]
    )
