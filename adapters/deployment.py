"""The version of this worker: what Temporal is told of it, and what Temporal does with it.

A versioned worker gets nothing to do until somebody makes its version current, and nothing says so. This does.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from temporalio.api.enums.v1 import TaskQueueType, WorkerDeploymentVersionStatus
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeWorkerDeploymentRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

from adapters.config import WorkerSettings
from adapters.temporal import NOT_OURS_TO_ASK

LOOK_EVERY_SECONDS = 30.0

_log = logging.getLogger("checkout.worker")


def deployment_of(settings: WorkerSettings) -> WorkerDeploymentConfig | None:
    """Say which version a worker is; None for an unversioned one.

    Workflows that do not say otherwise are pinned: a run ends on the version that it began on.
    """
    if settings.build_id is None:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(settings.deployment_name, settings.build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


@dataclass(frozen=True)
class Standing:
    """What the server sends to a worker, in words for its log."""

    told: str
    is_alarming: bool = False


_UNVERSIONED = Standing("this worker is unversioned, and so is its task queue: it gets new orders")


async def follow(current: Callable[[], Client], settings: WorkerSettings) -> None:
    """Log how the worker's version stands now, and each change, until cancelled.

    It needs no right that a worker does not need anyway. Where it may not look it says so, once, and tries again:
    credentials expire, and are replaced.
    """
    # That an unversioned worker gets what there is goes without saying.
    known = None if settings.build_id else _UNVERSIONED
    may_look = True
    while True:
        client = current()
        try:
            standing = await (_standing(client, settings) if settings.build_id else _unversioned(client, settings))
        except RPCError as error:
            if error.status in NOT_OURS_TO_ASK:
                if settings.build_id and may_look:
                    _log.warning(
                        "cannot see whether version %s is current; this makes it so: %s",
                        settings.build_id,
                        _make_current(client, settings),
                        extra={"action": "worker_version"},
                    )
                may_look = False
            # Away for a moment: the worker itself complains when it is for long.
        else:
            may_look = True
            if standing != known:
                level = logging.WARNING if standing.is_alarming else logging.INFO
                _log.log(level, "%s", standing.told, extra={"action": "worker_version"})
            known = standing
        await asyncio.sleep(LOOK_EVERY_SECONDS)


async def _standing(client: Client, settings: WorkerSettings) -> Standing:
    build_id, name = settings.build_id, settings.deployment_name
    try:
        described = await client.workflow_service.describe_worker_deployment(
            DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=name)
        )
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return _idle(client, settings, "none is")  # the first worker of a deployment makes it known by polling
    deployment = described.worker_deployment_info
    current = deployment.routing_config.current_deployment_version.build_id
    instead = f"{current} is" if current else "none is"
    status = next(
        (known.status for known in deployment.version_summaries if known.deployment_version.build_id == build_id),
        WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_CREATED,
    )
    match status:
        case WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_CURRENT:
            return Standing(f"version {build_id} of {name} is current: new orders begin here")
        case WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_RAMPING:
            return Standing(f"version {build_id} of {name} is ramping: a part of the new orders begins here")
        case WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINING:
            return Standing(
                f"version {build_id} of {name} is not current any more, {instead}: "
                "it carries the orders that began here to their end"
            )
        case WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINED:
            return Standing(f"version {build_id} of {name} is drained: no open order needs it, its workers can stop")
    return _idle(client, settings, instead)


def _idle(client: Client, settings: WorkerSettings, instead: str) -> Standing:
    return Standing(
        f"version {settings.build_id} of {settings.deployment_name} is not current, {instead}: "
        f"this worker gets no orders until somebody runs: {_make_current(client, settings)}",
        is_alarming=True,
    )


async def _unversioned(client: Client, settings: WorkerSettings) -> Standing:
    described = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=settings.task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
    )
    current = described.versioning_info.current_deployment_version
    if not current.build_id:
        return _UNVERSIONED
    return Standing(
        f"task queue {settings.task_queue} goes to version {current.build_id} of {current.deployment_name}, and "
        "this worker has no CHECKOUT_BUILD_ID: it gets no orders until it has one that is current, or somebody runs: "
        f"temporal worker deployment set-current-version --namespace {client.namespace} "
        f"--deployment-name {current.deployment_name} --unversioned --yes",
        is_alarming=True,
    )


def _make_current(client: Client, settings: WorkerSettings) -> str:
    return (
        f"temporal worker deployment set-current-version --namespace {client.namespace} "
        f"--deployment-name {settings.deployment_name} --build-id {settings.build_id} --yes"
    )
