"""Every order answers to its id: in a saga of its own, in a batch, written by hand, or forgotten by Temporal."""

from typing import Any
from urllib.parse import quote

import pytest

from activities import lookups
from client import lookup, order_list
from domain.model import CheckoutInput
from domain.policies import checkout_workflow_id
from sagafence import DatabaseRefusedStatement, fence
from tests.conftest import Shop
from tests.integration.commands import Desk
from tests.workflow.bulk_scenes import BulkHandle, between_steps, gates_of, mixed, start_batch
from tests.workflow.gates import Gates
from tests.workflow.sagas import BREAK_UNDO, forget, how_it_ended, until, until_tried

LINK = "/namespaces/default/workflows/"


async def told(run_starter: Desk, order: CheckoutInput, *, code: int) -> Any:
    """Give what `status --json` says of an order."""
    ran = await run_starter("status", order.order_id, "--json")
    assert (ran.code, ran.err) == (code, "")
    return ran.document


# status -------------------------------------------------------------------------------------------------


async def test_an_order_of_a_batch_is_reported_with_its_steps_and_the_batch_as_its_history(run_starter: Desk) -> None:
    shop = run_starter.shop
    orders = mixed(shop)
    async with shop.working():
        batch = await start_batch(shop, orders)
        await batch.result()
        ran = [await run_starter("status", order.order_id) for order in orders]
        document = await told(run_starter, orders[0], code=0)

    tracking = await shop.database.value(
        "SELECT tracking_number FROM shipments WHERE order_id = $1", orders[0].order_id
    )
    heading, reserve, pay, ship, link = ran[0].out.splitlines()
    assert heading == f"order {orders[0].order_id}  completed  24.00 EUR  parcel {tracking}"
    assert reserve.split(maxsplit=2) == ["reserve", "done", "2 × tea-mug: 24.00 EUR"]
    assert pay.split(maxsplit=2) == ["pay", "done", f"capture/{orders[0].order_id}"]
    assert ship.split(maxsplit=2)[:2] == ["ship", "done"]
    assert ship.split(maxsplit=2)[2].startswith(f"{tracking}, ")
    assert link.strip() == document["ui_url"]
    assert document["ui_url"].endswith(LINK + batch.id)
    assert document["workflow_id"] == batch.id
    assert all(one.out.splitlines()[-1].endswith(LINK + batch.id) for one in ran)
    assert [one.code for one in ran] == [0, 3, 3, 3, 0]
    assert "UndeliverableAddress" in ran[3].out
    assert [line.split()[:2] for line in ran[3].out.splitlines()[2:4]] == [["reserve", "nothing"], ["pay", "nothing"]]


async def test_an_order_whose_batch_is_under_way_is_running(run_starter: Desk) -> None:
    shop, gates, orders = run_starter.shop, Gates(), [run_starter.shop.order()]
    key = gates_of(shop, orders)
    await between_steps(shop, key.order_id, orders, are_paid=True)
    gate = gates.hold(key, "check_out_orders", "before")
    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, orders)
        await gate.reached()
        document = await told(run_starter, orders[0], code=0)
        gate.open()
        await batch.result()

    assert (document["status"], document["workflow_id"]) == ("running", batch.id)
    assert [step["step"] for step in document["steps"]] == ["reserve", "pay"]


async def ended_from_outside(shop: Shop, orders: list[CheckoutInput]) -> BulkHandle:
    """Terminate a batch whose orders are reserved."""
    gates, key = Gates(), gates_of(shop, orders)
    await between_steps(shop, key.order_id, orders)
    gates.fail(key, "check_out_orders")
    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, orders)
        await until_tried(gates, key, "check_out_orders", times=2)
        await batch.terminate()
    return batch


