"""What the sweep does: it finds idle sagas in Postgres, asks Temporal about them, and starts those that are lost.

Two classes, since they see two sides: `SagaRows` knows Postgres alone, and `Runs` Temporal alone.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from sagafence.database import single_statement
from sagafence.retention import Retention
from sagafence.sweep import FIND_IDLE, FIND_LOST, START_LOST, IdleInput, IdlePage, IdleSaga, Started

_AT_ONCE = 10
# The newest run of a workflow id is never one that continued as new, unless its successor was deleted by hand.
_LOST = frozenset(
    {
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_FAILED,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CANCELED,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TIMED_OUT,
    }
)
# What Temporal says of one request. Every other answer is about Temporal itself, and is an outage.
_ABOUT_THE_REQUEST = frozenset({RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.FAILED_PRECONDITION})

_IDLE = text("""
    SELECT saga_id, workflow_id, started_at, updated_at FROM sagas
     WHERE state <> 'ended' AND namespace IN ('', :namespace)
       AND (started_at, saga_id) > (CAST(:after_at AS timestamptz), :after_id)
       AND updated_at <= clock_timestamp() - CAST(:idle_for AS interval)
     ORDER BY started_at, saga_id LIMIT :limit
""")

_STILL_OPEN = text("""
    SELECT saga_id, workflow_id, workflow_type, task_queue, CAST(input AS text) AS input, updated_at
      FROM sagas WHERE saga_id = ANY (CAST(:saga_ids AS text[])) AND state <> 'ended'
""")


@dataclass(frozen=True)
class StartAgain:
    """What a lost saga's workflow is started with."""

    saga_id: str
    workflow_id: str
    workflow_type: str
    task_queue: str
    input: Any


class SagaRows:
    """The sagas' rows, as the sweep reads them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def idle(self, asked: IdleInput, namespace: str) -> IdlePage:
        """List a page of sagas that have not ended and have been idle for a while."""
        given = {
            "namespace": namespace,
            "after_at": datetime.fromisoformat(asked.after_at),
            "after_id": asked.after_id,
            "idle_for": timedelta(seconds=asked.idle_seconds),
            "limit": asked.limit,
        }
        async with single_statement(self._engine) as connection:
            rows = (await connection.execute(_IDLE, given)).all()
        sagas = [
            IdleSaga(row.saga_id, row.workflow_id, row.started_at.isoformat(), row.updated_at.isoformat())
            for row in rows
        ]
        return IdlePage(sagas, is_last=len(rows) < asked.limit)

    async def still_lost(self, lost: Sequence[IdleSaga]) -> list[StartAgain]:
        """Read lost sagas again, now that Temporal was asked about them; leave out those that moved or ended since."""
        read_before = {saga.saga_id: datetime.fromisoformat(saga.updated_at) for saga in lost}
        async with single_statement(self._engine) as connection:
            rows = (await connection.execute(_STILL_OPEN, {"saga_ids": list(read_before)})).all()
        return [
            StartAgain(row.saga_id, row.workflow_id, row.workflow_type, row.task_queue, json.loads(row.input))
            for row in rows
            if row.updated_at == read_before[row.saga_id]
        ]


class Runs:
    """The sagas' workflows, as Temporal knows them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def namespace(self) -> str:
        """The one that is asked."""
        return self._client.namespace

    async def is_lost(self, workflow_id: str) -> bool:
        """Whether the newest run is closed or there is none. Raises where Temporal does not say."""
        # Not by the SDK's `describe` (1.35), which fails for a paused one.
        asked = DescribeWorkflowExecutionRequest(
            namespace=self._client.namespace, execution=WorkflowExecution(workflow_id=workflow_id)
        )
        try:
            answer = await self._client.workflow_service.describe_workflow_execution(asked, retry=True)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return True
            raise
        return answer.workflow_execution_info.status in _LOST

    async def start(self, saga: StartAgain) -> str:
        """Start a saga's workflow again: "started", "joined" where another was faster, else why it is refused."""
        try:
            await self._client.start_workflow(
                saga.workflow_type,
                saga.input,
                id=saga.workflow_id,
                task_queue=saga.task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                static_summary="Started again by the sweep",
            )
        except WorkflowAlreadyStartedError:
            return "joined"
        except RPCError as error:
            if error.status in _ABOUT_THE_REQUEST:
                return f"{error.status.name}: {error.message}"
            raise
        return "started"


class LostSagas:
    """The activities of the sweep."""

    def __init__(self, rows: SagaRows, runs: Runs) -> None:
        self._rows = rows
        self._runs = runs

    @activity.defn(name=FIND_IDLE)
    async def find_idle(self, asked: IdleInput) -> IdlePage:
        """List a page of idle sagas."""
        return await self._rows.idle(asked, self._runs.namespace)

    @activity.defn(name=FIND_LOST)
    async def find_lost(self, sagas: list[IdleSaga]) -> list[IdleSaga]:
        """List those whose workflow does not run."""
        answers = await _a_few_at_a_time(self._runs.is_lost, [saga.workflow_id for saga in sagas])
        return [saga for saga, is_lost in zip(sagas, answers, strict=True) if is_lost]

    @activity.defn(name=START_LOST)
    async def start_lost(self, lost: list[IdleSaga]) -> Started:
        """Start lost sagas again, unless they have moved or ended since they were read.

        One whose start was not heard of is refused to the next attempt, and counts as joined.
        """
        came_of: list[tuple[str, str]] = []
        for place in range(0, len(lost), _AT_ONCE):  # inputs may be large, and are not all read at once
            still_lost = await self._rows.still_lost(lost[place : place + _AT_ONCE])
            answers = await _a_few_at_a_time(self._runs.start, still_lost)
            came_of += zip((saga.saga_id for saga in still_lost), answers, strict=True)
        return Started(
            started=[saga_id for saga_id, answer in came_of if answer == "started"],
            joined=sum(answer == "joined" for _, answer in came_of),
            moved=len(lost) - len(came_of),
            failed=[f"{saga_id}: {answer}" for saga_id, answer in came_of if answer not in {"started", "joined"}],
        )


def sweep_activities(engine: AsyncEngine, client: Client) -> list[Callable[..., Awaitable[Any]]]:
    """Return the activities of workflow `sagafence.Sweep`, for a worker.

    Args:
        engine: where the sagas' rows are.
        client: asks about the sagas and starts them, in its namespace.
    """
    lost = LostSagas(SagaRows(engine), Runs(client))
    return [lost.find_idle, lost.find_lost, lost.start_lost, Retention(engine).purge]


async def _a_few_at_a_time(ask: Callable[[Any], Awaitable[Any]], asked: Sequence[Any]) -> list[Any]:
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(each: Any) -> Any:
        async with turn:
            return await ask(each)

    return await asyncio.gather(*map(one, asked))
