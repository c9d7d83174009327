"""How many orders there are of each status."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query

from domain.model import ENDINGS, OrderStatus
from http_api.models import OrderCounts, OrderStatusWord, StatusCount
from http_api.orders import asked_customers
from http_api.reads import MOST_COUNTED, stored_as
from http_api.services import Given, Reader

router = APIRouter(tags=["orders"])


@router.get("/v1/counts", openapi_extra={"x-scope": "read, operate"})
async def count_orders(
    services: Given,
    principal: Reader,
    customer: Annotated[str | None, Query(description="Only this customer's.")] = None,
) -> OrderCounts:
    """Count the orders by status: exactly those that have not ended, and of the others 10 000 of a status at most."""
    found = await services.reads.counts(asked_customers(principal.customers, customer))
    return OrderCounts(counts=[_count(word, found) for word in OrderStatusWord if stored_as(word)])


def _count(word: OrderStatusWord, found: Mapping[OrderStatus, int]) -> StatusCount:
    statuses = stored_as(word)
    orders = sum(found[status] for status in statuses)
    if orders > MOST_COUNTED and ENDINGS.issuperset(statuses):
        return StatusCount(status=word, orders=MOST_COUNTED, is_at_least=True)
    return StatusCount(status=word, orders=orders, is_at_least=False)
