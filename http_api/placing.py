"""Placing an order: together with those that come at the same time, or in a workflow of its own."""

import asyncio
import base64
import hashlib
import json
import re
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from temporalio.service import RPCError

from client import executions
from client.failures import ClientError, NoSuchOrder
from domain.bulk import DELEGATED, ORDER_ID_CONFLICT, OWNED, UNKNOWN
from domain.identifiers import identifier_problem
from domain.model import ENDINGS, CheckoutInput, OrderLine, OrderStatus
from http_api import seats, shown
from http_api.conflicts import conflict, is_anothers
from http_api.models import NewOrder, Order, digits_alone
from http_api.problems import Fault, Problem, documented, invalid, temporal_is_away
from http_api.seats import PATIENCE_SECONDS, Asked, Batched
from http_api.services import Buyer, Given, Services
from http_api.temporal import ANSWER_SECONDS, answered
from sagafence import InvalidInput, SagaError

router = APIRouter(tags=["orders"])
PATH = "/v1/orders"
LONGEST_WAIT = 20
"""Seconds."""
KEY_PATTERN = r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$"
LONGEST_KEY = 255

_LOOKS_EVERY_SECONDS = 0.1
_ID_BYTES = 16
# The ids that `order_id_for` gives. Who chose one of another caller's key would take that key's order id away.
_BY_A_KEY = re.compile(r"o-[a-z2-7]{26}")

_LINKS = {
    operation: {"operationId": operation, "parameters": {"order_id": "$response.body#/order_id"}}
    for operation in ("read_order", "list_events", "stream_events", "cancel_order", "retry_order", "resolve_step")
}


@router.post(
    PATH,
    status_code=HTTPStatus.CREATED,
    response_model=Order,
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
    services: Given,
    principal: Buyer,
    idempotency_key: Annotated[
        str,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=LONGEST_KEY,
            pattern=KEY_PATTERN,
            description="New for each new order, and the same for each repeat.",
        ),
    ],
    wait: Annotated[
        int, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for the order's end."), digits_alone
    ] = 0,
    own_workflow: Annotated[
        bool, Query(description="Give the order a workflow and a history of its own: slower, and easier to read.")
    ] = False,
) -> Response:
    """Place an order; a repeat with the same key returns the order as it is now.

    An order that is refused for a reason of business is an order all the same: its status says so.
    """
    placed = _checked(order, order_id_for(principal.caller, idempotency_key))
    if not principal.may_act_for(placed.customer):
        raise Problem(HTTPStatus.FORBIDDEN, "customer", "The key of this request is for other customers.")
    asked = Asked(placed, order.order_id is not None, asyncio.get_running_loop().time() + wait)
    has_rival = services.recent.of(placed.order_id) not in {None, placed.fingerprint}
    found, is_new, batched = None, False, Batched(is_blocked=has_rival)
    if not (own_workflow or has_rival):
        found, is_new, batched = await _in_a_batch(services, asked)
    if found is None:
        found, is_begun = await _in_a_workflow_of_its_own(services, asked, batched)
        is_new = is_new or is_begun
    services.recent.add(placed.order_id, placed.fingerprint)
    headers = {"Location": found.links.self} | ({} if is_new else {"Idempotency-Replayed": "true"})
    status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
    # As it is: FastAPI would validate it, which takes a quarter of the request.
    return Response(found.model_dump_json(), status, headers, media_type="application/json")


def order_id_for(caller: str, idempotency_key: str) -> str:
    """Return the id of an order that has none of its own: it follows from who asks and their key."""
    digest = hashlib.sha256(json.dumps([caller, idempotency_key]).encode()).digest()[:_ID_BYTES]
    return f"o-{base64.b32encode(digest).decode().rstrip('=').lower()}"


def _checked(order: NewOrder, id_by_key: str) -> CheckoutInput:
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
        return CheckoutInput(order_id, order.customer, lines)
    except InvalidInput as error:  # lines of one SKU are merged
        raise invalid(Fault(pointer="/lines", detail=error.message)) from None


