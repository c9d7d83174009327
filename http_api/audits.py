"""What the audits found, and an audit on request."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response

from client import maintenance
from domain.audit import AuditReport
from http_api.models import AuditRun, AuditState, Finding, digits_alone
from http_api.principal import Principal
from http_api.problems import Problem, temporal_is_away
from http_api.services import Given, Operator, Reader, Services
from http_api.temporal import answered

router = APIRouter(tags=["audit"])

_LONGEST_WAIT = 20
_RUN = timedelta(minutes=30)


@router.get("/v1/audit", openapi_extra={"x-scope": "read, operate"})
async def read_audit(services: Given, principal: Reader) -> AuditState:
    """Return what the audits found wrong and is not over, and how many orders are stuck. For keys of all customers."""
    _require_all_customers(principal)
    rows, stuck = await services.reads.findings()
    found = [Finding(check_id=row.check_id, subject=row.subject, detail=row.detail, since=row.at) for row in rows]
    return AuditState(is_clean=not found, findings=found, stuck_orders=stuck)


@router.post(
    "/v1/audits",
    status_code=HTTPStatus.ACCEPTED,
    responses={200: {"model": AuditRun, "description": "It has finished"}},
    openapi_extra={"x-scope": "operate"},
)
async def run_audit(
    services: Given,
    principal: Operator,
    response: Response,
    wait: Annotated[int, Query(ge=0, le=_LONGEST_WAIT, description="Seconds to wait for its end."), digits_alone] = 10,
) -> AuditRun:
    """Check every invariant of the database now. Callers who ask at once share a run, which goes on by itself."""
    _require_all_customers(principal)
    temporal = services.temporal
    audit = asyncio.ensure_future(temporal.checkouts.audit(_RUN))
    try:
        await _wait_for(services, audit, 1)
        run = None
        for seconds in (wait - 1, 0):
            if audit.done():
                break
            # It is under way, or the start has not got through. A server that is silent is not waited for.
            run = await answered(temporal.orders.run_of(maintenance.audit_id(temporal.task_queue)))
            await _wait_for(services, audit, seconds)
        if not audit.done():
            if run is None or not run.is_open:
                raise temporal_is_away()
            return AuditRun(is_finished=False)
        report = audit.result()
    except RuntimeError:
        raise temporal_is_away() from None
    finally:
        audit.cancel()
    response.status_code = HTTPStatus.OK
    return AuditRun(is_finished=True, violation_count=report.violation_count)


async def _wait_for(services: Services, audit: asyncio.Future[AuditReport], seconds: int) -> None:
    if seconds > 0:
        with suppress(TimeoutError):
            async with services.waiting(seconds):
                await asyncio.wait({audit})


def _require_all_customers(principal: Principal) -> None:
    if principal.customers is not None:
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "customer",
            "An audit is of all customers' orders, and the key of this request is for some customers. "
            "Use a key without customers.",
        )
