"""Reading and listing orders."""

import re
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import AwareDatetime, BeforeValidator

from domain.identifiers import identifier_problem
from http_api import shown
from http_api.models import Order, OrderList, OrderStatusWord, digits_alone
from http_api.problems import Fault, documented, invalid
from http_api.reads import BadCursor, Cursor, Wanted, is_plausible
from http_api.services import Given, Reader, Services

router = APIRouter(tags=["orders"])


def _as_described(value: Any) -> Any:
    """Refuse what Pydantic takes for an instant beside RFC 3339, such as a number."""
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\dT", value):
        raise ValueError("it is no instant such as 2026-11-29T12:00:00Z")
    return value


_Instant = Annotated[AwareDatetime, BeforeValidator(_as_described)]
OrderIdInPath = Annotated[str, Path(description="The order's id, percent-encoded.")]


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
    known = {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}
    if not known.isdisjoint({"*", tag.removeprefix("W/")}):
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
    limit: Annotated[int, Query(ge=1, le=200, description="Orders on a page."), digits_alone] = 50,
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
