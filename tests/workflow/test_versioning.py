"""Versioned workers: an order ends on the build that it began on; no deploy and no rollback leaves one behind."""

import asyncio
import uuid

import pytest
from temporalio.api.enums.v1 import EventType, VersioningBehavior

from client.checkouts import Checkouts
from domain import policies
from domain.model import CheckoutStatus
from domain.policies import checkout_workflow_id
from tests.conftest import Shop
from tests.workflow.builds import TellsMore, WaitsFirst
from tests.workflow.deployments import Build, builds_of, is_known, make_current, temporal_cli
from tests.workflow.gates import PATIENCE_SECONDS
from tests.workflow.sagas import BREAK_UNDO, MEND_UNDO, hasty, how_it_ended, retry, until, until_status, violations


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))


# Beginning and ending ------------------------------------------------------------------------------------


async def test_an_order_of_an_unversioned_worker_belongs_to_no_version(shop: Shop) -> None:
    async with shop.working():
        handle = await shop.start(shop.order())
        ended = await how_it_ended(handle)

    assert ended == "completed"
    tasks = [
        event.workflow_task_completed_event_attributes
        async for event in handle.fetch_history_events()
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    ]
    assert {task.versioning_behavior for task in tasks} == {VersioningBehavior.VERSIONING_BEHAVIOR_UNSPECIFIED}
    assert {task.deployment_version.build_id for task in tasks} == {""}


async def test_a_versioned_worker_gets_orders_from_the_moment_its_version_is_current(shop: Shop) -> None:
    handle = await shop.start(shop.order())

    async with Build(shop, build_id="v1").working():
        await until(lambda: is_known(shop, "v1"))
        before = await builds_of(handle)
        await make_current(shop, "v1")
        ended = await how_it_ended(handle)

    assert before == set()
    assert ended == "completed"
    assert await builds_of(handle) == {"v1"}


async def test_an_order_ends_on_the_build_it_began_on_while_new_ones_begin_on_the_next(shop: Shop) -> None:
    # The next build could not take the old order: its commands are others.
    v1, v2 = Build(shop, build_id="v1"), Build(shop, WaitsFirst, build_id="v2")
    old, new = shop.order("alice"), shop.order("bob")
    gate = v1.gates.hold(old, "charge_payment", "before")

    async with v1.working(), v2.working():
        await make_current(shop, "v1")
        first = await shop.start(old)
        await gate.reached()
        await make_current(shop, "v2")
        second = await shop.start(new)
        ends = [await how_it_ended(second)]
        gate.open()
        ends.append(await how_it_ended(first))

    assert ends == ["OrderRejected", "completed"]
    assert (await builds_of(first), await builds_of(second)) == ({"v1"}, {"v2"})
    # Activities follow their order: neither build worked on the other's.
    assert v1.gates.attempts_of(old, "ship_order") >= 1
    assert not any(order_id == new.order_id for order_id, _ in v1.gates.attempts)
    assert not any(order_id == old.order_id for order_id, _ in v2.gates.attempts)
    assert await violations(shop) == []


@pytest.mark.parametrize("name", ["charge_payment", "refund_payment"])
async def test_a_rollback_strands_no_order_of_the_build_that_is_rolled_back(shop: Shop, name: str) -> None:
    v1, v2 = Build(shop, build_id="v1"), Build(shop, WaitsFirst, build_id="v2")
    before, during, after = (shop.order("nemo") for _ in range(3))
    first_gate, second_gate = v1.gates.hold(before, name, "before"), v2.gates.hold(during, name, "before")

    async with v1.working(), v2.working():
        await make_current(shop, "v1")
        first = await shop.start(before)
        await first_gate.reached()
        await make_current(shop, "v2")
        second = await shop.start(during)
        await second_gate.reached()
        await make_current(shop, "v1")
        third = await shop.start(after)
        first_gate.open()
        second_gate.open()
        ends = [await how_it_ended(handle) for handle in (first, second, third)]

    assert ends == ["OrderRejected"] * 3
    assert [await builds_of(handle) for handle in (first, second, third)] == [{"v1"}, {"v2"}, {"v1"}]
    assert await violations(shop) == []


async def test_the_first_versioned_build_takes_over_the_orders_of_unversioned_workers(shop: Shop) -> None:
    unversioned, v1 = Build(shop), Build(shop, TellsMore, build_id="v1")
    order = shop.order("alice")
    gate = unversioned.gates.hold(order, "charge_payment", "before")

    async with v1.working():
        async with unversioned.working():
            handle = await shop.start(order)
            await gate.reached()
            await make_current(shop, "v1")
        ended = await how_it_ended(handle)

    assert ended == "completed"
    assert "v1" in await builds_of(handle)
    assert await violations(shop) == []


