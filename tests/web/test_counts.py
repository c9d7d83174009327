"""How many orders there are of each status."""

from typing import Any

import pytest

from adapters.database import create_reader_engine
from devstack.stack import DevStack
from domain.model import OrderStatus
from http_api import counts
from http_api.keys import Scope
from http_api.reads import Reads
from tests.conftest import Shop
from tests.http_api.conftest import Api, reader_url

ORDERS = """
    INSERT INTO orders (order_id, customer, status, changed_by, ending, total_minor, currency)
    VALUES ('a', 'alice', 'reserved', 'reserve', NULL, 100, 'EUR'),
           ('b', 'alice', 'reserved', 'reserve', NULL, 100, 'EUR'),
           ('c', 'alice', 'stuck', 'park', 'rejected', 100, 'EUR'),
           ('d', 'alice', 'pending', 'accept', NULL, NULL, NULL),
           ('e', 'bob', 'rejected', 'close', 'rejected', NULL, NULL),
           ('f', 'bob', 'rejected', 'close', 'rejected', NULL, NULL),
           ('g', 'carol', 'rejected', 'close', 'rejected', NULL, NULL);
    UPDATE orders SET status = 'paid', changed_by = 'pay' WHERE order_id = 'b'
"""


async def counted(api: Api, path: str = "/v1/counts", **more: Any) -> dict[str, tuple[int, bool]]:
    """Ask for the counts, without those that are 0."""
    found = (await api.get(path, **more))["counts"]
    return {each["status"]: (each["orders"], each["is_at_least"]) for each in found if each["orders"]}


async def test_orders_are_counted_by_the_words_of_the_list(shop: Shop, api: Api) -> None:
    empty = (await api.get("/v1/counts"))["counts"]
    await shop.database.run(ORDERS)
    all_of_them = await counted(api)

    assert [each["status"] for each in empty] == [
        "pending", "running", "completed", "unwinding", "rejected", "cancelled", "stuck",
    ]  # fmt: skip
    assert all_of_them == {"pending": (1, False), "running": (2, False), "stuck": (1, False), "rejected": (3, False)}
    assert await counted(api, "/v1/counts?customer=bob") == {"rejected": (2, False)}


async def test_a_key_counts_the_orders_of_its_own_customers(shop: Shop, api: Api) -> None:
    await shop.database.run(ORDERS)
    key = api.key_for(Scope.READ, customers=("bob", "carol"))

    assert await counted(api, key=key) == {"rejected": (3, False)}
    assert await counted(api, "/v1/counts?customer=carol", key=key) == {"rejected": (1, False)}
    assert await counted(api, "/v1/counts?customer=alice", key=key) == {}
    assert (await api.call("GET", "/v1/counts", key=api.key_for(Scope.BUY))).status_code == 403


async def test_orders_that_have_ended_are_counted_up_to_a_bound(
    shop: Shop, api: Api, stack: DevStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.database.run(ORDERS)
    monkeypatch.setattr(counts, "MOST_COUNTED", 2)
    engine = create_reader_engine(reader_url(stack, shop))
    found = await Reads(engine).counts(None, most=1)
    await engine.dispose()

    assert await counted(api) == {
        "pending": (1, False),
        "running": (2, False),
        "stuck": (1, False),
        "rejected": (2, True),
    }
    assert (found[OrderStatus.REJECTED], found[OrderStatus.STUCK]) == (2, 1)
