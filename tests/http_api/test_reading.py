"""Reading orders: wherever they are, as they are now, and in lists that miss nothing and show nothing twice."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

from domain import policies
from domain.bulk import digest
from domain.policies import bulk_workflow_id
from http_api.keys import Scope
from tests.conftest import Shop
from tests.http_api.conftest import TEA, Api
from tests.workflow.sagas import BREAK_UNDO, forget, hasty, until_status


async def every_page(api: Api, query: str, limit: int) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor = ""
    while True:
        page = await api.get(f"/v1/orders?limit={limit}{query}{cursor}")
        pages.append([order["order_id"] for order in page["orders"]])
        if page["next_cursor"] is None:
            return pages
        cursor = f"&cursor={page['next_cursor']}"


async def insert(shop: Shop, *orders: tuple[str, str, int]) -> None:
    """Write ended orders: id, customer, and minutes after midnight."""
    rows = [
        f"('{name}', '{customer}', 'rejected', '2026-01-01T00:00Z'::timestamptz + interval '{minutes} minutes')"
        for name, customer, minutes in orders
    ]
    await shop.database.run(f"INSERT INTO orders (order_id, customer, status, created_at) VALUES {', '.join(rows)}")


# One order ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_an_order_that_nobody_knows_is_not_found(api: Api) -> None:
    for path in ("/v1/orders/nobody", "/v1/orders/%E2%80%8B", "/v1/orders/nobody/events", "/v1/orders/nobody/stream"):
        answer = await api.call("GET", path)
        assert (answer.status_code, answer.json()["type"]) == (404, "about:blank#no-such-order"), path
        assert "starter.py" not in answer.text, "what a caller over HTTP can do is said"


@pytest.mark.usefixtures("worker")
async def test_what_has_not_changed_is_not_sent_again(api: Api, shop: Shop) -> None:
    order_id = await api.completed()
    path = f"/v1/orders/{order_id}"
    first = await api.call("GET", path)
    tag = first.headers["etag"]

    same = await api.call("GET", path, headers={"If-None-Match": f'"other", {tag}'})
    await shop.database.run(f"UPDATE orders SET reason = 'another' WHERE order_id = '{order_id}'")
    whatever = await api.call("GET", path, headers={"If-None-Match": "*"})
    changed = await api.call("GET", path, headers={"If-None-Match": tag})

    assert tag.startswith('W/"')
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert whatever.status_code == 304
    assert (changed.status_code, changed.headers["etag"] != tag) == (200, True)


@pytest.mark.usefixtures("worker")
async def test_an_order_by_hand_is_pending_and_has_no_history(api: Api, shop: Shop) -> None:
    order = shop.order()
    await shop.accept_by_hand(order)

    shown = await api.get(f"/v1/orders/{order.order_id}")

    assert (shown["status"], shown["links"]["history"], shown["lines"]) == (
        "pending",
        None,
        [{"sku": "tea-mug", "quantity": 1}],
    )


@pytest.mark.usefixtures("worker")
async def test_an_order_of_a_batch_links_to_its_batch(api: Api, shop: Shop) -> None:
    order = shop.order()
    await api.services.temporal.checkouts.process([order])

    shown = await api.get(f"/v1/orders/{order.order_id}")

    assert shown["status"] == "completed"
    assert "/workflows/bulk-" in shown["links"]["history"]


@pytest.mark.usefixtures("worker")
async def test_an_order_of_a_batch_that_temporal_has_forgotten_has_no_history(api: Api, shop: Shop) -> None:
    order = shop.order()
    await api.services.temporal.checkouts.process([order])
    await forget(shop, order, bulk_workflow_id(digest([order])))

    assert (await api.get(f"/v1/orders/{order.order_id}"))["links"]["history"] is None


@pytest.mark.usefixtures("worker")
async def test_an_order_whose_history_may_be_gone_links_to_one_only_where_it_is(api: Api, shop: Shop) -> None:
    kept, forgotten = await api.completed(), await api.completed()
    await shop.database.run("UPDATE orders SET updated_at = now() - interval '3 days'")
    await forget(shop, shop.order(order_id=forgotten))

    links = [(await api.get(f"/v1/orders/{order_id}"))["links"]["history"] for order_id in (kept, forgotten)]

    assert links == [f"http://ui.test/namespaces/default/workflows/checkout-{kept}", None]


async def test_an_order_whose_workflow_was_terminated_says_so_once_it_stands_still(
    api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "SHIP", hasty(policies.SHIP))
    await shop.database.run("REVOKE INSERT ON shipments FROM checkout")
    order = shop.order()
    async with shop.working():
        handle = await shop.start(order)
        await until_status(shop, order, "paid")
        await handle.terminate("by hand")
        path = f"/v1/orders/{order.order_id}"
        at_once = await api.get(path)
        await shop.database.run("UPDATE orders SET updated_at = now() - interval '1 minute'")

        later = await api.get(path)

    assert (at_once["status"], later["status"]) == ("running", "terminated")
    assert "starter.py sweep" in later["reason"]


async def test_a_stuck_order_says_what_its_undo_says(api: Api, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")  # nobody delivers to nemo
    async with shop.working():
        await shop.start(order)
        await until_status(shop, order, "stuck")

        shown = await api.get(f"/v1/orders/{order.order_id}")

    assert shown["status"] == "stuck"
    assert shown["incident"]["steps"] == ["pay"]
    assert "injected" in shown["incident"]["cause"]
    assert shown["incident"]["needs_review"] is False
    assert {"step": "pay", "state": "stuck", "detail": shown["incident"]["cause"]} in shown["steps"]


@pytest.mark.usefixtures("worker")
async def test_events_are_listed_in_sequence_and_from_a_number_on(api: Api) -> None:
    order_id = await api.completed()

    events = (await api.get(f"/v1/orders/{order_id}/events"))["events"]
    later = (await api.get(f"/v1/orders/{order_id}/events?after=2"))["events"]

    assert [(each["seq"], each["event"]) for each in events] == [(1, "reserved"), (2, "paid"), (3, "completed")]
    assert [each["seq"] for each in later] == [3]
    assert datetime.fromisoformat(events[0]["at"]).tzinfo is not None


# Lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
async def test_pages_have_every_order_once_the_newest_first(api: Api, shop: Shop, limit: int) -> None:
    await insert(shop, ("a", "alice", 1), ("b", "bob", 2), ("c", "alice", 2), ("d", "alice", 3))

    pages = await every_page(api, "", limit)

    assert [name for page in pages for name in page] == ["d", "c", "b", "a"]
    assert all(len(page) == limit for page in pages[:-1])


async def test_what_is_inserted_between_two_pages_shifts_nothing(api: Api, shop: Shop) -> None:
    await insert(shop, ("a", "alice", 1), ("b", "alice", 2), ("c", "alice", 3))
    first = await api.get("/v1/orders?limit=2")
    await insert(shop, ("new", "alice", 9))

    second = await api.get(f"/v1/orders?limit=2&cursor={first['next_cursor']}")

    assert [order["order_id"] for order in first["orders"]] == ["c", "b"]
    assert [order["order_id"] for order in second["orders"]] == ["a"]
    assert second["next_cursor"] is None


@pytest.mark.usefixtures("worker")
async def test_lists_are_filtered_by_status_customer_and_time(api: Api, shop: Shop) -> None:
    completed = await api.completed()
    await insert(shop, ("a", "alice", 1), ("b", "bob", 2), ("c", "alice", 3))
    await shop.accept_by_hand(shop.order(order_id="by-hand"))

    async def names(query: str) -> set[str]:
        return {order["order_id"] for order in (await api.get(f"/v1/orders?{query}"))["orders"]}

    assert await names("status=completed") == {completed}
    assert await names("status=pending") == {"by-hand"}
    assert await names("status=terminated") == set()
    assert await names("customer=bob") == {"b"}
    assert await names("customer=alice&status=rejected") == {"a", "c"}
    assert await names("created_from=2026-01-01T00:02:00Z&created_before=2026-01-01T00:03:00Z") == {"b"}


async def test_orders_under_way_are_listed_as_running(api: Api, shop: Shop) -> None:
    await insert(shop, ("a", "alice", 1), ("b", "bob", 2))
    await shop.database.run(
        "SET session_replication_role = replica; UPDATE orders SET total_minor = 1, currency = 'EUR',"
        " status = CASE order_id WHEN 'a' THEN 'reserved' ELSE 'paid' END"
    )

    running = (await api.get("/v1/orders?status=running"))["orders"]

    assert [(order["order_id"], order["status"]) for order in running] == [("b", "running"), ("a", "running")]


_BAD: list[tuple[str, str]] = [
    ("cursor=x", "cursor"),
    ("cursor=WyJ4Il0", "cursor"),
    ("cursor=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwgImEiXQ", "cursor"),
    (f"cursor={'W1tb' * 480}", "cursor"),
    ("created_from=0001-01-01T00:00:00%2B14:00", "created_from"),
    ("created_before=9999-12-31T23:59:59-14:00", "created_before"),
    ("created_from=2026-01-01T00:00:00", "created_from"),
    ("customer=%00", "customer"),
    ("created_from=0.5", "created_from"),
    ("limit=0", "limit"),
    ("limit=201", "limit"),
    ("limit=%2B1.0", "limit"),
    ("status=paid", "status"),
]


@pytest.mark.parametrize(("query", "pointer"), _BAD)
async def test_a_bad_filter_is_named(shared: Api, query: str, pointer: str) -> None:
    answer = await shared.call("GET", f"/v1/orders?{query}")

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


# Whose ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_a_key_for_some_customers_sees_no_others(api: Api, shop: Shop) -> None:
    await insert(shop, ("a", "alice", 1), ("b", "bob", 2), ("c", "carol", 3))
    key = api.key_for(Scope.READ, customers=("alice", "carol"))

    async def names(query: str) -> set[str]:
        return {order["order_id"] for order in (await api.get(f"/v1/orders{query}", key=key))["orders"]}

    assert await names("") == {"a", "c"}
    assert await names("?customer=carol") == {"c"}
    assert await names("?customer=bob") == set()
    seen: dict[str, Any] = {
        path: (await api.call("GET", f"/v1/orders/{path}", key=key)).status_code
        for path in ("a", "b", "b/events", "b/stream")
    }
    assert seen == {"a": 200, "b": 404, "b/events": 404, "b/stream": 404}


async def test_a_list_of_a_key_with_many_customers_is_one_statement_of_bounded_size(api: Api, shop: Shop) -> None:
    await insert(shop, *((f"o{n}", f"c{n}", n) for n in range(30)))
    key = api.key_for(Scope.READ, customers=(*(f"c{n}" for n in range(20)), *(f"other {n}" for n in range(980))))

    pages = await asyncio.gather(*(api.get("/v1/orders?limit=5", key=key) for _ in range(3)))

    assert {tuple(order["order_id"] for order in page["orders"]) for page in pages} == {
        ("o19", "o18", "o17", "o16", "o15")
    }


async def test_an_order_that_the_database_does_not_have_yet_is_shown_by_its_saga(shared: Api) -> None:
    placed = (await shared.place(TEA)).json()  # there is no worker: nothing is written

    shown = await shared.get(placed["links"]["self"])

    assert (shown["status"], shown["customer"], shown["created_at"]) == ("running", "alice", None)