async def test_an_order_whose_batch_was_ended_from_outside_is_reported_as_that_until_the_sweep_has_been(
    run_starter: Desk,
) -> None:
    shop, orders = run_starter.shop, [run_starter.shop.order()]
    batch = await ended_from_outside(shop, orders)
    async with shop.working():
        ended = await told(run_starter, orders[0], code=4)
        report = await shop.sweep()
        await how_it_ended(shop.newest_run(orders[0]))
        swept = await told(run_starter, orders[0], code=3)

    assert report.repaired == [orders[0].order_id]
    assert ended["status"] == "terminated"
    assert "starter.py sweep" in ended["reason"]
    assert ended["ui_url"].endswith(LINK + batch.id)
    assert (swept["status"], swept["workflow_id"]) == ("cancelled", checkout_workflow_id(orders[0].order_id))


async def test_an_order_that_was_handed_over_is_reported_by_its_own_saga(run_starter: Desk) -> None:
    shop, gates, orders = run_starter.shop, Gates(), [run_starter.shop.order()]
    key = gates_of(shop, orders)
    await between_steps(shop, key.order_id, orders)
    gates.fail(key, "check_out_orders", error=lambda: DatabaseRefusedStatement("no right: injected"))
    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, orders)
        await batch.result()
        await how_it_ended(shop.newest_run(orders[0]))
        document = await told(run_starter, orders[0], code=0)

    assert await shop.database.value("SELECT batch_workflow_id FROM orders") == batch.id
    assert (document["status"], document["workflow_id"]) == ("completed", checkout_workflow_id(orders[0].order_id))


@pytest.mark.parametrize("how", ["rejected", "cancelled", "terminated"])
async def test_a_saga_that_only_asked_for_a_taken_id_does_not_answer_for_the_order_that_has_it(
    run_starter: Desk, how: str
) -> None:
    shop, gates, order = run_starter.shop, Gates(), run_starter.shop.order()
    other = shop.order("bob", ("poster", 1), order_id=order.order_id)
    gate = gates.hold(other, "reserve_inventory", "before")
    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, [order])
        await batch.result()
        handle = await shop.start(other)
        await gate.reached()
        if how == "cancelled":
            await handle.execute_update("cancel", "found it cheaper", result_type=None)
        elif how == "terminated":
            await handle.terminate()
        gate.open()
        await how_it_ended(handle)
        document = await told(run_starter, order, code=0)

    assert (document["status"], document["workflow_id"]) == ("completed", batch.id)
    assert [step["state"] for step in document["steps"]] == ["done", "done", "done"]


async def test_an_order_by_hand_answers_before_and_after_the_sweep(run_starter: Desk) -> None:
    shop, order = run_starter.shop, run_starter.shop.order()
    await shop.accept_by_hand(order)
    async with shop.working():
        ran = await run_starter("status", order.order_id)
        before = await told(run_starter, order, code=0)
        await shop.sweep()
        await how_it_ended(shop.newest_run(order))
        after = await told(run_starter, order, code=0)

    assert (before["status"], before["workflow_id"], before["ui_url"]) == ("pending", None, None)
    assert "starter.py sweep" in before["reason"]
    assert "Temporal has no history of it" in ran.out
    assert (after["status"], after["workflow_id"]) == ("completed", checkout_workflow_id(order.order_id))


@pytest.mark.parametrize(("customer", "status", "code"), [("alice", "completed", 0), ("nemo", "rejected", 3)])
async def test_an_order_that_temporal_has_forgotten_is_reported_by_the_database(
    run_starter: Desk, customer: str, status: str, code: int
) -> None:
    shop, order = run_starter.shop, run_starter.shop.order(customer)
    async with shop.working():
        await how_it_ended(await shop.start(order))
        by_its_saga = await told(run_starter, order, code=code)
        await forget(shop, order)
        by_the_database = await told(run_starter, order, code=code)

    assert by_the_database["status"] == by_its_saga["status"] == status
    assert by_the_database["ui_url"] is None
    same = ("reason", "total_minor", "currency", "tracking_number")
    assert {name: by_the_database[name] for name in same} == {name: by_its_saga[name] for name in same}
    done = {step["step"]: step["state"] for step in by_its_saga["steps"]}
    assert {step["step"]: step["state"] for step in by_the_database["steps"]} == done


