"""What starter.py's audit, sweep and load do with their options, what they say, and how they end."""

import csv
from pathlib import Path
from typing import Any

import pytest

from activities.inventory import Inventory
from client.checkouts import Checkouts
from domain import policies
from domain.model import CheckoutInput
from tests.conftest import Shop
from tests.integration.commands import Desk
from tests.workflow.sagas import BREAK_UNDO, hasty, how_it_ended, until, until_status
from tests.workflow.test_maintenance import accept_by_hand


async def lost_order(shop: Shop) -> CheckoutInput:
    """Make an order that holds stock and whose workflow was terminated."""
    order = shop.order("alice")
    await Inventory(shop.engine).reserve_inventory(order)
    await (await shop.start(order)).terminate()
    return order


# audit --------------------------------------------------------------------------------------------------


async def test_only_an_audit_at_rest_counts_an_order_that_moved_within_the_hour(run_starter: Desk) -> None:
    order = await lost_order(run_starter.shop)

    async with run_starter.shop.working():
        busy = await run_starter("audit")
        at_rest = await run_starter("audit", "--at-rest")
        document = await run_starter("audit", "--at-rest", "--json")

    assert (busy.code, at_rest.code, document.code) == (0, 5, 5)
    assert "no violations; 1 reserved" in " ".join(busy.out.split())
    assert order.order_id in at_rest.out
    assert "1 violations; 1 reserved" in at_rest.out
    assert "docs/operations.md" in at_rest.out
    assert [found["subject"] for found in document.document["violations"]] == [order.order_id]
    assert document.document["violation_count"] == 1
    assert document.document["orders"] == {"reserved": 1}
    assert document.document["violations"][0]["check"] in document.document["checks"]


async def test_an_audit_that_finds_only_a_stuck_order_ends_with_4_and_calls_for_somebody(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))
    await run_starter.shop.database.run(BREAK_UNDO["pay"])

    async with run_starter.shop.working():
        order_id = (await run_starter.json("start", "--customer", "nemo", "--line", "poster:1"))["order_id"]
        output, document = await run_starter("audit", "--at-rest"), await run_starter("audit", "--json")
        await run_starter.shop.newest_run(run_starter.shop.order(order_id=order_id)).terminate()

    assert (output.code, document.code) == (4, 4)
    assert "an operator is needed: `starter.py list --status stuck`" in output.out


@pytest.mark.parametrize("command", ["audit", "sweep"])
async def test_upkeep_waits_for_a_worker_no_longer_than_it_was_told(run_starter: Desk, command: str) -> None:
    ran = await run_starter(command, "--timeout", "1")

    assert ran.code == 1
    assert "did not finish within 1 s" in ran.err
    assert f"task queue {run_starter.shop.task_queue}" in ran.err
    assert "python worker.py" in ran.err


# sweep --------------------------------------------------------------------------------------------------


async def test_a_sweep_leaves_alone_what_moved_within_the_time_that_it_was_told(run_starter: Desk) -> None:
    order = await lost_order(run_starter.shop)

    async with run_starter.shop.working():
        by_default, output = await run_starter("sweep"), await run_starter("sweep", "--idle-for", "3600")
        assert await run_starter.shop.order_status(order) == "reserved"
        at_once = await run_starter("sweep", "--idle-for", "0")
        await until_status(run_starter.shop, order, "cancelled")

    assert (by_default.code, output.code, at_once.code) == (0, 0, 0)
    assert by_default.out == output.out == "0 started, 0 being repaired, 0 already running\n"
    assert at_once.out == f"repairing {order.order_id}\n0 started, 1 being repaired, 0 already running\n"


