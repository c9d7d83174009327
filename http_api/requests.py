"""What an operator asks of an order: cancel, retry, resolve. Each is answered once it is accepted."""

from http import HTTPStatus

from fastapi import APIRouter

from domain.model import ENDINGS, CheckoutStatus, reason_problem
from http_api import shown
from http_api.models import Accepted, OperatorRequest, OrderStatusWord, ResolveRequest
from http_api.orders import OrderIdInPath, visible
from http_api.principal import Principal
from http_api.problems import Fault, documented, invalid
from http_api.services import Given, Operator, Services
from http_api.temporal import answered

router = APIRouter(
    tags=["operators"],
    responses=documented(
        HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    ),
)

# Several calls each: what the order's runs have answered, the request, the answer.
_ASK_SECONDS = 5.5
_SINCE: dict[str, str] = {
    **{ending.value: f"The order has ended as {ending}: there is nothing left to do." for ending in ENDINGS},
    OrderStatusWord.TERMINATED.value: "Its workflow has been ended from outside since: the sweep undoes what is left.",
}


@router.post(
    "/v1/orders/{order_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    openapi_extra={"x-scope": "operate"},
)
async def cancel_order(
    order_id: OrderIdInPath, request: OperatorRequest, services: Given, principal: Operator
) -> Accepted:
    """Cancel an order: what was done is undone. Refused once it has ended. A repeat joins the first request."""
    known = await _checked(services, principal, order_id, request.reason)
    await answered(services.temporal.orders.request_cancel(known, request.reason, principal.actor), _ASK_SECONDS)
    return _accepted(known, "The cancel was accepted: the order is undone, unless its parcel has left before.")


@router.post(
    "/v1/orders/{order_id}/retry",
    status_code=HTTPStatus.ACCEPTED,
    openapi_extra={"x-scope": "operate"},
)
async def retry_order(
    order_id: OrderIdInPath, request: OperatorRequest, services: Given, principal: Operator
) -> Accepted:
    """Retry the failed undos of a stuck order, once the cause is fixed. Each undo may take a quarter of an hour."""
    known = await _checked(services, principal, order_id, request.reason)
    asked = services.temporal.orders.request_retry(known, request.reason, principal.actor)
    answer = await answered(asked, _ASK_SECONDS)
    return _accepted(known, "The retry was accepted: what still stands of the order is undone now.", answer)


@router.post(
    "/v1/orders/{order_id}/resolve",
    status_code=HTTPStatus.ACCEPTED,
    openapi_extra={"x-scope": "operate"},
)
async def resolve_step(
    order_id: OrderIdInPath, request: ResolveRequest, services: Given, principal: Operator
) -> Accepted:
    """Declare a stuck step resolved by hand. Neither it nor its undo will ever act for this order again."""
    known = await _checked(services, principal, order_id, request.reason)
    asked = services.temporal.orders.request_resolve(known, request.step.value, request.reason, principal.actor)
    answer = await answered(asked, _ASK_SECONDS)
    detail = f"The step {request.step.value} counts as resolved; what else is stuck is tried again"
    return _accepted(known, f"{detail}, unless the order needs a review.", answer)


async def _checked(services: Services, principal: Principal, order_id: str, reason: str) -> str:
    if problem := reason_problem(reason):
        raise invalid(Fault(pointer="/reason", detail=problem))
    known = shown.order_id_in(order_id)
    if principal.customers is not None:
        await visible(services, principal, known)
    return known


def _accepted(order_id: str, detail: str, answer: CheckoutStatus | None = None) -> Accepted:
    if answer is not None:
        detail = _SINCE.get(answer.status, detail)
    return Accepted(order_id=order_id, detail=detail, links=shown.links(order_id))
