"""Orders that come at once share a workflow; each caller sees what it would have seen with one of its own."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from tests.conftest import Shop
from tests.http_api.conftest import TEA, Api


def buys(customer: str, *lines: tuple[str, int]) -> dict[str, Any]:
    return {"customer": customer, "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines]}


async def carriers(shop: Shop) -> list[tuple[str | None, int]]:
    """Return the workflows of batches, and how many orders each has checked out."""
    rows = await shop.database.fetch("SELECT carrier, count(*) FROM orders GROUP BY 1 ORDER BY 2")
    return [(row[0], row[1]) for row in rows]


async def placed_at_once(api: Api, orders: Sequence[dict[str, Any]], **more: Any) -> list[httpx.Response]:
    return await asyncio.gather(*(api.place(order, **more) for order in orders))


@pytest.mark.usefixtures("worker")
async def test_orders_that_come_at_once_share_a_workflow(grouping: Api, shop: Shop) -> None:
    answers = await placed_at_once(grouping, [TEA] * 30, wait=20)

    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(201, "completed")}
    assert len({answer.json()["order_id"] for answer in answers}) == 30
    batches = await carriers(shop)
    assert 1 <= len(batches) <= 10
    assert all(str(carrier).startswith("bulk-") for carrier, _ in batches)
    histories = {answer.json()["links"]["history"].rpartition("/")[2] for answer in answers}
    assert histories == {carrier for carrier, _ in batches}
    for answer in answers:
        assert await grouping.get(answer.headers["location"]) == answer.json()
    assert (await shop.audit()).is_clean
