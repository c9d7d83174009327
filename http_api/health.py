"""Whether the process answers, and what it can reach."""

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response
from temporalio.service import RPCError

from adapters.temporal import describe_task_queue
from http_api.models import Dependency, Health, Readiness
from http_api.services import Given
from sagafence import SagaError

router = APIRouter(tags=["health"])

_ASK_SECONDS = 2.0


@router.head("/healthz", include_in_schema=False)  # what some load balancers ask
@router.get("/healthz")
async def read_health() -> Health:
    """Answer: the process is alive. A reason to restart it where this does not come."""
    return Health()


@router.get(
    "/readyz", responses={503: {"model": Readiness, "description": "Neither answers: nothing can be done here now"}}
)
async def read_readiness(services: Given, response: Response) -> Readiness:
    """Return which servers answer. With one of them away, this process does what can be done without it."""
    temporal = services.temporal
    postgres_answers, temporal_answers = await asyncio.gather(
        _answers(services.reads.newest_events([])), _answers(describe_task_queue(temporal.client, temporal.task_queue))
    )
    if postgres_answers == temporal_answers == Dependency.AWAY:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return Readiness(postgres=postgres_answers, temporal=temporal_answers)


async def _answers(question: Awaitable[Any]) -> Dependency:
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            await question
    except (TimeoutError, RuntimeError, RPCError, SagaError):
        return Dependency.AWAY
    return Dependency.OK
