"""Placing, reading and listing orders."""

import asyncio
import base64
import hashlib
import json
import re
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import AwareDatetime, BeforeValidator
from temporalio.service import RPCError

from adapters.order_query import FoundOrder
from client.failures import ClientError, NoSuchOrder
from domain.identifiers import identifier_problem
from domain.model import ENDINGS, CheckoutInput, ExecutionMode, OrderLine, OrderStatus, order_id_conflict
from http_api import shown
from http_api.models import NewOrder, Order, OrderList, OrderStatusWord
from http_api.problems import Fault, Problem, documented, invalid
from http_api.reads import BadCursor, Cursor, Wanted, is_plausible
from http_api.services import Buyer, Given, Reader, Services
from http_api.temporal import answered
from sagafence import InvalidInput, SagaError

router = APIRouter(tags=["orders"])


def _as_described(value: Any) -> Any:
    """Refuse what Pydantic takes for an instant beside RFC 3339, such as a number."""
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\dT", value):
        raise ValueError("it is no instant such as 2026-11-29T12:00:00Z")
    return value


_Instant = Annotated[AwareDatetime, BeforeValidator(_as_described)]
OrderIdInPath = Annotated[str, Path(description="The order's id, percent-encoded.")]

_LONGEST_WAIT = 20
_LOOKS_EVERY_SECONDS = 0.1
_ID_BYTES = 16
# The ids that `order_id_for` gives. Who chose one of another caller's key would take that key's order id away.
_BY_A_KEY = re.compile(r"o-[a-z2-7]{26}")


_LINKS = {
    operation: {"operationId": operation, "parameters": {"order_id": "$response.body#/order_id"}}
    for operation in ("read_order", "list_events", "stream_events", "cancel_order", "retry_order", "resolve_step")
}


@router.post(
    "/v1/orders",
    status_code=HTTPStatus.CREATED,
    responses={
        201: {"links": _LINKS},
        200: {
            "links": _LINKS,
            "model": Order,
            "description": "A repeat: the order as it is now",
            "headers": {"Idempotency-Replayed": {"schema": {"type": "string"}}},
        },
        **documented(HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    },
    openapi_extra={"x-scope": "buy"},
)
async def place_order(  # noqa: PLR0913, PLR0917 - what a request has
    order: NewOrder,
    response: Response,
    services: Given,
    principal: Buyer,
    idempotency_key: Annotated[
        str,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$",
            description="New for each new order, and the same for each repeat.",
        ),
    ],
    wait: Annotated[int, Query(ge=0, le=_LONGEST_WAIT, description="Seconds to wait for the order's end.")] = 0,
) -> Order:
    """Place an order; a repeat with the same key returns the order as it is now.

    An order that is refused for a reason of business is an order all the same: its status says so.
    """
    placed = _checked(order, order_id_for(principal.caller, idempotency_key), services.execution_mode)
    if not principal.may_act_for(placed.customer):
        raise Problem(HTTPStatus.FORBIDDEN, "customer", "The key of this request is for other customers.")
    is_chosen = order.order_id is not None
    is_new = await _start(services, placed, is_chosen=is_chosen)
    if wait:
        await _until_ended(services, placed.order_id, wait)
    if is_new and not wait:  # nothing is known yet, and nobody is asked
        found = shown.begun(services, placed)
    else:
        found = await _current(services, placed, is_chosen=is_chosen)
    response.headers["Location"] = found.links.self
    if not is_new:
        response.status_code = HTTPStatus.OK
        response.headers["Idempotency-Replayed"] = "true"
    return found


@router.get(
    "/v1/orders/{order_id}",
    responses={304: {"description": "It is as the caller has it"}, **documented(HTTPStatus.NOT_FOUND)},
    openapi_extra={"x-scope": "read, operate"},
)
async def read_order(
    order_id: OrderIdInPath,
    response: Response,
    services: Given,
    principal: Reader,
    if_none_match: Annotated[str | None, Header(description="The ETag of what the caller has.")] = None,
) -> Order:
    """Return an order as it is now."""
    found = await visible(services, principal, shown.order_id_in(order_id))
    tag = shown.etag(found)
    response.headers["ETag"] = tag
    if if_none_match and tag.removeprefix("W/") in {
        each.strip().removeprefix("W/") for each in if_none_match.split(",")
    }:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": tag})  # type: ignore[return-value]
    return found


@router.get(
    "/v1/orders",
    openapi_extra={"x-scope": "read, operate"},
)
async def list_orders(  # noqa: PLR0913, PLR0917 - what a list can be filtered by
    services: Given,
    principal: Reader,
    status: Annotated[OrderStatusWord | None, Query(description="Only these.")] = None,
    customer: Annotated[str | None, Query(description="Only this customer's.")] = None,
    created_from: Annotated[_Instant | None, Query(description="Only from this instant on.")] = None,
    created_before: Annotated[_Instant | None, Query(description="Only before this instant.")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=2_000)] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Orders on a page.")] = 50,
) -> OrderList:
    """List orders, the newest first. What is placed meanwhile is on no later page, and nothing else is missing."""
    wanted = Wanted(
        status,
        asked_customers(principal.customers, customer),
        _in_range("created_from", created_from),
        _in_range("created_before", created_before),
        _cursor(cursor),
        limit + 1,
    )
    rows = await services.reads.page(wanted)
    last = rows[limit - 1] if len(rows) > limit else None
    return OrderList(
        orders=[shown.summary(row) for row in rows[:limit]],
        next_cursor=str(Cursor(last.created_at, last.order_id)) if last else None,
    )