async def _in_a_batch(services: Services, asked: Asked) -> tuple[Order | None, bool, Batched]:
    """Check an order out together with others, and return it, and whether it is new.

    None where it needs a workflow of its own: its batch says so, or has not ended in time. Then it can be found by its
    own; the fences let only one of the two act.
    """
    order, batched = asked.order, await seats.batched(services, asked)
    outcome, workflow_id = batched.outcome, batched.workflow_id
    if outcome is None or workflow_id is None or outcome.status in {DELEGATED, UNKNOWN}:
        is_new = outcome is not None and batched.is_first and outcome.reason != OWNED
        return None, is_new, batched
    if outcome.status == ORDER_ID_CONFLICT:
        raise conflict(asked)
    found = None
    with suppress(SagaError):
        found = await services.reads.order(order.order_id)
    if found is None:
        return shown.by_outcome(services, outcome, order, workflow_id), batched.is_first, batched
    if is_anothers(found, order):
        raise conflict(asked)
    is_ours = found.record.batch_workflow_id == workflow_id
    batch = workflow_id if is_ours else None
    return await shown.by_row(services, found, batch=batch), batched.is_first and is_ours, batched


async def _in_a_workflow_of_its_own(services: Services, asked: Asked, batched: Batched) -> tuple[Order, bool]:
    """Start an order's own saga, or join the one it has; return the order, and whether it is new."""
    order = asked.order
    is_new, is_known = await _start(services, asked, batched)
    if asked.seconds_left > 0:
        await _until_ended(services, order.order_id, asked.seconds_left)
    elif is_new and not is_known:  # nobody is asked
        return shown.begun(services, order), True
    return await _current(services, asked), is_new


async def _start(services: Services, asked: Asked, batched: Batched) -> tuple[bool, bool]:
    """Start the order's saga, or join the one it has; return whether the order is new, and whether it has a row.

    The row is read first: after Temporal's retention it is all that there is. Where the database is away, the start
    alone decides, and the steps' fences return what was done.
    """
    placed, found = asked.order, None
    with suppress(SagaError):
        found = await services.reads.order(placed.order_id)
    if found is not None and is_anothers(found, placed):
        raise conflict(asked)
    if found is not None and (found.record.status in ENDINGS or found.record.batch_workflow_id):
        is_ours = found.record.batch_workflow_id == batched.workflow_id
        return batched.is_first and is_ours, True  # it has ended meanwhile
    if batched.is_blocked and not await _has_a_saga(services, placed.order_id):
        raise temporal_is_away()  # whose id it is, will be known when that batch has ended, or Postgres is back
    try:
        start = services.temporal.checkouts.start(placed)
        return await answered(start, ANSWER_SECONDS - PATIENCE_SECONDS) and found is None, found is not None
    except ClientError:
        if batched.workflow_id and batched.outcome is None:  # its batch may still be first
            raise temporal_is_away() from None
        raise conflict(asked) from None


async def _has_a_saga(services: Services, order_id: str) -> bool:
    try:
        await answered(executions.of_order(services.temporal.client, order_id))
    except NoSuchOrder:
        return False
    return True


async def _until_ended(services: Services, order_id: str, seconds: float) -> None:
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


async def _current(services: Services, asked: Asked) -> Order:
    """Show an order that was accepted, whatever answers now.

    Raises:
        Problem: another order has the id after all: one of a batch, say, that was not in the database before the start.
    """
    placed, found = asked.order, None
    with suppress(SagaError):
        found = await services.reads.order(placed.order_id)
    if found is not None:
        if is_anothers(found, placed):
            raise conflict(asked)
        return await shown.by_row(services, found)
    if services.stop.is_set():  # its saga may take as long to answer as this process has left
        return shown.begun(services, placed)
    return await shown.accepted(services, placed)
