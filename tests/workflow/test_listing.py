"""`starter.py list`: each order once, by its newest run, under its status, and as many as are asked for."""

import pytest
from temporalio.common import WorkflowIDReusePolicy

from client import checkouts as checkouts_module
from client import executions, listing
from client.checkouts import Checkouts
from client.listing import QUERIES, TERMINATED
from domain import policies
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id
from tests.conftest import Shop
from tests.workflow.gates import Gates
from tests.workflow.sagas import BREAK_UNDO, hasty, how_it_ended, until, until_status


@pytest.fixture(autouse=True)
def _only_this_tests_orders(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others of the session share the server; pages are short, so that every list has several."""
    ours = f"{listing.ORDERS} AND TaskQueue = '{shop.task_queue}'"
    monkeypatch.setattr(checkouts_module, "ORDERS", ours)
    monkeypatch.setattr(executions, "_PAGE", 2)
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO))


@pytest.fixture
def checkouts(shop: Shop) -> Checkouts:
    return Checkouts(shop.client, shop.task_queue, "http://ui")


async def listed(checkouts: Checkouts, status: str | None, limit: int = 100) -> list[tuple[str, str]]:
    return [(order.order_id, order.status) async for order in checkouts.list(status, limit)]


async def until_visible(shop: Shop, status: str, count: int) -> None:
    await until_found(shop, f"ExecutionStatus = '{status}'", count)


async def until_found(shop: Shop, condition: str, count: int) -> None:
    query = f"TaskQueue = '{shop.task_queue}' AND {condition}"

    async def is_visible() -> bool:
        return (await shop.client.count_workflows(query)).count == count

    await until(is_visible)


async def test_each_status_lists_its_orders_and_no_others(shop: Shop, checkouts: Checkouts) -> None:
    await shop.database.run(BREAK_UNDO["pay"])
    gates = Gates()
    orders = {
        "running": shop.order("alice"),
        "unwinding": shop.order("bob", ("lamp", 1)),
        "stuck": shop.order("nemo"),
        "completed": shop.order("alice"),
        "rejected": shop.order("bob", ("lamp", 1)),
        "cancelled": shop.order("carol"),
        TERMINATED: shop.order("alice"),
    }
    assert set(orders) == set(QUERIES)
    held = {
        "running": gates.hold(orders["running"], "ship_order", "before"),
        "unwinding": gates.hold(orders["unwinding"], "release_inventory", "before"),
        "cancelled": gates.hold(orders["cancelled"], "reserve_inventory", "before"),
        TERMINATED: gates.hold(orders[TERMINATED], "charge_payment", "before"),
    }

    async with shop.working(interceptors=(gates,)):
        for order in orders.values():
            await shop.start(order)
        for gate in held.values():
            await gate.reached()
        await checkouts.cancel(orders["cancelled"].order_id, "found it cheaper")
        held["cancelled"].open()
        await shop.newest_run(orders[TERMINATED]).terminate()
        await until_status(shop, orders["stuck"], "stuck")
        for status in ("completed", "rejected", "cancelled"):
            await how_it_ended(shop.newest_run(orders[status]))
        await until_found(shop, "WorkflowType = 'Checkout'", len(orders))
        await until_visible(shop, "Running", 3)
        for status in ("unwinding", "stuck"):
            await until_found(shop, f"OrderStatus = '{status}'", 1)
        everything = await listed(checkouts, None)
        found = {status: await listed(checkouts, status) for status in QUERIES}
        for status in ("running", "unwinding", "stuck"):
            await shop.newest_run(orders[status]).terminate()
        for gate in held.values():
            gate.open()

    names = {status: (order.order_id, status) for status, order in orders.items()}
    assert sorted(everything) == sorted(names.values())
    assert found == {
        **{status: [name] for status, name in names.items()},
        "running": found["running"],
    }
    assert sorted(found["running"]) == sorted([names["running"], names["unwinding"]])


@pytest.mark.parametrize(("limit", "expected"), [(100, 5), (5, 5), (3, 3), (1, 1)])
async def test_a_list_of_several_pages_has_each_order_once_and_no_more_than_are_asked_for(
    shop: Shop, checkouts: Checkouts, limit: int, expected: int
) -> None:
    orders = [shop.order("alice") for _ in range(5)]
    for order in orders:
        await checkouts.start(order)
    await until_visible(shop, "Running", 5)

    found = [order_id for order_id, _ in await listed(checkouts, None, limit)]
    running = [order_id for order_id, _ in await listed(checkouts, "running", limit)]

    for ids in (found, running):
        assert len(ids) == len(set(ids)) == expected
        assert set(ids) <= {order.order_id for order in orders}


async def ended_runs(shop: Shop, order: CheckoutInput, count: int) -> None:
    """Leave so many terminated runs of an order behind."""
    for _ in range(count):
        handle = await shop.client.start_workflow(
            "Checkout",
            order,
            id=checkout_workflow_id(order.order_id),
            task_queue=shop.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        )
        await handle.terminate()


async def test_a_limit_counts_orders_and_not_what_is_left_out(shop: Shop, checkouts: Checkouts) -> None:
    """Those that were repaired since, and older runs of one order, come first; they are passed over."""
    lost, repaired = [shop.order("alice") for _ in range(2)], [shop.order("alice") for _ in range(3)]
    for order in lost:
        await ended_runs(shop, order, 3)
    for order in repaired:
        await ended_runs(shop, order, 1)
        await shop.run_again(order)
    await until_visible(shop, "Running", 3)
    await until_visible(shop, "Terminated", 9)

    terminated = await listed(checkouts, TERMINATED, 2)
    everything = await listed(checkouts, None, 5)

    assert sorted(terminated) == sorted((order.order_id, TERMINATED) for order in lost)
    assert sorted(order_id for order_id, _ in everything) == sorted(order.order_id for order in [*lost, *repaired])


async def test_an_order_is_not_listed_under_the_status_of_an_older_run(shop: Shop, checkouts: Checkouts) -> None:
    rejected, completed = shop.order("bob", ("lamp", 1)), shop.order("alice")
    async with shop.working():
        for order in (rejected, completed):
            await how_it_ended(await shop.start(order))
    for order in (rejected, completed):
        await shop.run_again(order)
    await until_visible(shop, "Running", 2)

    found = {status: await listed(checkouts, status) for status in ("rejected", "completed")}

    assert found == {"rejected": [], "completed": []}
    assert sorted(await listed(checkouts, None)) == sorted(
        (order.order_id, "running") for order in (rejected, completed)
    )