async def visible(services: Services, principal: Reader, order_id: str) -> Order:
    """Return an order that the caller may see.

    Raises:
        NoSuchOrder: there is none, or it is another customer's.
    """
    found = await shown.find(services, order_id)
    if not principal.may_act_for(found.customer):
        raise shown.no_such_order(order_id)
    return found


def order_id_for(caller: str, idempotency_key: str) -> str:
    """Return the id of an order that has none of its own: it follows from who asks and their key."""
    digest = hashlib.sha256(json.dumps([caller, idempotency_key]).encode()).digest()[:_ID_BYTES]
    return f"o-{base64.b32encode(digest).decode().rstrip('=').lower()}"


def _checked(order: NewOrder, id_by_key: str, mode: ExecutionMode) -> CheckoutInput:
    """Check what the types cannot say, each fault with its place."""
    order_id = id_by_key if order.order_id is None else order.order_id
    identifiers = {"/customer": order.customer, "/order_id": order_id}
    identifiers |= {f"/lines/{number}/sku": line.sku for number, line in enumerate(order.lines)}
    faults = [
        Fault(pointer=pointer, detail=problem)
        for pointer, value in identifiers.items()
        if (problem := identifier_problem(value))
    ]
    if order_id != id_by_key and _BY_A_KEY.fullmatch(order_id):
        faults.append(
            Fault(pointer="/order_id", detail="ids of this form follow from an Idempotency-Key: choose another")
        )
    if faults:
        raise invalid(*faults[:20])
    lines = tuple(OrderLine(line.sku, line.quantity) for line in order.lines)
    try:
        return CheckoutInput(order_id, order.customer, lines, execution_mode=mode)
    except InvalidInput as error:  # lines of one SKU are merged
        raise invalid(Fault(pointer="/lines", detail=error.message)) from None


async def _start(services: Services, placed: CheckoutInput, *, is_chosen: bool) -> bool:
    """Start the order's saga, or join the one it has; return whether it is new.

    The row is read first: after Temporal's retention it is all that there is. Where the database is away, the start
    alone decides, and the steps' fences return what was done.
    """
    found = None
    with suppress(SagaError):
        found = await services.reads.order(placed.order_id)
    if found is not None and _is_anothers(found, placed):
        raise _conflict(placed.order_id, is_chosen=is_chosen)
    if found is not None and (found.record.status in ENDINGS or found.record.carrier):
        return False
    try:
        return await answered(services.temporal.checkouts.start(placed)) and found is None
    except ClientError:
        raise _conflict(placed.order_id, is_chosen=is_chosen) from None


def _is_anothers(found: FoundOrder, placed: CheckoutInput) -> bool:
    """Return whether the id of an order belongs to one with other content."""
    record = found.record
    if record.fingerprint is not None:  # one inserted by hand has none until a saga has seen it
        return record.fingerprint != placed.fingerprint
    return (record.customer, frozenset(record.lines)) != (placed.customer, frozenset(placed.lines))


def _conflict(order_id: str, *, is_chosen: bool) -> Problem:
    if is_chosen:
        return Problem(
            HTTPStatus.CONFLICT, "order-id-conflict", f"{order_id_conflict(order_id)}. Choose another order_id."
        )
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "idempotency-key-reused",
        "This Idempotency-Key was sent with another order before. Use a new key for a new order.",
        errors=[Fault(pointer="Idempotency-Key", detail="it belongs to an order with other content")],
    )


async def _until_ended(services: Services, order_id: str, seconds: int) -> None:
    """Wait until an order has ended or is stuck, the time is over, or the process ends.

    The order was accepted: nothing fails here.
    """
    with suppress(TimeoutError, ClientError, RPCError, RuntimeError, SagaError):
        async with services.waiting(seconds):
            try:
                await services.temporal.checkouts.outcome(order_id, poll_every=1.0)
            except NoSuchOrder:  # in a batch, or past Temporal's retention
                while not await _has_ended(services, order_id):  # noqa: ASYNC110 - it happens in another process
                    await asyncio.sleep(_LOOKS_EVERY_SECONDS)


async def _has_ended(services: Services, order_id: str) -> bool:
    found = await services.reads.order(order_id)
    return found is None or found.record.status in ENDINGS | {OrderStatus.STUCK}


async def _current(services: Services, placed: CheckoutInput, *, is_chosen: bool) -> Order:
    """Show an order that was accepted, whatever answers now.

    Raises:
        Problem: another order has the id after all: one of a batch, say, that was not in the database before the start.
    """
    found = None
    with suppress(SagaError):
        found = await services.reads.order(placed.order_id)
    if found is not None:
        if _is_anothers(found, placed):
            raise _conflict(placed.order_id, is_chosen=is_chosen)
        return await shown.by_row(services, found)
    return await shown.by_saga(services, placed)


def asked_customers(allowed: frozenset[str] | None, asked: str | None) -> frozenset[str] | None:
    """Return whose orders are meant, of those that the caller may see; None for all."""
    if asked is None:
        return allowed
    if problem := identifier_problem(asked):
        raise invalid(Fault(pointer="customer", detail=problem))
    return frozenset({asked}) if allowed is None or asked in allowed else frozenset()


def _in_range(name: str, instant: datetime | None) -> datetime | None:
    if instant is not None and not is_plausible(instant):
        raise invalid(Fault(pointer=name, detail="it is not between 1970 and 2999"))
    return instant


def _cursor(given: str | None) -> Cursor | None:
    try:
        return None if given is None else Cursor.parse(given)
    except BadCursor:
        raise invalid(Fault(pointer="cursor", detail="no page has given this cursor")) from None