async def test_a_sweep_names_what_it_started_and_what_cannot_be_started(run_starter: Desk) -> None:
    good = await accept_by_hand(run_starter.shop, "alice")
    malformed = await accept_by_hand(run_starter.shop, "alice", [(f"sku-{n:03}", 1) for n in range(101)])

    async with run_starter.shop.working():
        output = await run_starter("sweep")
        await until_status(run_starter.shop, good, "completed")
        again = await run_starter("sweep", "--json")

    lines = output.out.splitlines()
    assert lines[0] == f"started {good.order_id}"
    assert lines[1].startswith(f"cannot start {malformed.order_id}: the order has 101 lines")
    assert lines[2:] == ["1 started, 0 being repaired, 0 already running", "1 cannot be started"]
    assert (again.document["started_count"], again.document["malformed_count"]) == (0, 1)
    assert (output.code, again.code) == (2, 2)


async def test_a_sweep_that_parks_an_order_ends_with_4(run_starter: Desk) -> None:
    shop, order = run_starter.shop, run_starter.shop.order()
    await accept_by_hand(shop, "alice", [(f"sku-{n:03}", 1) for n in range(101)])  # the worst is told
    async with shop.working():
        await how_it_ended(await shop.start(order))
        await shop.database.run(
            "SET session_replication_role = replica; UPDATE orders SET status = 'paid' WHERE status = 'completed'"
        )
        ran = await run_starter("sweep", "--idle-for", "0")
        await shop.newest_run(order).terminate()

    assert ran.code == 4
    assert f"parked: Temporal and the database disagree on {order.order_id}" in ran.out


# load ---------------------------------------------------------------------------------------------------


async def test_a_load_makes_up_as_many_orders_of_its_mix_as_it_was_told(run_starter: Desk) -> None:
    async with run_starter.shop.working():
        hot = await run_starter.json("load", "--orders", "6", "--mix", "hot", "--concurrency", "2")
        skus_of_hot = await run_starter.shop.database.value("SELECT array_agg(DISTINCT sku) FROM order_lines")
        mixed = await run_starter.json("load", "--orders", "30", "--mix", "mixed")

    assert (hot["orders"], hot["mix"], hot["concurrency"], hot["outcomes"]) == (6, "hot", 2, {"completed": 6})
    assert skus_of_hot == ["item-001"]
    assert 0 < hot["p50_ms"] <= hot["p95_ms"] <= hot["p99_ms"]
    assert hot["failures"] == []
    assert (mixed["orders"], mixed["mix"], mixed["concurrency"]) == (30, "mixed", 50)
    assert mixed["outcomes"].keys() == {"completed", "rejected"}
    assert await run_starter.shop.database.value("SELECT count(*) FROM orders") == 36