async def test_a_stuck_order_that_temporal_has_forgotten_says_which_step_is_stuck(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "UNDO_ATTEMPTS_WHEN_REFUSED", 1)
    shop, order = run_starter.shop, run_starter.shop.order("nemo")
    await shop.database.run(BREAK_UNDO["pay"])
    async with shop.working():
        buy = ("start", "--order-id", order.order_id, "--customer", "nemo", "--line", "tea-mug:1")
        assert (await run_starter(*buy)).code == 4
        await shop.newest_run(order).terminate()
        await forget(shop, order)
        document = await told(run_starter, order, code=4)

    states = {step["step"]: step["state"] for step in document["steps"]}
    assert document["status"] == "stuck"
    assert states["pay"] == "stuck"


async def test_an_order_that_nobody_knows_is_reported_as_that(run_starter: Desk) -> None:
    async with run_starter.shop.working():
        ran = await run_starter("status", "nobody-s")

    assert ran.code == 2
    assert "neither Temporal nor the database knows it" in ran.err


async def test_without_a_worker_it_is_said_who_could_tell(run_starter: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "TAKEN_WITHIN_SECONDS", 0.5)

    ran = await run_starter("status", "by-hand-1")

    assert ran.code == 1
    assert "order by-hand-1 has no saga of its own, and no worker answered within 0.5 s" in ran.err
    assert run_starter.shop.task_queue in ran.err
    assert "`python worker.py` starts one" in ran.err


async def test_where_the_database_is_away_that_is_said(run_starter: Desk) -> None:
    await run_starter.shop.database.run("REVOKE SELECT ON orders FROM checkout")
    async with run_starter.shop.working():
        ran = await run_starter("status", "by-hand-1")

    assert ran.code == 1
    assert "the database cannot be asked: " in ran.err


# list ---------------------------------------------------------------------------------------------------


async def listed(run_starter: Desk, *options: str) -> dict[str, tuple[str, str | None]]:
    """Give how each order of the test is listed, and the workflow that has its history."""
    documents = await run_starter.json("list", "--limit", "10000", *options)
    ours = {row["order_id"] for row in await run_starter.shop.database.fetch("SELECT order_id FROM orders")}
    for one in documents:
        link = one["ui_url"]
        assert link is None if one["workflow_id"] is None else link.endswith(LINK + quote(one["workflow_id"], safe=""))
    return {one["order_id"]: (one["status"], one["workflow_id"]) for one in documents if one["order_id"] in ours}


async def test_a_list_has_the_orders_of_batches_and_those_by_hand_each_once(run_starter: Desk) -> None:
    shop, gates = run_starter.shop, Gates()
    orders = mixed(shop)
    own, by_hand, missing_step = shop.order(), shop.order(), shop.order()
    under_way = [shop.order()]
    handed_over = [shop.order()]
    await between_steps(shop, gates_of(shop, under_way).order_id, under_way)
    gate = gates.hold(gates_of(shop, under_way), "check_out_orders", "before")
    gates.fail(
        gates_of(shop, handed_over), "check_out_orders", error=lambda: DatabaseRefusedStatement("no right: injected")
    )
    async with shop.working(interceptors=(gates,)):
        batch = await start_batch(shop, orders)
        await batch.result()
        for order in (own, missing_step):
            await how_it_ended(await shop.start(order))
        await forget(shop, missing_step)
        await (await start_batch(shop, handed_over)).result()
        await how_it_ended(shop.newest_run(handed_over[0]))
        running = await start_batch(shop, under_way)
        await gate.reached()
        await shop.accept_by_hand(by_hand)
        ended = {checkout_workflow_id(order.order_id) for order in (own, handed_over[0])}

        async def are_visible() -> bool:
            query = f"TaskQueue = '{shop.task_queue}' AND WorkflowType = 'Checkout'"
            runs = [run async for run in shop.client.list_workflows(query)]
            return {run.id for run in runs} == ended and all(run.close_time for run in runs)

        await until(are_visible)
        found = await listed(run_starter)
        by_status = {
            status: set(await listed(run_starter, "--status", status))
            for status in ("running", "completed", "rejected", "pending", "cancelled", "terminated", "stuck")
        }
        newest = await run_starter.json("list", "--limit", "1")
        table = await run_starter("list", "--status", "pending", COLUMNS="200")
        gate.open()
        await running.result()

    expected = {
        **{order.order_id: ("completed", batch.id) for order in (orders[0], orders[4])},
        **{order.order_id: ("rejected", batch.id) for order in orders[1:4]},
        own.order_id: ("completed", checkout_workflow_id(own.order_id)),
        handed_over[0].order_id: ("completed", checkout_workflow_id(handed_over[0].order_id)),
        missing_step.order_id: ("completed", None),
        under_way[0].order_id: ("running", running.id),
        by_hand.order_id: ("pending", None),
    }
    assert found == expected
    for status, ids in by_status.items():
        assert ids == {order_id for order_id, (told_as, _) in expected.items() if told_as == status}, status
    assert [one["order_id"] for one in newest] == [by_hand.order_id]
    assert by_hand.order_id in table.out