async def test_back_to_unversioned_workers_the_pinned_orders_stay_with_their_build(shop: Shop) -> None:
    unversioned, v1 = Build(shop), Build(shop, build_id="v1")
    pinned, new = shop.order("alice"), shop.order("carol")
    gate = v1.gates.hold(pinned, "charge_payment", "before")

    async with v1.working(), unversioned.working():
        await make_current(shop, "v1")
        first = await shop.start(pinned)
        await gate.reached()
        await make_current(shop, "")
        second = await shop.start(new)
        ends = [await how_it_ended(second)]
        gate.open()
        ends.append(await how_it_ended(first))

    assert ends == ["completed", "completed"]
    assert (await builds_of(first), await builds_of(second)) == ({"v1"}, {""})
    assert await violations(shop) == []


# Sweeps, and orders that outlive their build ----------------------------------------------------------------


@pytest.mark.parametrize("moment", ["waits for a worker", "is looking for orders"])
async def test_a_sweep_begun_on_a_build_that_is_gone_ends_on_the_current_one_and_so_do_its_repairs(
    shop: Shop, moment: str
) -> None:
    v1, v2 = Build(shop, build_id="v1"), Build(shop, build_id="v2")
    order = shop.order("alice")
    reached = v1.gates.hold(order, "charge_payment", "before")
    repaired = shop.client.get_workflow_handle(checkout_workflow_id(order.order_id), result_type=CheckoutStatus)

    async with v1.working():
        await make_current(shop, "v1")
        handle = await shop.start(order)
        await reached.reached()
        await handle.terminate()
        if moment == "is looking for orders":
            sweeping = shop.order(order_id=f"sweep-{uuid.uuid4()}")  # for its gate
            looking = v1.gates.hold(sweeping, "find_unfinished", "before")
            sweep = await shop.start_sweep(sweep_id=sweeping.order_id)
            await looking.reached()
    if moment == "waits for a worker":
        sweep = await shop.start_sweep()
    async with v2.working():
        await make_current(shop, "v2")
        report = await asyncio.wait_for(sweep.result(), PATIENCE_SECONDS)
        ended = await how_it_ended(repaired)

    assert report.repaired == [order.order_id]
    assert ended == "OrderCancelled"
    assert await builds_of(repaired) == {"v2"}
    assert await violations(shop) == []


@pytest.mark.parametrize(
    "override",
    [
        ("--versioning-override-behavior", "auto_upgrade"),
        ("--versioning-override-behavior", "pinned", "--versioning-override-build-id", "v2"),
    ],
    ids=["auto_upgrade", "pinned"],
)
async def test_a_stuck_order_whose_build_is_gone_is_moved_to_another_and_fixed_there(
    shop: Shop, override: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))
    v1, v2 = Build(shop, build_id="v1"), Build(shop, TellsMore, build_id="v2")
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")

    async with v1.working():
        await make_current(shop, "v1")
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
    await shop.database.run(MEND_UNDO["pay"])
    async with v2.working():
        await make_current(shop, "v2")
        target = ("--versioning-override-deployment-name", shop.task_queue) if "pinned" in override else ()
        moved = await temporal_cli(shop, "workflow", "update-options", "-w", handle.id, *override, *target)
        status = await retry(handle)
        ended = await how_it_ended(handle)

    assert moved.returncode == 0, moved.stderr
    assert next(step.state for step in status.steps if step.step == "pay") == "undone"
    assert ended == "OrderRejected"
    assert "v2" in await builds_of(handle)
    assert await violations(shop) == []


async def test_an_order_of_a_bad_build_whose_workers_must_go_is_reset_to_the_good_one_and_done_once(shop: Shop) -> None:
    v1, v2 = Build(shop, build_id="v1"), Build(shop, WaitsFirst, build_id="v2")
    order = shop.order("alice")
    held = v2.gates.hold(order, "charge_payment", "after")

    async with v1.working():
        async with v2.working():
            await make_current(shop, "v2")
            handle = await shop.start(order)
            await held.reached()
        await make_current(shop, "v1")
        reset = await temporal_cli(
            shop,
            *("workflow", "reset", "with-workflow-update-options", "--workflow-id", handle.id),
            *("--type", "FirstWorkflowTask", "--reason", "bad deploy"),
            *("--versioning-override-behavior", "auto_upgrade"),
        )
        newest = shop.client.get_workflow_handle(handle.id, result_type=CheckoutStatus)
        ended = await how_it_ended(newest)

    assert reset.returncode == 0, reset.stderr
    assert ended == "completed"
    assert "v1" in await builds_of(newest)
    assert await shop.database.value("SELECT count(*) FROM transfers WHERE order_id = $1", order.order_id) == 1
    assert await violations(shop) == []


async def test_a_cancelled_order_whose_build_is_gone_is_still_known_as_cancelled(shop: Shop) -> None:
    v1, v2 = Build(shop, build_id="v1"), Build(shop, build_id="v2")
    order = shop.order("carol")
    gate = v1.gates.hold(order, "charge_payment", "before")
    async with v1.working():
        await make_current(shop, "v1")
        handle = await shop.start(order)
        await gate.reached()
        await handle.cancel()
        gate.open()
        ended = await how_it_ended(handle)

    async with v2.working():
        await make_current(shop, "v2")
        status = await Checkouts(shop.client, shop.task_queue, "http://ui").status(order.order_id)

    assert ended == "CANCELED"
    assert status.status == "cancelled"