async def test_a_load_has_no_more_orders_under_way_than_it_was_told(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = most = 0
    start, outcome = Checkouts.start, Checkouts.outcome

    async def counted_start(self: Checkouts, order: CheckoutInput) -> bool:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        return await start(self, order)

    async def counted_outcome(self: Checkouts, *arguments: Any, **options: Any) -> Any:
        nonlocal under_way
        try:
            return await outcome(self, *arguments, **options)
        finally:
            under_way -= 1

    monkeypatch.setattr(Checkouts, "start", counted_start)
    monkeypatch.setattr(Checkouts, "outcome", counted_outcome)
    async with run_starter.shop.working():
        ran = await run_starter("load", "--orders", "12", "--concurrency", "3")

    assert most == 3
    assert ran.code == 0
    assert "12 orders (happy), 3 at once: " in ran.out
    assert "outcome  12 completed" in ran.out


async def test_a_load_whose_orders_cannot_be_followed_does_not_end_with_0(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(_self: Checkouts, order_id: str, **_options: Any) -> Any:
        raise ConnectionError(f"lost sight of {order_id[-6:]}")

    monkeypatch.setattr(Checkouts, "outcome", lost)
    async with run_starter.shop.working():
        output = await run_starter("load", "--orders", "2")
        document = await run_starter("load", "--orders", "2", "--json")

    assert (output.code, document.code) == (1, 1)
    assert "ConnectionError: lost sight of 000001" in output.out
    assert "2 orders could not be followed" in output.out
    assert len(document.document["failures"]) == 2


def orders_file(folder: Path, *orders: tuple[str, str, str]) -> Path:
    path = folder / "orders.csv"
    rows = "".join(f"{order_id},{customer},{sku},1\n" for order_id, customer, sku in orders)
    path.write_text(f"order_id,customer,sku,quantity\n{rows}", encoding="utf-8")
    return path


def told_in(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["order_id"]: row["status"] for row in csv.DictReader(file)}


async def batches_of(shop: Shop) -> list[int]:
    """Wait until visibility has the batches, and give their sizes."""
    handles = [
        shop.client.get_workflow_handle(found.id)
        async for found in shop.client.list_workflows(
            f"WorkflowType = '{policies.BULK_WORKFLOW}' AND TaskQueue = '{shop.task_queue}'"
        )
    ]
    sizes = []
    for handle in handles:
        [first, *_] = [event async for event in handle.fetch_history_events()]
        payloads = first.workflow_execution_started_event_attributes.input.payloads
        [given] = await shop.client.data_converter.decode(payloads)
        assert isinstance(given, dict)
        sizes.append(len(given["orders"]))
    return sorted(sizes)


async def test_a_bulk_load_makes_batches_of_the_size_it_was_reported_and_writes_where_it_was_told(
    run_starter: Desk,
) -> None:
    ids = [f"size-{run_starter.folder.name}-{number}"[-60:] for number in range(5)]
    file = orders_file(run_starter.folder, *((order_id, "alice", "tea-mug") for order_id in ids))

    async with run_starter.shop.working():
        output = await run_starter("load", "--from", str(file), "--batch", "2", "--outcomes", "told.csv")

    async def are_visible() -> bool:
        return len(await batches_of(run_starter.shop)) == 3

    await until(are_visible)
    assert await batches_of(run_starter.shop) == [1, 2, 2]
    assert output.code == 0
    assert output.out.splitlines()[1:] == ["outcome  5 completed", "each order's outcome is in told.csv"]
    assert told_in(run_starter.folder / "told.csv") == dict.fromkeys(ids, "completed")
    assert not (run_starter.folder / "orders.csv.outcomes.csv").exists()


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [("unknown", "unknown", 1), ("stuck", "stuck", 4), ("malformed", "malformed", 2), ("rejected", "rejected", 0)],
)
async def test_a_bulk_load_ends_with_the_worst_that_it_has_to_tell(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch, trouble: str, status: str, code: int
) -> None:
    process = Checkouts.process

    async def processed(self: Checkouts, orders: Any) -> Any:
        outcomes = await process(self, orders)
        return [
            type(output)(output.order_id, trouble if output.status == "rejected" else output.status, output.reason)
            for output in outcomes
        ]

    monkeypatch.setattr(Checkouts, "process", processed)
    customer = "two words and a\tbreak" if trouble == "malformed" else "bob"
    good, bad = f"good-{run_starter.folder.name}"[-60:], f"bad-{run_starter.folder.name}"[-60:]
    file = orders_file(run_starter.folder, (good, "alice", "tea-mug"), (bad, customer, "lamp"))

    async with run_starter.shop.working():
        output = await run_starter("load", "--from", str(file))

    assert output.code == code
    assert f"1 {status}" in output.out
    assert told_in(run_starter.folder / "orders.csv.outcomes.csv") == {good: "completed", bad: status}


async def test_the_outcomes_of_a_batch_that_ended_are_in_the_file_while_the_load_goes_on(
    run_starter: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that is killed then leaves them behind."""
    into = run_starter.folder / "orders.csv.outcomes.csv"
    ids = [f"flush-{run_starter.folder.name}-{number}"[-60:] for number in range(2)]
    seen: list[dict[str, str]] = []
    process = Checkouts.process

    async def looking(self: Checkouts, orders: Any) -> Any:
        seen.append(told_in(into) if into.exists() else {})
        return await process(self, orders)

    monkeypatch.setattr(Checkouts, "process", looking)
    file = orders_file(run_starter.folder, *((order_id, "alice", "tea-mug") for order_id in ids))
    async with run_starter.shop.working():
        ran = await run_starter("load", "--from", str(file), "--batch", "1", "--concurrency", "1")

    assert ran.code == 0
    assert seen[1] == {ids[0]: "completed"}