async def test_a_list_reports_of_the_order_and_not_of_who_asked_for_its_id(run_starter: Desk) -> None:
    shop, order = run_starter.shop, run_starter.shop.order()
    other = shop.order("bob", ("poster", 1), order_id=order.order_id)
    async with shop.working():
        batch = await start_batch(shop, [order])
        await batch.result()
        await how_it_ended(await shop.start(other))

        async def is_visible() -> bool:
            query = f"WorkflowId = '{checkout_workflow_id(order.order_id)}' AND OrderStatus = 'rejected'"
            return (await shop.client.count_workflows(query)).count == 1

        await until(is_visible)
        found = [await listed(run_starter), await listed(run_starter, "--status", "completed")]

    assert found == [{order.order_id: ("completed", batch.id)}] * 2


async def test_an_order_whose_batch_is_gone_is_listed_as_what_the_sweep_has_to_repair(run_starter: Desk) -> None:
    shop, orders = run_starter.shop, [run_starter.shop.order()]
    batch = await ended_from_outside(shop, orders)
    async with shop.working():
        found = [await listed(run_starter, "--status", status) for status in ("terminated", "running")]

    assert found == [{orders[0].order_id: ("terminated", batch.id)}, {}]


async def test_without_a_worker_a_list_has_what_temporal_knows_and_says_what_is_missing(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_list, "_ANSWERED_WITHIN_SECONDS", 0.5)
    order = run_starter.shop.order()
    await run_starter.shop.start(order)

    async def is_visible() -> bool:
        return order.order_id in (await run_starter("list", "--limit", "10000", "--json")).out

    await until(is_visible)
    ran = await run_starter("list", "--limit", "10000", "--json")

    assert ran.code == 0
    assert "orders that came in batches or by hand are not listed: no worker answered within 0.5 s" in ran.err


async def test_a_list_says_where_it_has_stopped_looking(run_starter: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_EVENTS_LOOKED_AT", 2)
    orders = [run_starter.shop.order() for _ in range(4)]
    await run_starter.shop.accept_by_hand(*orders)
    async with run_starter.shop.working():
        whole = await run_starter("list", "--status", "pending", "--limit", "10000")
        cut = await run_starter("list", "--limit", "10000", "--json")

    assert whole.err == ""
    assert cut.err == "older orders that came in batches or by hand were not looked at\n"
    ours = {order.order_id for order in orders}
    assert len(ours & {one["order_id"] for one in cut.document}) == 2


async def test_a_long_list_is_asked_for_in_pages(run_starter: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_list, "PAGE", 2)
    orders = [run_starter.shop.order() for _ in range(5)]
    await run_starter.shop.accept_by_hand(*orders)
    async with run_starter.shop.working():
        found = await listed(run_starter)

    assert set(found) == {order.order_id for order in orders}
