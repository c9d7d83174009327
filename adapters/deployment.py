"""The worker's deployment version: how it is registered with Temporal, and log entries on whether it gets orders.

A versioned worker gets no tasks until an operator makes its version current, and Temporal does not say so.
"""

import asyncio
import logging
from collections.abc import Callable

from temporalio.api.enums.v1 import WorkerDeploymentVersionStatus as Status
from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

from adapters.config import WorkerSettings
from adapters.polled_state import Finding, PolledState
from adapters.temporal import NOT_OURS_TO_ASK, describe_task_queue

POLL_SECONDS = 30.0

_log = logging.getLogger("checkout.worker")


def deployment_of(settings: WorkerSettings) -> WorkerDeploymentConfig | None:
    """Return the version of a worker; None for an unversioned one.

    Workflows are pinned unless they say otherwise: a run ends on the version that it began on.
    """
    if settings.build_id is None:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(settings.deployment_name, settings.build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


_TEXTS = {
    Status.WORKER_DEPLOYMENT_VERSION_STATUS_CURRENT: "is current: new orders begin here",
    Status.WORKER_DEPLOYMENT_VERSION_STATUS_RAMPING: "is ramping: a part of the new orders begins here",
    Status.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINING: "is not current any more, {instead}: it finishes the orders that "
    "began here",
    Status.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINED: "is drained: no open order needs it, its workers can stop",
}
_UNVERSIONED = Finding("this worker is unversioned, and so is its task queue: it gets new orders")


async def follow(current: Callable[[], Client], settings: WorkerSettings) -> None:
    """Log whether the worker's version gets orders, now and at each change, until cancelled.

    It needs no right that a worker does not need anyway. Where it has no right to poll, it logs that once and goes on:
    credentials expire, and are replaced.
    """
    version = PolledState[Finding | None](None if settings.build_id else _UNVERSIONED)
    may_poll = PolledState(known=True)
    while True:
        client = current()
        try:
            found = await (_versioned(client, settings) if settings.build_id else _unversioned(client, settings))
        except RPCError as error:  # a short outage; the SDK logs a long one
            if error.status in NOT_OURS_TO_ASK and may_poll.update(found=False) and settings.build_id:
                _log.warning(
                    "cannot see whether version %s is current; this makes it so: %s",
                    settings.build_id,
                    _make_current(client, settings),
                    extra={"action": "worker_version"},
                )
        else:
            may_poll.update(found=True)
            if version.update(found):
                level = logging.WARNING if found.is_alarm else logging.INFO
                _log.log(level, "%s", found.text, extra={"action": "worker_version"})
        await asyncio.sleep(POLL_SECONDS)


async def _versioned(client: Client, settings: WorkerSettings) -> Finding:
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
        Status.WORKER_DEPLOYMENT_VERSION_STATUS_CREATED,
    )
    if (text := _TEXTS.get(status)) is not None:
        return Finding(f"version {build_id} of {name} {text.format(instead=instead)}")
    return _idle(client, settings, instead)


def _idle(client: Client, settings: WorkerSettings, instead: str) -> Finding:
    return Finding(
        f"version {settings.build_id} of {settings.deployment_name} is not current, {instead}: "
        f"this worker gets no orders until an operator runs: {_make_current(client, settings)}",
        is_alarm=True,
    )


async def _unversioned(client: Client, settings: WorkerSettings) -> Finding:
    described = await describe_task_queue(client, settings.task_queue)
    current = described.versioning_info.current_deployment_version
    if not current.build_id:
        return _UNVERSIONED
    return Finding(
        f"task queue {settings.task_queue} goes to version {current.build_id} of {current.deployment_name}, and this "
        "worker has no CHECKOUT_BUILD_ID: it gets no orders until it has one that is current, or an operator runs: "
        f"temporal worker deployment set-current-version --namespace {client.namespace} "
        f"--deployment-name {current.deployment_name} --unversioned --yes",
        is_alarm=True,
    )


def _make_current(client: Client, settings: WorkerSettings) -> str:
    return (
        f"temporal worker deployment set-current-version --namespace {client.namespace} "
        f"--deployment-name {settings.deployment_name} --build-id {settings.build_id} --yes"
    )
