"""What Temporal's UI shows of an order: its details as they stand, summaries, the failure, and search attributes."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowHandle

from client.checkouts import Checkouts
from domain import policies
from domain.bulk import digest
from domain.text import for_summary
from tests.conftest import Shop
from tests.workflow.gates import Gates
from tests.workflow.sagas import BREAK_UNDO, failure_of, hasty, how_it_ended, until_status

Handle = WorkflowHandle[Any, Any]


@pytest.fixture(autouse=True)
def _hasty_undos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "UNDO", hasty(policies.UNDO, give_up_ms=4000))


async def details_of(handle: Handle) -> list[str]:
    metadata: WorkflowMetadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return str(metadata.current_details).splitlines()


async def summaries_of(shop: Shop, handle: Handle) -> dict[str, str]:
    """Read what each activity of a history is summarised as, by its name."""

    async def scheduled() -> AsyncIterator[tuple[str, str]]:
        async for event in handle.fetch_history_events():
            if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                name = event.activity_task_scheduled_event_attributes.activity_type.name
                [summary] = await shop.client.data_converter.decode([event.user_metadata.summary], [str])
                yield name, summary

    return {name: summary async for name, summary in scheduled()}


async def test_the_details_of_an_order_are_as_it_stands(shop: Shop) -> None:
    gates, order = Gates(), shop.order("alice", ("tea-mug", 2))
    gate = gates.hold(order, "charge_payment", "before")

    async with shop.working(interceptors=(gates,)):
        handle = await shop.start(order)
        await gate.reached()
        at_pay = await details_of(handle)
        gate.open()
        status = await handle.result()
        at_the_end = await details_of(handle)

    assert at_pay[:3] == ["**running**", "", "* reserve: done (2 × tea-mug: 24.00 EUR)"]
    assert at_the_end == [
        "**completed**",
        "",
        "* reserve: done (2 × tea-mug: 24.00 EUR)",
        *(f"* {step.step}: done ({step.detail})" for step in status.steps[1:]),
    ]


async def test_the_details_of_a_stuck_order_say_why_and_which_command_comes_next(shop: Shop) -> None:
    await shop.database.run(BREAK_UNDO["pay"])
    order = shop.order("nemo")

    async with shop.working():
        handle = await shop.start(order)
        await until_status(shop, order, "stuck")
        details = await details_of(handle)
        attributes = (await handle.describe()).typed_search_attributes
        summaries = await summaries_of(shop, handle)
        await handle.terminate()

    assert details[0].startswith("**stuck**: UndeliverableAddress: ")
    assert any(line.startswith("* pay: stuck (") and "injected" in line for line in details)
    assert f"`starter.py retry {order.order_id}`" in details[-1]
    assert f"`starter.py resolve {order.order_id} --step pay --reason ...`" in details[-1]
    assert (attributes[policies.ORDER_STATUS], attributes[policies.FAILED_STEP]) == ("stuck", "pay")
    assert summaries["park_order"] == "Park: the undo of pay keeps failing"


@pytest.mark.parametrize(
    ("customer", "line", "step", "undone"),
    [
        ("alice", ("no-such", 1), "reserve", "reserve nothing to undo"),
        ("bob", ("lamp", 1), "pay", "pay nothing to undo; reserve undone"),
        ("nemo", ("poster", 1), "ship", "ship nothing to undo; pay undone; reserve undone"),
    ],
)
async def test_a_rejected_order_names_the_step_that_failed_the_cause_and_what_was_undone(
    shop: Shop, customer: str, line: tuple[str, int], step: str, undone: str
) -> None:
    order = shop.order(customer, line)

    async with shop.working():
        handle = await shop.start(order)
        failure = await failure_of(handle)
        status = await Checkouts(shop.client, shop.task_queue, "http://ui").status(order.order_id)
        attributes = (await handle.describe()).typed_search_attributes

    assert attributes[policies.FAILED_STEP] == step
    assert attributes[policies.ORDER_STATUS] == "rejected"
    assert status.reason
    assert failure.message == f"order {order.order_id} rejected at {step}: {status.reason}. Undone: {undone}"


async def test_each_activity_of_an_order_says_in_words_what_it_does(shop: Shop) -> None:
    order = shop.order("nemo", ("poster", 2))

    async with shop.working():
        handle = await shop.start(order)
        await how_it_ended(handle)
        summaries = await summaries_of(shop, handle)

    assert summaries == {
        "reserve_inventory": "Reserve 2 × poster",
        "charge_payment": "Charge 34.00 EUR to nemo",
        "ship_order": "Ship to nemo",
        "cancel_shipment": "↩ Cancel the shipment",
        "refund_payment": "↩ Refund 34.00 EUR",
        "release_inventory": "↩ Release 2 × poster",
        "close_order": "Close the order as rejected",
    }


async def test_the_ui_lists_a_saga_by_what_was_ordered_and_a_batch_by_its_first_and_last(shop: Shop) -> None:
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    one, other = shop.order("alice", ("tea-mug", 2)), shop.order("carol", ("poster", 1))
    alone = shop.order("alice", ("lamp", 1), ("poster", 3))

    async with shop.working():
        await checkouts.start(alone)
        await checkouts.outcome(alone.order_id)
        await checkouts.process([one, other])
        batch = shop.client.get_workflow_handle(policies.bulk_workflow_id(digest([one, other])))
        of_the_batch = await (await batch.describe()).static_summary()
        of_the_saga = await (await shop.newest_run(alone).describe()).static_summary()
        details = await details_of(batch)

    assert of_the_saga == "1 × lamp, 3 × poster for alice"
    assert of_the_batch == f"2 orders: {one.order_id} to {other.order_id}"
    assert details[0].startswith("**2 orders**: ")
    assert "2 completed" in details[0]
    assert f"* {for_summary(one.order_id)}: completed" in details
