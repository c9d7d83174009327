"""A workflow that somebody has paused (`temporal workflow pause`): nothing of it runs, and nobody takes it for lost."""

import uuid
from collections.abc import Iterator

import pytest
from temporalio.api.workflowservice.v1 import PauseWorkflowExecutionRequest, UnpauseWorkflowExecutionRequest
from temporalio.client import Client

from activities.inventory import Inventory
from adapters.temporal import DATA_CONVERTER
from client.checkouts import Checkouts
from client.failures import Refused
from domain.bulk import DELEGATED
from sagafence.devservers.temporal import TemporalServer
from tests.conftest import Shop
from tests.workflow.bulk_scenes import between_steps, gates_of, mixed, start_batch
from tests.workflow.own_temporal import own_temporal
from tests.workflow.sagas import how_it_ended, until, violations


@pytest.fixture(scope="module")
def pausing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """A server of our own: to pause workflows has to be allowed, and is not by default."""
    with own_temporal(tmp_path_factory.mktemp("pausing"), **{"frontend.WorkflowPauseEnabled": True}) as server:
        yield server


@pytest.fixture
async def client(pausing: TemporalServer) -> Client:
    return await Client.connect(pausing.address, data_converter=DATA_CONVERTER)


async def pause(shop: Shop, workflow_id: str) -> None:
    await shop.client.workflow_service.pause_workflow_execution(
        PauseWorkflowExecutionRequest(
            namespace="default", workflow_id=workflow_id, reason="a test", request_id=uuid.uuid4().hex
        )
    )


async def unpause(shop: Shop, workflow_id: str) -> None:
    await shop.client.workflow_service.unpause_workflow_execution(
        UnpauseWorkflowExecutionRequest(
            namespace="default", workflow_id=workflow_id, reason="a test", request_id=uuid.uuid4().hex
        )
    )


async def test_the_sweep_takes_a_paused_order_for_alive(shop: Shop) -> None:
    order = shop.order("alice")
    await Inventory(shop.engine).reserve_inventory(order)
    handle = await shop.start(order)
    await pause(shop, handle.id)

    async with shop.working():
        report = await shop.sweep()
        status = await shop.order_status(order)
        await unpause(shop, handle.id)
        ended = await how_it_ended(handle)

    assert (report.alive, report.repaired, report.parked) == (1, [], [])
    assert status == "reserved"
    assert ended == "completed"
    assert await violations(shop) == []


async def test_the_sweep_leaves_the_orders_of_a_paused_batch_alone(shop: Shop) -> None:
    orders = mixed(shop)
    workflow_id = gates_of(shop, orders).order_id
    await between_steps(shop, workflow_id, orders[:1])
    handle = await start_batch(shop, orders)
    await pause(shop, workflow_id)

    async with shop.working():
        report = await shop.sweep()
        status = await shop.order_status(orders[0])
        await unpause(shop, workflow_id)
        outcomes = (await handle.result()).unpacked()
        ended = await how_it_ended(shop.newest_run(orders[0]))

    assert (report.repaired, report.started) == ([], [])
    assert status == "reserved"
    assert [outcome.status for outcome in outcomes[1:]] == ["rejected", "rejected", "rejected", "completed"]
    assert (outcomes[0].status, ended) == (DELEGATED, "completed")
    assert await violations(shop) == []


async def test_a_paused_order_is_reported_as_such_and_what_is_asked_of_it_is_refused_in_words(shop: Shop) -> None:
    order = shop.order("alice")
    checkouts = Checkouts(shop.client, shop.task_queue, "http://ui")
    handle = await shop.start(order)
    await pause(shop, handle.id)

    async with shop.working():
        output = await checkouts.status(order.order_id)

        async def is_listed() -> bool:
            return [one.status async for one in checkouts.list(None, 100) if one.order_id == order.order_id] == [
                "paused"
            ]

        await until(is_listed)
        with pytest.raises(Refused, match="paused"):
            await checkouts.cancel(order.order_id, "changed my mind")
        await unpause(shop, handle.id)
        ended = await how_it_ended(handle)

    assert output.status == "paused"
    assert "until it is unpaused" in (output.reason or "")
    assert ended == "completed"
