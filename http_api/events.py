"""An order's events: as a list, and as a stream of server-sent events that can be resumed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from sqlalchemy import Row
from starlette.types import Receive, Scope, Send

from domain.model import ENDINGS
from http_api import shown
from http_api.models import Event, EventList, digits_alone
from http_api.orders import OrderIdInPath, visible
from http_api.problems import RETRY_SECONDS, Problem, documented, retry_milliseconds, retry_seconds
from http_api.reads import MOST_EVENTS
from http_api.services import Given, Reader, Services
from http_api.tail import Watch
from sagafence import SagaError

router = APIRouter(tags=["orders"])

MOST_STREAMS = 1_000
MOST_OF_ONE_CALLER = 250
LONGEST_SECONDS = 300.0
"""A stream ends after so long, and its caller comes back where it broke off: a revoked key does not."""
_MOST_SEQ = 2**31 - 1
_PING_SECONDS = 10.0
# How often a completed order is looked at whose run is still open.
_CLOSE_SECONDS = 0.5


@router.get(
    "/v1/orders/{order_id}/events",
    responses=documented(HTTPStatus.NOT_FOUND),
    openapi_extra={"x-scope": "read, operate"},
)
async def list_events(
    order_id: OrderIdInPath,
    services: Given,
    principal: Reader,
    after: Annotated[int, Query(ge=0, le=_MOST_SEQ, description="Only events with a higher number."), digits_alone] = 0,
) -> EventList:
    """Return the order's events, the oldest first; after a thousand, ask on with `after`."""
    found = await visible(services, principal, shown.order_id_in(order_id))
    rows = await services.reads.events(found.order_id, after)
    return EventList(events=[_event(row) for row in rows])


@router.get(
    "/v1/orders/{order_id}/stream",
    response_class=Response,
    responses={
        200: {"description": "The events, as they happen", "content": {"text/event-stream": {}}},
        204: {"description": "There will be no more"},
        **documented(HTTPStatus.NOT_FOUND),
    },
    openapi_extra={"x-scope": "read, operate"},
)
async def stream_events(
    order_id: OrderIdInPath,
    services: Given,
    principal: Reader,
    last_event_id: Annotated[
        int,
        Header(alias="Last-Event-ID", ge=0, le=_MOST_SEQ, description="The last event that the caller has."),
        digits_alone,
    ] = 0,
) -> Response:
    """Send the order's events from the beginning, or after Last-Event-ID, and close when it has ended for good.

    The last one is `end`, without an id. A caller who comes back after that gets 204, which ends an EventSource. A
    stream that breaks off without it, as each does after five minutes, is resumed.
    """
    _require_place(services, principal.caller)
    found = await visible(services, principal, shown.order_id_in(order_id))
    is_over = bool(last_event_id) and await shown.has_ended_for_good(services, found.order_id)
    if is_over and not await services.reads.events(found.order_id, last_event_id, 1):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    # Without a row there are no events yet, and nothing says whether there will be.
    status = found.status if last_event_id and found.created_at else ""
    return _EventStream(services, Watch(found.order_id, principal.caller, last_event_id), status)


def _require_place(services: Services, caller: str) -> None:
    if services.tail.count >= MOST_STREAMS:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too-many-streams",
            f"This process has {MOST_STREAMS} open streams. Repeat the request, or ask for the events as a list.",
            retry_after=retry_seconds(),
        )
    if services.tail.count_of(caller) >= MOST_OF_ONE_CALLER:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too-many-requests",
            f"This caller has {MOST_OF_ONE_CALLER} open streams here. Close one, or ask for the events as a list.",
            retry_after=retry_seconds(),
        )


class _EventStream(StreamingResponse):
    """An order's events. From its first byte to its last it has a place among the streams that there may be."""

    def __init__(self, services: Services, watch: Watch, status: str) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_stream(services, watch, status), media_type="text/event-stream", headers=headers)
        self._services, self._watch = services, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a place, for which nothing is waited for, and stream."""
        _require_place(self._services, self._watch.caller)
        with self._services.tail.watching(self._watch):
            await super().__call__(scope, receive, send)


async def _stream(services: Services, watch: Watch, status: str) -> AsyncIterator[bytes]:
    """Write the events after the last one, which left the order in a status; a comment where nothing happens; the end.

    Whatever the tail sees, what is read here decides: the events after the last one that was sent.
    """
    yield format_sse_event(comment="events of one order", retry=retry_milliseconds())
    clock = asyncio.get_running_loop().time
    ends_at = clock() + LONGEST_SECONDS
    while not services.stop.is_set() and clock() < ends_at:
        watch.changed.clear()
        try:
            rows = await services.reads.events(watch.order_id, watch.seen)
            for row in rows:
                watch.seen, status = row.seq, row.status
                yield format_sse_event(data_str=_event(row).model_dump_json(), event="status", id=str(row.seq))
            if len(rows) == MOST_EVENTS:
                continue
            if (not status or status in ENDINGS) and await shown.has_ended_for_good(services, watch.order_id):
                if await services.reads.events(watch.order_id, watch.seen, 1):
                    continue  # written between the two reads
                yield format_sse_event(event="end", data_str="{}")
                return
        except SagaError:
            await _first_of(services, watch.changed, RETRY_SECONDS)
            continue
        is_ending = status in ENDINGS
        if not await _first_of(services, watch.changed, _CLOSE_SECONDS if is_ending else _PING_SECONDS):
            yield format_sse_event(comment="nothing new")


async def _first_of(services: Services, changed: asyncio.Event, seconds: float) -> bool:
    """Wait for a change, for the end of the process, or for so long; return whether one of the two has happened."""
    waiting = [asyncio.ensure_future(event.wait()) for event in (changed, services.stop)]
    try:
        done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
            with suppress(asyncio.CancelledError):
                await each
    return bool(done)


def _event(row: Row[Any]) -> Event:
    return Event(
        seq=row.seq,
        event=row.event,
        previous_status=row.previous_status,
        status=row.status,
        changed_by=row.changed_by,
        reason=row.reason,
        at=row.at,
    )
