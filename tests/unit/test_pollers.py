"""Whether anybody polls is told of a task that waits, and not of one that came in that moment."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.api.enums.v1 import PendingWorkflowTaskState
from temporalio.api.taskqueue.v1 import PollerInfo
from temporalio.api.workflowservice.v1 import DescribeTaskQueueResponse, DescribeWorkflowExecutionResponse
from temporalio.client import Client

from client import pollers

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Server:
    """Answers each look with the next of the instants at which the workflow's task came, the last one for ever."""

    def __init__(self, *came: timedelta, polled: timedelta) -> None:
        self._came = [BEGIN + instant for instant in came]
        self._polled = BEGIN + polled
        self.looks = 0

    async def describe_workflow_execution(self, _request: Any) -> DescribeWorkflowExecutionResponse:
        answer = DescribeWorkflowExecutionResponse()
        answer.pending_workflow_task.state = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
        came = self._came[min(self.looks, len(self._came) - 1)]
        answer.pending_workflow_task.scheduled_time.FromDatetime(came)
        self.looks += 1
        return answer

    async def describe_task_queue(self, _request: Any) -> DescribeTaskQueueResponse:
        poller = PollerInfo()
        poller.last_access_time.FromDatetime(self._polled)
        return DescribeTaskQueueResponse(pollers=[poller])


async def told_by(server: Server, monkeypatch: pytest.MonkeyPatch, *, looks: int) -> list[str]:
    monkeypatch.setattr(pollers, "AFTER_SECONDS", 0.002)
    monkeypatch.setattr(pollers, "_SEEN_WAITING_SECONDS", 0.001)
    told: list[str] = []
    client = cast(Client, SimpleNamespace(workflow_service=server, namespace="default"))
    async with asyncio.timeout(20), pollers.Watch(client, "checkout", told.append).over("checkout-n-1"):
        while server.looks < looks and not told:
            await asyncio.sleep(0.001)
    return told


def seconds(*instants: int) -> list[timedelta]:
    return [timedelta(seconds=instant) for instant in instants]


async def test_a_task_that_waits_and_that_nobody_has_polled_for_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    [told] = await told_by(Server(*seconds(10), polled=timedelta(seconds=9)), monkeypatch, looks=100)

    assert "no worker polls task queue checkout" in told


async def test_tasks_that_come_and_go_are_those_of_a_worker_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(*seconds(*range(10, 60)), polled=timedelta(seconds=9))

    assert await told_by(server, monkeypatch, looks=50) == []


async def test_a_worker_that_has_polled_since_the_task_came_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(*seconds(10), polled=timedelta(seconds=11))

    assert await told_by(server, monkeypatch, looks=20) == []
